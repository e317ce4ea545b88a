"""Runs that wait for others of their job, on a real database: who waits, who is let go, and that no two are at work
where one may be."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from app.database import Connection, Database, Record, clock, new_id
from app.due import queries
from app.due import tick as ticking
from app.due.admit import admit_one
from app.due.overlap import Overlap
from app.due.tick import Tick
from app.errors import NoRoom
from app.progress import moves, transition, waiting
from app.progress.fold import Report, fold
from app.progress.reap import Reaper
from app.progress.standing import Standing
from app.progress.transition import NewRun
from app.settings import Settings
from app.states import FAILURE, REVOKED, SUCCESS, TERMINAL
from tests.due.test_tick import add_job
from workers.protocol import TaskId


async def add(database: Database, **changes: Any) -> UUID:
    """A job whose next second is due now."""
    async with database.transaction() as connection:
        cursor = (await clock(connection)).replace(microsecond=0) - timedelta(seconds=1)
        return await add_job(connection, cursor, **changes)


async def fall_due(database: Database, job: UUID) -> datetime:
    """One more of the job's times falls due, whatever the time is; when that was."""
    async with database.transaction() as connection:
        # What was dealt with lies long ago, so that a second may be dealt with twice.
        await connection.execute(
            "UPDATE runs SET scheduled_time = scheduled_time - interval '1000 s' WHERE job_id = $1", job
        )
        await connection.execute(
            "UPDATE skips SET first_time = first_time - interval '1000 s', last_time = last_time - interval '1000 s'"
            " WHERE job_id = $1",
            job,
        )
        now: datetime = await connection.fetchval(
            "UPDATE jobs SET cursor_time = date_trunc('second', now()) - interval '1 s', next_run_time = now()"
            " WHERE id = $1 RETURNING next_run_time",
            job,
        )
    return now


async def fire(database: Database, redis: Redis, job: UUID) -> None:
    """One more of the job's times falls due, and a tick deals with it before another one does."""
    now = await fall_due(database, job)

    async def then(_: Connection) -> datetime:
        return now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ticking, "clock", then)
        await Tick(database, redis, 100).run_once()


async def runs_of(database: Database, job: UUID) -> list[Record]:
    async with database.reading() as connection:
        return await connection.fetch("SELECT * FROM runs WHERE job_id = $1 ORDER BY id", job)


async def end(database: Database, *runs: UUID, state: str = SUCCESS, begun: bool = True) -> list[Record]:
    """A worker's last word, as far as the row goes; of one that never began, a deadline's."""
    async with database.transaction() as connection:
        now = await clock(connection)
        error = {"error": {"type": "E", "message": "", "traceback": None}} if state == FAILURE else {}

        def move(standing: Standing) -> Standing | None:
            if standing.state in TERMINAL:
                return None
            return moves.end(now, standing, state, start_time=now if begun else None, **error)

        return await transition.apply(connection, now, {run: [move] for run in runs})


async def send(database: Database, run: UUID) -> None:
    """Its message is out."""
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE runs SET dispatches = 1, dispatch_time = now(), version = 2 WHERE id = $1", run
        )


def manual(job: UUID) -> NewRun:
    return NewRun(
        **{"id": new_id(), "kind": "manual", "namespace": "n", "task": "t", "args": [], "kwargs": {}},
        **{"queue": "default", "author": "a", "retry": {}, "job_id": job, "job_version": 1, "job_name": "j"},
    )


async def trigger(database: Database, job: UUID, overlap: Overlap) -> Record:
    async with database.transaction() as connection:
        row = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1 FOR NO KEY UPDATE", job)
        assert row is not None
        return (await admit_one(connection, await clock(connection), row, overlap, manual(job)))[0]


