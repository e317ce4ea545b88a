"""Backfills on a real database: one run per time, whoever else goes on with it and wherever one dies."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from app import faults
from app.database import Connection, Database, Record, clock, new_id
from app.due import backfill_control, backfill_queries
from app.due.backfill import Backfiller
from app.due.backfill_control import Wish
from app.due.tick import Tick
from app.logs.store import Store
from app.progress import transition
from app.progress.announce import channel_of, tell
from app.progress.sweep import Sweeper
from app.progress.transition import NewRun
from app.settings import Settings
from app.states import FAILURE, REVOKED, SUCCESS
from tests.due.test_tick import add_job
from tests.due.test_waiting import end
from workers.protocol import DOORBELL_CHANNEL

EVERY_MINUTE = {"type": "interval", "every_s": 60}
DEFINITION: dict[str, Any] = {
    "namespace": "n",
    "name": "j",
    "task": "t.of.then",
    "args": [1],
    "kwargs": {"a": 2},
    "queue": "default",
    "priority": None,
    "trigger": EVERY_MINUTE,
    "retry": {"max_attempts": 3},
    "time_limit_s": 60.0,
    "soft_time_limit_s": None,
    "deadline_s": 90,
}


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm("")


async def add(connection: Connection, **changes: Any) -> UUID:
    """A job whose schedule has dealt with everything, and whose version 1 is `DEFINITION`."""
    job = await add_job(
        connection,
        (await clock(connection)).replace(microsecond=0),
        **{"trigger": EVERY_MINUTE, **changes},
    )
    await connection.execute("UPDATE jobs SET next_run_time = NULL WHERE id = $1", job)
    await connection.execute("UPDATE job_versions SET definition = $2 WHERE job_id = $1", job, DEFINITION)
    return job


async def ask(connection: Connection, job: UUID, begin: datetime, times: int, **changes: Any) -> UUID:
    wish = Wish(
        begin, begin + timedelta(minutes=times), **{"mode": "missing", "overlap": "allow", "max_active": 1, **changes}
    )
    row = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1 FOR NO KEY UPDATE", job)
    now = await clock(connection)
    total = await backfill_control.counted(row, now, wish)
    made = await backfill_control.begin(connection, now, row, wish, total, "ann")
    return UUID(int=made["id"].int)


async def start(database: Database, times: int = 5, **changes: Any) -> tuple[UUID, UUID, datetime]:
    """A job, a backfill of so many of its times, and the first of them."""
    async with database.transaction() as connection:
        job = await add(connection)
        now = await clock(connection)
        begin = now.replace(second=0, microsecond=0) - timedelta(minutes=times + 5)
        return job, await ask(connection, job, begin, times, **changes), begin


async def row_of(database: Database, backfill: UUID) -> Record:
    async with database.reading() as connection:
        row = await backfill_queries.by_id(connection, backfill)
    assert row is not None
    return row


async def runs_of(database: Database, backfill: UUID, *, live: bool = False) -> list[Record]:
    which = "AND end_time IS NULL" if live else ""
    async with database.reading() as connection:
        return await connection.fetch(f"SELECT * FROM runs WHERE backfill_id = $1 {which} ORDER BY id", backfill)


async def run_that_names(database: Database, job: UUID, time: datetime, state: str, kind: str = "schedule") -> UUID:
    async with database.transaction() as connection:
        run = NewRun(
            **{"id": new_id(), "kind": kind, "namespace": "n", "task": "t", "args": [], "kwargs": {}},
            **{"queue": "default", "author": "a", "retry": {}, "job_id": job, "job_version": 1, "job_name": "j"},
            scheduled_time=time,
        )
        await transition.create(connection, await clock(connection), [run])
    if state != "PENDING":
        await end(database, run.id, state=state)
    return run.id


def counts(row: Record) -> tuple[int, int, int, int, int]:
    return row["skipped"], row["succeeded"], row["failed"], row["revoked"], len(row["live"])


async def test_one_after_the_other_until_it_is_done(database: Database, redis: Redis) -> None:
    _, backfill, begin = await start(database, 3)
    filler = Backfiller(database, redis)
    for n, state in enumerate([SUCCESS, FAILURE, REVOKED]):
        await filler.run_once()
        await filler.run_once()  # there is no room: nothing more comes of it
        (run,) = await runs_of(database, backfill, live=True)
        assert run["scheduled_time"] == begin + timedelta(minutes=n)
        await end(database, run["id"], state=state)
    await filler.run_once()
    row = await row_of(database, backfill)
    assert (row["state"], row["reason"], counts(row), row["total"]) == ("DONE", None, (0, 1, 1, 1, 0), 3)
    assert row["end_time"] is not None
    assert len(await runs_of(database, backfill)) == 3


async def test_a_run_is_of_the_definition_of_then_and_stands_apart(database: Database, redis: Redis) -> None:
    job, backfill, begin = await start(database)
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET version = 2, task = 'of.now', trigger = '{}' WHERE id = $1", job)
    await Backfiller(database, redis).run_once()
    (run,) = await runs_of(database, backfill)
    assert (run["kind"], run["apart"], run["job_version"], run["job_name"]) == ("backfill", True, 1, "j")
    assert (run["task"], run["args"], run["kwargs"], run["author"]) == ("t.of.then", [1], {"a": 2}, "ann")
    assert (run["scheduled_time"], run["start_deadline_time"]) == (begin, None)
    assert run["deadline_time"] == run["create_time"] + timedelta(seconds=90)
    assert run["waits_for"] is None


async def test_the_modes(database: Database, redis: Redis) -> None:
    """The same five times: none, succeeded, failed, live, and failed but run again since by a backfill."""
    expected = {"missing": [0], "failed": [0, 2], "all": [0, 1, 2, 4]}
    for mode, wanted in expected.items():
        async with database.transaction() as connection:
            job = await add(connection)
            begin = (await clock(connection)).replace(second=0, microsecond=0) - timedelta(minutes=10)
            before = await ask(connection, job, begin, 5)
            await connection.execute("UPDATE backfills SET state = 'DONE', end_time = now() WHERE id = $1", before)
        for n, state in enumerate([SUCCESS, FAILURE, "PENDING", FAILURE], start=1):
            await run_that_names(database, job, begin + timedelta(minutes=n), state)
        await run_that_names(database, job, begin + timedelta(minutes=4), SUCCESS, kind="manual")
        async with database.transaction() as connection:
            backfill = await ask(connection, job, begin, 5, mode=mode, max_active=9)
        await Backfiller(database, redis).run_once()
        runs = await runs_of(database, backfill)
        assert [run["scheduled_time"] for run in runs] == [begin + timedelta(minutes=n) for n in wanted], mode
        row = await row_of(database, backfill)
        assert counts(row) == (5 - len(wanted), 0, 0, 0, len(wanted))
        wish = Wish(begin, begin + timedelta(minutes=5), mode, "allow", 1)  # type: ignore[arg-type]
        async with database.reading() as connection:
            found = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1", job)
        dry = await backfill_control.dry_run(database, found, wish, 5)
        assert (dry.runs, dry.looked_at) == (0, 5)  # what it made is live now


@pytest.mark.parametrize("point", ["backfill.after_claim", "backfill.before_commit", "backfill.after_commit"])
async def test_one_run_per_time_whoever_dies(database: Database, redis: Redis, point: str) -> None:
    """Four schedulers, each step of one of them dies, and what it made ends in between."""
    started = [await start(database, 20, max_active=3) for _ in range(3)]
    fillers = [Backfiller(database, redis) for _ in range(4)]
    died = 0
    for n in range(200):
        if n % 3 == 0:
            faults.arm(f"{point}=raise*{1 + n % 4}")
        passes = await asyncio.gather(*(filler.run_once() for filler in fillers), return_exceptions=True)
        died += sum(isinstance(one, faults.InjectedFault) for one in passes)
        assert not [one for one in passes if isinstance(one, Exception) and not isinstance(one, faults.InjectedFault)]
        live = [run["id"] for _, backfill, _ in started for run in await runs_of(database, backfill, live=True)]
        assert len(live) <= 9
        await end(database, *live[::2])
        states = {(await row_of(database, backfill))["state"] for _, backfill, _ in started}
        if states == {"DONE"}:
            break
    assert died > 3
    for _, backfill, begin in started:
        row, runs = await row_of(database, backfill), await runs_of(database, backfill)
        assert (row["state"], counts(row)) == ("DONE", (0, 20, 0, 0, 0))
        assert [run["scheduled_time"] for run in runs] == [begin + timedelta(minutes=n) for n in range(20)]


async def test_a_step_looks_at_a_bounded_number_of_times(database: Database, redis: Redis) -> None:
    """All have runs: the steps go through them a thousand at a time, and make nothing."""
    job, backfill, begin = await start(database, 2500)
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO runs (id, job_id, job_version, namespace, kind, scheduled_time, task, queue, retry, state,"
            " end_time, author) SELECT gen_random_uuid(), $1, 1, 'n', 'schedule', $2::timestamptz + n * interval '1 m',"
            " 't', 'default', '{}', 'SUCCESS', now(), 'a' FROM generate_series(0, 2498) AS n",
            job,
            begin,
        )
    filler = Backfiller(database, redis)
    seen = []
    while await filler.run_once():
        seen.append((await row_of(database, backfill))["skipped"])
    assert seen == [1000, 2000]
    (run,) = await runs_of(database, backfill)
    assert run["scheduled_time"] == begin + timedelta(minutes=2499)
    await end(database, run["id"])
    await filler.run_once()
    row = await row_of(database, backfill)
    assert (row["state"], counts(row)) == ("DONE", (2499, 1, 0, 0, 0))


async def test_buffer_all_stands_in_the_line_of_the_job(database: Database, redis: Redis) -> None:
    job, backfill, _ = await start(database, 3, overlap="buffer_all", max_active=3)
    async with database.transaction() as connection:
        first = (await clock(connection)).replace(microsecond=0) - timedelta(seconds=1)
    at_work = await run_that_names(database, job, first, "PENDING")
    filler = Backfiller(database, redis)
    await filler.run_once()
    a, b, c = await runs_of(database, backfill)
    assert [a["waits_for"], b["waits_for"], c["waits_for"]] == [at_work, a["id"], b["id"]]
    assert {run["apart"] for run in (a, b, c)} == {False}
    for run in (at_work, a["id"], b["id"], c["id"]):
        async with database.reading() as connection:
            going = await connection.fetch("SELECT id FROM runs WHERE end_time IS NULL AND waits_for IS NULL")
        assert [row["id"] for row in going] == [run]
        await end(database, run)
    await filler.run_once()
    assert (await row_of(database, backfill))["state"] == "DONE"


async def test_what_stands_apart_is_in_nobodys_way(database: Database, redis: Redis) -> None:
    job, backfill, _ = await start(database, 1)
    await Backfiller(database, redis).run_once()
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE jobs SET overlap = 'skip', cursor_time = date_trunc('second', now()) - interval '60 s',"
            " next_run_time = now() WHERE id = $1",
            job,
        )
    await Tick(database, redis, 10).run_once()
    async with database.reading() as connection:
        kinds = await connection.fetch("SELECT kind FROM runs WHERE job_id = $1 AND end_time IS NULL", job)
    assert sorted(row["kind"] for row in kinds) == ["backfill", "schedule"]
    assert (await row_of(database, backfill))["state"] == "ACTIVE"


async def test_pause_resume_and_cancel(database: Database, redis: Redis) -> None:
    _, backfill, _ = await start(database, 5, max_active=2)
    filler = Backfiller(database, redis)
    await filler.run_once()
    async with database.transaction() as connection:
        for _ in range(2):
            row = await backfill_control.pause(connection, await clock(connection), backfill, "lunch")
            assert (row["state"], row["reason"]) == ("PAUSED", "lunch")
    runs = await runs_of(database, backfill, live=True)
    await end(database, runs[0]["id"])
    await filler.run_once()
    assert counts(await row_of(database, backfill)) == (0, 1, 0, 0, 1)  # what ends is counted; nothing new begins
    async with database.transaction() as connection:
        row = await backfill_control.resume(connection, await clock(connection), backfill)
        assert (row["state"], row["reason"]) == ("ACTIVE", None)
    await filler.run_once()
    async with database.transaction() as connection:
        await connection.execute("UPDATE runs SET dispatches = 1, dispatch_time = now() WHERE id = $1", runs[1]["id"])
        now = await clock(connection)
        row, changed = await backfill_control.cancel(connection, now, backfill, "bob", keep_runs=False)
    # Of its two live runs one was not sent yet and has ended at once; the other is asked to.
    assert (row["state"], row["reason"], counts(row)) == ("CANCELLED", "cancelled by bob", (0, 1, 0, 1, 1))
    assert [run["cancel"]["by"] for run in changed] == ["bob", "bob"]
    await end(database, runs[1]["id"], state=REVOKED)
    await filler.run_once()
    row = await row_of(database, backfill)
    assert (row["state"], counts(row)) == ("CANCELLED", (0, 1, 0, 2, 0))
    assert len(await runs_of(database, backfill)) == 3


async def test_it_ends_with_its_job_and_without_its_queue(database: Database, redis: Redis) -> None:
    job, orphan, _ = await start(database, 5)
    moved, stranded, _ = await start(database, 5)
    filler = Backfiller(database, redis)
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET delete_time = now() WHERE id = $1", job)
        await connection.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('new', 'n', 'x', 'x', 'a')"
        )
        await connection.execute("UPDATE jobs SET queue = 'new' WHERE id = $1", moved)
        await connection.execute("DELETE FROM queues WHERE name = 'default'")
    await filler.run_once()
    row = await row_of(database, orphan)
    assert (row["state"], row["reason"]) == ("CANCELLED", "the job was deleted")
    row = await row_of(database, stranded)
    assert (row["state"], counts(row)) == ("CANCELLED", (0, 0, 0, 0, 0))
    assert row["reason"] == "there is no queue 'default' any more, which version 1 of the job names"
    assert await runs_of(database, stranded) == []


async def test_one_whose_trigger_raises_stops_and_the_others_go_on(database: Database, redis: Redis) -> None:
    job, broken, _ = await start(database)
    _, sound, _ = await start(database)
    async with database.transaction() as connection:
        definition = {**DEFINITION, "trigger": {"type": "no such trigger"}}
        await connection.execute("UPDATE job_versions SET definition = $2 WHERE job_id = $1", job, definition)
    await Backfiller(database, redis).run_once()
    row = await row_of(database, broken)
    assert row["state"] == "CANCELLED"
    assert row["reason"].startswith("the trigger of version 1 cannot be evaluated: ")
    assert len(await runs_of(database, sound)) == 1


async def test_what_somebody_else_holds_is_passed_over_and_looked_at_soon(database: Database, redis: Redis) -> None:
    job, held, _ = await start(database)
    _, free, _ = await start(database)
    filler = Backfiller(database, redis)
    async with database.transaction() as connection:
        await connection.fetch("SELECT FROM jobs WHERE id = $1 FOR UPDATE", job)
        await filler.run_once()
        assert (await runs_of(database, held), len(await runs_of(database, free))) == ([], 1)
        assert filler.pause_s < 0.1
    await filler.run_once()
    assert len(await runs_of(database, held)) == 1
    assert filler.pause_s == 1


async def test_the_end_of_a_run_of_it_wakes_the_schedulers(database: Database, redis: Redis) -> None:
    """Not that of any other run: there is nothing to be done about it."""
    job, backfill, begin = await start(database, 2)
    await Backfiller(database, redis).run_once()
    (run,) = await runs_of(database, backfill)
    other = await run_that_names(database, job, begin - timedelta(hours=1), "PENDING")
    async with redis.pubsub(ignore_subscribe_messages=True) as bell:
        await bell.subscribe(channel_of(redis, DOORBELL_CHANNEL))
        await bell.get_message(timeout=1)
        await tell(redis, await end(database, other))
        assert await bell.get_message(timeout=0.05) is None
        await tell(redis, await end(database, run["id"]))
        assert await bell.get_message(timeout=30) is not None


async def test_the_sweep_takes_what_ended_long_ago(database: Database, redis: Redis, settings: Settings) -> None:
    _, old, _ = await start(database)
    _, young, _ = await start(database)
    async with database.transaction() as connection:
        await connection.execute("UPDATE backfills SET state = 'DONE', end_time = now()")
        await connection.execute(
            "UPDATE backfills SET end_time = now() - make_interval(days => $2) WHERE id = $1",
            old,
            settings.retain_failure_days + 1,
        )
    await Sweeper(database, settings, Store(settings.log_store)).run_once()
    async with database.reading() as connection:
        assert [row["id"] for row in await connection.fetch("SELECT id FROM backfills")] == [young]
