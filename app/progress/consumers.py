"""Who consumes a queue: only workers of ours, whose lease refuses a second delivery, or also strangers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import orjson
import structlog
from celery import Celery
from redis.asyncio import Redis

from workers.protocol import PRESENCE_PREFIX

log = structlog.get_logger()

_INSPECT_S = 2.0


class Backlog(Protocol):
    """What the broker says of a queue: messages that wait in it, and its consumers (None where it cannot know)."""

    @property
    def ready(self) -> int: ...

    @property
    def consumers(self) -> int | None: ...


class Consumers:
    """Asks the broker, the presence of our workers in Redis and, where the broker cannot tell, all workers."""

    def __init__(self, redis: Redis, broker_url: str, backlog: Callable[[str], Awaitable[Backlog]]) -> None:
        self._redis = redis
        self._broker_url = broker_url
        self._backlog = backlog

    async def ours(self, queues: Iterable[str]) -> dict[str, bool]:
        """The queues in which nothing waits, and whether workers of ours, and nobody else, consume them.

        A queue that the broker cannot be asked about is left out. Raises RedisError.
        """
        backlogs: dict[str, Backlog] = {}
        for queue in queues:
            try:
                backlogs[queue] = await self._backlog(queue)
            except Exception as error:
                log.info("backlog_unknown", queue=queue, error=f"{type(error).__name__}: {error}")
        empty = {queue: backlog for queue, backlog in backlogs.items() if backlog.ready == 0}
        if not empty:
            return {}
        present = await self._present()
        blind = [q for q, backlog in empty.items() if backlog.consumers is None and _listing(present, q)]
        answering: dict[str, set[str]] | None = {}
        if blind:
            try:
                answering = await asyncio.to_thread(_answering, self._broker_url)
            except Exception as error:
                log.info("workers_not_asked", error=f"{type(error).__name__}: {error}")
                answering = None
        found: dict[str, bool] = {}
        for queue, backlog in empty.items():
            ours = _listing(present, queue)
            if backlog.consumers is not None:
                found[queue] = 0 < len(ours) == backlog.consumers
            elif not ours:
                found[queue] = False
            elif answering is not None:
                found[queue] = _listing(answering, queue) <= ours
        return found

    async def _present(self) -> dict[str, set[str]]:
        """The queues of each worker of ours that lives, by node name."""
        keys = [key async for key in self._redis.scan_iter(match=f"{PRESENCE_PREFIX}*", count=1000)]
        if not keys:
            return {}
        found: dict[str, set[str]] = {}
        for key, value in zip(keys, await self._redis.mget(keys), strict=True):
            try:
                said = orjson.loads(value) if value is not None else None
            except orjson.JSONDecodeError:
                said = None
            listed = said.get("queues") if isinstance(said, dict) else None
            if isinstance(listed, list):
                name = key.decode("utf-8", "replace").removeprefix(PRESENCE_PREFIX)
                found[name] = {queue for queue in listed if isinstance(queue, str)}
        return found


def _listing(queues_by_node: dict[str, set[str]], queue: str) -> set[str]:
    return {node for node, queues in queues_by_node.items() if queue in queues}


def _answering(broker_url: str) -> dict[str, set[str]]:
    """The queues of every worker on this broker that answers in time; blocks for that time."""
    with Celery(broker=broker_url, set_as_current=False, fixups=[]) as app, app.connection_for_write() as connection:
        replies = app.control.inspect(timeout=_INSPECT_S, connection=connection).active_queues() or {}
    return {node: {queue["name"] for queue in queues} for node, queues in replies.items()}
