"""Migrations go up, down and up again, and end at the models."""

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

import app.models  # noqa: F401  (declares the tables)
from app.migrate import downgrade, upgrade
from app.states import TERMINAL
from tests.conftest import in_thread


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
