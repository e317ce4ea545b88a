"""Messages on RabbitMQ channels, and the broker's word on each of them.

They are persistent and `mandatory`; confirms come back per message, matched by delivery tag. The first message on a
channel goes alone. Should its exchange be missing or forbidden, RabbitMQ closes the channel, and a second message that
arrived after that would cost the whole connection, and with it what is under way to queues that have nothing to do
with it.
"""

import asyncio
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelClosed, DeliveryError, PublishError

from app import faults
from app.amqp import line_of
from app.dispatch.broker import CONFIRMED, UNROUTABLE, Fate, Outcome
from app.dispatch.message import Message

#: What the library raises for a message that cannot be encoded. Any other error, even a bare Exception, it may raise
#: for a connection that goes away under our hands.
_UNSENDABLE: Final = (ValueError, TypeError, OverflowError, struct.error)


@dataclass(eq=False, slots=True)
class Publisher:
    """A channel that takes messages."""

    channel: AbstractChannel
    #: Whether the broker has answered to a message here: then the exchange is there, and we may publish to it.
    proven: bool = False
    #: What the broker said when it closed the channel.
    trouble: str | None = None

    def unsent(self) -> Outcome:
        """The outcome of a message that was not sent, after what happened here."""
        return Outcome(Fate.REFUSED, self.trouble) if self.trouble else Outcome(Fate.UNCERTAIN, "not sent")


def any_uncertain(outcomes: Iterable[Outcome]) -> bool:
    return any(outcome.fate is Fate.UNCERTAIN for outcome in outcomes)


async def send(publishers: Mapping[str, Publisher], batch: Sequence[Message], ends: float) -> list[Outcome]:
    """Send messages, in order on each channel, and wait for the confirms until `ends` (the event loop's clock).

    `publishers` holds the channel of each exchange. One outcome per message.
    """
    said: dict[str, Outcome] = {}
    left = list(batch)
    while left and not any_uncertain(said.values()):
        turn = list(_turn(publishers, left))
        outcomes = await _confirms(publishers, turn, ends)
        said.update((message.task_id, outcome) for message, outcome in zip(turn, outcomes, strict=True))
        left = [m for m in left if m.task_id not in said and publishers[m.exchange].trouble is None]
    return [said.get(message.task_id) or publishers[message.exchange].unsent() for message in batch]


def _turn(publishers: Mapping[str, Publisher], left: Sequence[Message]) -> Iterator[Message]:
    """What may be sent now: all messages of channels that are proven, the first one of each other channel."""
    scouted: set[Publisher] = set()
    for message in left:
        publisher = publishers[message.exchange]
        if publisher.proven or publisher not in scouted:
            scouted.add(publisher)
            yield message


async def _confirms(publishers: Mapping[str, Publisher], messages: Sequence[Message], ends: float) -> list[Outcome]:
    sending = [asyncio.ensure_future(_publish(publishers[message.exchange], message)) for message in messages]
    try:
        await asyncio.wait(sending, timeout=max(ends - asyncio.get_running_loop().time(), 0))
        return [_outcome(task, publishers[message.exchange]) for message, task in zip(messages, sending, strict=True)]
    finally:
        for task in sending:
            task.cancel()


async def _publish(publisher: Publisher, message: Message) -> Outcome:
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
    except DeliveryError as error:
        publisher.proven = True
        returned = isinstance(error, PublishError)
        return UNROUTABLE if returned else Outcome(Fate.REFUSED, "the broker refused it (nack)")
    except ChannelClosed as error:
        publisher.trouble = line_of(error)
        return Outcome(Fate.REFUSED, publisher.trouble)
    except _UNSENDABLE as error:
        return Outcome(Fate.REFUSED, f"cannot be sent: {line_of(error)}")
    except Exception as error:
        return Outcome(Fate.UNCERTAIN, line_of(error))
    publisher.proven = True
    await faults.at("dispatch.before_confirm")
    return CONFIRMED


def _outcome(task: "asyncio.Task[Outcome]", publisher: Publisher) -> Outcome:
    if not task.done():
        return Outcome(Fate.UNCERTAIN, "not confirmed in time")
    outcome = Outcome(Fate.UNCERTAIN, "connection lost") if task.cancelled() else task.result()
    # What was behind a message for which the broker closed the channel.
    return publisher.unsent() if outcome.fate is Fate.UNCERTAIN and publisher.trouble else outcome
