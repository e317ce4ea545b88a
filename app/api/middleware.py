"""What surrounds every request: its id, its headers, its bound in size, and the end of whatever nobody else caught."""

import re
import time
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.api.metrics import Requests
from app.database import new_id

log = structlog.get_logger()

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # The documentation page has inline script; nothing at all comes from elsewhere.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
}


class Surroundings:
    """Binds `X-Request-ID` (the caller's, if it is sane) to the log and the answer, and turns what was not caught
    into a problem document."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(new_id())
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            if scope["type"] == "websocket":
                return await self._app(scope, receive, send)
            return await self._http(scope, receive, send, request_id)

    async def _http(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        begin, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:  # in the midst of the body: nobody is left to answer
            log.debug("caller_gone", path=scope["path"])
        except Exception as error:
            if status:  # the answer is under way; the server can only cut it off
                log.exception("answer_cut_off")
                raise
            await problems.unexpected(error)(scope, receive, send_with_headers)
        finally:
            took = time.monotonic() - begin
            self._requests.count(scope["method"], _route(scope), status, took)
            log.debug("request", method=scope["method"], path=scope["path"], status=status, took_s=round(took, 4))


def _route(scope: Scope) -> str:
    """The path with its parameters' names: one of few, whatever callers ask for."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return "other"
    return f"/api/v1{path}" if scope["path"].startswith("/api/v1/") else str(path)


class BodyLimit:
    """Refuses bodies of more than `limit` bytes, also those that do not say how long they are."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        error = problems.BodyTooLarge(f"the body is longer than {self._limit} bytes")
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self._limit:
            return await problems.answer(error)(scope, receive, send)
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise error
            return message

        return await self._app(scope, receive_counted, send)
