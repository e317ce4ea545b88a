"""Streams as a worker writes them, by hand."""

import time
from uuid import UUID

from redis.asyncio import Redis

from app.database import Database, Record
from app.logs.read import Chunk, read
from app.logs.store import Store
from workers.protocol import LOGS_KEY, log_key


async def write(redis: Redis, run_id: UUID, text: bytes, offset: int, attempt: int = 1, *, last: bool = False) -> int:
    """Add an entry; the offset behind it."""
    fields: dict[bytes | str, bytes | str | int] = {"o": offset, "t": text, **({"e": "1"} if last else {})}
    async with redis.pipeline() as pipe:
        pipe.xadd(log_key(run_id, attempt), fields)  # type: ignore[arg-type]
        pipe.zadd(LOGS_KEY, {f"{run_id}:{attempt}": time.time()})
        await pipe.execute()
    return offset + len(text)


async def over(database: Database, run_id: UUID, seconds_ago: float = 0) -> None:
    """The run has ended, so long ago."""
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE runs SET state = 'SUCCESS', end_time = clock_timestamp() - make_interval(secs => $2) WHERE id = $1",
            run_id,
            seconds_ago,
        )


async def sealed_row(database: Database, run_id: UUID, attempt: int = 1) -> Record | None:
    async with database.reading() as connection:
        return await connection.fetchrow("SELECT * FROM run_logs WHERE run_id = $1 AND attempt = $2", run_id, attempt)


async def whole(database: Database, redis: Redis, store: Store, run_id: UUID, limit: int = 2**20) -> tuple[str, Chunk]:
    """The log as it is now, read chunk by chunk, and the last chunk."""
    text, offset = "", 0
    while True:
        chunk = await read(database, redis, store, run_id, None, offset, limit)
        text += chunk.text
        if chunk.next == offset:
            return text, chunk
        assert chunk.offset == offset
        offset = chunk.next
