"""A queue of the plane as objects on RabbitMQ.

- A queue that is there is adopted: used as it is, whatever its arguments, and never declared, for the service that
  declares it must keep starting. Should it vanish, its owner must declare it again; we do not, because ours would have
  other arguments than the owner's.
- A queue that is not there is made as Celery makes it: durable, classic, without arguments, unless its row asks for
  more (`_arguments`). An argument that this broker does not take is told on that queue.
- An exchange that is there is used as it is; otherwise it is declared durable. The default exchange and `amq.*` are the
  broker's own. The exchange of a plain queue bears the queue's name: so Celery does it for `-Q name`.
- The binding is made in every case, also for an adopted queue: it takes nothing away from anybody, and without it our
  messages would come back.

A queue that is deleted from the plane is left on the broker, with what is in it. The queue of dead letters is there
before any queue that names it: a letter that finds no queue is lost, or stays where it was for ever.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from app.amqp import line_of
from app.dispatch.broker import QueueTrouble, Route

OpenChannel: TypeAlias = Callable[[], AbstractAsyncContextManager[AbstractChannel]]


async def find_or_make(open_channel: OpenChannel, route: Route) -> bool:
    """See above; True if the queue was there. Raises QueueTrouble with the broker's words where it refuses.

    Each question has a channel of its own, because a "no" closes it.
    """
    if not route.exchange and route.routing_key != route.name:
        raise QueueTrouble("on the default exchange the routing key must be the name of the queue")
    try:
        found = await _has_queue(open_channel, route.name)
        if not found and route.adopted:
            raise QueueTrouble(
                "the queue was there before the plane and is gone: its owner must declare it again, "
                "or delete it here and create it anew"
            )
        await _find_or_make_exchange(open_channel, route)
        if not found:
            async with open_channel() as channel:
                await channel.declare_queue(route.name, durable=True, arguments=_arguments(route) or None)
        await _bind(open_channel, route, others=found and route.adopted is not False)
    except ChannelClosed as error:
        raise QueueTrouble(line_of(error)) from error
    return found


async def keep_dead_letters(open_channel: OpenChannel, name: str) -> None:
    """Find or make the queue of dead letters: durable and quorum. Raises QueueTrouble where the broker refuses."""
    try:
        if not await _has_queue(open_channel, name):
            async with open_channel() as channel:
                await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    except ChannelClosed as error:
        raise QueueTrouble(line_of(error)) from error


def _arguments(route: Route) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if route.type == "quorum":
        arguments["x-queue-type"] = "quorum"
    if route.max_priority is not None:
        arguments["x-max-priority"] = route.max_priority
    if route.delivery_limit is not None:
        arguments["x-delivery-limit"] = route.delivery_limit
    if route.consumer_timeout_s is not None:
        arguments["x-consumer-timeout"] = route.consumer_timeout_s * 1000
    if route.dead_letter_queue is not None:
        arguments["x-dead-letter-exchange"] = ""
        arguments["x-dead-letter-routing-key"] = route.dead_letter_queue
        if route.type == "quorum":
            # The broker takes this strategy only together with that overflow.
            arguments["x-dead-letter-strategy"] = "at-least-once"
            arguments["x-overflow"] = "reject-publish"
    return arguments


async def _has_queue(open_channel: OpenChannel, name: str) -> bool:
    try:
        async with open_channel() as channel:
            await channel.declare_queue(name, passive=True)
    except ChannelNotFoundEntity:
        return False
    return True


async def _find_or_make_exchange(open_channel: OpenChannel, route: Route) -> None:
    if not route.exchange or route.exchange.startswith("amq."):
        return
    try:
        async with open_channel() as channel:
            await channel.declare_exchange(route.exchange, passive=True)
    except ChannelNotFoundEntity:
        async with open_channel() as channel:
            await channel.declare_exchange(route.exchange, route.exchange_type, durable=True)


async def _bind(open_channel: OpenChannel, route: Route, *, others: bool) -> None:
    if not route.exchange:
        return
    try:
        async with open_channel() as channel:
            queue = await channel.get_queue(route.name, ensure=False)
            await queue.bind(route.exchange, route.routing_key)
    except ChannelAccessRefused:
        # Nothing may be bound to a queue of somebody else: if nothing is bound yet, our messages come back unroutable.
        if not others:
            raise
