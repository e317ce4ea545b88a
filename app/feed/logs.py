"""The log of a run for those who watch it: from its first line, attempt by attempt, as it grows.

Each socket asks for the next part when it has sent the last, so what waits for a slow client is one part; what the
log store cut meanwhile it gets as a mark. Those at the same place share one read.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.database import AWAY, Database
from app.errors import NotFound, Unavailable
from app.feed.frames import Change
from app.logs.read import Chunk, read
from app.logs.store import Store
from app.loop import end

log = structlog.get_logger()

#: Most bytes of log in a frame; as JSON it has a few more.
PART: Final = 48 * 1024
#: How long one read waits for news, and how long while only the log's own end is waited for.
_WAIT_S: Final = 5.0
_SHORT_S: Final = 0.5
_RETRY_S: Final = 1.0

#: Run, attempt, offset, how long to wait.
_Place: TypeAlias = tuple[UUID, int, int, float]


@dataclass(frozen=True, slots=True)
class Part:
    """Text of an attempt's log from `offset` to `next`, in bytes of what was written."""

    attempt: int
    offset: int
    next: int
    text: str


class LogReads:
    """The reads that are under way in this process. `close` ends them."""

    def __init__(self, database: Database, redis: Redis, store: Store) -> None:
        self._database, self._redis, self._store = database, redis, store
        self._under_way: dict[_Place, asyncio.Task[Chunk]] = {}

    async def read(self, run_id: UUID, attempt: int, offset: int, wait_s: float) -> Chunk:
        """What comes at this place; empty if nothing does within some seconds. Holds no connection while it waits."""
        place = (run_id, attempt, offset, wait_s)
        task = self._under_way.get(place)
        if task is None:
            task = asyncio.create_task(
                read(self._database, self._redis, self._store, run_id, attempt, offset, PART, wait_s),
                name="feed log",
            )
            self._under_way[place] = task
            task.add_done_callback(lambda done: self._over(place, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        await end(*self._under_way.values())

    def _over(self, place: _Place, done: asyncio.Task[Chunk]) -> None:
        del self._under_way[place]
        if not done.cancelled():
            done.exception()  # those who share the read see it


class Log:
    """Where one socket stands in the log of its run."""

    def __init__(self, reads: LogReads, run_id: UUID, *, patience_s: float) -> None:
        self._reads = reads
        self._run_id = run_id
        #: How long after the end of an attempt its log may be silent without having said that it has ended.
        self._patience_s = patience_s
        self._attempt, self._offset = 1, 0
        #: The newest attempt that is known, and whether there can be no other.
        self._newest = 0
        self._ended = False
        self._told = asyncio.Event()
        #: Set while the attempt whose log is read is over; when it was last heard of since.
        self._over = asyncio.Event()
        self._heard_at = 0.0

    def learn(self, change: Change) -> None:
        """A change of the run: an attempt more, or its end."""
        self._newest = max(self._newest, change.attempt)
        self._ended = self._ended or change.ended
        self._notice()
        self._told.set()

    def _notice(self) -> None:
        if not self._over.is_set() and (self._ended or self._newest > self._attempt):
            self._heard_at = time.monotonic()
            self._over.set()

    async def next(self) -> Part | None:
        """The next part; None once there is nothing more, or nobody can tell for too long after the run's end."""
        while True:
            if self._attempt > self._newest:
                if self._ended:
                    return None
                self._told.clear()
                await self._told.wait()
                continue
            chunk = await self._read()
            part = None
            if chunk is not None and chunk.text:
                part = Part(self._attempt, chunk.offset, chunk.next, chunk.text)
                self._offset, self._heard_at = chunk.next, time.monotonic()
            silent = self._over.is_set() and time.monotonic() - self._heard_at > self._patience_s
            if (chunk is not None and chunk.ended) or (part is None and silent):
                self._attempt, self._offset = self._attempt + 1, 0
                self._over.clear()
                self._notice()
            if part is not None:
                return part

    async def _read(self) -> Chunk | None:
        """None: nothing can be said just now."""
        wait_s = _SHORT_S if self._over.is_set() else _WAIT_S
        reading = asyncio.create_task(self._reads.read(self._run_id, self._attempt, self._offset, wait_s))
        over = asyncio.create_task(self._over.wait())
        try:
            # The end of the attempt is asked for at once, not after the long wait.
            waits = {reading} if wait_s == _SHORT_S else {reading, over}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        except NotFound:
            self._ended, self._newest = True, 0  # the run is gone
        except (Unavailable, RedisError, asyncpg.PostgresError, *AWAY) as error:
            log.debug("feed_log_not_read", run_id=str(self._run_id), error=f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(_RETRY_S)
        finally:
            await end(reading, over)
        return None