async def test_buffer_one_keeps_the_first_that_waits(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="buffer_one")
    for _ in range(3):
        await fire(database, redis, job)
    first, second = await runs_of(database, job)
    assert (first["waits_for"], first["reason"]) == (None, None)
    assert (second["waits_for"], second["reason"]) == (first["id"], f"waits for run {first['id']}")
    async with database.reading() as connection:
        skip = await connection.fetchrow("SELECT * FROM skips WHERE job_id = $1 AND reason = 'overlap'", job)
    assert (skip["run_id"], skip["count"]) == (second["id"], 1)

    ended, freed = await end(database, first["id"])
    assert (ended["id"], freed["id"]) == (first["id"], second["id"])
    assert (freed["waits_for"], freed["most_active"], freed["reason"]) == (None, None, None)
    assert second["due_time"] > freed["due_time"] >= second["create_time"], "while it waits it is due in another age"
    await fire(database, redis, job)
    assert [run["waits_for"] for run in await runs_of(database, job)] == [None, None, second["id"]]


async def test_buffer_all_is_a_line(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="buffer_all")
    for _ in range(4):
        await fire(database, redis, job)
    a, b, c, d = await runs_of(database, job)
    assert [b["waits_for"], c["waits_for"], d["waits_for"]] == [a["id"], b["id"], c["id"]]

    # One in the midst of the line goes: its next waits for the one before it, and nobody is let go.
    _, moved = await end(database, c["id"], state=REVOKED)
    assert (moved["id"], moved["waits_for"], moved["reason"]) == (d["id"], b["id"], f"waits for run {b['id']}")
    for before, after in ((a, b), (b, d)):
        _, freed = await end(database, before["id"])
        assert (freed["id"], freed["waits_for"]) == (after["id"], None)


async def test_the_head_of_a_line_waits_for_everybody_that_is_active(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="buffer_all")
    await fire(database, redis, job)
    beside = await trigger(database, job, "allow")
    await fire(database, redis, job)
    first, _, third = await runs_of(database, job)
    assert (beside["waits_for"], third["waits_for"]) == (None, first["id"])
    _, moved = await end(database, first["id"])
    assert (moved["id"], moved["waits_for"]) == (third["id"], beside["id"])
    _, freed = await end(database, beside["id"])
    assert (freed["id"], freed["waits_for"]) == (third["id"], None)


async def test_all_of_a_line_may_end_at_once(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="buffer_all")
    for _ in range(4):
        await fire(database, redis, job)
    a, b, c, d = (run["id"] for run in await runs_of(database, job))
    rows = await end(database, a, b, c)
    assert [(row["id"], row["waits_for"]) for row in rows] == [(a, None), (b, None), (c, None), (d, None)]
    assert [row["end_time"] is None for row in rows] == [False, False, False, True]


async def test_cancel_other_asks_and_waits(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="cancel_other")
    await fire(database, redis, job)
    (first,) = await runs_of(database, job)
    await send(database, first["id"])
    await fire(database, redis, job)
    first, second = await runs_of(database, job)
    assert (first["cancel"]["by"], first["cancel"]["terminate"]) == ("the overlap policy of its job", False)
    assert (first["end_time"], first["cancel_next_time"] is not None) == (None, True)
    assert second["waits_for"] == first["id"]

    # A third takes the place of the one that waits.
    await fire(database, redis, job)
    first, second, third = await runs_of(database, job)
    assert (second["state"], second["reason"]) == (REVOKED, f"replaced by run {third['id']}")
    assert (second["waits_for"], third["waits_for"]) == (None, first["id"])
    _, freed = await end(database, first["id"], state=REVOKED)
    assert (freed["id"], freed["waits_for"]) == (third["id"], None)


async def test_cancel_other_waits_for_nothing_that_was_never_sent(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="cancel_other")
    for _ in range(2):
        await fire(database, redis, job)
    first, second = await runs_of(database, job)
    assert (first["state"], first["reason"]) == (REVOKED, "cancelled by the overlap policy of its job")
    assert (second["state"], second["waits_for"]) == ("PENDING", None)


