"""Results too large for a run's row: put into the log store first, and only then is their run told to have ended.

Such an end waits aside while the recorder goes on with the others. A store that is away is tried again for a minute;
then the end is recorded without its result. Whoever records meanwhile dies leaves the report where it was: in Redis,
or unacknowledged.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import asyncpg
import structlog
from redis.exceptions import RedisError

from app.database import AWAY, Database
from app.errors import Unavailable
from app.logs.place import result_of
from app.logs.store import Store
from app.loop import end
from app.progress import marks, queries, reports
from app.progress.fold import Report
from app.progress.listen import Heard
from app.progress.sources import Source
from app.states import SUCCESS
from workers.protocol import TaskId

log = structlog.get_logger()

#: How long the store may be away before an end is recorded without its result: less than the reaper's patience.
PATIENCE_S: Final = 50.0
#: Room for all that a message holds beside its result: traceback, arguments, stamps.
ENVELOPE: Final = 2 * 1024 * 1024

_PAUSE_S: Final = 1.0
#: Most bytes of messages that are held while they wait; of those beyond, only so many each.
_MOST_BYTES: Final = 32 * 1024 * 1024
_SHORT: Final = 256

#: Reads the whole message of which one has heard, from where its queue keeps results; None if it is gone.
Load: TypeAlias = Callable[[Heard, Source], Awaitable[bytes | None]]


@dataclass(slots=True)
class _Waiting:
    heard: Heard
    since: float


class Results:
    """Call `sift` with all that was heard, `close` at the end. One result at a time is in memory.

    `ready` is called when an end that was put aside can be recorded: the next `sift` gives it back.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        limit_bytes: int,
        load: Load,
        ready: Callable[[], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._database = database
        self._store = store
        self._limit = limit_bytes
        self._load = load
        self._ready = ready
        self._patience_s = patience_s
        self._waiting: dict[TaskId, _Waiting] = {}
        self._settled: list[Heard] = []
        self._task: asyncio.Task[None] | None = None
        #: Whose result the store did not take since it last took one, and what it said.
        self._failed: set[TaskId] = set()
        self._trouble = ""

    @property
    def most_bytes(self) -> int:
        """No message that is longer is worth reading whole."""
        return self._limit + ENVELOPE

    def sift(self, heard: Iterable[Heard]) -> list[Heard]:
        """What can be recorded now: those without a large result, and those whose result is in its place since."""
        settled, self._settled = self._settled, []
        return settled + [one for one in heard if not self._put_aside(one)]

    def waits(self, task_id: TaskId) -> bool:
        """Whether an end of this task has been put aside and not been given back."""
        return task_id in self._waiting or any(one.task_id == task_id for one in self._settled)

    async def close(self) -> None:
        """Forget all that waits: whoever records next hears it again."""
        if self._task is not None:
            await end(self._task)
            self._task = None
        self._waiting, self._settled = {}, []

    def _put_aside(self, heard: Heard) -> bool:
        if heard.report is not None or not reports.is_large_end(heard.body, heard.size):
            return False
        if heard.task_id in self._waiting:
            return True  # the first end wins
        if len(heard.body) > _MOST_BYTES - sum(len(one.heard.body) for one in self._waiting.values()):
            heard = replace(heard, body=heard.body[:_SHORT])  # read once more when its turn comes
        self._waiting[heard.task_id] = _Waiting(heard, time.monotonic())
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="results")
        return True

    async def _work(self) -> None:
        while self._waiting:
            tried = False
            for task_id, waiting in list(self._waiting.items()):
                # One object may be refused by itself; once two were, it is the store.
                away = len(self._failed) > 1
                overdue = time.monotonic() - waiting.since > self._patience_s
                settled = None
                if overdue and (away or task_id in self._failed):
                    settled = self._give_up(waiting.heard)
                elif not (away and tried):
                    tried = True
                    settled = await self._try(waiting.heard)
                if settled is not None:
                    self._settled.append(settled)
                    del self._waiting[task_id]
                    self._ready()
            if self._waiting:
                await asyncio.sleep(_PAUSE_S)
        self._task = None

    def _give_up(self, heard: Heard) -> Heard:
        log.error("result_lost", task_id=str(heard.task_id), bytes=heard.size, problem=self._trouble)
        return _ended(heard, marks.lost(heard.size, self._trouble))

    async def _try(self, heard: Heard) -> Heard | None:
        """The end as it is to be recorded; None: not yet."""
        try:
            settled = await self._settle(heard)
        except Unavailable as error:
            if not self._failed:
                log.warning("results_wait", ends=len(self._waiting), problem=error.detail)
            self._failed.add(heard.task_id)
            self._trouble = error.detail
        except (*AWAY, asyncpg.PostgresError, RedisError) as error:
            # Nothing else is recorded now either.
            log.debug("results_wait", ends=len(self._waiting), problem=f"{type(error).__name__}: {error}")
        except Exception as error:
            log.exception("result_failed", task_id=str(heard.task_id))
            return _ended(heard, marks.lost(heard.size, f"{type(error).__name__}: {error}"[:300]))
        else:
            return settled
        return None

    async def _settle(self, heard: Heard) -> Heard:
        async with self._database.reading() as connection:
            row = await queries.place_of_results(connection, heard.task_id.run_id)
        if row is None or row["end_time"] is not None:
            # The object of an end that counts is never written over.
            return _ended(heard, marks.lost(heard.size, "the run had ended before"))
        if heard.size > self.most_bytes:
            return _ended(heard, marks.too_large(heard.size, self._limit))
        body = heard.body if len(heard.body) == heard.size else await self._load(heard, Source.of(row))
        if body is None:
            return _ended(heard, marks.lost(heard.size, "it was gone from where the worker had left it"))
        report, result = await asyncio.to_thread(reports.read_whole, heard.task_id, body)
        del body
        if result is None:
            return replace(heard, body=heard.body[: reports.HEAD], report=report)
        if len(result) > self._limit:
            return _ended(heard, marks.too_large(len(result), self._limit), report)
        path = result_of(heard.task_id.run_id)
        await self._store.put(path, result)
        self._failed.clear()
        return _ended(heard, marks.stored(len(result), self._store.url(path)), report)


def _ended(heard: Heard, mark: dict[str, object], report: object = None) -> Heard:
    known = report if isinstance(report, Report) else Report(heard.task_id, SUCCESS)
    return replace(heard, body=heard.body[: reports.HEAD], report=replace(known, meta=mark))
