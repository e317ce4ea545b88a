"""Asks all workers on the broker, ours and stock ones, by Celery's remote control.

A worker answers when its main loop comes to it: one with a solo pool not before its task is over, one with remote
control switched off never. So no answer means nothing.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from uuid import uuid4

import structlog
from celery import Celery
from celery.app.amqp import Consumer

from app.progress.control import tls_of

log = structlog.get_logger()

#: How long nobody must have answered before we stop to listen.
SILENCE_S: Final = 1.0
#: Longest that we listen to answers that keep coming.
_LISTEN_S: Final = 2.0
_CONNECT_S: Final = 2.0
#: Longest that one round may take, a slow connection included.
_ROUND_S: Final = 8.0

#: What everybody is asked.
_OF_ALL: Final = ("active_queues", "registered", "stats")
#: What workers of ours say in their presence: the others are asked once they are known.
_OF_STRANGERS: Final = ("active", "reserved")

#: By node, what it answered to each question.
Answers: TypeAlias = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """A command of Celery's remote control that is put to these nodes, or to all."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    nodes: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat that a worker sent: by how much its clock is ahead of ours, less the way here, and its process."""

    node: str
    pid: int | None
    ahead_s: float


@dataclass(slots=True)
class Heard:
    """What came in, in its order. Two workers of one name both stand here."""

    #: `(question, node, what it said)`.
    answers: list[tuple[str, str, Any]] = field(default_factory=list)
    beats: list[Beat] = field(default_factory=list)


class Asker:
    """Keeps one connection to the broker and asks over it, in a thread of its own, one round at a time."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
        self._app: Celery | None = None
        self._connection: Any = None
        self._asking: threading.Thread | None = None

    async def ask(self, strangers: Collection[str], unnamed: Collection[str]) -> Answers | None:
        """Who answers, and what; None if the broker is away or takes too long.

        `strangers` are the nodes that are also asked for what they are at, `unnamed` those asked for their version.
        """
        questions = [Question(name) for name in _OF_ALL]
        questions += [Question(name, nodes=list(strangers)) for name in _OF_STRANGERS if strangers]
        questions += [Question("report", nodes=list(unnamed))] if unnamed else []
        heard = await self.put(questions)
        if heard is None:
            return None
        found: Answers = defaultdict(dict)
        for question, node, answer in heard.answers:
            found[node][question] = answer
        return dict(found)

    async def put(self, questions: Sequence[Question], beats_s: float = 0.0) -> Heard | None:
        """What workers answer to these; None if the broker is away or takes too long.

        With `beats_s` we listen for just so long, and to the heartbeats of workers too.
        """
        if self._asking is not None and self._asking.is_alive():
            return None  # still stuck in the last round, with a broker that is away
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Heard] = loop.create_future()

        def tell(found: Heard | None, error: Exception | None) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            else:
                answered.set_result(found or Heard())

        def work() -> None:
            found, failed = None, None
            try:
                found = self._round(questions, beats_s)
            except Exception as error:
                failed = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found, failed)

        # Not an executor's thread: nobody waits at the end of the process for one that hangs.
        self._asking = threading.Thread(target=work, name="jobplane-ask", daemon=True)
        self._asking.start()
        try:
            return await asyncio.wait_for(answered, _ROUND_S + beats_s)
        except Exception as error:
            log.debug("workers_not_asked", error=f"{type(error).__name__}: {error}")
            return None

    def close(self) -> None:
        """Let the connection go, unless a round is under way; never raises."""
        if self._asking is None or not self._asking.is_alive():
            self._drop()

    def _round(self, questions: Sequence[Question], beats_s: float) -> Heard:
        fresh = self._connection is None
        try:
            return self._questions(questions, beats_s)
        except Exception:
            self._drop()
            if fresh:
                raise
        # The connection was from the last round, and may have ended with the broker's.
        return self._questions(questions, beats_s)

    def _questions(self, questions: Sequence[Question], beats_s: float) -> Heard:
        app, connection = self._connected()
        mailbox = app.control.mailbox(connection)
        channel = connection.default_channel
        asked = {uuid4().hex: question for question in questions}
        heard = Heard()

        def hear(body: Any, message: Any) -> None:
            question = asked.get(message.headers.get("ticket"))
            if question is not None and isinstance(body, dict):
                heard.answers += [(question.name, str(node), answer) for node, answer in body.items()]

        for ticket, question in asked.items():
            mailbox._publish(
                question.name,
                dict(question.arguments),
                destination=None if question.nodes is None else list(question.nodes),
                reply_ticket=ticket,
                channel=channel,
                timeout=_ROUND_S,
            )
        queue = mailbox.reply_queue
        # JSON alone: an answer in pickle would run code in here.
        consumers = [
            Consumer(channel, [queue], callbacks=[hear], accept=["json"], no_ack=True, on_decode_error=_pass_over)
        ]
        if beats_s:
            events = app.events.Receiver(connection, routing_key="worker.#").queue
            consumers.append(
                Consumer(
                    channel,
                    [events],
                    callbacks=[lambda body, _: heard.beats.extend(_beats(body))],
                    accept=["json"],
                    no_ack=True,
                    on_decode_error=_pass_over,
                )
            )
        silence_s, listen_s = (beats_s, beats_s) if beats_s else (SILENCE_S, _LISTEN_S)
        ends = time.monotonic() + listen_s
        try:
            with ExitStack() as stack:
                for consumer in consumers:
                    stack.enter_context(consumer)
                while (left := ends - time.monotonic()) > 0:
                    connection.drain_events(timeout=min(silence_s, left))
        except TimeoutError:
            pass
        finally:
            channel.after_reply_message_received(queue.name)
        return heard

    def _connected(self) -> tuple[Celery, Any]:
        if self._app is None:
            self._app = Celery(broker=self._url, set_as_current=False, fixups=[])
            self._app.conf.update(
                broker_connection_timeout=_CONNECT_S,
                broker_use_ssl=tls_of(self._url),
                # One try: who is away is asked again in a few seconds.
                broker_transport_options={
                    "max_retries": 1,
                    "interval_start": 0,
                    "interval_step": 0,
                    "connect_retries_timeout": _CONNECT_S,
                    "socket_timeout": 5,
                    "socket_connect_timeout": _CONNECT_S,
                }
                if self._url.startswith("redis")
                else {"max_retries": 1, "interval_start": 0, "interval_step": 0},
            )
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=_CONNECT_S)
        return self._app, self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(socket_timeout=1.0)


def _pass_over(_message: Any, error: Exception) -> None:
    log.debug("answer_not_read", error=str(error))


def _beats(body: Any) -> list[Beat]:
    """The heartbeat in an event, if it is one: a stranger's words."""
    events = body if isinstance(body, list) else [body]
    found = []
    for event in events:
        if not isinstance(event, dict) or event.get("type") != "worker-heartbeat":
            continue
        node, told, pid = event.get("hostname"), event.get("timestamp"), event.get("pid")
        if isinstance(node, str) and isinstance(told, int | float):
            found.append(Beat(node, pid if type(pid) is int else None, told - time.time()))
    return found
