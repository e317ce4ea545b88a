"""Runs that are under way, and reports as Celery's Redis backend makes them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar
from uuid import UUID

from redis.asyncio import Redis

from app.database import Database, Record, clock, new_id
from app.progress.reports import key_of
from app.progress.transition import NewRun, create
from tests.processes import PATIENCE_S, eventually
from tests.progress.standings import policy
from workers.protocol import TaskId


async def make_run(database: Database, *, sent: bool = True, **columns: Any) -> UUID:
    """An ad-hoc run, dispatched once a moment ago unless not `sent`; `columns` are then written as they are."""
    run = NewRun(
        id=new_id(),
        kind="adhoc",
        namespace="default",
        task="t",
        args=[],
        kwargs={},
        queue=columns.pop("queue", "default"),
        author="test",
        retry=columns.pop("retry", policy()),
    )
    async with database.transaction() as connection:
        now = await clock(connection)
        await create(connection, now, [run])
        if sent:
            columns = {"dispatches": 1, "dispatch_time": now, **columns}
        for name, value in columns.items():
            await connection.execute(f"UPDATE runs SET {name} = $2 WHERE id = $1", run.id, value)
    return run.id


async def row_of(database: Database, run_id: UUID) -> Record:
    async with database.reading() as connection:
        row = await connection.fetchrow("SELECT * FROM runs WHERE id = $1", run_id)
    assert row is not None
    return row


async def count(database: Database, table: str) -> int:
    async with database.reading() as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def reaches(
    database: Database,
    run_id: UUID,
    state: str,
    timeout: float = PATIENCE_S,
    run_once: Callable[[], Awaitable[Any]] | None = None,
) -> Record:
    """The row of the run once it is in this state; `run_once` is called each time before it is looked at."""

    async def look() -> Record | None:
        if run_once is not None:
            await run_once()
        row = await row_of(database, run_id)
        return row if row["state"] == state else None

    found = await eventually(look, timeout, f"run {run_id} in {state}")
    assert found is not None
    return found


def stored_state(task_id: TaskId, status: str, result: Any = None, **more: Any) -> bytes:
    """What Celery writes; `result` as it is if it is bytes."""
    body = {"status": status, "result": None, "traceback": None, "children": [], "date_done": None, **more}
    text = json.dumps({**body, "task_id": str(task_id)}).encode()
    encoded = result if isinstance(result, bytes) else json.dumps(result).encode()
    return text.replace(b'"result": null', b'"result": ' + encoded, 1)


async def say(redis: Redis, task_id: TaskId, body: bytes) -> None:
    """Store and publish, as Celery does."""
    async with redis.pipeline() as pipe:
        pipe.set(key_of(task_id), body, ex=86400)
        pipe.publish(key_of(task_id), body)
        await pipe.execute()


class Route(Protocol):
    """A recorder of any route."""

    @property
    def listening(self) -> bool: ...

    async def run_once(self) -> bool: ...

    async def close(self) -> None: ...


R = TypeVar("R", bound=Route)


@asynccontextmanager
async def recording(recorder: R) -> AsyncIterator[R]:
    """The recorder at work, listening already."""
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            if not await recorder.run_once():
                await asyncio.sleep(0.05)

    task = asyncio.create_task(work())
    try:

        async def hears() -> bool:
            if task.done():
                task.result()
            return recorder.listening

        await eventually(hears, what="a recorder that listens")
        yield recorder
    finally:
        stop.set()
        await task
        await recorder.close()
