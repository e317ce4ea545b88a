"""What the plane wants of a broker, and which one a URL names.

A broker connects when it is first used, is bounded in time, and throws its connection away after any error on it: what
comes late on an old connection can then say nothing about a new message.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from app.dispatch.message import Message
from workers.protocol import TaskId


class BrokerAway(ConnectionError):
    """The broker cannot be reached, or does not answer in time; the text says how that was seen, in one line."""


class QueueTrouble(Exception):
    """The broker refuses something about one queue; the text is a sentence for those who own it."""


class Fate(Enum):
    """What became of one message."""

    #: The broker has it.
    CONFIRMED = auto()
    #: No queue is bound for its route: the broker gave it back.
    RETURNED = auto()
    #: The broker, or our own encoder, said no to this message or its route; others are not concerned.
    REFUSED = auto()
    #: No answer. The broker may have it or not, and nothing more can be sent just now.
    UNCERTAIN = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fate of one message, and why if it is not confirmed: a phrase that fits a run's `reason`."""

    fate: Fate
    reason: str | None = None


CONFIRMED = Outcome(Fate.CONFIRMED)
UNROUTABLE = Outcome(Fate.RETURNED, "unroutable")


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in a queue, and who takes from it (None: the broker cannot tell)."""

    ready: int
    consumers: int | None


@dataclass(frozen=True, slots=True)
class Route:
    """A queue as a row of `queues` describes it. `adopted` is None until it was looked for the first time."""

    name: str
    exchange: str
    exchange_type: str
    routing_key: str
    type: str
    max_priority: int | None
    adopted: bool | None
    delivery_limit: int | None = None
    consumer_timeout_s: int | None = None
    #: The queue that gets what this one gives up.
    dead_letter_queue: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message of ours that waits in a queue; `number` names it until the sieve goes on."""

    number: int
    task_id: TaskId
    #: Celery's retry number inside the attempt.
    retries: int


class Sieve(Protocol):
    """Goes through what waits in a queue; see `app.dispatch.sieves`. Every call may raise QueueTrouble, BrokerAway."""

    async def next(self) -> list[Waiting] | None:
        """Messages of ours among the next ones, maybe none of them; None at the end."""

    async def take(self, numbers: Collection[int]) -> set[int]:
        """Take these of the last messages off the queue; those that no worker had taken before us."""

    async def left(self) -> int:
        """How many messages are still there."""


class Broker(Protocol):
    """RabbitMQ or Redis, as the dispatch stage uses them."""

    #: How often a connection was made: a change means that the broker may have forgotten something.
    connects: int

    async def publish(self, batch: Sequence[Message]) -> list[Outcome]:
        """Send messages in order and wait for the broker's word on each; one outcome per message, never raises for a
        broker that is away. What is not confirmed may be sent again under the same task id."""

    async def declare(self, route: Route) -> bool:
        """Find or make the queue and its route; True if it was there before us. Raises QueueTrouble, BrokerAway."""

    async def keep_dead_letters(self, name: str) -> None:
        """Find or make the queue that gets what others give up. Raises QueueTrouble, BrokerAway."""

    async def backlog(self, name: str) -> Backlog:
        """What waits in the queue. Raises QueueTrouble if there is no such queue, BrokerAway."""

    def sieve(self, name: str, most: int) -> AbstractAsyncContextManager[Sieve]:
        """Go through at most so many messages of a queue. Raises QueueTrouble, BrokerAway."""

    async def check(self) -> None:
        """One round trip. Raises BrokerAway."""

    async def close(self) -> None:
        """Close the connection; takes at most some seconds, never raises. The broker may be used again after it."""


def connect(url: str, timeout_s: float) -> Broker:
    """The broker that this URL names (`amqp`, `amqps`, `redis`, `rediss`); every call ends within about `timeout_s`.

    No network before the first call.
    """
    if url.startswith("amqp"):
        from app.dispatch.amqp import Amqp

        return Amqp(url, timeout_s)
    from app.dispatch.redis import RedisBroker

    return RedisBroker(url, timeout_s)