async def test_terminate_other_begins_at_once(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="terminate_other")
    await fire(database, redis, job)
    (first,) = await runs_of(database, job)
    await send(database, first["id"])
    await fire(database, redis, job)
    first, second = await runs_of(database, job)
    assert (first["cancel"]["terminate"], first["cancel"]["grace_s"]) == (True, 0)
    assert (first["end_time"], second["waits_for"]) == (None, None)


async def test_max_active_holds_for_whoever_asks(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="allow", max_active=2)
    for _ in range(3):
        await fire(database, redis, job)
    asked = await trigger(database, job, "allow")
    a, b, c, d = await runs_of(database, job)
    assert asked["id"] == d["id"]
    assert [run["waits_for"] for run in (a, b, c, d)] == [None, None, a["id"], c["id"]]
    # It is the number that counts, not whom the head of the line names.
    _, freed = await end(database, b["id"])
    assert (freed["id"], freed["waits_for"]) == (c["id"], None)
    rows = await end(database, a["id"], c["id"])
    assert [(row["id"], row["waits_for"]) for row in rows[2:]] == [(d["id"], None)]


async def test_a_trigger_with_a_policy_of_its_own(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="skip")
    first = await trigger(database, job, "skip")
    with pytest.raises(NoRoom, match=str(first["id"])):
        await trigger(database, job, "skip")
    second = await trigger(database, job, "buffer_one")
    assert second["waits_for"] == first["id"]
    with pytest.raises(NoRoom, match=str(second["id"])):
        await trigger(database, job, "buffer_one")
    assert (await trigger(database, job, "buffer_all"))["waits_for"] == second["id"]
    assert (await trigger(database, job, "allow"))["waits_for"] is None
    # The schedule's own times are skipped while any of them lives, also one that only waits.
    await fire(database, redis, job)
    assert len(await runs_of(database, job)) == 4


async def test_what_was_passed_over_is_let_go_by_the_reaper(
    database: Database, redis: Redis, settings: Settings
) -> None:
    job = await add(database, overlap="buffer_all")
    for _ in range(2):
        await fire(database, redis, job)
    first, second = await runs_of(database, job)
    async with database.transaction() as busy:  # somebody has the row of the second in hand
        await busy.execute("SELECT FROM runs WHERE id = $1 FOR NO KEY UPDATE", second["id"])
        assert [row["id"] for row in await end(database, first["id"])] == [first["id"]]
    assert (await runs_of(database, job))[1]["waits_for"] == first["id"]
    await Reaper(database, redis, settings, None).run_once()
    assert (await runs_of(database, job))[1]["waits_for"] is None


