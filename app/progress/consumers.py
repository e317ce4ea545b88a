"""Who consumes a queue, and who has a message of it: what must be known before anything is published again."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.progress.control import Control
from workers.protocol import PRESENCE_PREFIX

log = structlog.get_logger()

#: Where kombu's Redis keeps what workers have taken and not acknowledged, and how many of those are looked through.
_UNACKED: Final = "unacked"
_MOST_UNACKED: Final = 20_000
_TASK_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.[1-9][0-9]{0,8}")


class Backlog(Protocol):
    """What the broker says of a queue: messages that wait in it, and its consumers (None where it cannot know)."""

    @property
    def ready(self) -> int: ...

    @property
    def consumers(self) -> int | None: ...


class Who(Enum):
    """Whom a message that was sent to a queue may have gone to."""

    #: To nobody yet: messages wait, and somebody consumes them.
    WAITS = auto()
    #: To nobody: there is no consumer.
    NOBODY = auto()
    #: To workers of ours alone, whose lease refuses a second delivery.
    OURS = auto()
    #: To strangers too, and each consumer is known by name, so that it can be asked.
    NAMED = auto()
    #: To somebody whom we do not know.
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a queue: `ours` live, `strangers` were seen within the hour or answer, `live` of those now.

    `asked`: whether all workers were asked just now, and those that answered are among the strangers.
    """

    ready: int
    consumers: int | None
    ours: frozenset[str] = frozenset()
    strangers: frozenset[str] = frozenset()
    live: frozenset[str] = frozenset()
    asked: bool = True

    @property
    def nodes(self) -> frozenset[str]:
        return self.ours | self.strangers

    @property
    def who(self) -> Who:
        if self.consumers == 0 or (self.consumers is None and self.asked and not self.ours and not self.live):
            return Who.NOBODY
        if self.ready:
            return Who.WAITS
        if self.consumers is not None:
            if len(self.ours) == self.consumers:
                return Who.OURS
            return Who.NAMED if self.asked and len(self.nodes) == self.consumers else Who.UNKNOWN
        if not self.asked:
            return Who.UNKNOWN
        return Who.NAMED if self.strangers else Who.OURS


@dataclass(frozen=True, slots=True)
class Held:
    """The tasks that workers say they have, by worker, and those that a broker on Redis has lent; None: not known."""

    by_node: Mapping[str, frozenset[str]] = field(default_factory=dict)
    lent: frozenset[str] | None = None

    def lacks(self, nodes: Iterable[str], task_ids: Iterable[str]) -> bool:
        """Whether it is certain that none of these workers, nor the broker for one of them, has any of these tasks."""
        nodes, wanted = set(nodes), set(task_ids)
        if self.lent is None or not nodes or not nodes <= self.by_node.keys():
            return False
        return wanted.isdisjoint(self.lent) and all(wanted.isdisjoint(held) for held in self.by_node.values())


class Consumers:
    """Asks the broker, the presence of our workers in Redis and, where that does not do, all workers."""

    def __init__(self, redis: Redis, broker_url: str, backlog: Callable[[str], Awaitable[Backlog]]) -> None:
        self._redis = redis
        self._broker_url = broker_url
        self._backlog = backlog
        self._control = Control(broker_url)
        self.on_redis = broker_url.startswith("redis")

    async def look(self, queues: Iterable[str], known: Mapping[str, Mapping[str, bool]]) -> dict[str, Found]:
        """What is known of these queues; one that the broker cannot be asked about is left out. Raises RedisError.

        `known` are by queue the stock workers that were seen within the hour, and whether they live.
        """
        backlogs: dict[str, Backlog] = {}
        for queue in queues:
            try:
                backlogs[queue] = await self._backlog(queue)
            except Exception as error:
                log.info("backlog_unknown", queue=queue, error=f"{type(error).__name__}: {error}")
        if not backlogs:
            return {}
        present = await self._present()
        plain = {queue: _found(backlog, _listing(present, queue)) for queue, backlog in backlogs.items()}
        doubtful = [queue for queue, found in plain.items() if found.consumers != 0 and not _is_plain(found)]
        answering = await self._control.consuming() if doubtful else None
        for queue in doubtful:
            rows = known.get(queue, {})
            answers = _listing(answering or {}, queue) - plain[queue].ours
            plain[queue] = Found(
                ready=plain[queue].ready,
                consumers=plain[queue].consumers,
                ours=plain[queue].ours,
                strangers=frozenset(rows) - plain[queue].ours | answers,
                live=frozenset(node for node, live in rows.items() if live) | answers,
                asked=answering is not None,
            )
        return plain

    async def held(self, nodes: Iterable[str]) -> Held:
        """What these workers say that they have, and what the broker has lent."""
        by_node = await self._control.holding(sorted(set(nodes)))
        return Held({node: frozenset(ids) for node, ids in (by_node or {}).items()}, await self._lent())

    async def _lent(self) -> frozenset[str] | None:
        """The tasks whose messages kombu's Redis keeps for workers; on RabbitMQ they are with the workers."""
        if not self.on_redis:
            return frozenset()
        try:
            async with Redis.from_url(self._broker_url, socket_timeout=5, socket_connect_timeout=2) as broker:
                if await broker.hlen(_UNACKED) > _MOST_UNACKED:
                    return None
                found: set[str] = set()
                async for _, value in broker.hscan_iter(_UNACKED, count=200):
                    found.update(match.decode() for match in _TASK_ID.findall(value))
                return frozenset(found)
        except (RedisError, OSError) as error:
            log.info("unacked_unknown", error=f"{type(error).__name__}: {error}")
            return None

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


def _found(backlog: Backlog, ours: frozenset[str]) -> Found:
    return Found(backlog.ready, backlog.consumers, ours)


def _is_plain(found: Found) -> bool:
    """Whether nobody needs to be asked: messages wait, or the broker counts the workers of ours and nobody else."""
    return found.ready > 0 or (found.consumers is not None and found.consumers == len(found.ours))


def _listing(queues_by_node: Mapping[str, set[str]], queue: str) -> frozenset[str]:
    return frozenset(node for node, queues in queues_by_node.items() if queue in queues)
