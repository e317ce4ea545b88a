"""Redis or Valkey as the broker: kombu's envelope in a list named as the queue, LPUSHed by one pipeline per batch.

The envelope is what kombu's virtual transport writes for its default exchange, where the routing key is the queue: a
worker that puts a message back then needs no binding table, which an eviction could lose. So `exchange` and
`routing_key` of a queue mean nothing here, and there is nothing to declare. A priority picks one of kombu's four lists;
0 is taken first.

"Confirmed" is the answer to LPUSH: as durable as the server's persistence, no more.
"""

import base64
from bisect import bisect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, ReadOnlyError, RedisError, ResponseError

from app import faults
from app.dispatch.broker import CONFIRMED, Backlog, BrokerAway, Fate, Outcome, Route, Sieve
from app.dispatch.message import Message
from app.dispatch.sieves import RedisSieve

#: kombu's: a message of priority p waits in the list of the greatest step that is not above p.
PRIORITY_STEPS: Final = (0, 3, 6, 9)
_SEPARATOR: Final = "\x06\x16"

#: Answers that say that the server as a whole takes nothing now, though it talks.
_SERVER_REFUSES: Final = (AuthenticationError, BusyLoadingError, ReadOnlyError)
_SERVER_WORDS: Final = ("OOM", "MISCONF", "NOAUTH", "LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS")


def list_of(queue: str, priority: int | None) -> str:
    """The key that a message of this priority waits in."""
    step = PRIORITY_STEPS[bisect(PRIORITY_STEPS, min(max(priority or 0, 0), 9)) - 1]
    return f"{queue}{_SEPARATOR}{step}" if step else queue


def envelope(message: Message) -> bytes:
    """The message as kombu's virtual transports keep it."""
    properties: dict[str, Any] = {
        "correlation_id": message.task_id,
        "reply_to": message.reply_to,
        "delivery_mode": message.delivery_mode,
        "delivery_info": {"exchange": "", "routing_key": message.queue},
        "priority": message.priority or 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    return orjson.dumps(
        {
            "body": base64.b64encode(message.body).decode(),
            "content-encoding": message.content_encoding,
            "content-type": message.content_type,
            "headers": message.headers,
            "properties": properties,
        }
    )


class RedisBroker:
    """A Redis broker; see `app.dispatch.broker.Broker`."""

    def __init__(self, url: str, timeout_s: float) -> None:
        # No retry inside the client: it would send the whole pipeline twice, and the outbox is the retry.
        self._redis = Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self.connects = 0

    async def publish(self, batch: Sequence[Message]) -> list[Outcome]:
        if not batch:
            return []
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for message in batch:
                    pipe.lpush(list_of(message.queue, message.priority), envelope(message))
                answers = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            await self._discard()
            return [Outcome(Fate.UNCERTAIN, _line(error))] * len(batch)
        await faults.at("dispatch.before_confirm")
        return [_outcome(answer) for answer in answers]

    async def declare(self, route: Route) -> bool:
        """Nothing to do: a list is there as soon as something is in it."""
        return False

    async def keep_dead_letters(self, name: str) -> None:
        """Nothing to do: nothing is given up here."""

    async def backlog(self, name: str) -> Backlog:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for step in PRIORITY_STEPS:
                    pipe.llen(list_of(name, step))
                return Backlog(sum(await pipe.execute()), None)
        except (RedisError, OSError, TimeoutError) as error:
            await self._discard()
            raise BrokerAway(_line(error)) from error

    @asynccontextmanager
    async def sieve(self, name: str, most: int) -> AsyncIterator[Sieve]:
        yield RedisSieve(self._redis, [list_of(name, step) for step in PRIORITY_STEPS], most)

    async def check(self) -> None:
        try:
            await self._redis.ping()
        except (RedisError, OSError, TimeoutError) as error:
            await self._discard()
            raise BrokerAway(_line(error)) from error

    async def close(self) -> None:
        await self._redis.aclose()

    async def _discard(self) -> None:
        await self._redis.connection_pool.disconnect()


def _outcome(answer: object) -> Outcome:
    if not isinstance(answer, Exception):
        return CONFIRMED
    if isinstance(answer, _SERVER_REFUSES) or str(answer).startswith(_SERVER_WORDS):
        return Outcome(Fate.UNCERTAIN, _line(answer))
    assert isinstance(answer, ResponseError), answer
    return Outcome(Fate.REFUSED, f"the broker refused it: {_line(answer)}")


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200]
