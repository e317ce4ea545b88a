"""One socket, from its registration to its close: what is read, what is sent, and when to give up."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import structlog

from app import faults
from app.database import AWAY, Connection
from app.feed import frames, queries
from app.feed.backfills import OneBackfill
from app.feed.cursor import Position
from app.feed.frames import Change, Close
from app.feed.hub import Hub
from app.feed.listeners import ManyRuns, OneRun, Verdict
from app.feed.logs import Log
from app.feed.queries import Filter
from app.feed.reconcile import changes_of
from app.loop import end
from app.progress.backfill_view import settled

log = structlog.get_logger()


class Gone(Exception):
    """The client is not there any more."""


class Socket(Protocol):
    """A WebSocket that was accepted."""

    async def send(self, text: str) -> None:
        """Send a text frame; blocks while the client takes nothing. `Gone` if it has left."""

    async def close(self, close: Close) -> None:
        """Say goodbye; never raises for a client that has left, and never waits for one that takes nothing."""

    async def until_gone(self) -> None:
        """Read and drop what the client says, until it leaves. Must run all the time, or pongs are not seen."""


async def follow_runs(hub: Hub, socket: Socket, wanted: Filter, since: Position | None, interval_s: float) -> None:
    """Serve the general feed until either side ends it."""
    listener = ManyRuns(wanted, most=hub.limits.waiting, crowd=hub.limits.crowd)
    with hub.listening(listener):
        await _serve(socket, listener, _send_runs(hub, socket, listener, wanted, since, interval_s))


async def follow_run(hub: Hub, socket: Socket, run_id: UUID, *, logs: bool = False) -> None:
    """Serve the feed of one run, with its log if wanted, until its end or until either side ends it."""
    listener = OneRun()
    log_of_run = Log(hub.logs, run_id, patience_s=hub.limits.log_patience_s) if logs else None
    with hub.listening(listener, run_id):
        await _serve(socket, listener, _send_run(hub, socket, listener, run_id, log_of_run))


async def follow_backfill(hub: Hub, socket: Socket, backfill_id: UUID) -> None:
    """Serve the feed of one backfill, until nothing of it changes any more or until either side ends it."""
    listener = OneBackfill()
    with hub.backfills.listening(listener, backfill_id):
        await _serve(socket, listener, _send_backfill(hub, socket, listener, backfill_id))


async def _serve(socket: Socket, listener: Verdict, sending: Coroutine[Any, Any, Close]) -> None:
    """Send until there is nothing more to send, somebody else decides the end, or the client leaves.

    The close is sent while the listener is still registered, so that whoever drains the hub waits for it.
    """
    sender = asyncio.create_task(sending)
    reader = asyncio.create_task(socket.until_gone())
    waits: set[asyncio.Future[Any]] = {sender, reader, listener.verdict}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if listener.verdict.done():
            await socket.close(listener.verdict.result())
        elif sender.done() and (close := _verdict(sender)) is not None:
            await socket.close(close)
    finally:
        for task in (sender, reader):
            task.cancel()
        await asyncio.gather(sender, reader, return_exceptions=True)


def _verdict(sender: asyncio.Task[Close]) -> Close | None:
    """How to close after the sender has ended; None if there is nobody to close to."""
    error = sender.exception()
    match error:
        case None:
            return sender.result()
        case Gone():
            return None
        case _TooSlow():
            return Close(frames.TOO_SLOW, "too slow: nothing was taken for too long")
        case _ if isinstance(error, (*AWAY, asyncpg.PostgresError)):
            log.warning("feed_read_failed", error=f"{type(error).__name__}: {error}"[:200])
            return Close(frames.DRAINING, "the database does not answer: connect again")
        case _:
            log.error("feed_socket_failed", exc_info=error)
            return Close(frames.INTERNAL, "internal error")


class _TooSlow(Exception):
    """The client takes nothing."""


async def _send(hub: Hub, socket: Socket, text: str) -> None:
    await faults.at("feed.before_send")
    try:
        async with asyncio.timeout(hub.limits.patience_s):
            await socket.send(text)
    except TimeoutError:
        raise _TooSlow from None


async def _send_run(hub: Hub, socket: Socket, listener: OneRun, run_id: UUID, log_of_run: Log | None) -> Close:
    await hub.begin()
    now = await hub.read(run_id)
    if now is None:
        return Close(frames.NOT_FOUND, "no such run")
    listener.offer(now)
    ended: Change | None = None
    news: asyncio.Task[Any] = asyncio.create_task(listener.news.wait())
    part = asyncio.create_task(log_of_run.next()) if log_of_run is not None else None
    try:
        while ended is None or part is not None:
            await asyncio.wait([task for task in (news, part) if task], return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                for change in listener.drain():
                    await _send(hub, socket, frames.run(change))
                    ended = change if change.ended else ended
                    if log_of_run is not None:
                        log_of_run.learn(change)
                news = asyncio.create_task(listener.news.wait())
            if part is not None and part.done():
                found = part.result()
                part = None
                if found is not None and log_of_run is not None:
                    frame = frames.log(run_id, found.attempt, found.offset, found.next, found.text)
                    await _send(hub, socket, frame)
                    part = asyncio.create_task(log_of_run.next())
        await _send(hub, socket, frames.end(ended))
        return Close(frames.NORMAL)
    finally:
        await end(news, *([part] if part else []))


async def _send_backfill(hub: Hub, socket: Socket, listener: OneBackfill, backfill_id: UUID) -> Close:
    now = await hub.backfills.read(backfill_id)
    if now is None:
        return Close(frames.NOT_FOUND, "no such backfill")
    listener.offer(now)
    while True:
        await listener.news.wait()
        view = listener.take()
        if view is None:
            continue
        await _send(hub, socket, frames.backfill(view))
        if settled(view):
            await _send(hub, socket, frames.end_of_backfill(view))
            return Close(frames.NORMAL)


async def _send_runs(
    hub: Hub, socket: Socket, listener: ManyRuns, wanted: Filter, since: Position | None, interval_s: float
) -> Close:
    async def flush() -> Position | None:
        changes, reached = listener.drain()
        for frame in frames.runs(changes):
            await _send(hub, socket, frame)
        return reached

    async def show(page: Sequence[Change], *, whatever: bool = False) -> None:
        hub.route(page)
        for change in page:
            if change.version < hub.newest(change.run_id):
                continue  # a newer one was offered while we read
            if whatever:
                listener.take(change)
            else:
                listener.offer(change)
        await flush()

    await hub.begin()
    async with hub.database.reading() as connection:
        position = await queries.where_we_are(connection)
        recovered = since is None or await _can_catch_up(hub, connection, since, position)
    # Each page is its own short read, sent before the next: no transaction waits for a slow client. What changes
    # meanwhile is offered to the listener, for it was registered first.
    after: UUID | None = queries.ZERO
    while after is not None:
        async with hub.database.reading() as connection:
            rows = await queries.live_runs(connection, wanted, after, hub.limits.page)
        await show(changes_of(rows))
        after = rows[-1]["id"] if len(rows) == hub.limits.page else None
    after = queries.ZERO if since is not None and recovered else None
    while after is not None and since is not None:
        async with hub.database.reading() as connection:
            rows = await queries.runs_gone_since(connection, wanted, since.xid, after, hub.limits.page)
        await show(changes_of(rows), whatever=True)
        after = rows[-1]["id"] if len(rows) == hub.limits.page else None
    await _send(hub, socket, frames.live(position, recovered=recovered))

    bookmark_at = time.monotonic() + hub.limits.bookmark_s
    while True:
        busy = await _within(listener.news, bookmark_at - time.monotonic())
        reached = await flush()
        if reached is not None and reached.xid > position.xid:
            position = reached
        if time.monotonic() >= bookmark_at:
            await _send(hub, socket, frames.bookmark(position))
            bookmark_at = time.monotonic() + hub.limits.bookmark_s
        if busy:
            await _within(listener.crowded, interval_s)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, at most so long; whether it is set."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _can_catch_up(hub: Hub, connection: Connection, since: Position, now: Position) -> bool:
    """Whether what changed since a client's cursor can be told completely, and in bounds."""
    kept_s = 86400 * min(hub.settings.retain_success_days, hub.settings.retain_failure_days)
    return (
        since.epoch == now.epoch
        and now.time_s - since.time_s < kept_s
        and await queries.ids_have_reached(connection, since.xid)
        and await queries.changed_runs_are_few(connection, since.xid, hub.limits.catch_up)
    )
