"""Databases for tests: migrated ones are used again once they are empty, for making one costs more than most tests."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import asyncpg

T = TypeVar("T")

# What a test may have changed for good: tables, their columns and constraints, functions, and what the plane is.
_FINGERPRINT = """
    SELECT md5(string_agg(one, ' ' ORDER BY one)) FROM (
        SELECT concat(relname, ' ', relkind, ' ', relnatts) AS one FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat(conname, ' ', pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat(proname, ' ', prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat(tgname, ' ', tgenabled) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL
        SELECT plane::text FROM plane
        UNION ALL
        SELECT version_num FROM alembic_version
    ) AS public
"""

_FULL = """
    SELECT string_agg(quote_ident(relname), ', ') FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT IN ('plane', 'alembic_version')
        AND pg_relation_size(oid) > 0
"""


def in_thread(call: Callable[[], T]) -> T:
    """Run this in a thread of its own, for code that wants an event loop where pytest has one already."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


def on(database_url: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Do something on a connection of its own."""

    async def go() -> T:
        connection = await asyncpg.connect(database_url.replace("+asyncpg", "", 1))
        try:
            return await work(connection)
        finally:
            await connection.close()

    return run(go)


def run(made: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return in_thread(lambda: asyncio.run(made()))


def execute(database_url: str, *statements: str) -> None:
    """Run statements one by one, each its own transaction."""

    async def go(connection: asyncpg.Connection) -> None:
        for statement in statements:
            await connection.execute(statement)

    on(database_url, go)


class Databases:
    """Databases on one server, all made of one template."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url = server_url
        self._template = template
        self._numbers = itertools.count(1)
        self._empty: list[str] = []
        self._fingerprint = ""

    def url(self, name: str) -> str:
        return f"{self._server_url.rpartition('/')[0]}/{name}"

    def learn(self) -> None:
        """The template is complete: this is what an empty database looks like."""
        self._fingerprint = on(self.url(self._template), _emptied)

    def take(self) -> str:
        """A name that was never used before: who has lived longer than its test finds no database under the old one."""
        name = f"test_{next(self._numbers)}"
        if self._empty:
            execute(self._server_url, f"ALTER DATABASE {self._empty.pop()} RENAME TO {name}")
        else:
            self._make(name, self._template)
        return name

    def take_bare(self) -> str:
        """A database with nothing in it, to be dropped."""
        name = f"test_{next(self._numbers)}"
        self._make(name, "template1")
        return name

    def give_back(self, name: str) -> None:
        """Empty a database, or drop one in which more than rows has changed."""
        execute(
            self._server_url,
            f"SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        fingerprint = on(self.url(name), _emptied)
        if fingerprint == self._fingerprint:
            self._empty.append(name)
        else:
            self.drop(name)

    def drop(self, name: str) -> None:
        execute(self._server_url, f"DROP DATABASE {name} WITH (FORCE)")

    def _make(self, name: str, template: str) -> None:
        # Files are copied in less time than writing them into the log takes.
        execute(self._server_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")


async def _emptied(connection: asyncpg.Connection) -> str:
    tables = await connection.fetchval(_FULL)
    if tables:
        await connection.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
    fingerprint: str = await connection.fetchval(_FINGERPRINT)
    return fingerprint
