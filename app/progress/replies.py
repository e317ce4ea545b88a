"""The routes through RabbitMQ: what workers with `rpc://` results answer, and the messages that queues gave up.

Such a worker sends each state to the queue that our messages name in `reply_to`, under the task's id. Nothing is
acknowledged before it is committed, and what comes twice changes nothing: every write is guarded.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog
from redis.asyncio import Redis

from app import faults
from app.database import Database
from app.logs.store import Store
from app.progress.listen import Heard
from app.progress.mailbox import Letter, Mailbox
from app.progress.recording import BATCH, BATCH_BYTES, Recording
from app.progress.results import PATIENCE_S, Results
from app.progress.sources import Source
from app.progress.turn import Turn
from app.progress.undelivered import Undelivered
from app.settings import Settings
from workers.protocol import parse_task_id

log = structlog.get_logger()

LEASE_NAME: Final = "record:rpc"
#: The oldest go first once nobody has read them for so long.
REPLIES_BYTES: Final = 256 * 1024 * 1024
#: Most unacknowledged messages; each may have a megabyte.
PREFETCH: Final = 250

_IDLE_S: Final = 0.25
_BUSY_BATCH: Final = 50


class Replies:
    """The recorder of the RabbitMQ routes. Call `run_once` again and again, `close` at the end.

    A pass waits up to a quarter of a second for messages, so a loop around it needs no pause of its own but when
    another process has the lease (`holds` is False). A broker that is away is no error: then no messages come.
    """

    def __init__(
        self, database: Database, redis: Redis, settings: Settings, name: str, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._database = database
        self._turn = Turn(database, LEASE_NAME, name)
        self._recording = Recording(database, redis, LEASE_NAME)
        self._arrived = asyncio.Event()
        url = settings.broker_url.get_secret_value()
        bounds = {
            "x-single-active-consumer": True,
            "x-max-length-bytes": REPLIES_BYTES,
            "x-overflow": "drop-head",
        }
        self._results = Results(
            database,
            Store(settings.log_store),
            settings.result_limit_mib * 1024 * 1024,
            self._load,
            self._arrived.set,
            patience_s=patience_s,
        )
        self._replies = Mailbox(
            url,
            settings.reply_queue,
            bounds,
            self._arrived,
            prefetch=PREFETCH,
            most_bytes=self._results.most_bytes,
        )
        self._dead = Mailbox(url, settings.dead_letter_queue, {}, self._arrived, prefetch=PREFETCH)
        self._undelivered = Undelivered(database, redis, self._recording, self._dead)
        self._open = False
        self._hand: list[Letter] = []
        #: What the letters in hand say and is to be recorded now.
        self._heard: list[Heard] = []
        #: Letters whose result is on its way into the log store.
        self._aside: list[Letter] = []
        self._last_batch = 0

    @property
    def holds(self) -> bool:
        return self._turn.held

    @property
    def listening(self) -> bool:
        """Whether both queues are consumed now."""
        return self._replies.connected.is_set() and self._dead.connected.is_set()

    @property
    def recorded(self) -> int:
        """How many replies were recorded since the start."""
        return self._recording.recorded

    @property
    def refused(self) -> int:
        """How many replies were refused since the start."""
        return self._recording.refused

    async def run_once(self) -> bool:
        """One batch of replies, and the dead letters that are ripe; whether to call again at once.

        False: another process has the lease. Raises what the database raises if it is away: the batch is kept.
        """
        if not await self._turn.hold():
            await self._stop()
            return False
        if not self._open:
            self._open = True
            self._replies.start()
            self._dead.start()
        if self._hand and not self._replies.current(self._hand[0]):
            self._hand = []  # all of it comes once more
        if not self._hand and not self._heard:
            await self._gather()
        if self._heard:
            await faults.at("record.after_receive")
            await self._recording.record(self._heard)
            self._heard = []
        await self._acknowledge()
        await self._undelivered.run_once()
        return True

    async def close(self) -> None:
        """Stop consuming and let another process take over at once."""
        await self._stop()
        await self._turn.give_back()

    async def _stop(self) -> None:
        if self._open:
            self._open = False
            await asyncio.gather(self._replies.close(), self._dead.close())
        await self._results.close()
        self._hand, self._heard, self._aside = [], [], []

    async def _gather(self) -> None:
        if not self._replies.waiting and not self._dead.waiting:
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), _IDLE_S)
        if 0 < self._replies.waiting < PREFETCH:
            await asyncio.sleep(0.02 if self._last_batch >= _BUSY_BATCH else 0.003)
        self._hand = self._replies.take(BATCH, BATCH_BYTES)
        self._last_batch = len(self._hand)
        heard = [
            Heard(task_id, letter.body, letter.size)
            for letter in self._hand
            if (task_id := parse_task_id(letter.task_id)) is not None
        ]
        if len(heard) < len(self._hand):
            log.debug("foreign_replies", replies=len(self._hand) - len(heard))
        self._heard = self._results.sift(heard)

    async def _acknowledge(self) -> None:
        """Give up what is recorded; a letter whose result is not in its place yet stays ours."""
        letters, self._hand = [*self._aside, *self._hand], []
        # Also one of a connection that is gone: nobody else has its bytes until it comes once more.
        self._aside = list(
            {(letter.task_id, letter.size): letter for letter in letters if self._waits(letter)}.values()
        )
        done = [letter for letter in letters if not self._waits(letter)]
        await self._replies.acknowledge(done, all_before=not self._aside)

    def _waits(self, letter: Letter) -> bool:
        task_id = parse_task_id(letter.task_id)
        return task_id is not None and self._results.waits(task_id)

    async def _load(self, heard: Heard, _: Source) -> bytes | None:
        for letter in [*self._hand, *self._aside]:
            if letter.task_id == str(heard.task_id) and letter.size == heard.size:
                with suppress(OSError):
                    return await asyncio.to_thread(letter.read)
        return None
