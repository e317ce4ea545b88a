"""Hands changes of backfills to whoever waits for them in this process.

Few are watched at a time, and they change in steps: all of them are read in one short statement twice a second while
anybody watches. That is the truth and fast enough, and Redis has no part in it.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog

from app.database import AWAY, Database
from app.feed import queries
from app.feed.frames import NOT_FOUND, Close
from app.feed.listeners import Verdict
from app.progress.backfill_view import backfill_view, settled

log = structlog.get_logger()

EVERY_S: Final = 0.5
_PAGE: Final = 500


class OneBackfill(Verdict):
    """The newest value of a backfill that was not taken yet; older ones are replaced in place."""

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()
        self._version = 0
        self._waiting: dict[str, Any] | None = None

    def offer(self, view: dict[str, Any]) -> None:
        if view["version"] > self._version:
            self._version, self._waiting = view["version"], view
            self.news.set()

    def take(self) -> dict[str, Any] | None:
        view, self._waiting = self._waiting, None
        self.news.clear()
        return view

    def end(self, close: Close) -> None:
        super().end(close)
        self.news.set()


class Backfills:
    """Who watches which backfill. `run` is the task that reads, `read` a listener's own first look."""

    def __init__(self, database: Database, every_s: float = EVERY_S) -> None:
        self._database = database
        self._every_s = every_s
        self._listeners: dict[UUID, set[OneBackfill]] = {}
        self._goodbye: Close | None = None
        self._company = asyncio.Event()
        self.alone = asyncio.Event()
        self.alone.set()

    @property
    def waiting(self) -> int:
        """How many sockets and long-polls wait."""
        return sum(len(listeners) for listeners in self._listeners.values())

    def drain(self, close: Close) -> None:
        """End every listener, and whoever comes later."""
        self._goodbye = close
        for listener in [one for listeners in self._listeners.values() for one in listeners]:
            listener.end(close)

    @contextlib.contextmanager
    def listening(self, listener: OneBackfill, backfill_id: UUID) -> Iterator[None]:
        """Offer changes of this backfill to a listener."""
        self._listeners.setdefault(backfill_id, set()).add(listener)
        self.alone.clear()
        self._company.set()
        if self._goodbye is not None:
            listener.end(self._goodbye)
        try:
            yield
        finally:
            rest = self._listeners[backfill_id]
            rest.discard(listener)
            if not rest:
                del self._listeners[backfill_id]
            if not self._listeners:
                self._company.clear()
                self.alone.set()

    async def read(self, backfill_id: UUID) -> dict[str, Any] | None:
        """The backfill as it is now; None if there is none."""
        async with self._database.reading() as connection:
            rows = await queries.backfills_by_id(connection, [backfill_id])
        return backfill_view(rows[0]) if rows else None

    async def wait_for(self, backfill_id: UUID, after_version: int | None, timeout_s: float) -> dict[str, Any] | None:
        """The backfill once its version is greater than `after_version` (None: than it is now), or at once if nothing
        of it changes any more. None if that does not come in time, if there is no such backfill, or when the process
        drains. Holds no connection while it waits."""
        listener = OneBackfill()
        with self.listening(listener, backfill_id):
            now = await self.read(backfill_id)
            if now is None:
                return None
            known = now["version"] if after_version is None else after_version
            listener.offer(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while not listener.verdict.done():
                        view = listener.take()
                        if view is not None and (view["version"] > known or settled(view)):
                            return view
                        await listener.news.wait()
        return None

    async def run(self) -> None:
        """Until cancelled."""
        working = True
        while True:
            await self._company.wait()
            try:
                await self._look()
                working = True
            except (*AWAY, asyncpg.PostgresError) as error:
                if working:
                    log.warning("feed_backfills_failed", error=f"{type(error).__name__}: {error}"[:200])
                working = False
            except Exception:
                log.exception("feed_backfills_failed")
            await asyncio.sleep(self._every_s)

    async def _look(self) -> None:
        ids = list(self._listeners)
        for start in range(0, len(ids), _PAGE):
            part = ids[start : start + _PAGE]
            async with self._database.reading() as connection:
                rows = await queries.backfills_by_id(connection, part)
            views = {view["id"]: view for view in map(backfill_view, rows)}
            for backfill_id in part:
                for listener in list(self._listeners.get(backfill_id, ())):
                    if (view := views.get(backfill_id)) is not None:
                        listener.offer(view)
                    else:
                        listener.end(Close(NOT_FOUND, "no such backfill"))
