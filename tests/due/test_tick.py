"""The tick on a real database: once per scheduled time, whoever else ticks and wherever one dies."""

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from app import faults
from app.database import Connection, Database, clock, new_id
from app.due.tick import Tick, settle_job
from app.loop import Loop
from app.progress import moves
from app.progress.transition import apply
from app.schedule import triggers
from tests.processes import eventually

EVERY_SECOND = {"type": "interval", "every_s": 1}


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm("")


async def add_job(
    connection: Connection, cursor: datetime, next_run_time: datetime | None = None, **changes: Any
) -> UUID:
    await connection.execute(
        "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('default', 'n', 'd', 'd', 'a')"
        " ON CONFLICT DO NOTHING"
    )
    job: dict[str, Any] = {
        "id": new_id(),
        "namespace": "n",
        "name": str(new_id()),
        "task": "t",
        "queue": "default",
        "trigger": EVERY_SECOND,
        "retry": {},
        "overlap": "allow",
        "cursor_time": cursor,
        "next_run_time": cursor,
        "author": "a",
        **changes,
    }
    places = ", ".join(f"${n}" for n in range(1, len(job) + 1))
    await connection.execute(f"INSERT INTO jobs ({', '.join(job)}) VALUES ({places})", *job.values())
    await connection.execute(
        "INSERT INTO job_versions (job_id, version, definition, author) VALUES ($1, 1, '{}', 'a')", job["id"]
    )
    return UUID(int=job["id"].int)


async def accounted(connection: Connection, job: UUID) -> tuple[int, int]:
    """Runs and skipped counts of a job."""
    runs = await connection.fetchval("SELECT count(*) FROM runs WHERE job_id = $1", job)
    skipped = await connection.fetchval("SELECT coalesce(sum(count), 0) FROM skips WHERE job_id = $1", job)
    return runs, int(skipped)


async def begin(database: Database, ago_s: int = 10, **changes: Any) -> tuple[UUID, datetime]:
    async with database.transaction() as connection:
        cursor = (await clock(connection)).replace(microsecond=0) - timedelta(seconds=ago_s)
        return await add_job(connection, cursor, **changes), cursor


async def test_latest_fires_and_the_rest_is_coalesced_into_it(database: Database, redis: Redis) -> None:
    """Pain 11: what is late runs, or is told."""
    job, cursor = await begin(database)
    await Tick(database, redis, 100).run_once()
    async with database.reading() as connection:
        row = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1", job)
        run = await connection.fetchrow("SELECT * FROM runs WHERE job_id = $1", job)
        skip = await connection.fetchrow("SELECT * FROM skips WHERE job_id = $1", job)
    assert run["scheduled_time"] == row["cursor_time"] >= cursor + timedelta(seconds=10)
    assert (run["kind"], run["job_version"], run["state"]) == ("schedule", 1, "PENDING")
    assert (skip["reason"], skip["run_id"], skip["first_time"]) == (
        "coalesced",
        run["id"],
        cursor + timedelta(seconds=1),
    )
    assert 1 + skip["count"] == (row["cursor_time"] - cursor).total_seconds()
    assert row["next_run_time"] == row["cursor_time"] + timedelta(seconds=1)
    assert row["last_run_time"] is not None


async def test_times_behind_a_running_run_share_one_row(database: Database, redis: Redis) -> None:
    job, _ = await begin(database, 1, overlap="skip")
    tick = Tick(database, redis, 100)
    await tick.run_once()
    for _ in range(3):
        async with (
            database.transaction() as connection
        ):  # as if seconds went by: the cursor steps back, the row with it
            await connection.execute(
                "UPDATE jobs SET cursor_time = cursor_time - interval '2 s', next_run_time = now()"
            )
            await connection.execute(
                "UPDATE skips SET first_time = first_time - interval '2 s', last_time = last_time - interval '2 s'"
            )
        await tick.run_once()
    async with database.reading() as connection:
        run = await connection.fetchval("SELECT id FROM runs WHERE job_id = $1", job)
        skips = await connection.fetch("SELECT * FROM skips WHERE job_id = $1 AND reason = 'overlap'", job)
    assert [(skip["run_id"], skip["count"] >= 6) for skip in skips] == [(run, True)]


async def test_a_job_whose_trigger_raises_is_parked_and_the_others_fire(database: Database, redis: Redis) -> None:
    broken, _ = await begin(database, trigger={"type": "no such trigger"})
    sound, _ = await begin(database)
    await Tick(database, redis, 100).run_once()
    async with database.reading() as connection:
        parked = await connection.fetchrow("SELECT problem, next_run_time FROM jobs WHERE id = $1", broken)
        assert parked["problem"].startswith("the trigger cannot be evaluated")
        assert parked["next_run_time"] is None
        assert (await accounted(connection, sound))[0] == 1


