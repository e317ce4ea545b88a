"""PostgreSQL through asyncpg: one pool a process, and `transaction()`, the only commit.

Hot statements are plain SQL. Statements that vary with what a caller asks are built with SQLAlchemy from the tables of
`app.models` and run on the same connection (`rows`, `row`), so that there is one driver and one pool.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Self, TypeAlias
from uuid import UUID

import asyncpg
import orjson
import structlog
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql.base import Executable
from uuid_utils.compat import uuid7

from app.settings import Settings

Connection: TypeAlias = asyncpg.Connection
Record: TypeAlias = asyncpg.Record

log = structlog.get_logger()

_RETRY_S = 1.0
_DIALECT = dialect()  # type: ignore[no-untyped-call]

#: What an operation may raise when the database is away, restarting or out of places; the next pass tries again.
AWAY: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


def new_id() -> UUID:
    """A UUIDv7: ids of one process rise in the order of their creation."""
    return UUID(int=uuid7().int)


def to_json(value: Any) -> str:
    """JSON text for a jsonb parameter; whole numbers of any size pass, NaN does not exist in JSON and becomes null."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z).decode()


async def _prepare(connection: Connection) -> None:
    for kind in ("json", "jsonb"):
        await connection.set_type_codec(kind, encoder=to_json, decoder=orjson.loads, schema="pg_catalog")


async def _as_it_is(_: Connection) -> None:
    pass


class Database:
    """A pool of connections. Built by `connect`, ended by `close`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def connect(cls, settings: Settings, application: str) -> Self:
        """Open the pool; raises one of `AWAY` if the database cannot be reached."""
        url = settings.database_url.get_secret_value().replace("postgresql+asyncpg://", "postgresql://", 1)
        limit_ms = str(round(settings.statement_timeout_s * 1000))
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=settings.pool_size,
            timeout=5,
            command_timeout=settings.statement_timeout_s + 5,
            max_inactive_connection_lifetime=300,
            init=_prepare,
            # We leave nothing behind in a session; the default would cost every read a second round trip.
            reset=_as_it_is,
            server_settings={
                "application_name": f"jobplane {application}",
                "timezone": "UTC",
                "statement_timeout": limit_ms,
                "lock_timeout": limit_ms,
                # A frozen process must not keep its row locks, and its snapshot would hold the feed's cursor back.
                "idle_in_transaction_session_timeout": "10000",
                # A peer that vanished without a word is noticed within half a minute, not two hours.
                "tcp_keepalives_idle": "10",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
                "jit": "off",
            },
        )
        return cls(pool)

    @classmethod
    async def when_ready(cls, settings: Settings, application: str) -> Self:
        """As `connect`, once the database answers and is migrated. Tries each second, for ever."""
        said = ""
        while True:
            opened: Self | None = None
            try:
                opened = await cls.connect(settings, application)
                async with opened.reading() as connection:
                    await connection.fetchval("SELECT epoch FROM plane")
            except (*AWAY, asyncpg.UndefinedTableError) as error:
                if opened is not None:
                    await opened.close()
                if str(error) != said:
                    said = str(error)
                    log.warning("waiting_for_database", problem=said)
                await asyncio.sleep(_RETRY_S)
            else:
                return opened

    @asynccontextmanager
    async def transaction(
        self, *, isolation: str = "read_committed", readonly: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection inside a transaction that commits at the end of the block and rolls back on an exception."""
        async with (
            self._pool.acquire(timeout=10) as connection,
            connection.transaction(isolation=isolation, readonly=readonly),
        ):
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection for single reads, without a transaction around them."""
        async with self._pool.acquire(timeout=10) as connection:
            yield connection

    async def close(self, wait_s: float = 5) -> None:
        """Close every connection, waiting at most so long for those in use."""
        try:
            await asyncio.wait_for(self._pool.close(), wait_s)
        except TimeoutError:
            self._pool.terminate()


async def clock(connection: Connection) -> datetime:
    """The plane's one clock: the database's, aware UTC. A pass reads it once and hands it on as `now`."""
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now


def _sql(statement: Executable) -> tuple[str, list[Any]]:
    compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
    values = compiled.params
    return compiled.string, [values[name] for name in compiled.positiontup or ()]


async def rows(connection: Connection, statement: Executable) -> list[Record]:
    """All rows of a statement that SQLAlchemy built."""
    text, values = _sql(statement)
    return list(await connection.fetch(text, *values))


async def row(connection: Connection, statement: Executable) -> Record | None:
    """The first row of a statement that SQLAlchemy built, or None."""
    text, values = _sql(statement)
    return await connection.fetchrow(text, *values)
