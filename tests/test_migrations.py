"""Migrations go up, down and up again, and end at the models."""

import json

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

import app.models  # noqa: F401  (declares the tables)
from app.migrate import downgrade, upgrade
from app.states import TERMINAL
from tests.databases import in_thread


async def relations(url: str) -> set[str]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        rows = await connection.fetch(
            "SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        )
    finally:
        await connection.close()
    return {row["name"] for row in rows}


async def test_up_down_and_up_again(empty_database_url: str) -> None:
    url = empty_database_url
    in_thread(lambda: upgrade(url))
    first = await relations(url)
    in_thread(lambda: downgrade(url, "base"))
    assert await relations(url) <= {"alembic_version", "alembic_version_pkc"}
    in_thread(lambda: upgrade(url))
    assert await relations(url) == first
    in_thread(lambda: upgrade(url))


async def test_a_retry_policy_of_before_gets_what_it_left_out(empty_database_url: str) -> None:
    """Also in the versions that are kept, and without a new one."""
    url = empty_database_url
    in_thread(lambda: upgrade(url, "0001"))
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    job = "019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f70"
    read = "SELECT retry::text FROM jobs UNION ALL SELECT definition ->> 'retry' FROM job_versions"
    try:
        await connection.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('q', 'n', 'q', 'q', 'a')"
        )
        await connection.execute(
            "INSERT INTO jobs (id, namespace, name, task, queue, trigger, retry, cursor_time, author) VALUES"
            f" ('{job}', 'n', 'j', 't', 'q', '{{}}', '{{\"max_lost\": 2}}', '2026-01-01', 'a')"
        )
        await connection.execute(
            "INSERT INTO job_versions (job_id, version, definition, author) VALUES"
            f" ('{job}', 1, '{{\"retry\": {{\"max_lost\": 2}}}}', 'a')"
        )
        in_thread(lambda: upgrade(url))
        rows = [json.loads(row[0]) for row in await connection.fetch(read)]
        assert rows == [{"max_lost": 2, "jitter": "none", "retry_on": None}] * 2
        in_thread(lambda: downgrade(url, "0001"))
        assert [json.loads(row[0]) for row in await connection.fetch(read)] == [{"max_lost": 2}] * 2
    finally:
        await connection.close()


async def test_runs_of_a_backfill_and_those_that_wait_go_down_and_up_again(empty_database_url: str) -> None:
    url = empty_database_url
    in_thread(lambda: upgrade(url))
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    job, backfill, *runs = (f"019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f7{n}" for n in range(5))
    try:
        await connection.execute(
            f"""
            INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('q', 'n', 'q', 'q', 'a');
            INSERT INTO jobs (id, namespace, name, task, queue, trigger, retry, cursor_time, author, overlap,
                max_active)
            VALUES ('{job}', 'n', 'j', 't', 'q', '{{}}', '{{}}', '2026-01-01', 'a', 'buffer_all', 1);
            INSERT INTO job_versions (job_id, version, definition, author)
            VALUES ('{job}', 1, '{{"overlap": "buffer_all", "max_active": 1}}', 'a');
            INSERT INTO backfills (id, job_id, job_version, from_time, to_time, mode, overlap, max_active, cursor_time,
                total, author)
            VALUES ('{backfill}', '{job}', 1, '2026-01-01', '2026-01-02', 'all', 'allow', 1, '2026-01-01', 2, 'a');
            INSERT INTO runs (id, kind, namespace, task, queue, retry, author, job_id, job_version, state,
                scheduled_time, backfill_id, end_time, waits_for, most_active, reason)
            VALUES ('{runs[0]}', 'backfill', 'n', 't', 'q', '{{}}', 'a', '{job}', 1, 'SUCCESS', '2026-01-01',
                    '{backfill}', now(), NULL, NULL, NULL),
                ('{runs[1]}', 'backfill', 'n', 't', 'q', '{{}}', 'a', '{job}', 1, 'PENDING', '2026-01-01 12:00',
                    '{backfill}', NULL, NULL, NULL, NULL),
                ('{runs[2]}', 'manual', 'n', 't', 'q', '{{}}', 'a', '{job}', 1, 'PENDING', NULL,
                    NULL, NULL, '{runs[1]}', 1, 'waits for run');
            """
        )
        in_thread(lambda: downgrade(url, "0004"))
        rows = await connection.fetch("SELECT kind, state, reason FROM runs ORDER BY id")
        assert [tuple(row) for row in rows] == [
            ("manual", "SUCCESS", None),
            ("manual", "PENDING", None),
            ("manual", "PENDING", None),
        ]
        in_thread(lambda: upgrade(url))
        definition = await connection.fetchval("SELECT definition::text FROM job_versions")
        assert json.loads(definition) == {"overlap": "skip", "max_active": None, "pause_after_failures": None}
    finally:
        await connection.close()


async def test_the_models_are_what_the_migrations_make(database_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), SQLModel.metadata))

    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_checks_are_the_same_in_models_and_migrations(database_url: str) -> None:
    """Autogeneration does not compare check constraints."""
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        rows = await connection.fetch(
            "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
        )
        check = await connection.fetchval(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'runs_end_time_iff_ended_check'"
        )
    finally:
        await connection.close()
    from sqlalchemy import CheckConstraint

    declared = {
        f"{table.name}_{constraint.name}_check" if not str(constraint.name).endswith("_check") else str(constraint.name)
        for table in SQLModel.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert {row["conname"] for row in rows} == declared
    assert all(f"'{state}'" in check for state in TERMINAL)
