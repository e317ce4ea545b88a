"""Hands changes of runs to whoever waits for them in this process. One hub per API process."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import structlog
from redis.asyncio import Redis

from app.database import AWAY, Database
from app.feed import queries
from app.feed.backfills import Backfills
from app.feed.cursor import Position
from app.feed.frames import DRAINING, Change, Close
from app.feed.hints import Hints
from app.feed.listeners import Listener, LongPoll, ManyRuns
from app.feed.logs import LogReads
from app.feed.reconcile import Reconciler, changes_of
from app.logs.store import Store
from app.loop import end
from app.settings import Settings

log = structlog.get_logger()

_REMEMBERED = 50_000
_WATCHED = 500


@dataclass(frozen=True, slots=True)
class Limits:
    """What a socket may cost, and the rhythm of the truth."""

    #: Seconds between two reconcile reads while anybody listens.
    reconcile_s: float = 1.0
    #: A socket that takes nothing for so long is closed.
    patience_s: float = 20.0
    #: Seconds from one bookmark to the next; a socket's interval may come on top.
    bookmark_s: float = 9.0
    #: Most runs that may wait for one socket.
    waiting: int = 10_000
    #: So many waiting runs are sent before their interval ends.
    crowd: int = 2_000
    #: Runs per page of a snapshot.
    page: int = 500
    #: How long the end of a run waits for a log that says nothing more, and not that it has ended.
    log_patience_s: float = 12.0
    #: A cursor behind which more runs changed than this is answered with a full snapshot.
    catch_up: int = 5_000


class Hub:
    """Gets every change once, from a hint or from the reconcile read, and offers it to all listeners.

    `start` and `stop` frame its life, `drain` ends all listeners first. A change is offered only if its version is
    greater than what was offered of that run before, so listeners see versions rise.
    """

    def __init__(self, database: Database, redis: Redis, settings: Settings, limits: Limits | None = None) -> None:
        self.database = database
        self.settings = settings
        self.limits = limits or Limits()
        self.logs = LogReads(database, redis, Store(settings.log_store))
        self.backfills = Backfills(database)
        self._of_run: dict[str, set[Listener]] = {}
        self._of_many: set[ManyRuns] = set()
        # The greatest version offered of each run, in two generations: the older one is dropped when the younger is
        # full. A run that falls out may be offered twice, and clients drop that.
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        #: Read at once.
        self._kick = asyncio.Event()
        #: Somebody listens.
        self._company = asyncio.Event()
        #: Nobody does.
        self._alone = asyncio.Event()
        self._alone.set()
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._hints = Hints(redis, take=self._take, heard_again=self._kick.set)
        self._reconciler = Reconciler(
            database,
            newest=self.newest,
            route=self.route,
            reached=self._reached,
            restored=self._restored,
            watched=self._unheard_of,
        )

    @property
    def draining(self) -> bool:
        """Whether this process is about to leave: nobody should wait here any more."""
        return self._draining

    async def start(self) -> None:
        """Begin to listen. Raises one of `AWAY` if the database cannot be asked for its name."""
        async with self.database.transaction() as connection:
            await queries.renew_epoch_after_restore(connection)
        self._tasks = [
            asyncio.create_task(self._hints.run(), name="feed hints"),
            asyncio.create_task(self._reconcile(), name="feed reconcile"),
            asyncio.create_task(self.backfills.run(), name="feed backfills"),
        ]

    async def drain(self, within_s: float = 2.0) -> None:
        """End every socket (4503) and long-poll, and take no new ones; waits until they are gone, but not for ever."""
        self._draining = True
        goodbye = Close(DRAINING, "draining: connect again")
        for listener in self._everybody():
            listener.end(goodbye)
        self.backfills.drain(goodbye)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._alone.wait()
                await self.backfills.alone.wait()

    async def stop(self) -> None:
        """Drain and end the hub's own tasks."""
        await self.drain()
        await self.logs.close()
        await end(*self._tasks)
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("feed_task_failed", exc_info=error)
        self._tasks = []

    @property
    def listeners(self) -> int:
        """How many sockets and long-polls wait."""
        return len(self._of_many) + sum(len(listeners) for listeners in self._of_run.values())

    @property
    def hearing(self) -> bool:
        """Whether the Redis subscription stands; without it changes come by the reconcile read."""
        return self._hints.hearing

    @contextlib.contextmanager
    def listening(self, listener: Listener, run_id: UUID | None = None) -> Iterator[None]:
        """Offer changes to a listener: of one run, or of all for a `ManyRuns`."""
        if self._draining:
            listener.end(Close(DRAINING, "draining: connect again"))
        if run_id is None:
            assert isinstance(listener, ManyRuns)
            self._of_many.add(listener)
        else:
            self._of_run.setdefault(str(run_id), set()).add(listener)
        self._company.set()
        self._alone.clear()
        try:
            yield
        finally:
            if isinstance(listener, ManyRuns):
                self._of_many.discard(listener)
            else:
                rest = self._of_run[str(run_id)]
                rest.discard(listener)
                if not rest:
                    del self._of_run[str(run_id)]
            if not self._of_many and not self._of_run:
                self._alone.set()

    async def begin(self) -> None:
        """Asked by a listener once it is registered and before it reads: from then on nothing escapes it."""
        await self._reconciler.begin()

    async def read(self, run_id: UUID) -> Change | None:
        """The run as it is now; None if there is none."""
        async with self.database.reading() as connection:
            changes = changes_of(await queries.runs_by_id(connection, [run_id]))
        self.route(changes)
        return changes[0] if changes else None

    def newest(self, run_id: str) -> int:
        """The greatest version offered of a run, as far as is remembered; 0 for none."""
        return self._young.get(run_id) or self._old.get(run_id, 0)

    def route(self, changes: Sequence[Change]) -> None:
        """Offer what is new among these to those who wait for it."""
        for change in changes:
            if change.version <= self.newest(change.run_id):
                continue
            self._young[change.run_id] = change.version
            for listener in self._of_run.get(change.run_id, ()):
                listener.offer(change)
            for listener in self._of_many:
                listener.offer(change)
        if len(self._young) > _REMEMBERED:
            self._old, self._young = self._young, {}

    async def wait_for(
        self, run_id: UUID, after_version: int | None, until_end: bool, timeout_s: float
    ) -> dict[str, Any] | None:
        """The run as JSON values, once there is news of it: its version is greater than `after_version` (None: than
        it is now) or it has ended; with `until_end` only that it has ended. None if that does not come in time, if
        there is no such run, or when the process drains. Holds no connection while it waits.
        """
        poll = LongPoll(after_version, until_end=until_end)
        with self.listening(poll, run_id):
            await self.begin()
            now = await self.read(run_id)
            if now is None:
                return None
            poll.begin(now)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(poll.answer), timeout_s)
            change = poll.answer.result() if poll.answer.done() else None
        if change is None:
            return None
        view: dict[str, Any] = orjson.loads(change.text)
        return view

    def _everybody(self) -> list[Listener]:
        return [*self._of_many, *(listener for listeners in self._of_run.values() for listener in listeners)]

    def _take(self, message: bytes) -> None:
        """A message of Redis: a JSON list of runs."""
        if not self._of_many and not self._of_run:
            return
        try:
            changes = [
                Change.of(view)
                for view in orjson.loads(message)
                if self._of_many or view["id"] in self._of_run
                if view["version"] > self.newest(view["id"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            log.warning("feed_hint_unreadable", error=f"{type(error).__name__}: {error}"[:200])
            self._kick.set()
            return
        self.route(changes)

    def _reached(self, position: Position) -> None:
        for listener in self._of_many:
            if listener.offered is None or position.xid > listener.offered.xid:
                listener.offered = position

    def _restored(self) -> None:
        self._young, self._old = {}, {}
        for listener in self._everybody():
            listener.end(Close(DRAINING, "the database was restored: connect again"))

    def _unheard_of(self) -> list[UUID]:
        """Runs that are watched one by one while Redis is silent: their progress makes no event."""
        if self.hearing:
            return []
        return [UUID(run_id) for run_id in list(self._of_run)[:_WATCHED]]

    async def _reconcile(self) -> None:
        """Read the truth each `reconcile_s` while anybody listens, and at once when asked to."""
        working = True
        while True:
            self._kick.clear()
            if not self._of_many and not self._of_run:
                self._reconciler.forget()
                self._young, self._old = {}, {}
                self._company.clear()
                await self._company.wait()
                continue
            try:
                while await self._reconciler.run_once():
                    pass
                working = True
            except (*AWAY, asyncpg.PostgresError) as error:
                if working:
                    log.warning("feed_reconcile_failed", error=f"{type(error).__name__}: {error}"[:200])
                working = False
            except Exception:
                log.exception("feed_reconcile_failed")
            # No `wait_for`: that of Python 3.11 swallows a cancel that comes together with the kick.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.limits.reconcile_s):
                    await self._kick.wait()