async def test_a_run_that_is_to_be_replaced_is_not_let_go_meanwhile(
    database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await add(database, overlap="cancel_other")
    await fire(database, redis, job)
    (first,) = await runs_of(database, job)
    await send(database, first["id"])
    await fire(database, redis, job)
    _, second = await runs_of(database, job)
    async with database.transaction() as busy:  # passed over when the first ends
        await busy.execute("SELECT FROM runs WHERE id = $1 FOR NO KEY UPDATE", second["id"])
        await end(database, first["id"], state=REVOKED)
    look = queries.live_runs

    async def look_and_dawdle(connection: Connection, jobs: Sequence[UUID]) -> list[Record]:
        rows = await look(connection, jobs)
        await Reaper(database, redis, settings, None).run_once()
        return rows

    monkeypatch.setattr(queries, "live_runs", look_and_dawdle)
    await fire(database, redis, job)
    _, second, third = await runs_of(database, job)
    assert (second["state"], second["reason"]) == (REVOKED, f"replaced by run {third['id']}")
    async with database.reading() as connection:
        assert await _active(connection, job) == [third["id"]]


async def test_who_replaces_and_who_ends_what_waits_do_not_wait_for_each_other(
    database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reaper comes for a run that waits, and behind it for an active one that is younger."""
    job = await add(database, overlap="cancel_other")
    await trigger(database, job, "allow")
    late = [await trigger(database, job, "buffer_all"), await trigger(database, job, "allow")]
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE runs SET start_deadline_time = now() - interval '1 s' WHERE id = ANY($1)",
            [run["id"] for run in late],
        )
    look, reaping = queries.live_runs, []

    async def look_and_dawdle(connection: Connection, jobs: Sequence[UUID]) -> list[Record]:
        rows = await look(connection, jobs)
        reaping.append(asyncio.create_task(Reaper(database, redis, settings, None).run_once()))
        await asyncio.sleep(0.3)
        return rows

    monkeypatch.setattr(queries, "live_runs", look_and_dawdle)
    await fire(database, redis, job)
    await asyncio.gather(*reaping)
    assert [run["state"] for run in await runs_of(database, job)] == [REVOKED, REVOKED, REVOKED, "PENDING"]


async def test_a_run_that_somebody_has_in_hand_holds_up_its_own_job_alone(database: Database, redis: Redis) -> None:
    job = await add(database, overlap="buffer_one")
    await fire(database, redis, job)
    (first,) = await runs_of(database, job)
    other = await add(database, overlap="allow")
    tick = Tick(database, redis, 100)
    await fall_due(database, job)
    async with database.transaction() as busy:
        await busy.execute("SELECT FROM runs WHERE id = $1 FOR NO KEY UPDATE", first["id"])
        async with asyncio.timeout(30):
            assert not await tick.run_once()
        assert (len(await runs_of(database, job)), len(await runs_of(database, other))) == (1, 1)
        assert tick.pause_s <= 0.05, "it is looked at again soon"
    await tick.run_once()
    assert [run["waits_for"] for run in await runs_of(database, job)] == [None, first["id"]]


async def test_lines_are_told_page_by_page(database: Database, redis: Redis) -> None:
    jobs = sorted([await add(database, overlap="buffer_one") for _ in range(3)])
    for job in jobs:
        for _ in range(2):
            await fire(database, redis, job)
    async with database.reading() as connection:
        page = await waiting.lines(connection, UUID(int=0), 2)
        assert [UUID(int=one.int) for one in page] == jobs[:2]
        assert [UUID(int=one.int) for one in await waiting.lines(connection, page[-1], 2)] == jobs[2:]


@pytest.mark.parametrize(("overlap", "max_active"), [("buffer_all", None), ("allow", 3)])
async def test_never_more_at_work_than_may_be_and_nobody_is_forgotten(
    database: Database, redis: Redis, settings: Settings, overlap: Overlap, max_active: int | None
) -> None:
    """Fired, triggered and ended from all sides at once. Pain 23."""
    job = await add(database, overlap=overlap, max_active=max_active)
    most = max_active or 1
    done: list[UUID] = []

    async def ask() -> None:
        for _ in range(12):
            await trigger(database, job, overlap)

    async def work() -> None:
        while len(done) < 36:
            async with database.reading() as connection:
                active = await _active(connection, job)
            assert len(active) <= most
            for run in active:
                done.extend(row["id"] for row in await end(database, run) if row["end_time"] is not None)
            if not active:
                # Nobody may stand still while nobody is in the way, but for one whom a lock has kept.
                await Reaper(database, redis, settings, None).run_once()

    async with asyncio.timeout(60):
        await asyncio.gather(*(ask() for _ in range(3)), *(work() for _ in range(3)))
    assert len(done) == len(set(done)) == 36


async def _active(connection: Connection, job: UUID) -> list[UUID]:
    rows = await connection.fetch(
        "SELECT id FROM runs WHERE job_id = $1 AND end_time IS NULL AND waits_for IS NULL", job
    )
    return [row["id"] for row in rows]


async def test_a_job_that_fails_again_and_again_is_paused(database: Database, redis: Redis) -> None:
    job = await add(database, pause_after_failures=2)
    tick = Tick(database, redis, 100)
    for state in (FAILURE, SUCCESS, FAILURE, REVOKED):
        await fire(database, redis, job)
        await end(database, (await runs_of(database, job))[-1]["id"], state=state)
    await fire(database, redis, job)
    last = (await runs_of(database, job))[-1]
    assert last["state"] == "PENDING"
    async with database.transaction() as connection:  # nothing falls due any more
        await connection.execute("UPDATE jobs SET next_run_time = now() + interval '1 h'")
    await end(database, last["id"], state=FAILURE)
    await tick.run_once()
    async with database.reading() as connection:
        row = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1", job)
    assert row["pause_reason"] == f"2 runs in a row failed, the last of them {last['id']}"
    assert (row["pause_by"], row["next_run_time"], row["version"]) == ("jobplane", None, 1)
    assert row["pause_time"] is not None


async def test_what_no_worker_ever_began_is_no_failure_of_the_job(database: Database, redis: Redis) -> None:
    job = await add(database, pause_after_failures=2)
    for begun in (True, False, False):
        await fire(database, redis, job)
        await end(database, (await runs_of(database, job))[-1]["id"], state=FAILURE, begun=begun)
    await fire(database, redis, job)
    assert len(await runs_of(database, job)) == 4
    await end(database, (await runs_of(database, job))[-1]["id"], state=FAILURE)
    await fire(database, redis, job)
    assert len(await runs_of(database, job)) == 4, "two that began have failed, with none in between that succeeded"


async def test_no_time_fires_after_the_failure_that_was_one_too_many(database: Database, redis: Redis) -> None:
    job = await add(database, pause_after_failures=1)
    await fire(database, redis, job)
    await end(database, (await runs_of(database, job))[0]["id"], state=FAILURE)
    await fire(database, redis, job)
    assert len(await runs_of(database, job)) == 1
    async with database.reading() as connection:
        row = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1", job)
        skip = await connection.fetchrow("SELECT * FROM skips WHERE job_id = $1 AND reason = 'paused'", job)
    assert row["pause_reason"].startswith("its run ")
    assert skip["count"] >= 1


async def test_looking_for_failures_walks_over_no_other_runs(database: Database, redis: Redis) -> None:
    """Neither those that were replaced again and again, nor those of before a resume."""
    job = await add(database, pause_after_failures=2)
    for state in (FAILURE, SUCCESS, FAILURE):
        await end(database, (await trigger(database, job, "allow"))["id"], state=state)
    async with database.transaction() as connection:
        new = [manual(job) for _ in range(2000)]
        await transition.create(connection, await clock(connection), new)
        await connection.execute(
            "UPDATE runs SET state = 'REVOKED', end_time = clock_timestamp() WHERE job_id = $1 AND end_time IS NULL",
            job,
        )
    async with database.transaction() as connection:
        await connection.execute("ANALYZE runs")
    read = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'runs'"
    async with database.transaction() as connection:
        before = await connection.fetchval(read)
        assert await queries.failed_in_a_row(connection, [job]) == []
        assert await connection.fetchval(read) - before < 20
        await connection.execute("UPDATE jobs SET failures_from_time = clock_timestamp() WHERE id = $1", job)
        before = await connection.fetchval(read)
        assert await queries.failed_in_a_row(connection, [job]) == []
        assert await connection.fetchval(read) - before < 20


@pytest.mark.parametrize("state", ["STARTED", "PROGRESS", "RETRY", REVOKED])
async def test_a_run_that_waits_and_that_a_worker_has_waits_no_more(
    database: Database, redis: Redis, state: str
) -> None:
    """A scheduler that knows of no lines has sent it, say."""
    job = await add(database, overlap="buffer_all")
    for _ in range(3):
        await fire(database, redis, job)
    first, second, third = await runs_of(database, job)
    async with database.transaction() as connection:
        now = await clock(connection)
        await transition.apply(connection, now, {second["id"]: [fold(Report(TaskId(second["id"], 1), state), now)]})
    _, second, third = await runs_of(database, job)
    assert (second["waits_for"], second["dispatch_time"]) == (None, now)
    assert third["waits_for"] == second["id"]
    assert [row["id"] for row in await end(database, first["id"])] == [first["id"]]
    assert [row["id"] for row in await end(database, second["id"])] == [second["id"], third["id"]]
