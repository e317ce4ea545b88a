"""Connections to RabbitMQ through aio-pika: made, and ended for good."""

import asyncio
from contextlib import suppress
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractConnection

_HEARTBEAT_S: Final = 10
#: How long a connection may take to say goodbye.
_GOODBYE_S: Final = 3.0


class Connection(aio_pika.Connection):
    """aio-pika's, but one that could not be made is closed.

    The library leaves that to the garbage collector, which starts a coroutine for it: in a thread without an event loop
    that is one which nobody ever awaits.
    """

    async def connect(self, timeout: float | None = None) -> None:
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


async def connect(url: str, name: str, timeout_s: float) -> AbstractConnection:
    """A connection that shows on the broker by this name. It is not made again by itself: whoever uses it does that."""
    options: dict[str, Any] = {} if "heartbeat=" in url else {"heartbeat": _HEARTBEAT_S}
    connection: AbstractConnection = await aio_pika.connect(
        url, timeout=timeout_s, client_properties={"connection_name": name}, connection_class=Connection, **options
    )
    return connection


class Goodbyes:
    """Old connections that are being closed, beside whoever has thrown them away and may be ended more than once."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, connection: AbstractConnection) -> None:
        """Begin to close a connection, with what is under way on it."""
        task = asyncio.ensure_future(_goodbye(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """Until all are closed; that takes at most some seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _goodbye(connection: AbstractConnection) -> None:
    with suppress(Exception):
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await connection.close()
        finally:
            await connection.close()  # closed by now, or too slow: then this is only the end of it for us


def raise_if_cancelled(error: BaseException) -> None:
    """Go on with a cancellation that is meant for us; the library also cancels whoever waits on a lost connection."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def line_of(error: BaseException) -> str:
    """What an error says, in one line that fits a sentence."""
    return (str(error) or type(error).__name__).partition("\n")[0][:300]
