"""The WebSockets: all runs that match, one run until its end, one backfill until its end.

They accept first and close then, for a refused handshake reaches clients as a bare HTTP 403 without our code.
"""

import asyncio
import contextlib
import re
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from app.feed import frames, session
from app.feed.cursor import Position
from app.feed.frames import Close
from app.feed.queries import Filter
from app.states import is_state

router = APIRouter()

_FEED_PARAMETERS = frozenset({"namespace", "job_id", "backfill_id", "queue", "state", "since", "interval_ms"})
_RUN_PARAMETERS = frozenset({"logs"})
_MOST_VALUES = 100
_LEAST_INTERVAL_MS, _INTERVAL_MS, _MOST_INTERVAL_MS = 50, 200, 10_000


class _Socket:
    """A FastAPI WebSocket as the feed wants it."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send({"type": "websocket.send", "text": text})
        except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: sent after a close of either side
            raise session.Gone from error

    async def close(self, close: Close) -> None:
        reason = close.reason.encode()[:120].decode(errors="ignore")
        # A server other than ours may wait here for a client that reads nothing; leaving ends the connection as well.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(5):
                await self._websocket.close(close.code, reason)

    async def until_gone(self) -> None:
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass


class _Refused(Exception):
    """The request cannot be served; the reason names the parameter at fault."""

    def __init__(self, reason: str, code: int = frames.BAD_REQUEST) -> None:
        super().__init__(reason)
        self.close = Close(code, reason)


@router.websocket("/feed")
async def feed(websocket: WebSocket) -> None:
    """All runs that match `namespace`, `job_id`, `backfill_id`, `queue` and `state` (each repeatable: any of them).

    A run that leaves the asked states is sent once more, in its new state. `since` is a cursor of this feed or of
    `GET /runs`; `interval_ms` is the least time between two frames.
    """
    await websocket.accept()
    socket = _Socket(websocket)
    try:
        _check_request(websocket, _FEED_PARAMETERS)
        wanted = Filter(
            namespaces=_words(websocket, "namespace"),
            job_ids=tuple(_uuid("job_id", text) for text in _words(websocket, "job_id")),
            backfill_ids=tuple(_uuid("backfill_id", text) for text in _words(websocket, "backfill_id")),
            queues=_words(websocket, "queue"),
            states=_states(websocket),
        )
        since, interval_s = _since(websocket), _interval_s(websocket)
    except _Refused as refused:
        await socket.close(refused.close)
    else:
        await session.follow_runs(websocket.app.state.plane.hub, socket, wanted, since, interval_s)


@router.websocket("/runs/{run_id}/feed")
async def run_feed(websocket: WebSocket, run_id: str) -> None:
    """One run: as it is now, every change, the end; with `logs=1` also its log, from the first line."""
    await websocket.accept()
    socket = _Socket(websocket)
    try:
        _check_request(websocket, _RUN_PARAMETERS)
        wanted = _uuid("run id", run_id)
        logs = _flag(websocket, "logs")
    except _Refused as refused:
        await socket.close(refused.close)
    else:
        await session.follow_run(websocket.app.state.plane.hub, socket, wanted, logs=logs)


@router.websocket("/backfills/{backfill_id}/feed")
async def backfill_feed(websocket: WebSocket, backfill_id: str) -> None:
    """One backfill: as it is now, its changes, the end; its runs are on the general feed."""
    await websocket.accept()
    socket = _Socket(websocket)
    try:
        _check_request(websocket, frozenset())
        wanted = _uuid("backfill id", backfill_id)
    except _Refused as refused:
        await socket.close(refused.close)
    else:
        await session.follow_backfill(websocket.app.state.plane.hub, socket, wanted)


def _check_request(websocket: WebSocket, known: frozenset[str]) -> None:
    """Refuse parameters that do not exist, and pages of other sites: these could read the plane through the browser
    of whoever visits them. Clients that are no browsers name no origin."""
    origin = websocket.headers.get("origin")
    if origin is not None and _site(origin) != websocket.headers.get("host", "").lower():
        raise _Refused("a page of another origin may not follow the feed", frames.NOT_ALLOWED)
    for name in websocket.query_params:
        if name not in known:
            there_are = f"there are {', '.join(sorted(known))}" if known else "there are none"
            raise _Refused(f"{name[:40]}: no such parameter; {there_are}")


def _site(origin: str) -> str | None:
    """Host and port of an origin; None if it has none that can be read."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _words(websocket: WebSocket, name: str) -> tuple[str, ...]:
    values = websocket.query_params.getlist(name)
    if len(values) > _MOST_VALUES:
        raise _Refused(f"{name}: at most {_MOST_VALUES} values")
    if any(not value or "\x00" in value for value in values):
        raise _Refused(f"{name}: must be text")
    return tuple(values)


def _uuid(name: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _Refused(f"{name}: not a UUID") from None


def _states(websocket: WebSocket) -> tuple[str, ...]:
    states = _words(websocket, "state")
    for state in states:
        if not is_state(state):
            raise _Refused(f"state: {state[:40]!r} is no state; they are upper case")
    return states


def _last(websocket: WebSocket, name: str) -> Any:
    values = _words(websocket, name)
    if len(values) > 1:
        raise _Refused(f"{name}: once at most")
    return values[0] if values else None


def _flag(websocket: WebSocket, name: str) -> bool:
    text = _last(websocket, name)
    if text not in {None, "0", "1", "false", "true"}:
        raise _Refused(f"{name}: 1 or 0")
    return text in {"1", "true"}


def _since(websocket: WebSocket) -> Position | None:
    text = _last(websocket, "since")
    if text is None:
        return None
    position = Position.parse(text)
    if position is None:
        raise _Refused("since: not a cursor of this feed")
    return position


def _interval_s(websocket: WebSocket) -> float:
    text = _last(websocket, "interval_ms")
    if text is None:
        return _INTERVAL_MS / 1000
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    if not _LEAST_INTERVAL_MS <= number <= _MOST_INTERVAL_MS:
        raise _Refused(f"interval_ms: a whole number from {_LEAST_INTERVAL_MS} to {_MOST_INTERVAL_MS}")
    return number / 1000