async def test_many_schedulers_fire_each_time_once(database: Database, redis: Redis) -> None:
    """Pain 23."""
    async with database.transaction() as connection:
        cursor = (await clock(connection)).replace(microsecond=0) - timedelta(seconds=3)
        jobs = [await add_job(connection, cursor) for _ in range(60)]
    ticks = [Tick(database, redis, 7) for _ in range(4)]
    for pause_s in (0, 1, 1):
        await asyncio.sleep(pause_s)  # the next whole second falls due
        await asyncio.gather(*(until_idle(tick) for tick in ticks))
    async with database.reading() as connection:
        for job in jobs:
            row = await connection.fetchrow("SELECT cursor_time FROM jobs WHERE id = $1", job)
            assert sum(await accounted(connection, job)) == (row["cursor_time"] - cursor).total_seconds()


@pytest.mark.parametrize("point", ["tick.after_select", "tick.before_commit", "tick.after_commit"])
async def test_all_makes_up_for_a_long_downtime_whoever_dies_meanwhile(
    database: Database, redis: Redis, point: str
) -> None:
    """Each pass is bounded, no job loses its place, and no time fires twice, also with a crash between two passes."""
    jobs = [await begin(database, 60 * n, misfire="all") for n in (1, 2, 3, 4)]
    faults.arm(f"{point}=raise*2")
    ticks = [Tick(database, redis, 100) for _ in range(3)]
    ended = await asyncio.gather(*(until_idle(tick) for tick in ticks), return_exceptions=True)
    assert [type(end) for end in ended if end is not None] == [faults.InjectedFault]
    faults.arm("")
    await until_idle(Tick(database, redis, 100))
    async with database.reading() as connection:
        passes = await connection.fetch("SELECT count(*) AS runs FROM runs GROUP BY create_time")
        assert max(row["runs"] for row in passes) < 100 + 100
        for job, cursor in jobs:
            row = await connection.fetchrow("SELECT cursor_time FROM jobs WHERE id = $1", job)
            behind = int((row["cursor_time"] - cursor).total_seconds())
            assert sum(await accounted(connection, job)) == behind
            first = await connection.fetch(
                "SELECT scheduled_time FROM runs WHERE job_id = $1 ORDER BY scheduled_time LIMIT 60", job
            )
            assert [row[0] for row in first] == [cursor + timedelta(seconds=n) for n in range(1, 61)]
            skips = await connection.fetch(
                "SELECT reason, first_time FROM skips WHERE job_id = $1 ORDER BY first_time", job
            )
            assert [(row["reason"], row["first_time"]) for row in skips][: behind > 100] == (
                [("limit", cursor + timedelta(seconds=101))] if behind > 100 else []
            )


async def test_the_oldest_fires_for_all_and_the_others_name_it(database: Database, redis: Redis) -> None:
    job, cursor = await begin(database, 10, misfire="earliest")
    await Tick(database, redis, 100).run_once()
    async with database.reading() as connection:
        run = await connection.fetchrow("SELECT * FROM runs WHERE job_id = $1", job)
        skip = await connection.fetchrow("SELECT * FROM skips WHERE job_id = $1", job)
    assert run["scheduled_time"] == cursor + timedelta(seconds=1)
    assert (skip["reason"], skip["run_id"], skip["count"] >= 9) == ("coalesced", run["id"], True)
    assert skip["first_time"] == cursor + timedelta(seconds=2)


async def until_idle(tick: Tick) -> None:
    while await tick.run_once():
        pass


@pytest.mark.parametrize("point", ["tick.after_select", "tick.before_commit"])
async def test_a_pass_that_dies_before_its_commit_leaves_nothing(database: Database, redis: Redis, point: str) -> None:
    job, _ = await begin(database)
    faults.arm(f"{point}=raise")
    with pytest.raises(faults.InjectedFault):
        await Tick(database, redis, 100).run_once()
    async with database.reading() as connection:
        assert await accounted(connection, job) == (0, 0)
    faults.arm("")
    await Tick(database, redis, 100).run_once()
    async with database.reading() as connection:
        assert (await accounted(connection, job))[0] == 1


async def test_a_pass_that_dies_after_its_commit_has_fired(database: Database, redis: Redis) -> None:
    job, _ = await begin(database)
    faults.arm("tick.after_commit=raise")
    with pytest.raises(faults.InjectedFault):
        await Tick(database, redis, 100).run_once()
    async with database.reading() as connection:
        assert (await accounted(connection, job))[0] == 1


async def test_a_run_that_was_restored_is_not_fired_again(database: Database, redis: Redis) -> None:
    """The cursor is older than the runs, as after a restore of one table: the unique key decides."""
    job, cursor = await begin(database, 1)
    tick = Tick(database, redis, 100)
    await tick.run_once()
    async with database.transaction() as connection:
        fired = await connection.fetchval("SELECT scheduled_time FROM runs WHERE job_id = $1", job)
        await connection.execute(
            "UPDATE jobs SET cursor_time = $2, next_run_time = $2, trigger = $3 WHERE id = $1",
            job,
            cursor,
            {"type": "once", "run_time": fired.isoformat()},
        )
    await tick.run_once()
    async with database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM runs WHERE job_id = $1", job) == 1
        assert await connection.fetchval("SELECT next_run_time FROM jobs WHERE id = $1", job) is None


