"""The guarded moves on a real database: what is written, and what a race leaves."""

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.database import Database, clock, new_id
from app.progress import moves
from app.progress.fold import Report, fold
from app.progress.standing import Move
from app.progress.transition import NewRun, _walk, apply, create
from app.states import TERMINAL
from tests.progress.standings import NOW, SENT, policy
from tests.progress.test_fold import STEPS
from workers.protocol import TaskId


def adhoc(**changes: Any) -> NewRun:
    made: dict[str, Any] = {
        "id": new_id(),
        "kind": "adhoc",
        "namespace": "default",
        "task": "t",
        "args": [[1, 2], [3], {"deep": [[]]}],
        "kwargs": {"text": "ä€😀", "none": None},
        "queue": "default",
        "author": "test",
        "retry": policy(),
    }
    return NewRun(**{**made, **changes})


async def test_a_new_run_is_pending_with_its_first_event(database: Database) -> None:
    wanted = [adhoc() for _ in range(3)]
    async with database.transaction() as connection:
        rows = await create(connection, await clock(connection), wanted)
        events = await connection.fetch("SELECT * FROM run_events ORDER BY run_id")
    assert [row["id"] for row in rows] == [run.id for run in wanted]
    assert all(row["args"] == wanted[0].args and row["kwargs"] == wanted[0].kwargs for row in rows)
    assert [(event["run_id"], event["version"], event["state"]) for event in events] == [
        (run.id, 1, "PENDING") for run in wanted
    ]


async def test_reports_of_one_batch_become_one_row_and_an_event_for_each_state(database: Database) -> None:
    run = adhoc()
    task = TaskId(run.id, 1)
    said = [
        Report(task, "STARTED", worker="w@h"),
        Report(task, "PROGRESS", {"current": 1, "total": 2}),
        Report(task, "PROGRESS", {"current": 2, "total": 2}),
        Report(task, "SUCCESS", {"rows": [[1]]}),
        Report(task, "FAILURE", {"exc_type": "Late"}),
    ]
    async with database.transaction() as connection:
        now = await clock(connection)
        await create(connection, now, [run])
        rows = await apply(connection, now, {run.id: [fold(report, now) for report in said], new_id(): []})
        events = await connection.fetch("SELECT version, state FROM run_events ORDER BY version")
    assert [(row["state"], row["version"], row["result"], row["worker"]) for row in rows] == [
        ("SUCCESS", 6, {"rows": [[1]]}, "w@h")
    ]
    assert [kept["state"] for kept in rows[0]["late"]] == ["FAILURE"]
    assert [tuple(event) for event in events] == [(1, "PENDING"), (2, "STARTED"), (3, "PROGRESS"), (5, "SUCCESS")]


@given(steps=st.lists(STEPS, max_size=25))
@hypothesis.settings(max_examples=300, derandomize=True, deadline=None)
def test_versions_are_contiguous_and_each_state_is_an_event(steps: list[Move]) -> None:
    """Whatever comes in one batch: the version counts what was accepted, and the events lie in order within it."""
    read = replace(SENT, retry=policy(max_attempts=2), deadline_time=NOW)
    accepted, now = 0, read
    for step in steps:
        moved = step(now)
        if moved is not None and moved != now:
            accepted, now = accepted + 1, moved
    change = _walk(read, steps)
    if change is None:
        assert accepted == 0
        return
    assert change.standing.version == read.version + accepted
    assert replace(change.standing, version=read.version) == now
    versions = [event.version for event in change.events]
    assert versions == sorted(set(versions))
    assert all(read.version < version <= change.standing.version for version in versions)
    assert sum(event.state in TERMINAL for event in change.events) == (now.state in TERMINAL)
    attempts = [event.attempt for event in change.events]
    assert attempts == sorted(attempts)


async def test_no_news_writes_nothing(database: Database) -> None:
    run = adhoc()
    async with database.transaction() as connection:
        now = await clock(connection)
        await create(connection, now, [run])
        assert await apply(connection, now, {run.id: [moves.lose(now, 7, "another attempt")]}) == []
        assert await connection.fetchval("SELECT version FROM runs") == 1


async def test_many_recorders_at_once_accept_one_end(database: Database) -> None:
    run = adhoc()
    async with database.transaction() as connection:
        await create(connection, await clock(connection), [run])

    async def end(word: str) -> int:
        async with database.transaction() as connection:
            now = await clock(connection)
            return len(await apply(connection, now, {run.id: [fold(Report(TaskId(run.id, 1), word, 1), now)]}))

    accepted = await asyncio.gather(*(end(word) for word in ["SUCCESS", "FAILURE"] * 4))
    assert sum(accepted) == 2, "the end, and the other word once beside it"
    async with database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM run_events") == 2
        row = await connection.fetchrow("SELECT state, late FROM runs")
    assert {row["state"], *(kept["state"] for kept in row["late"])} == {"SUCCESS", "FAILURE"}
    assert len(row["late"]) == 1


async def test_a_scheduled_time_has_one_run(database: Database) -> None:
    async with database.transaction() as connection:
        now = await clock(connection)
        job = new_id()
        await connection.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('default', 'n', 'd', 'd', 'a')"
        )
        await connection.execute(
            "INSERT INTO jobs (id, namespace, name, task, queue, trigger, retry, cursor_time, author)"
            " VALUES ($1, 'n', 'j', 't', 'default', '{}', '{}', date_trunc('second', $2::timestamptz), 'a')",
            job,
            now,
        )
        await connection.execute(
            "INSERT INTO job_versions (job_id, version, definition, author) VALUES ($1, 1, '{}', 'a')", job
        )
        time = now.replace(microsecond=0)
        wanted = [
            adhoc(kind="schedule", job_id=job, job_version=1, job_name="j", scheduled_time=time) for _ in range(2)
        ]
        assert len(await create(connection, now, wanted[:1])) == 1
        assert await create(connection, now, wanted[1:]) == []
        assert await connection.fetchval("SELECT count(*) FROM run_events") == 1


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("state = 'FAILURE', error = '{}'", "runs_end_is_final"),
        ("end_time = end_time + interval '1 s'", "runs_end_is_final"),
        ("state = 'PENDING', end_time = NULL", "runs_end_is_final"),
    ],
)
async def test_the_database_itself_keeps_the_end(database: Database, change: str, constraint: str) -> None:
    run = adhoc()
    async with database.transaction() as connection:
        now = await clock(connection)
        await create(connection, now, [run])
        await apply(connection, now, {run.id: [moves.cancel(now, "asked")]})
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
        async with database.transaction() as connection:
            await connection.execute(f"UPDATE runs SET {change}")
    assert refused.value.constraint_name == constraint


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("end_time = now()", "runs_end_time_iff_ended_check"),
        ("state = 'SUCCESS'", "runs_end_time_iff_ended_check"),
        ("state = 'lower'", "runs_state_check"),
        ("error = '{}'", "runs_error_iff_failure_check"),
        ("scheduled_time = '2026-01-01 00:00:00.5+00'", "runs_scheduled_whole_seconds_check"),
        ("kind = 'schedule'", "runs_adhoc_has_no_job_check"),
        ("first_dispatch = 3", "runs_dispatches_check"),
    ],
)
async def test_what_can_be_a_constraint_is_one(database: Database, change: str, constraint: str) -> None:
    async with database.transaction() as connection:
        await create(connection, await clock(connection), [adhoc()])
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        async with database.transaction() as connection:
            await connection.execute(f"UPDATE runs SET {change}")
    assert refused.value.constraint_name == constraint
