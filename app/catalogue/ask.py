"""Asks all workers on the broker, ours and stock ones, by Celery's remote control.

A worker answers when its main loop comes to it: one with a solo pool not before its task is over, one with remote
control switched off never. So no answer means nothing.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
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
        if self._asking is not None and self._asking.is_alive():
            return None  # still stuck in the last round, with a broker that is away
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answers] = loop.create_future()

        def tell(found: Answers | None, error: Exception | None) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            else:
                answered.set_result(found or {})

        def work() -> None:
            found, failed = None, None
            try:
                found = self._round(list(strangers), list(unnamed))
            except Exception as error:
                failed = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found, failed)

        # Not an executor's thread: nobody waits at the end of the process for one that hangs.
        self._asking = threading.Thread(target=work, name="jobplane-ask", daemon=True)
        self._asking.start()
        try:
            return await asyncio.wait_for(answered, _ROUND_S)
        except Exception as error:
            log.debug("workers_not_asked", error=f"{type(error).__name__}: {error}")
            return None

    def close(self) -> None:
        """Let the connection go, unless a round is under way; never raises."""
        if self._asking is None or not self._asking.is_alive():
            self._drop()

    def _round(self, strangers: list[str], unnamed: list[str]) -> Answers:
        fresh = self._connection is None
        try:
            return self._questions(strangers, unnamed)
        except Exception:
            self._drop()
            if fresh:
                raise
        # The connection was from the last round, and may have ended with the broker's.
        return self._questions(strangers, unnamed)

    def _questions(self, strangers: list[str], unnamed: list[str]) -> Answers:
        app, connection = self._connected()
        mailbox = app.control.mailbox(connection)
        channel = connection.default_channel
        rounds: list[tuple[str, list[str] | None]] = [(question, None) for question in _OF_ALL]
        rounds += [(question, strangers) for question in _OF_STRANGERS if strangers]
        rounds += [("report", unnamed)] if unnamed else []
        tickets = {question: uuid4().hex for question, _ in rounds}
        asked = {ticket: question for question, ticket in tickets.items()}
        found: Answers = defaultdict(dict)

        def hear(body: Any, message: Any) -> None:
            question = asked.get(message.headers.get("ticket"))
            if question is not None and isinstance(body, dict):
                for node, answer in body.items():
                    found[str(node)][question] = answer

        for question, nodes in rounds:
            mailbox._publish(
                question,
                {},
                destination=nodes,
                reply_ticket=tickets[question],
                channel=channel,
                timeout=_ROUND_S,
            )
        queue = mailbox.reply_queue
        # JSON alone: an answer in pickle would run code in here.
        consumer = Consumer(
            channel, [queue], callbacks=[hear], accept=["json"], no_ack=True, on_decode_error=_pass_over
        )
        ends = time.monotonic() + _LISTEN_S
        try:
            with consumer:
                while (left := ends - time.monotonic()) > 0:
                    connection.drain_events(timeout=min(SILENCE_S, left))
        except TimeoutError:
            pass
        finally:
            channel.after_reply_message_received(queue.name)
        return dict(found)

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