async def test_settling_deals_with_all_up_to_now(database: Database, redis: Redis) -> None:
    job, cursor = await begin(database, 5)
    async with database.transaction() as connection:
        now = await clock(connection)
        row, runs = await settle_job(connection, now, job)
        assert row is not None
        assert len(runs) == 1
        assert row["cursor_time"] == now.replace(microsecond=0)
        assert sum(await accounted(connection, job)) == (row["cursor_time"] - cursor).total_seconds()
        assert await settle_job(connection, now, new_id()) == (None, [])


async def test_deadlines_count_from_the_scheduled_time(database: Database, redis: Redis) -> None:
    await begin(database, 5, overlap="skip", start_deadline_s=60, deadline_s=90)
    await Tick(database, redis, 10).run_once()
    async with database.reading() as connection:
        run = await connection.fetchrow("SELECT * FROM runs")
    assert run["start_deadline_time"] == run["scheduled_time"] + timedelta(seconds=60)
    assert run["deadline_time"] == run["scheduled_time"] + timedelta(seconds=90)


async def test_deadlines_leave_jitter_out(database: Database, redis: Redis) -> None:
    """Else a start deadline shorter than the jitter would be over before the run is made."""
    trigger = {"type": "interval", "every_s": 3600, "jitter_s": 3600}
    job, _ = await begin(database, 7300, trigger=trigger, misfire="earliest", start_deadline_s=60, deadline_s=90)
    await Tick(database, redis, 10).run_once()
    async with database.reading() as connection:
        run = await connection.fetchrow("SELECT * FROM runs")
    due_time = triggers.due_time(triggers.load(trigger), job, run["scheduled_time"])
    assert due_time > run["scheduled_time"]
    assert run["start_deadline_time"] == due_time + timedelta(seconds=60)
    assert run["deadline_time"] == due_time + timedelta(seconds=90)


async def test_a_pause_is_accounted_for(database: Database) -> None:
    job, cursor = await begin(database, 30)
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET next_run_time = NULL, pause_time = cursor_time, pause_by = 'a'")
        row, runs = await settle_job(connection, await clock(connection), job)
        assert row is not None
        assert (runs, row["next_run_time"]) == ([], None)
        skip = await connection.fetchrow("SELECT * FROM skips WHERE job_id = $1", job)
        assert (skip["reason"], skip["count"]) == ("paused", (row["cursor_time"] - cursor).total_seconds())


async def test_the_end_of_a_run_lets_the_next_time_fire(database: Database, redis: Redis) -> None:
    job, _ = await begin(database, 1, overlap="skip")
    tick = Tick(database, redis, 100)
    await tick.run_once()
    async with database.transaction() as connection:
        now = await clock(connection)
        run = await connection.fetchval("SELECT id FROM runs WHERE job_id = $1", job)
        await apply(connection, now, {run: [moves.cancel(now, "asked")]})
        await connection.execute("UPDATE jobs SET cursor_time = cursor_time - interval '1 s', next_run_time = now()")
        await connection.execute("UPDATE runs SET scheduled_time = scheduled_time - interval '9 s'")
    await tick.run_once()
    async with database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM runs WHERE job_id = $1", job) == 2


async def test_a_pass_that_finds_only_what_another_one_holds_rests_before_it_looks_again(
    database: Database, redis: Redis
) -> None:
    await begin(database)
    passes = 0
    tick = Tick(database, redis, 100)
    stop = asyncio.Event()

    async def counted() -> bool:
        nonlocal passes
        passes += 1
        return await tick.run_once()

    async def several() -> bool:
        return passes > 5

    async with database.transaction() as connection:
        await connection.fetch("SELECT FROM jobs FOR UPDATE")  # as a scheduler that is frozen in the middle of a tick
        began = time.monotonic()
        looking = asyncio.create_task(Loop("tick", counted, lambda: tick.pause_s).run(stop))
        await eventually(several, 30, "some passes")
        assert passes <= 1 + 30 * (time.monotonic() - began)
        assert tick.pause_s <= 0.05, "it is looked at again soon"
    await eventually(lambda: fired(database), 30, "the rows are dealt with once they are free")
    stop.set()
    await looking


async def test_the_time_that_a_pass_takes_does_not_make_the_next_one_late(database: Database, redis: Redis) -> None:
    await begin(database, 1)
    tick = Tick(database, redis, 100)
    faults.arm("tick.before_commit=delay:0.4")
    stop = asyncio.Event()
    ticking = asyncio.create_task(Loop("tick", tick.run_once, lambda: tick.pause_s).run(stop))

    async def punctual() -> bool:
        async with database.reading() as connection:
            late = await connection.fetch("SELECT create_time - scheduled_time AS late FROM runs ORDER BY id OFFSET 1")
        return any(row["late"] < timedelta(seconds=0.2) for row in late)

    try:
        # The first pass began at any moment, and a busy machine may delay others; each would be 0.4 s late.
        await eventually(punctual, 30, "a run in time behind a pass that took long")
    finally:
        stop.set()
        await ticking


async def fired(database: Database, runs: int = 1) -> bool:
    async with database.reading() as connection:
        return await connection.fetchval("SELECT count(*) FROM runs") >= runs
