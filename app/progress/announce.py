"""Tells the other processes what was committed. Hints only: whoever misses one reads the database soon after."""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.progress.view import encode, run_view
from app.states import PENDING
from workers.protocol import DOORBELL_CHANNEL, RUNS_CHANNEL

log = structlog.get_logger()

_RUNS_PER_MESSAGE = 100


def channel_of(redis: Redis | SyncRedis, name: str) -> str:
    """This plane's channel of that name. Channels are the whole server's; planes are told apart by their database."""
    return f"{name}@{redis.get_connection_kwargs().get('db') or 0}"


async def announce(redis: Redis, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish committed runs to the API processes as JSON lists of runs; never raises for a Redis that is away."""
    if not rows:
        return
    try:
        channel = channel_of(redis, RUNS_CHANNEL)
        async with redis.pipeline(transaction=False) as pipe:
            for start in range(0, len(rows), _RUNS_PER_MESSAGE):
                pipe.publish(channel, encode([run_view(row) for row in rows[start : start + _RUNS_PER_MESSAGE]]))
            await pipe.execute()
    except (RedisError, OSError) as error:
        log.debug("announce_failed", runs=len(rows), error=str(error))


async def tell(redis: Redis, rows: Sequence[Mapping[str, Any]]) -> None:
    """Announce committed runs, and wake the schedulers where something is to be done about one of them."""
    await announce(redis, rows)
    if any(_wakes(row) for row in rows):
        await ring(redis)


def _wakes(row: Mapping[str, Any]) -> bool:
    """Whether the run is to be sent, or cancelled, or makes room for the next one of its backfill."""
    makes_room = row["backfill_id"] is not None and row["end_time"] is not None
    return row["state"] == PENDING or row["cancel_next_time"] is not None or makes_room


async def ring(redis: Redis) -> None:
    """Wake the schedulers: something became due. Never raises for a Redis that is away."""
    try:
        await redis.publish(channel_of(redis, DOORBELL_CHANNEL), b"1")
    except (RedisError, OSError) as error:
        log.debug("ring_failed", error=str(error))
