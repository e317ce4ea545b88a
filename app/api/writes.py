"""The frame of every write: one transaction, committed before the answer; then the hints to the other processes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

from starlette.responses import Response

from app import faults
from app.api import idempotency
from app.api.plane import Plane
from app.database import Connection, Record, clock
from app.progress.announce import announce, ring
from app.progress.view import encode

#: Hints are not worth waiting for: whoever misses one reads the database soon.
_HINT_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Done:
    """What a write answers (`body` None: nothing), the runs that it made or changed, whether schedulers should look."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    runs: Sequence[Record] = ()
    ring: bool = False


Effect: TypeAlias = Callable[[Connection, datetime], Awaitable[Done]]


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer of plain Python values."""
    return Response(encode(value), status, dict(headers or {}), "application/json")


def tag(version: int) -> str:
    """The strong ETag of a version."""
    return f'"{version}"'


async def write(plane: Plane, effect: Effect, key: idempotency.Key | None = None) -> Response:
    """Do `effect` in a transaction of its own; with a key that was used before, give its answer again instead."""
    async with plane.database.transaction() as connection:
        kept = await idempotency.claim(connection, key) if key else None
        if kept is not None:
            return Response(kept.body, kept.status, {**kept.headers, idempotency.REPLAYED: "true"}, "application/json")
        done = await effect(connection, await clock(connection))
        body = b"" if done.body is None else encode(done.body)
        if key:
            await idempotency.keep(connection, key, done.status, dict(done.headers), body)
        await faults.at("api.before_commit")
    await faults.at("api.after_commit")
    await _hint(plane, done)
    if done.body is None:
        return Response(status_code=done.status, headers=dict(done.headers))
    return Response(body, done.status, dict(done.headers), "application/json")


async def _hint(plane: Plane, done: Done) -> None:
    try:
        async with asyncio.timeout(_HINT_TIMEOUT_S):
            await announce(plane.redis, done.runs)
            if done.ring:
                await ring(plane.redis)
    except TimeoutError:
        pass
