"""Goes through what waits in a queue and takes messages of ours off it; those of others stay where they are.

On RabbitMQ a message that was looked at is hidden from workers until the sieve ends: it was got and not acknowledged,
and comes back to its place when the channel closes. A quorum queue counts that as a delivery. On Redis nothing is
hidden: a worker may be faster.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias

import orjson
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelClosed
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from app.amqp import line_of
from app.dispatch.broker import BrokerAway, QueueTrouble, Waiting
from workers.protocol import HEADER, parse_task_id

Asking: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]

#: Messages that are looked at together; their bodies are held meanwhile.
_CHUNK: Final = 200
#: A quorum queue writes down each message that is got, which takes milliseconds: no longer than this for one chunk.
_CHUNK_S: Final = 0.5


def waiting_of(number: int, headers: Any) -> Waiting | None:
    """The dispatch that a message with these headers carries; None for a message of somebody else."""
    if not isinstance(headers, Mapping) or not isinstance(headers.get(HEADER), Mapping):
        return None
    task_id, retries = parse_task_id(str(headers.get("id"))), headers.get("retries")
    if task_id is None:
        return None
    return Waiting(number, task_id, retries if isinstance(retries, int) else 0)


class AmqpSieve:
    """On a channel of its own, which ends with it; see `app.dispatch.broker.Sieve`.

    `asking` bounds what is asked of the broker, and raises BrokerAway.
    """

    def __init__(self, asking: Asking, channel: AbstractChannel, queue: str, most: int) -> None:
        self._ask = asking
        self._channel = channel
        self._queue = queue
        self._unseen = most
        self._held: dict[int, AbstractIncomingMessage] = {}
        #: What was behind the last message that we got, and what we got and did not take.
        self._behind = 0
        self._kept = 0

    async def next(self) -> list[Waiting] | None:
        self._held = {}
        found: list[Waiting] = []
        size = min(_CHUNK, self._unseen)
        clock = asyncio.get_running_loop().time
        until = clock() + _CHUNK_S
        async with self._asking():
            queue = await self._channel.get_queue(self._queue, ensure=False)
            for number in range(size):
                message = await queue.get(fail=False, timeout=None)
                if message is None:
                    self._unseen, self._behind = 0, 0
                    break
                self._unseen -= 1
                self._behind = message.message_count or 0
                self._kept += 1
                if (waiting := waiting_of(number, message.headers)) is not None:
                    self._held[number] = message
                    found.append(waiting)
                if clock() > until:
                    break
        return found if size else None

    async def take(self, numbers: Collection[int]) -> set[int]:
        async with self._asking():
            for number in numbers:
                await self._held[number].ack()
            # Its answer comes after the broker has worked off the acknowledgements before it.
            await self._channel.declare_queue(self._queue, passive=True)
        self._kept -= len(numbers)
        return set(numbers)

    async def left(self) -> int:
        return self._behind + self._kept

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        async with self._ask():
            try:
                yield
            except ChannelClosed as error:
                raise QueueTrouble(line_of(error)) from error


class RedisSieve:
    """Over the lists of all priorities; see `app.dispatch.broker.Sieve`."""

    def __init__(self, redis: Redis, lists: list[str], most: int) -> None:
        self._redis = redis
        self._all = list(lists)
        self._lists = list(lists)
        self._unseen = most
        #: Where in the first of the lists we are, from its newest end: what is added there is seen twice at worst.
        self._at = 0
        self._raw: dict[int, Any] = {}

    async def next(self) -> list[Waiting] | None:
        while self._lists and self._unseen > 0:
            async with _asking_redis():
                size = min(_CHUNK, self._unseen)
                chunk = await self._redis.lrange(self._lists[0], self._at, self._at + size - 1)
            if not chunk:
                self._lists, self._at = self._lists[1:], 0
                continue
            self._at += len(chunk)
            self._unseen -= len(chunk)
            self._raw = dict(enumerate(chunk))
            found = (waiting_of(number, _headers(raw)) for number, raw in self._raw.items())
            return [waiting for waiting in found if waiting is not None]
        return None

    async def take(self, numbers: Collection[int]) -> set[int]:
        ordered = sorted(numbers)
        async with _asking_redis(), self._redis.pipeline(transaction=False) as pipe:
            for number in ordered:
                pipe.lrem(self._lists[0], 1, self._raw[number])
            answers = await pipe.execute()
        taken = {number for number, answer in zip(ordered, answers, strict=True) if answer}
        self._at -= len(taken)
        return taken

    async def left(self) -> int:
        async with _asking_redis(), self._redis.pipeline(transaction=False) as pipe:
            for key in self._all:
                pipe.llen(key)
            return sum(await pipe.execute())


def _headers(raw: Any) -> Any:
    try:
        envelope = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return envelope.get("headers") if isinstance(envelope, dict) else None


@asynccontextmanager
async def _asking_redis() -> AsyncIterator[None]:
    try:
        yield
    except ResponseError as error:
        raise QueueTrouble(line_of(error)) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise BrokerAway(line_of(error)) from error
