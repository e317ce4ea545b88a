"""RabbitMQ as the broker, through aio-pika.

Messages are persistent and `mandatory`; confirms come back per message, matched by delivery tag. Each exchange has a
channel of its own, for a missing or forbidden exchange closes the channel and with it everything that is under way
there: queues of other exchanges do not notice. aio-pika's robust connections are not used: the outbox is the retry.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelClosed, DeliveryError, PublishError

from app import faults
from app.dispatch.broker import CONFIRMED, UNROUTABLE, Backlog, BrokerAway, Fate, Outcome, QueueTrouble, Route
from app.dispatch.message import Message
from app.dispatch.rabbitmq import OpenChannel, find_or_make, line_of

#: Most messages that wait for their confirm at once.
WINDOW: Final = 1000
#: Most exchanges that get a channel of their own; the rest share one. RabbitMQ allows 2,047 channels.
_OWN_CHANNELS: Final = 500
_HEARTBEAT_S: Final = 10
#: How long an old connection may take to say goodbye.
_GOODBYE_S: Final = 3.0

#: What it takes for a message that cannot be encoded. Any other error, even a bare Exception, the library may raise for
#: a connection that goes away under our hands.
_UNSENDABLE: Final = (ValueError, TypeError, OverflowError, struct.error)


@dataclass(slots=True)
class _Publisher:
    """A channel that takes messages, and what the broker said when it closed it."""

    channel: AbstractChannel
    trouble: str | None = None


class Amqp:
    """A RabbitMQ broker; see `app.dispatch.broker.Broker`."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._options: dict[str, Any] = {} if "heartbeat=" in url else {"heartbeat": _HEARTBEAT_S}
        self._timeout_s = timeout_s
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._publishers: dict[str | None, _Publisher] = {}
        self._goodbyes: set[asyncio.Task[None]] = set()
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
                _raise_if_cancelled(error)
                unsent = Outcome(Fate.UNCERTAIN, line_of(error))
                break
            outcomes += await self._send(publishers, window, ends)
            if any(outcome.fate is Fate.UNCERTAIN for outcome in outcomes):
                break
        return outcomes + [unsent] * (len(batch) - len(outcomes))

    async def declare(self, route: Route) -> bool:
        async with self._asking() as open_channel:
            return await find_or_make(open_channel, route)

    async def backlog(self, name: str) -> Backlog:
        async with self._asking() as open_channel:
            try:
                async with open_channel() as channel:
                    found = (await channel.declare_queue(name, passive=True)).declaration_result
            except ChannelClosed as error:
                raise QueueTrouble(line_of(error)) from error
            return Backlog(found.message_count or 0, found.consumer_count or 0)

    async def check(self) -> None:
        async with self._asking() as open_channel, open_channel():
            pass

    async def close(self) -> None:
        self._discard()
        if self._goodbyes:
            await asyncio.wait(self._goodbyes)

    async def _connected(self) -> AbstractConnection:
        async with self._connecting:
            if self._connection is None or not self._connection.connected.is_set():
                self._discard()
                self._connection = await aio_pika.connect(
                    self._url,
                    timeout=self._timeout_s,
                    client_properties={"connection_name": "jobplane"},
                    **self._options,
                )
                self.connects += 1
            return self._connection

    async def _publisher(self, connection: AbstractConnection, exchange: str) -> _Publisher:
        own = exchange in self._publishers or len(self._publishers) < _OWN_CHANNELS
        key = exchange if own else None
        publisher = self._publishers.get(key)
        if publisher is None or publisher.channel.is_closed:
            channel = connection.channel(publisher_confirms=True, on_return_raises=True)
            await channel.initialize(timeout=self._timeout_s)
            publisher = self._publishers[key] = _Publisher(channel)
        return publisher

    async def _send(self, publishers: Mapping[str, _Publisher], batch: Sequence[Message], ends: float) -> list[Outcome]:
        """Write all messages, in order, then wait for their confirms until `ends`."""
        sending = [asyncio.ensure_future(_send(publishers[message.exchange], message)) for message in batch]
        try:
            await asyncio.wait(sending, timeout=max(ends - asyncio.get_running_loop().time(), 0))
            outcomes = [
                _outcome(task, publishers[message.exchange]) for message, task in zip(batch, sending, strict=True)
            ]
        except BaseException:
            self._discard()
            raise
        finally:
            for task in sending:
                task.cancel()
        lost = any(outcome.fate is Fate.UNCERTAIN for outcome in outcomes)
        if lost or any(publisher.channel.is_closed for publisher in publishers.values()):
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
            _raise_if_cancelled(error)
            raise BrokerAway(line_of(error)) from error

    def _discard(self) -> None:
        """Throw the connection away; it says goodbye by itself."""
        connection, self._connection = self._connection, None
        self._publishers = {}
        if connection is not None:
            goodbye = asyncio.ensure_future(_goodbye(connection))
            self._goodbyes.add(goodbye)
            goodbye.add_done_callback(self._goodbyes.discard)


@asynccontextmanager
async def _channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    channel = connection.channel(publisher_confirms=False)
    await channel.initialize()
    yield channel
    # After an error either the broker has closed it, or the whole connection is thrown away.
    await channel.close()


def _raise_if_cancelled(error: BaseException) -> None:
    """Go on with a cancellation that is meant for us; the library also cancels whoever waits on a lost connection."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


async def _goodbye(connection: AbstractConnection) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_GOODBYE_S):
            await connection.close()


async def _send(publisher: _Publisher, message: Message) -> Outcome:
    try:
        encoded = aio_pika.Message(
            message.body,
            headers=message.headers,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            delivery_mode=message.delivery_mode,
            priority=message.priority,
            correlation_id=message.task_id,
            reply_to=message.reply_to,
            # A returned message is matched to its delivery tag by this.
            message_id=message.task_id,
        )
        channel = await publisher.channel.get_underlay_channel()
        await channel.basic_publish(
            encoded.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            properties=encoded.properties,
            mandatory=True,
        )
        await faults.at("dispatch.before_confirm")
    except PublishError:
        return UNROUTABLE
    except DeliveryError:
        return Outcome(Fate.REFUSED, "the broker refused it (nack)")
    except ChannelClosed as error:
        publisher.trouble = line_of(error)
        return Outcome(Fate.REFUSED, publisher.trouble)
    except faults.InjectedFault:
        raise
    except _UNSENDABLE as error:
        return Outcome(Fate.REFUSED, f"cannot be sent: {line_of(error)}")
    except Exception as error:
        return Outcome(Fate.UNCERTAIN, line_of(error))
    return CONFIRMED


def _outcome(task: "asyncio.Task[Outcome]", publisher: _Publisher) -> Outcome:
    if not task.done():
        return Outcome(Fate.UNCERTAIN, "not confirmed in time")
    outcome = Outcome(Fate.UNCERTAIN, "connection lost") if task.cancelled() else task.result()
    if outcome.fate is Fate.UNCERTAIN and publisher.trouble is not None:
        return Outcome(Fate.REFUSED, publisher.trouble)  # what was behind it on the channel that the broker closed
    return outcome
