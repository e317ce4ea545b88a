"""Speaks to Celery workers through their remote control: revoke, terminate, and what they are at.

Whatever the broker does, a caller waits a few seconds at most: each word is said in a thread of its own, over a
connection of its own, and while one hangs no other is tried.
"""

import asyncio
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog
from celery import Celery

T = TypeVar("T")

log = structlog.get_logger()

#: Longest wait for the broker, and for workers that answer.
_CONNECT_S: Final = 2.0
_ANSWER_S: Final = 1.0
_ALL_ANSWER_S: Final = 2.0
_PATIENCE_S: Final = 6.0


class Control:
    """The workers on one broker."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._patience: dict[str, float] = (
            {"socket_timeout": _CONNECT_S, "socket_connect_timeout": _CONNECT_S, "connect_retries_timeout": _CONNECT_S}
            if broker_url.startswith("redis")
            else {"read_timeout": _CONNECT_S, "write_timeout": _CONNECT_S}
        )
        self._hangs = threading.Lock()
        self._away = False

    async def revoke(self, task_ids: Sequence[str], signal: str | None = None, node: str | None = None) -> bool:
        """Tell all workers, or one, not to begin these tasks, and with a signal to end those that they are at.

        Whether the broker took it; who heard it is not known.
        """

        def say(app: Celery, connection: Any) -> bool:
            app.control.revoke(
                list(task_ids),
                destination=None if node is None else [node],
                terminate=signal is not None,
                signal=signal or "SIGTERM",
                connection=connection,
            )
            return True

        return await self._say(say) or False

    async def active(self, nodes: Sequence[str]) -> dict[str, set[str]] | None:
        """The ids of the tasks that each of these workers is at; without those that do not answer.

        None if the broker is away.
        """

        def say(app: Celery, connection: Any) -> dict[str, set[str]]:
            asked = app.control.inspect(
                destination=list(nodes), timeout=_ANSWER_S, limit=len(nodes), connection=connection
            )
            return ids_of(asked.active())

        return await self._say(say)

    async def consuming(self) -> dict[str, set[str]] | None:
        """The queues of every worker that answers in time; None if the broker is away."""

        def say(app: Celery, connection: Any) -> dict[str, set[str]]:
            replies = app.control.inspect(timeout=_ALL_ANSWER_S, connection=connection).active_queues() or {}
            return {node: {queue["name"] for queue in queues} for node, queues in replies.items()}

        return await self._say(say)

    async def holding(self, nodes: Sequence[str]) -> dict[str, set[str]] | None:
        """The ids of the tasks that each of these workers is at, has taken, or keeps for later.

        Without those that do not answer all of it in time; None if the broker is away.
        """

        def say(app: Celery, connection: Any) -> dict[str, set[str]]:
            asked = app.control.inspect(
                destination=list(nodes), timeout=_ANSWER_S, limit=len(nodes), connection=connection
            )
            # In the order in which a task goes on, so that none slips through between two questions.
            answers = [ids_of(asked.scheduled()), ids_of(asked.reserved()), ids_of(asked.active())]
            return {
                node: set().union(*(answer[node] for answer in answers))
                for node in nodes
                if all(node in answer for answer in answers)
            }

        return await self._say(say) if nodes else {}

    async def _say(self, say: Callable[[Celery, Any], T]) -> T | None:
        if not self._hangs.acquire(blocking=False):
            return None
        loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            if not answer.done():
                answer.set_result((value, error))

        def work() -> None:
            value, error = None, None
            try:
                value = self._connected(say)
            except Exception as problem:
                error = problem
            finally:
                self._hangs.release()
            with suppress(RuntimeError):  # the process has ended its loop meanwhile
                loop.call_soon_threadsafe(settle, value, error)

        threading.Thread(target=work, name="jobplane-control", daemon=True).start()
        try:
            value, error = await asyncio.wait_for(answer, _PATIENCE_S)
        except TimeoutError as problem:
            value, error = None, problem
        self._note(error)
        said: T | None = value
        return said

    def _connected(self, say: Callable[[Celery, Any], T]) -> T:
        with Celery(broker=self._broker_url, set_as_current=False, fixups=[]) as app:
            app.conf.update(
                broker_connection_timeout=_CONNECT_S,
                broker_use_ssl=tls_of(self._broker_url),
                # One try: who is away is told in a few seconds.
                broker_transport_options={"max_retries": 1, "interval_start": 0, "interval_step": 0, **self._patience},
            )
            with app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=_CONNECT_S)
                return say(app, connection)

    def _note(self, error: Exception | None) -> None:
        if error is not None and not self._away:
            log.info("workers_not_told", error=f"{type(error).__name__}: {error}".partition("\n")[0])
        self._away = error is not None


def ids_of(answers: Any) -> dict[str, set[str]]:
    """The ids of the tasks that each worker lists; one that says anything else has not answered."""
    found: dict[str, set[str]] = {}
    for node, told in (answers or {}).items():
        with suppress(TypeError, KeyError, AttributeError):
            # What is kept for later stands a level deeper.
            found[node] = {str(task.get("request", task)["id"]) for task in told}
    return found


def tls_of(url: str) -> dict[str, Any] | None:
    """Celery's `broker_use_ssl` for a broker's URL: certificates are checked wherever TLS is asked for."""
    scheme = url.partition("://")[0]
    names = {"rediss": "ssl_cert_reqs", "amqps": "cert_reqs"}
    return {names[scheme]: ssl.CERT_REQUIRED} if scheme in names else None
