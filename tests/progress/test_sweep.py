"""What retention forgets, and what it keeps."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app import faults
from app.database import Connection, Database, clock, new_id
from app.logs import place
from app.logs.store import Store
from app.progress.sweep import REFUSED_KEPT, Sweeper
from app.progress.transition import NewRun, create
from app.settings import Settings
from tests.progress.live import count, make_run
from tests.progress.standings import policy

NOW = datetime.now(UTC)


def days(number: float) -> datetime:
    return NOW - timedelta(days=number)


async def sweep(sweeper: Sweeper) -> int:
    """Sweep until there is no more; the number of passes."""
    passes = 1
    while await sweeper.run_once():
        passes += 1
        assert passes < 100
    return passes


async def ended(database: Database, state: str, end_time: datetime, **columns: Any) -> UUID:
    error = {"error": {"type": "E", "message": "", "traceback": None}} if state == "FAILURE" else {}
    run_id = await make_run(database, **columns)
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE runs SET state = $2, end_time = $3, error = $4 WHERE id = $1",
            run_id,
            state,
            end_time,
            error.get("error"),
        )
    return run_id


async def ids(database: Database, table: str = "runs") -> set[UUID]:
    async with database.reading() as connection:
        return {row["id"] for row in await connection.fetch(f"SELECT id FROM {table}")}


async def make_job(connection: Connection, name: str, **columns: Any) -> UUID:
    job_id = new_id()
    await connection.execute(
        "INSERT INTO jobs (id, namespace, name, task, trigger, retry, cursor_time, author, queue, delete_time)"
        " VALUES ($1, 'default', $2, 't', '{}', '{}', $3, 'test', NULL, $4)",
        job_id,
        name,
        datetime(2026, 1, 1, tzinfo=UTC),
        columns.get("delete_time", NOW),
    )
    await connection.execute(
        "INSERT INTO job_versions (job_id, version, definition, author) VALUES ($1, 1, '{}', 'test')", job_id
    )
    return job_id


async def test_ended_runs_go_by_age_and_state_in_batches(database: Database, settings: Settings) -> None:
    kept = {
        await ended(database, "SUCCESS", days(6.9)),
        await ended(database, "REVOKED", days(6.9)),
        await ended(database, "FAILURE", days(29)),
        await make_run(database, create_time=days(100), update_time=days(100)),
    }
    for _ in range(7):
        await ended(database, "SUCCESS", days(7.1))
    await ended(database, "REVOKED", days(8))
    await ended(database, "FAILURE", days(31))
    assert await sweep(Sweeper(database, settings, Store(settings.log_store), batch=3)) == 4
    assert await ids(database) == kept
    assert await count(database, "run_events") == len(kept)


async def test_failures_may_be_kept_for_less_long_than_successes(database: Database, settings: Settings) -> None:
    shorter = settings.model_copy(update={"retain_success_days": 30.0, "retain_failure_days": 1.0})
    kept = await ended(database, "SUCCESS", days(20))
    await ended(database, "FAILURE", days(2))
    await sweep(Sweeper(database, shorter, Store(settings.log_store)))
    assert await ids(database) == {kept}


async def test_the_newest_run_of_a_job_stays_until_the_job_is_deleted(database: Database, settings: Settings) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('q', 'd', 'q', 'q', 'test')"
        )
        live = await make_job(connection, "live")
        await connection.execute("UPDATE jobs SET delete_time = NULL, queue = 'q' WHERE id = $1", live)
        gone = await make_job(connection, "gone", delete_time=days(40))
        lately = await make_job(connection, "lately", delete_time=days(1))
        runs = {
            job_id: [
                NewRun(new_id(), "manual", "d", "t", [], {}, "q", "test", policy(), job_id=job_id, job_version=1)
                for _ in range(3)
            ]
            for job_id in (live, gone, lately)
        }
        await create(connection, await clock(connection), [run for some in runs.values() for run in some])
        await connection.execute("UPDATE runs SET state = 'SUCCESS', end_time = $1", days(40))
        for job_id in (live, gone, lately):
            await connection.execute(
                "INSERT INTO skips (job_id, reason, first_time, last_time, count) VALUES ($1, 'missed', $2, $2, 1),"
                " ($1, 'missed', $3, $3, 1)",
                job_id,
                days(31),
                days(29),
            )
    await sweep(Sweeper(database, settings, Store(settings.log_store)))
    await sweep(Sweeper(database, settings, Store(settings.log_store)))
    assert await ids(database) == {runs[live][-1].id}
    assert await ids(database, "jobs") == {live, lately}
    assert await count(database, "job_versions") == 2
    assert await count(database, "skips") == 2


async def test_the_rest(database: Database, settings: Settings) -> None:
    now = datetime.now(UTC)
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO refused_reports (source, task_id, problem, body)"
            f" SELECT 's', n::text, 'p', '' FROM generate_series(1, {REFUSED_KEPT + 250}) AS n"
        )
        for hours in (23, 25, 26):
            await connection.execute(
                "INSERT INTO idempotency_keys (caller, operation, key, body_hash, status, headers, body, create_time)"
                " VALUES ('c', 'o', $1, '', 201, '{}', '{}', $2)",
                str(hours),
                now - timedelta(hours=hours),
            )
        for minutes in (59, 61):
            await connection.execute(
                "INSERT INTO processes (id, kind, detail, start_time, beat_time)"
                " VALUES ($1, 'scheduler', '{}', $2, $2)",
                str(minutes),
                now - timedelta(minutes=minutes),
            )
    await sweep(Sweeper(database, settings, Store(settings.log_store), batch=100))
    async with database.reading() as connection:
        oldest = await connection.fetchval("SELECT task_id FROM refused_reports ORDER BY id LIMIT 1")
    assert (await count(database, "refused_reports"), oldest) == (REFUSED_KEPT, "251")
    assert await count(database, "idempotency_keys") == 1
    assert await count(database, "processes") == 1
    assert not await Sweeper(database, settings, Store(settings.log_store)).run_once()


async def test_a_fault_before_the_commit_forgets_nothing(database: Database, settings: Settings) -> None:
    await ended(database, "SUCCESS", days(8))
    faults.arm("sweep.before_commit=raise")
    try:
        with pytest.raises(faults.InjectedFault):
            await Sweeper(database, settings, Store(settings.log_store)).run_once()
    finally:
        faults.arm("")
    assert await count(database, "runs") == 1


async def test_what_runs_have_in_the_store_goes_before_them(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    store = Store(folder.as_uri())
    plain, logged, large, kept = [await ended(database, "SUCCESS", days(8 if n < 3 else 1)) for n in range(4)]
    paths = [place.log_of(logged, 1), place.log_of(logged, 2), place.result_of(large), place.log_of(kept, 1)]
    for path in paths:
        await store.put(path, b"x")
    async with database.transaction() as connection:
        await connection.executemany(
            "INSERT INTO run_logs (run_id, attempt, segments, size, sealed_id) VALUES ($1, $2, '[]', 1, '0-0')",
            [(logged, 1), (logged, 2), (kept, 1)],
        )
        result = {"jobplane": "result stored", "bytes": 1, "path": store.url(paths[2])}
        await connection.execute("UPDATE runs SET result = $2 WHERE id = $1", large, result)

    folder.rename(tmp_path / "away")
    sweeper = Sweeper(database, settings, store)
    assert not await sweeper.run_once()
    assert await ids(database) == {logged, large, kept}, "a store that is away holds back only what lies in it"
    (tmp_path / "away").rename(folder)
    await sweep(sweeper)
    assert await ids(database) == {kept}
    assert [path for path in paths if await store.get(path) is not None] == [place.log_of(kept, 1)]
    assert plain not in await ids(database)
