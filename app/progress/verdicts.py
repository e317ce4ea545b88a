"""What the reaper and its search have in common: they read runs in pages, ask what became of them, and write moves."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
from redis.asyncio import Redis

from app import faults
from app.database import Connection, Database, Record, clock
from app.progress import lease, reports, transition
from app.progress.announce import tell
from app.progress.fold import Report, fold
from app.progress.guards import Maker
from app.progress.listen import stored_of
from app.progress.sources import Source
from workers.protocol import TaskId, lease_key

log = structlog.get_logger()

PAGE: Final = 500

_FIRST_ID: Final = UUID(int=0)


class Verdicts:
    """One database and one Redis; whatever reads Redis raises RedisError."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._redis = redis
        #: How many runs were moved since the start.
        self.moved = 0

    async def now(self) -> datetime:
        """The database's time."""
        async with self._database.reading() as connection:
            return await clock(connection)

    async def pages(self, query: Callable[[Connection, UUID], Awaitable[list[Record]]]) -> AsyncIterator[list[Record]]:
        """Everything that a query finds, `PAGE` rows at a time; it is given the last id of the page before."""
        after = _FIRST_ID
        while True:
            async with self._database.reading() as connection:
                rows = await query(connection, after)
            if rows:
                yield rows
            if len(rows) < PAGE:
                return
            after = rows[-1]["id"]

    async def apply(self, wanted: Mapping[UUID, Sequence[Maker]]) -> None:
        """Commit moves, made of the database's time, and tell of them."""
        if not wanted:
            return
        async with self._database.transaction() as connection:
            now = await clock(connection)
            rows = await transition.apply(
                connection, now, {run_id: [make(now) for make in makers] for run_id, makers in wanted.items()}
            )
        await faults.at("reap.after_commit")
        self.moved += len(rows)
        for row in rows:
            log.info(
                "run_reaped",
                run_id=str(row["id"]),
                state=row["state"],
                attempt=row["attempt"],
                reason=row["reason"],
                error=(row["error"] or {}).get("type"),
            )
        await tell(self._redis, rows)

    async def take(self, row: Mapping[str, Any], value: str, *, held_too: bool = False) -> str | None:
        """Set the lease of an attempt as `lease.take` does. None: taken; else the value that stands."""
        await faults.at("reap.before_take")
        stands = await lease.take(self._redis, key_of(row), value, held_too=held_too)
        await faults.at("reap.after_take")
        return stands

    async def leases(self, rows: Sequence[Record]) -> list[str | None]:
        """The value of each attempt's lease."""
        return await self.values([key_of(row) for row in rows])

    async def values(self, keys: Sequence[str]) -> list[str | None]:
        """The values of leases by their keys."""
        values: list[Any] = await self._redis.mget(keys) if keys else []
        return [_text(value) for value in values]

    async def lives(self, rows: Sequence[Record]) -> list[tuple[str | None, float]]:
        """The value of each attempt's lease and how many seconds it has left."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.mget([key_of(row) for row in rows])
            for row in rows:
                pipe.pttl(key_of(row))
            values, *left = await pipe.execute()
        return [(_text(value), max(ms, 0) / 1000) for value, ms in zip(values, left, strict=True)]

    async def truth(self, rows: Sequence[Record]) -> dict[UUID, list[Maker]]:
        """What the result backend says of these runs, to be folded before they are ended."""
        said: dict[UUID, list[Maker]] = {row["id"]: [] for row in rows}
        tasks = [
            (TaskId(row["id"], n), Source.of(row))
            for row in rows
            for n in range(max(row["first_dispatch"], row["dispatches"] - 2), row["dispatches"] + 2)
        ]
        for heard in await stored_of(self._redis, tasks):
            report = reports.read(heard.task_id, heard.body, heard.size)
            if isinstance(report, Report):
                said[heard.task_id.run_id].append(partial(fold, report))
        return said


class Doubts:
    """Since when something about an attempt looks wrong: a last word may be on its way, a message between two lists."""

    def __init__(self, silence_s: float) -> None:
        #: How long such a thing may last, in seconds.
        self.silence_s = silence_s
        self._since: dict[tuple[UUID, int, int, str], float] = {}

    def lasts(self, row: Mapping[str, Any], what: str) -> bool:
        """Note that it looks so now; whether it has for `silence_s`."""
        now = time.monotonic()
        return now - self._since.setdefault(_about(row, what), now) >= self.silence_s

    def holds(self, row: Mapping[str, Any], what: str) -> bool:
        """Whether it looked so when it was noted last."""
        return _about(row, what) in self._since

    def clear(self, row: Mapping[str, Any], what: str) -> None:
        """It does not look so any more."""
        self._since.pop(_about(row, what), None)

    def forget(self) -> None:
        """Drop what nobody came back to."""
        now = time.monotonic()
        self._since = {key: at for key, at in self._since.items() if now - at < 2 * self.silence_s}


def key_of(row: Mapping[str, Any]) -> str:
    """The key of an attempt's lease."""
    return lease_key(row["id"], row["attempt"], row["retries"])


def _about(row: Mapping[str, Any], what: str) -> tuple[UUID, int, int, str]:
    return row["id"], row["attempt"], row["retries"], what


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
