"""RabbitMQ as the broker, through aio-pika: the connection, and what is asked of it.

aio-pika's robust connections are not used: the outbox is the retry. Each exchange has a channel of its own, for a
missing or forbidden exchange closes the channel and with it everything that is under way there: queues of other
exchanges do not notice.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelClosed

from app.amqp import Goodbyes, connect, line_of, raise_if_cancelled
from app.dispatch.broker import Backlog, BrokerAway, Fate, Outcome, QueueTrouble, Route, Sieve
from app.dispatch.confirms import Publisher, any_uncertain, send
from app.dispatch.message import Message
from app.dispatch.rabbitmq import OpenChannel, find_or_make, keep_dead_letters
from app.dispatch.sieves import AmqpSieve

#: Most messages that wait for their confirm at once.
WINDOW: Final = 1000
#: Most exchanges that get a channel of their own; the rest share one. RabbitMQ allows 2,047 channels.
_OWN_CHANNELS: Final = 500


class Amqp:
    """A RabbitMQ broker; see `app.dispatch.broker.Broker`."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._publishers: dict[str | None, Publisher] = {}
        self._goodbyes = Goodbyes()
        self.connects = 0

    async def publish(self, batch: Sequence[Message]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        unsent = Outcome(Fate.UNCERTAIN, "not sent")
        ends = asyncio.get_running_loop().time() + self._timeout_s
        for start in range(0, len(batch), WINDOW):
            window = batch[start : start + WINDOW]
            try:
                async with asyncio.timeout_at(ends):
                    connection = await self._connected()
                    publishers = {
                        exchange: await self._publisher(connection, exchange)
                        for exchange in dict.fromkeys(message.exchange for message in window)
                    }
            except (Exception, asyncio.CancelledError) as error:
                self._discard()
                raise_if_cancelled(error)
                unsent = Outcome(Fate.UNCERTAIN, line_of(error))
                break
            outcomes += await self._sent(publishers, window, ends)
            if any_uncertain(outcomes):
                break
        return outcomes + [unsent] * (len(batch) - len(outcomes))

    async def declare(self, route: Route) -> bool:
        async with self._asking() as open_channel:
            return await find_or_make(open_channel, route)

    async def keep_dead_letters(self, name: str) -> None:
        async with self._asking() as open_channel:
            await keep_dead_letters(open_channel, name)

    async def backlog(self, name: str) -> Backlog:
        async with self._asking() as open_channel:
            try:
                async with open_channel() as channel:
                    found = (await channel.declare_queue(name, passive=True)).declaration_result
            except ChannelClosed as error:
                raise QueueTrouble(line_of(error)) from error
            return Backlog(found.message_count or 0, found.consumer_count or 0)

    @asynccontextmanager
    async def sieve(self, name: str, most: int) -> AsyncIterator[Sieve]:
        async with self._asking():
            channel = (await self._connected()).channel(publisher_confirms=False)
            await channel.initialize()
        try:
            yield AmqpSieve(self._asking, channel, name, most)
        finally:
            with suppress(BrokerAway):
                async with self._asking():
                    await channel.close()

    async def check(self) -> None:
        async with self._asking() as open_channel, open_channel():
            pass

    async def close(self) -> None:
        self._discard()
        await self._goodbyes.wait()

    async def _connected(self) -> AbstractConnection:
        async with self._connecting:
            if self._connection is None or not self._connection.connected.is_set():
                self._discard()
                self._connection = await connect(self._url, "jobplane", self._timeout_s)
                self.connects += 1
            return self._connection

    async def _publisher(self, connection: AbstractConnection, exchange: str) -> Publisher:
        own = exchange in self._publishers or len(self._publishers) < _OWN_CHANNELS
        key = exchange if own else None
        publisher = self._publishers.get(key)
        if publisher is None or publisher.channel.is_closed:
            channel = connection.channel(publisher_confirms=True, on_return_raises=True)
            await channel.initialize(timeout=self._timeout_s)
            publisher = self._publishers[key] = Publisher(channel)
        return publisher

    async def _sent(self, publishers: Mapping[str, Publisher], batch: Sequence[Message], ends: float) -> list[Outcome]:
        try:
            outcomes = await send(publishers, batch, ends)
        except BaseException:
            self._discard()
            raise
        if any_uncertain(outcomes) or any(publisher.channel.is_closed for publisher in publishers.values()):
            self._discard()
        return outcomes

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[OpenChannel]:
        """Ask the broker something, on channels that end with the question."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield partial(_channel, await self._connected())
        except QueueTrouble:
            raise
        except (Exception, asyncio.CancelledError) as error:
            self._discard()
            raise_if_cancelled(error)
            raise BrokerAway(line_of(error)) from error

    def _discard(self) -> None:
        """Throw the connection away; it says goodbye by itself."""
        connection, self._connection = self._connection, None
        self._publishers = {}
        if connection is not None:
            self._goodbyes.say(connection)


@asynccontextmanager
async def _channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    channel = connection.channel(publisher_confirms=False)
    await channel.initialize()
    yield channel
    # After an error either the broker has closed it, or the whole connection is thrown away.
    await channel.close()
