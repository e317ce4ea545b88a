"""The truth behind the hints: reads which runs changed their state since the last read, whoever wrote them."""

from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

import structlog

from app.database import Database, Record
from app.feed import queries
from app.feed.cursor import Position
from app.feed.frames import Change
from app.progress.view import run_view

log = structlog.get_logger()

_PAGE = 1000
_ROWS = 200


def changes_of(rows: Iterable[Record]) -> list[Change]:
    """Rows of `runs`, as they go out."""
    return [Change.of(run_view(row)) for row in rows]


class Reconciler:
    """Reads, page by page, the state changes since where the last whole read began, and hands on the runs behind them.

    `newest(run_id)` is the greatest version already handed on, `route` hands on, `reached` learns of each whole read,
    and `watched()` names runs to read besides (those whose progress nobody tells us of).
    """

    def __init__(
        self,
        database: Database,
        *,
        newest: Callable[[str], int],
        route: Callable[[Sequence[Change]], None],
        reached: Callable[[Position], None],
        restored: Callable[[], None],
        watched: Callable[[], Sequence[UUID]],
    ) -> None:
        self._database = database
        self._newest = newest
        self._route = route
        self._reached = reached
        self._restored = restored
        self._watched = watched
        #: Where the last whole read began; None: nobody listens, so nothing is to be caught up with.
        self._position: Position | None = None
        #: The read under way: where it began, and the last event it has looked at.
        self._under_way: tuple[Position, tuple[int, UUID, int]] | None = None

    async def begin(self) -> None:
        """Make sure that everything that is committed after this returns will be read. Asked by each new listener
        before it reads anything itself."""
        if self._position is None:
            async with self._database.reading() as connection:
                position = await queries.where_we_are(connection)
            if self._position is None:
                self._position = position

    def forget(self) -> None:
        """Nobody listens any more."""
        self._position = self._under_way = None

    async def run_once(self, limit: int = _PAGE) -> bool:
        """Read one page of at most `limit` state changes; returns whether the read under way has more."""
        await self.begin()
        async with self._database.reading() as connection:
            assert self._position is not None
            if self._under_way is None:
                now = await queries.where_we_are(connection)
                if now.epoch != self._position.epoch or now.xid < self._position.xid:
                    await self._start_anew(now)
                    return False
                self._under_way = now, (self._position.xid, queries.ZERO, 0)
            began, after = self._under_way
            events = await queries.events_since(connection, self._position.xid, after, limit)
            wanted = dict.fromkeys(
                event["run_id"] for event in events if self._newest(str(event["run_id"])) < event["version"]
            )
            if len(events) < limit:
                wanted.update(dict.fromkeys(self._watched()))
            ids = list(wanted)
            for start in range(0, len(ids), _ROWS):
                self._route(changes_of(await queries.runs_by_id(connection, ids[start : start + _ROWS])))
        if len(events) == limit:
            last = events[-1]
            self._under_way = began, (last["xid"], last["run_id"], last["version"])
            return True
        self._position, self._under_way = began, None
        self._reached(began)
        return False

    async def _start_anew(self, now: Position) -> None:
        """The database was restored under us: what was sent may never have happened."""
        assert self._position is not None
        log.warning("feed_database_restored", cursor=str(self._position), now=str(now))
        if now.epoch == self._position.epoch:
            async with self._database.transaction() as connection:
                await queries.renew_epoch(connection, now.epoch)
        self.forget()
        self._restored()
