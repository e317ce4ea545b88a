"""The route of reports through Redis: listens, reads the truth, and has both recorded.

One recorder at a time works, by a row lease that others take over; correctness does not hang on it, for every write is
guarded.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import faults
from app.database import Database, Record
from app.logs.store import Store
from app.progress import queries
from app.progress.listen import Heard, Listener, at, whole_of
from app.progress.recording import BATCH, BATCH_BYTES, Recording
from app.progress.results import PATIENCE_S, Results
from app.progress.sources import OWN, Source
from app.progress.turn import Turn
from app.settings import Settings
from app.states import TERMINAL
from workers.protocol import TaskId

log = structlog.get_logger()

LEASE_NAME: Final = "record:redis"
TRUTH_EVERY_S: Final = 10.0
TRUTH_PAGE: Final = 500
#: How long the stored state of an ended run is kept for whoever asks Celery.
RESULT_KEPT_S: Final = 3600

_IDLE_S: Final = 0.25
_BUSY_BATCH: Final = 50
_FIRST_ID: Final = UUID(int=0)


class Recorder:
    """The recorder of the Redis route. Call `run_once` again and again, `close` at the end.

    A pass waits up to a quarter of a second for reports, so a loop around it needs no pause of its own but when another
    recorder has the lease (`holds` is False).
    """

    def __init__(
        self,
        database: Database,
        redis: Redis,
        settings: Settings,
        name: str,
        *,
        truth_every_s: float = TRUTH_EVERY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._database = database
        self._redis = redis
        self._redis_url = settings.redis_url.get_secret_value()
        self._turn = Turn(database, LEASE_NAME, name)
        self._recording = Recording(database, redis, LEASE_NAME)
        self._results = Results(
            database,
            Store(settings.log_store),
            settings.result_limit_mib * 1024 * 1024,
            self._load,
            self._ready,
            patience_s=patience_s,
        )
        self._truth_every_s = truth_every_s
        self._listener: Listener | None = None
        self._hand: list[Heard] = []
        self._last_batch = 0
        self._truth_after: UUID | None = None
        self._truth_at = 0.0
        #: By queue, where its results stand if not in our own place.
        self._sources: dict[str, Source] = {}

    @property
    def holds(self) -> bool:
        return self._turn.held

    @property
    def recorded(self) -> int:
        """How many reports were recorded since the start."""
        return self._recording.recorded

    @property
    def refused(self) -> int:
        """How many reports were refused since the start."""
        return self._recording.refused

    async def run_once(self) -> bool:
        """One batch, or one page of the truth; whether to call again at once.

        False: another recorder has the lease. Raises what the database raises if it is away: the batch is kept.
        """
        if not await self._turn.hold():
            await self._stop_listening()
            return False
        if self._listener is None:
            listener = Listener(self._redis_url)
            await self._read_sources(listener)
            self._listener = listener
            self._listener.start()
        await self._read_truth(self._listener)
        if not self._hand:
            reading = self._truth_after is not None
            heard = await self._listener.gather(
                BATCH,
                BATCH_BYTES,
                wait_s=0 if reading else _IDLE_S,
                gather_s=0.05 if self._last_batch >= _BUSY_BATCH else 0.003,
            )
            self._last_batch = len(heard)
            self._hand = self._results.sift(heard)
        if self._hand:
            await faults.at("record.after_receive")
            rows = await self._recording.record(self._hand)
            self._hand = []
            await self._shorten(rows)
        return True

    @property
    def listening(self) -> bool:
        """Whether pushes reach us now."""
        return self._listener is not None and self._listener.connected.is_set()

    async def close(self) -> None:
        """Stop listening and let another recorder take over at once."""
        await self._stop_listening()
        await self._turn.give_back()

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        await self._results.close()
        self._hand, self._truth_after, self._truth_at = [], None, 0.0

    async def _load(self, heard: Heard, source: Source) -> bytes | None:
        return await whole_of(self._redis, heard.task_id, source)

    def _ready(self) -> None:
        if self._listener is not None:
            self._listener.waiting.arrived.set()

    async def _read_sources(self, listener: Listener) -> None:
        async with self._database.reading() as connection:
            rows = await queries.odd_results(connection)
        self._sources = {row["name"]: Source.of(row) for row in rows}
        listener.listen_behind({source.prefix for source in self._sources.values()})

    async def _read_truth(self, listener: Listener) -> None:
        """Read the next page of stored states, if it is time for it and there is room."""
        if self._truth_after is None:
            due = listener.resync.is_set() or time.monotonic() - self._truth_at >= self._truth_every_s
            if not due or not listener.connected.is_set():
                return
            listener.resync.clear()
            await self._read_sources(listener)
            self._truth_after, self._truth_at = _FIRST_ID, time.monotonic()
        if listener.waiting.over_mark:
            return
        async with self._database.reading() as connection:
            rows = await queries.dispatched_runs(connection, self._truth_after, TRUTH_PAGE)
        tasks = [(TaskId(row["id"], n), Source.of(row)) for row in rows for n in range(row["first"], row["last"] + 1)]
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

    async def _shorten(self, rows: Sequence[Record]) -> None:
        """Let the stored states of ended runs go soon; a key is half a kilobyte for a day otherwise."""
        by_source: defaultdict[Source, list[TaskId]] = defaultdict(list)
        for row in rows:
            if row["state"] in TERMINAL:
                ended = [TaskId(row["id"], n) for n in range(max(row["dispatches"] - 2, 1), row["dispatches"] + 1)]
                for source in {OWN, self._sources.get(row["queue"], OWN)}:
                    by_source[source] += ended
        for source, tasks in by_source.items():
            try:
                async with at(self._redis, source) as client, client.pipeline(transaction=False) as pipe:
                    for task_id in tasks:
                        pipe.expire(source.key_of(task_id), RESULT_KEPT_S)
                    await pipe.execute()
            except (RedisError, OSError) as error:
                log.debug("results_not_shortened", keys=len(tasks), error=str(error))
