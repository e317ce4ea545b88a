"""API processes with little but the feed in them, clients of it, and runs to follow."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import orjson
from fastapi import FastAPI
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.api import why
from app.api.feed import router
from app.api.server import Server, config
from app.database import Connection, Database, Record, clock, new_id
from app.embedded import free_port
from app.feed.hub import Hub, Limits
from app.progress.announce import announce
from app.progress.fold import progress_of
from app.progress.moves import end
from app.progress.standing import Move, Standing
from app.progress.transition import NewRun, apply, create
from app.settings import Settings
from tests.processes import PATIENCE_S
from workers.protocol import LOGS_KEY, log_key

RETRY = {"max_attempts": 1, "max_lost": 2, "backoff_s": 10, "backoff_factor": 2, "max_backoff_s": 600}


class Api:
    """One API process's share of the feed: a hub and a real server on a port of its own."""

    def __init__(self, hub: Hub, port: int, server: Server) -> None:
        self.hub, self.port, self.server = hub, port, server
        self.http = f"http://127.0.0.1:{port}"

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}/api/v1{path}"


@contextlib.asynccontextmanager
async def api(
    database: Database, redis: Redis, settings: Settings, limits: Limits | None = None, *, port: int | None = None
) -> AsyncIterator[Api]:
    hub = Hub(database, redis, settings, limits)
    await hub.start()
    app = FastAPI()
    app.include_router(router, prefix="/api/v1")
    app.include_router(why.router, prefix="/api/v1")
    app.state.plane = SimpleNamespace(settings=settings, database=database, redis=redis, hub=hub)
    port = port or free_port()
    server = Server(config(app, host="127.0.0.1", port=port, log_config=None, log_level="warning"), hub.drain)
    serving = asyncio.create_task(server._serve())  # `serve` would take the test run's signal handlers
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not server.started or not hub.hearing:
                await asyncio.sleep(0.01)
        yield Api(hub, port, server)
    finally:
        server.should_exit = True
        await serving
        await hub.stop()


class Client:
    """A WebSocket client that keeps the frames as they come."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []
        #: The state and version of each run that was sent, in order.
        self.seen: dict[str, list[tuple[str, int]]] = {}
        self.at: list[float] = []

    async def next(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            frame = orjson.loads(await self.socket.recv())
        self.frames.append(frame)
        self.at.append(time.monotonic())
        for run in [frame["run"]] if frame["type"] == "run" else frame.get("runs", []):
            self.seen.setdefault(run["id"], []).append((run["state"], run["version"]))
        return frame

    async def until(self, kind: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next frame of this type; those before it are kept as well."""
        async with asyncio.timeout(timeout_s):
            while (frame := await self.next(timeout_s))["type"] != kind:
                pass
        return frame

    async def until_state(self, run_id: Any, state: str, timeout_s: float = PATIENCE_S) -> None:
        """Until the newest value of a run is in this state."""
        async with asyncio.timeout(timeout_s):
            while self.state(run_id) != state:
                await self.next(timeout_s)

    def state(self, run_id: Any) -> str | None:
        return self.seen.get(str(run_id), [(None, 0)])[-1][0]

    async def closed(self, timeout_s: float = PATIENCE_S) -> tuple[int | None, str | None]:
        """How the server ended it; frames before that are kept."""
        try:
            while True:
                await self.next(timeout_s)
        except ConnectionClosed:
            return self.socket.close_code, self.socket.close_reason


@contextlib.asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Client]:
    async with connect(url, compression=None, max_size=None, close_timeout=1, **options) as socket:
        yield Client(socket)


class Runs:
    """Makes runs and moves them, with or without telling Redis."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self.database, self.redis = database, redis

    async def make(self, count: int = 1, *, tell: bool = True, **fields: Any) -> list[Any]:
        """Ids of new PENDING runs."""
        async with self.database.transaction() as connection:
            rows = await make_in(connection, count, **fields)
        if tell:
            await announce(self.redis, rows)
        return [row["id"] for row in rows]

    async def move(self, *ids: Any, to: str, tell: bool = True, **changes: Any) -> list[Record]:
        async with self.database.transaction() as connection:
            now = await clock(connection)
            rows = await apply(connection, now, {run_id: [moving(now, to, **changes)] for run_id in ids})
        if tell:
            await announce(self.redis, rows)
        return rows

    async def progress(self, run_id: Any, current: int, total: int = 10, *, tell: bool = True, pad: str = "") -> None:
        meta = {"current": current, "total": total, **({"pad": pad} if pad else {})}
        await self.move(run_id, to="PROGRESS", tell=tell, progress=progress_of(meta))


class Writer:
    """Writes the log of one attempt into its stream, as a worker does."""

    def __init__(self, redis: Redis, run_id: UUID, attempt: int = 1) -> None:
        self.redis, self.run_id, self.attempt = redis, run_id, attempt
        self.offset = 0

    async def say(self, text: str, *, last: bool = False) -> None:
        body = text.encode()
        fields: dict[Any, Any] = {"o": self.offset, "t": body, **({"e": "1"} if last else {})}
        await self.redis.xadd(log_key(self.run_id, self.attempt), fields)
        await self.redis.zadd(LOGS_KEY, {f"{self.run_id}:{self.attempt}": 1.0})
        self.offset += len(body)

    def skip(self, count: int) -> None:
        """What the worker wrote and did not keep."""
        self.offset += count


async def make_in(connection: Connection, count: int = 1, **fields: Any) -> list[Record]:
    """New runs inside the caller's transaction."""
    made = {
        "kind": "adhoc",
        "namespace": "default",
        "task": "test.task",
        "args": [],
        "kwargs": {},
        "queue": "default",
        "author": "test",
        "retry": RETRY,
        **fields,
    }
    return await create(connection, await clock(connection), [NewRun(id=new_id(), **made) for _ in range(count)])


def moving(now: Any, to: str, **changes: Any) -> Move:
    """A move to a state, whatever the standing."""

    def move(standing: Standing) -> Standing:
        if to in {"SUCCESS", "FAILURE", "REVOKED"}:
            return end(now, standing, to, **changes)
        return replace(standing, state=to, start_time=standing.start_time or now, **changes)

    return move
