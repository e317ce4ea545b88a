"""Listens to Redis for committed changes. Hints only: speed, not truth."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from app.progress.announce import channel_of
from workers.protocol import RUNS_CHANNEL

log = structlog.get_logger()

_PING_S = 2.0
_PONG_S = 4.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0


class Hints:
    """One subscription of the process, read by a task that does nothing else and mends itself.

    `take` gets each message; `heard_again` is called whenever the subscription begins, for what was said before that
    is lost.
    """

    def __init__(self, redis: Redis, *, take: Callable[[bytes], None], heard_again: Callable[[], None]) -> None:
        self._redis = redis
        self._take = take
        self._heard_again = heard_again
        #: Whether the subscription stands, as far as the last ping knows.
        self.hearing = False

    async def run(self) -> None:
        """Until cancelled. No `wait_for` in here: that of Python 3.11 swallows a cancel that comes with the result."""
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    async with asyncio.timeout(_PONG_S):
                        await subscription.subscribe(channel_of(self._redis, RUNS_CHANNEL))
                    await self._listen(subscription)
            except (RedisError, OSError, TimeoutError) as error:
                if self.hearing:
                    log.warning("feed_hints_lost", error=str(error) or type(error).__name__)
                    retry_s = _FIRST_RETRY_S
                self.hearing = False
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)

    async def _listen(self, subscription: PubSub) -> None:
        heard = time.monotonic()
        pinged = False
        while True:
            message: dict[str, Any] | None = await subscription.get_message(timeout=_PING_S)
            now = time.monotonic()
            if message is None:
                if pinged and now - heard > _PING_S + _PONG_S:
                    raise TimeoutError("the subscription's connection is silent")
                if now - heard >= _PING_S:
                    async with asyncio.timeout(_PONG_S):
                        await subscription.ping()
                    pinged = True
                continue
            heard, pinged = now, False
            if message["type"] == "subscribe":
                self.hearing = True
                self._heard_again()
            elif message["type"] == "message":
                self._take(message["data"])
