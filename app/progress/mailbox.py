"""One queue of ours on RabbitMQ, consumed: messages in order, acknowledged only once they are settled.

The connection is made again by itself, with growing pauses; what was not acknowledged by then comes once more.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, Final

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.abc import AbstractChannel as PlainChannel
from aiormq.abc import DeliveredMessage

from app.amqp import Goodbyes, connect, line_of, raise_if_cancelled
from app.loop import end
from app.progress.reports import HEAD, MESSAGE_LIMIT

log = structlog.get_logger()

_CONNECT_S: Final = 5.0
_FIRST_RETRY_S: Final = 0.2
_LAST_RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that is not acknowledged yet: its properties, and its bytes (only the head of what is too long).

    What is too long for that and not for its mailbox lies in a file, which goes with the letter.
    """

    #: Its number on the connection that brought it, and the number of that connection.
    tag: int
    life: int
    task_id: str
    headers: Mapping[str, Any]
    body: bytes
    #: How many bytes it had.
    size: int
    #: When it came, by the event loop's clock.
    time: float
    spilled: "Spilled | None" = None

    def read(self) -> bytes | None:
        """The whole message, if it is still there. Raises OSError."""
        if len(self.body) == self.size:
            return self.body
        return self.spilled.read() if self.spilled is not None else None


class Spilled:
    """Bytes in a file without a name, which ends with this object. Raises OSError."""

    def __init__(self, body: bytes) -> None:
        self._file = TemporaryFile()  # noqa: SIM115
        self._file.write(body)

    def read(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it may not have come to be
            self._file.close()


class Mailbox:
    """Call `start`, then `take` and `acknowledge`, `close` at the end.

    A queue that is there is used as it is; otherwise it is declared: durable, quorum, with `arguments`. `arrived` is
    set when a message came.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        arguments: Mapping[str, Any],
        arrived: asyncio.Event,
        *,
        prefetch: int,
        most_bytes: int = MESSAGE_LIMIT,
    ) -> None:
        self._url = url
        self._queue = queue
        self._arguments = {"x-queue-type": "quorum", **arguments}
        self._prefetch = prefetch
        self._arrived = arrived
        self._most_bytes = most_bytes
        self._letters: deque[Letter] = deque()
        self._channel: PlainChannel | None = None
        self._task: asyncio.Task[None] | None = None
        self._goodbyes = Goodbyes()
        self._trouble: str | None = None
        #: Counts connections: a letter of an earlier one can be acknowledged no more.
        self.life = 0
        self.connected = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_consuming(), name=f"mailbox {self._queue}")

    async def close(self) -> None:
        """Stop consuming; what was not acknowledged goes back to the queue. Takes at most some seconds."""
        if self._task is not None:
            await end(self._task)
            self._task = None
        await self._goodbyes.wait()

    @property
    def waiting(self) -> int:
        return len(self._letters)

    def take(self, most: int, most_bytes: int) -> list[Letter]:
        """The oldest messages, and at least one if there is any."""
        taken: list[Letter] = []
        size = 0
        while self._letters and len(taken) < most and (not taken or size < most_bytes):
            taken.append(self._letters.popleft())
            size += len(taken[-1].body)
        return taken

    def current(self, letter: Letter) -> bool:
        """Whether this letter is still ours; False: its connection is gone and it comes once more."""
        return letter.life == self.life and self.connected.is_set()

    async def acknowledge(self, letters: Sequence[Letter], *, all_before: bool = False) -> None:
        """These are settled, with `all_before` also each that came before the last of them. Never raises.

        An acknowledgement that is lost means that its message comes once more.
        """
        tags = [letter.tag for letter in letters if self.current(letter)]
        if self._channel is None or not tags:
            return
        try:
            async with asyncio.timeout(_CONNECT_S):
                for tag in tags[-1:] if all_before else tags:
                    await self._channel.basic_ack(tag, multiple=all_before)
        except (Exception, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            log.debug("not_acknowledged", queue=self._queue, letters=len(tags), error=line_of(error))

    async def _keep_consuming(self) -> None:
        pause_s = _FIRST_RETRY_S
        while True:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    connection = await connect(self._url, f"jobplane {self._queue}", _CONNECT_S)
                try:
                    lost = asyncio.Event()
                    async with asyncio.timeout(_CONNECT_S):
                        await self._consume(connection, lost)
                    self._say(None)
                    pause_s = _FIRST_RETRY_S
                    await lost.wait()
                    self._say("the connection, or the queue, went away")
                finally:
                    self._forget(connection)
            except (Exception, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                self._say(line_of(error))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LAST_RETRY_S)

    async def _consume(self, connection: AbstractConnection, lost: asyncio.Event) -> None:
        await self._find_or_make(connection)
        channel = await _open(connection)
        await channel.set_qos(prefetch_count=self._prefetch)
        plain = await channel.get_underlay_channel()
        channel.close_callbacks.add(lambda *_: lost.set())
        connection.close_callbacks.add(lambda *_: lost.set())
        plain.on_consumer_cancel_callbacks.add(lambda *_: lost.set())
        self.life += 1
        life = self.life

        async def take_in(message: DeliveredMessage) -> None:
            if life == self.life:
                self._letters.append(_letter(message, life, self._most_bytes))
                self._arrived.set()

        await plain.basic_consume(self._queue, take_in)
        self._channel = plain
        self.connected.set()

    async def _find_or_make(self, connection: AbstractConnection) -> None:
        try:
            await (await _open(connection)).declare_queue(self._queue, passive=True)
        except ChannelNotFoundEntity:
            channel = await _open(connection)
            await channel.declare_queue(self._queue, durable=True, arguments=dict(self._arguments))

    def _forget(self, connection: AbstractConnection) -> None:
        self.connected.clear()
        self.life += 1
        self._channel = None
        self._letters.clear()
        self._goodbyes.say(connection)

    def _say(self, trouble: str | None) -> None:
        """Tell each trouble once, and its end."""
        if trouble is None:
            log.info("mailbox_open", queue=self._queue, life=self.life)
        elif self._trouble is None:
            log.warning("mailbox_away", queue=self._queue, problem=trouble)
        else:
            log.debug("mailbox_away", queue=self._queue, problem=trouble)
        self._trouble = trouble


def _letter(message: DeliveredMessage, life: int, most_bytes: int) -> Letter:
    properties, body = message.header.properties, message.body
    correlation_id = properties.correlation_id
    return Letter(
        tag=int(getattr(message.delivery, "delivery_tag", 0) or 0),
        life=life,
        task_id=correlation_id if isinstance(correlation_id, str) else "",
        headers=properties.headers or {},
        body=body if len(body) <= MESSAGE_LIMIT else body[:HEAD],
        size=len(body),
        time=asyncio.get_running_loop().time(),
        spilled=_spilled(body) if MESSAGE_LIMIT < len(body) <= most_bytes else None,
    )


def _spilled(body: bytes) -> Spilled | None:
    try:
        return Spilled(body)
    except OSError as error:
        log.warning("letter_not_kept", bytes=len(body), problem=str(error))
        return None


async def _open(connection: AbstractConnection) -> AbstractChannel:
    channel = connection.channel(publisher_confirms=False)
    await channel.initialize()
    return channel
