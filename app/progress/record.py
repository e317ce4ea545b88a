"""Records what workers report: one transaction a batch, then the news of it.

One recorder at a time works, by a row lease that others take over; correctness does not hang on it, for every write is
guarded.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import faults
from app.database import AWAY, Connection, Database, Record, clock
from app.progress import queries, reports, transition
from app.progress.announce import announce, ring
from app.progress.fold import fold
from app.progress.listen import Heard, Listener
from app.progress.reports import Refusal, key_of
from app.progress.standing import Move
from app.settings import Settings
from app.states import PENDING, TERMINAL
from workers.protocol import TaskId

log = structlog.get_logger()

LEASE_NAME: Final = "record:redis"
LEASE_S: Final = 5.0
TRUTH_EVERY_S: Final = 10.0
TRUTH_PAGE: Final = 500
BATCH: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024
#: How long the stored state of an ended run is kept for whoever asks Celery.
RESULT_KEPT_S: Final = 3600

_IDLE_S: Final = 0.25
_BUSY_BATCH: Final = 50
#: Refused reports of one batch that are kept; a flood is counted only.
_REFUSED_KEPT: Final = 20
_BODY_KEPT: Final = 4096
_FIRST_ID: Final = UUID(int=0)

#: Classes of SQLSTATE that say no to the values, for ever; every other error may pass by itself.
_REFUSING: Final = {"22", "23", "54", "P0"}

Refused = tuple[str, str, bytes]


def is_refusal(error: Exception) -> bool:
    """Whether a batch failed because of what it says; False if the database was away or troubled."""
    if isinstance(error, asyncpg.InterfaceError):
        return isinstance(error, ValueError)  # the driver could not encode a value
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _REFUSING
    return not isinstance(error, (*AWAY, faults.InjectedFault))


class Recorder:
    """The recorder of the Redis route. Call `run_once` again and again, `close` at the end.

    A pass waits up to a quarter of a second for reports, so a loop around it needs no pause of its own but when another
    recorder has the lease (`holds` is False).
    """

    def __init__(
        self, database: Database, redis: Redis, settings: Settings, name: str, *, truth_every_s: float = TRUTH_EVERY_S
    ) -> None:
        self._database = database
        self._redis = redis
        self._redis_url = settings.redis_url.get_secret_value()
        self._holder = f"{name} {uuid4().hex[:8]}"
        self._truth_every_s = truth_every_s
        self.holds = False
        #: How many reports were recorded and refused since the start.
        self.recorded = self.refused = 0
        self._held_at = 0.0
        self._listener: Listener | None = None
        self._hand: list[Heard] = []
        self._last_batch = 0
        self._truth_after: UUID | None = None
        self._truth_at = 0.0

    async def run_once(self) -> bool:
        """One batch, or one page of the truth; whether to call again at once.

        False: another recorder has the lease. Raises what the database raises if it is away: the batch is kept.
        """
        if not await self._hold():
            return False
        if self._listener is None:
            self._listener = Listener(self._redis_url)
            self._listener.start()
        await self._read_truth(self._listener)
        if not self._hand:
            reading = self._truth_after is not None
            self._hand = await self._listener.gather(
                BATCH,
                BATCH_BYTES,
                wait_s=0 if reading else _IDLE_S,
                gather_s=0.05 if self._last_batch >= _BUSY_BATCH else 0.003,
            )
            self._last_batch = len(self._hand)
        if self._hand:
            await faults.at("record.after_receive")
            await self._record(self._hand)
            self._hand = []
        return True

    @property
    def listening(self) -> bool:
        """Whether pushes reach us now."""
        return self._listener is not None and self._listener.connected.is_set()

    async def close(self) -> None:
        """Stop listening and let another recorder take over at once."""
        await self._stop_listening()
        if self.holds:
            self.holds = False
            with suppress(*AWAY):
                async with self._database.transaction() as connection:
                    await queries.give_lease_back(connection, LEASE_NAME, self._holder)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        self._hand, self._truth_after, self._truth_at = [], None, 0.0

    async def _hold(self) -> bool:
        if self.holds and time.monotonic() - self._held_at < LEASE_S / 4:
            return True
        held_at = time.monotonic()
        async with self._database.transaction() as connection:
            holds = await queries.hold_lease(connection, LEASE_NAME, self._holder, LEASE_S)
        if holds != self.holds:
            log.info("recorder_took_over" if holds else "recorder_stands_by", holder=self._holder)
        self.holds, self._held_at = holds, held_at
        if not holds:
            await self._stop_listening()
        return holds

    async def _read_truth(self, listener: Listener) -> None:
        """Read the next page of stored states, if it is time for it and there is room."""
        if self._truth_after is None:
            due = listener.resync.is_set() or time.monotonic() - self._truth_at >= self._truth_every_s
            if not due or not listener.connected.is_set():
                return
            listener.resync.clear()
            self._truth_after, self._truth_at = _FIRST_ID, time.monotonic()
        if listener.waiting.over_mark:
            return
        async with self._database.reading() as connection:
            rows = await queries.dispatched_runs(connection, self._truth_after, TRUTH_PAGE)
        tasks = [TaskId(row["id"], n) for row in rows for n in range(row["first"], row["last"] + 1)]
        try:
            new = await listener.read_truth(self._redis, tasks)
        except (RedisError, OSError) as error:
            log.warning("truth_not_read", error=str(error))
            self._truth_after, self._truth_at = None, time.monotonic() - self._truth_every_s + 1
            return
        if new:
            log.info("truth_brought_news", tasks=new)
        if len(rows) == TRUTH_PAGE:
            self._truth_after = rows[-1]["id"]
        else:
            self._truth_after = None
            listener.truth_was_read()

    async def _record(self, batch: Sequence[Heard]) -> None:
        """Commit a batch and tell of it; what the database refuses is narrowed down to the report at fault."""
        try:
            rows = await self._commit(batch)
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(batch) == 1:
                await self._set_aside(batch[0], error)
            else:
                for part in _parts(batch):
                    await self._record(part)
            return
        await faults.at("record.after_commit")
        await announce(self._redis, rows)
        if any(row["state"] == PENDING for row in rows):
            await ring(self._redis)
        await self._shorten(rows)

    async def _commit(self, batch: Sequence[Heard]) -> list[Record]:
        async with self._database.transaction() as connection:
            now = await clock(connection)
            moves: defaultdict[UUID, list[Move]] = defaultdict(list)
            refused: list[Refused] = []
            for heard in batch:
                report = reports.read(heard.task_id, heard.body, heard.size)
                if isinstance(report, Refusal):
                    refused.append((str(report.task_id), report.problem, heard.body[:_BODY_KEPT]))
                else:
                    moves[report.task_id.run_id].append(fold(report, now))
            rows = await transition.apply(connection, now, moves)
            refused += await _unknown(connection, batch, {row["id"] for row in rows}, moves)
            await queries.keep_refused(connection, LEASE_NAME, refused[:_REFUSED_KEPT])
            await faults.at("record.before_commit")
        self.recorded += len(batch) - len(refused)
        self.refused += len(refused)
        if refused:
            log.warning("reports_refused", count=len(refused), task_id=refused[0][0], problem=refused[0][1])
        return rows

    async def _set_aside(self, heard: Heard, error: Exception) -> None:
        problem = f"{type(error).__name__}: {error}".replace("\0", "")[:1000]
        async with self._database.transaction() as connection:
            await queries.keep_refused(connection, LEASE_NAME, [(str(heard.task_id), problem, heard.body[:_BODY_KEPT])])
        self.refused += 1
        log.error("report_set_aside", task_id=str(heard.task_id), problem=problem)

    async def _shorten(self, rows: Sequence[Record]) -> None:
        """Let the stored states of ended runs go soon; a key is half a kilobyte for a day otherwise."""
        keys = [
            key_of(TaskId(row["id"], n))
            for row in rows
            if row["state"] in TERMINAL
            for n in range(max(row["dispatches"] - 2, 1), row["dispatches"] + 1)
        ]
        if not keys:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.expire(key, RESULT_KEPT_S)
                await pipe.execute()
        except (RedisError, OSError) as error:
            log.debug("results_not_shortened", keys=len(keys), error=str(error))


def _parts(batch: Sequence[Heard]) -> list[list[Heard]]:
    """A batch by run; the reports of a single run one by one."""
    by_run: defaultdict[UUID, list[Heard]] = defaultdict(list)
    for heard in batch:
        by_run[heard.task_id.run_id].append(heard)
    return list(by_run.values()) if len(by_run) > 1 else [[heard] for heard in batch]


async def _unknown(
    connection: Connection, batch: Sequence[Heard], changed: set[UUID], moves: dict[UUID, list[Move]]
) -> list[Refused]:
    """The reports of runs that there are not."""
    doubtful = moves.keys() - changed
    unknown = doubtful - await queries.existing(connection, list(doubtful))
    return [
        (str(heard.task_id), "no such run", heard.body[:_BODY_KEPT])
        for heard in {heard.task_id.run_id: heard for heard in batch if heard.task_id.run_id in unknown}.values()
    ]
