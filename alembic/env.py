"""Runs migrations over asyncpg, one transaction each, with bounded waits for locks."""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

import app.models  # noqa: F401  (declares the tables)
from app.settings import Settings

LOCK = 0x6A6F62706C616E65  # "jobplane": two migrations at once wait for each other


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


async def _online(url: str) -> None:
    engine = create_async_engine(url, poolclass=pool.NullPool)
    try:
        async with engine.connect() as guard, engine.connect() as connection:
            await guard.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
            # A migration that cannot get its lock fails soon, instead of stopping every writer behind it.
            await connection.execute(text("SET lock_timeout = '5s'"))
            await connection.execute(text("SET statement_timeout = '10min'"))
            await connection.commit()
            await connection.run_sync(_migrate)
            await connection.commit()
    finally:
        await engine.dispose()


url = context.config.get_main_option("sqlalchemy.url") or Settings.load().database_url.get_secret_value()
if context.is_offline_mode():
    context.configure(url=url, target_metadata=SQLModel.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(_online(url))
