"""Problem documents (RFC 9457): every answer that is not a success is one.

`type` is a URI relative to the API, and `GET` of it explains the problem. What the caller may read stands in `detail`
and `errors`; what went wrong inside stands in the log, under the same `request_id`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app.database import AWAY
from app.errors import BadRequest, FieldError, Invalid, JobplaneError, NotFound, Unavailable
from app.progress.view import encode

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"

#: The statement waited too long for a lock or for its turn: the same request may succeed in a moment.
_BUSY = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError)
_RETRY_AFTER_S = "1"


class BrokenJson(BadRequest):
    """The body is not JSON (RFC 8259)."""

    type = "broken-json"
    title = "Broken JSON"


class MethodNotAllowed(JobplaneError):
    """The path exists, and does not know this method; `Allow` names those that it knows."""

    status = 405
    type = "method-not-allowed"
    title = "Method not allowed"


class BodyTooLarge(JobplaneError):
    """The body is longer than the API reads."""

    status = 413
    type = "body-too-large"
    title = "Body too large"


class UnsupportedMediaType(JobplaneError):
    """The body's `Content-Type` is not one that this operation reads."""

    status = 415
    type = "unsupported-media-type"
    title = "Unsupported media type"


def answer(
    error: JobplaneError, *, errors: Iterable[FieldError] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The response that tells a caller of this error."""
    if errors is None and isinstance(error, Invalid):
        errors = error.errors
    body: dict[str, Any] = {
        "type": f"/problems/{error.type}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if errors is not None:
        body["errors"] = [{"pointer": one.pointer, "detail": one.detail} for one in errors]
    body["request_id"] = structlog.contextvars.get_contextvars().get("request_id")
    return Response(encode(body), error.status, {**(headers or {})}, MEDIA_TYPE)


def unavailable(error: BaseException) -> Response:
    """A part that we need is away, or too busy to answer in time."""
    log.warning("part_away", error=f"{type(error).__name__}: {error}")
    what = "Redis is" if isinstance(error, RedisError) else "the database is"
    detail = f"{what} away or busy; nothing was written, try again in a moment"
    return answer(Unavailable(detail), headers={"Retry-After": _RETRY_AFTER_S})


def unexpected(error: BaseException) -> Response:
    """A mistake of ours: told to the log, not to the caller."""
    log.error("request_failed", exc_info=error)
    return answer(JobplaneError("something went wrong inside; the log tells it under this request_id"))


def install(app: FastAPI) -> None:
    """Make every error of this application a problem document; what is left over falls to `unexpected`."""
    app.add_exception_handler(JobplaneError, _ours)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _of_the_router)
    for kind in (*AWAY, *_BUSY, RedisError):
        app.add_exception_handler(kind, _away)
    app.add_api_route("/problems/{name}", explain, include_in_schema=False)


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, JobplaneError)
    if error.status >= 500 and not isinstance(error, Unavailable):
        return unexpected(error)
    return answer(error, headers={"Retry-After": _RETRY_AFTER_S} if isinstance(error, Unavailable) else None)


async def _away(_: Request, error: Exception) -> Response:
    if isinstance(error, ValueError):  # the driver files an argument that cannot be encoded under the same class
        return unexpected(error)
    return unavailable(error)


async def _of_the_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: NotFound, 405: MethodNotAllowed, 413: BodyTooLarge, 415: UnsupportedMediaType, 400: BadRequest}
    kind = kinds.get(error.status_code)
    if kind is None:
        return unexpected(error)
    sentences = {
        404: f"nothing is at {request.url.path}",
        405: f"{request.url.path} does not know {request.method}",
    }
    headers = {"Allow": _methods_at(request)} if error.status_code == 405 else error.headers
    return answer(kind(sentences.get(error.status_code, error.detail)), headers=headers)


def _methods_at(request: Request) -> str:
    """What an address knows; the router names the methods of the first of its endpoints only."""
    known = (
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    )
    return ", ".join(known)


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = field_errors(error.errors(), error.body)
    missing = [one for one in error.errors() if one["loc"][0] == "path"]
    if missing:
        return answer(NotFound(f"nothing has the id {missing[0]['input']!r}"))
    return answer(Invalid(*faults))


def field_errors(errors: Iterable[Mapping[str, Any]], body: Any) -> list[FieldError]:
    """Pydantic's errors with JSON pointers into the body (`?name` for a query parameter), one for each place."""
    found: dict[str, FieldError] = {}
    for error in errors:
        source, *path = error["loc"]
        if source == "query":
            pointer = "?" + str(path[0]) if path else "?"
        elif source == "header":
            pointer = str(path[0])
        else:
            pointer = _pointer(path, body)
        found.setdefault(pointer, FieldError(pointer, _sentence(error)))
    return list(found.values())


def _pointer(path: list[Any], body: Any) -> str:
    """Pydantic's location without the names of the members of unions, which are not in the body."""
    parts: list[str] = []
    here = body
    told = False  # whether the path has named the type of `here`; the trigger `rrule` has a member of that name
    for index, step in enumerate(path):
        last = index == len(path) - 1  # may be a member that is missing
        if isinstance(here, dict) and not last and not told and here.get("type") == step:
            told = True
        elif isinstance(here, dict) and (step in here or (last and (told or here.get("type") != step))):
            parts.append(str(step))
            here, told = here.get(step), False
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            parts.append(str(step))
            here, told = here[step], False
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "extra_forbidden":
        return "is not known here"
    return str(error["msg"]).removeprefix("Value error, ")


def kinds(root: type[JobplaneError] = JobplaneError) -> dict[str, type[JobplaneError]]:
    """Every kind of problem, by the last part of its type."""
    found = {root.type: root}
    for kind in root.__subclasses__():
        found |= {name: one for name, one in kinds(kind).items() if name not in found}
    return found


async def explain(name: str) -> Response:
    """What a problem's type means, for a person."""
    kind = kinds().get(name)
    if kind is None:
        raise NotFound(f"there is no problem {name!r}; there are {', '.join(sorted(kinds()))}")
    meaning = (kind.__doc__ or f"{kind.title}.").strip()
    return PlainTextResponse(f"{kind.title} (status {kind.status})\n\n{meaning}\n")
