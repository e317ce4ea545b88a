"""What the tests of the dispatch stage share: a plane around one broker, and looking into that broker."""

from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aio_pika
import orjson
from redis.asyncio import Redis

from app.database import Database, clock, new_id
from app.dispatch.broker import Broker, Route, connect
from app.dispatch.message import Message, message_of
from app.dispatch.outbox import Outbox
from app.dispatch.redis import list_of
from app.dispatch.topology import Topology
from app.progress import transition
from app.settings import Settings

RETRY = {"max_attempts": 1, "max_lost": 2, "backoff_s": 10, "backoff_factor": 2, "max_backoff_s": 600}
#: How long a stage waits for its broker: all the time that a busy machine may need. What is to be seen of a broker that
#: does not answer is seen with less.
PATIENT_S = 30.0


def route(name: str, **changes: Any) -> Route:
    return Route(
        **{
            "name": name,
            "exchange": name,
            "exchange_type": "direct",
            "routing_key": name,
            "type": "classic",
            "max_priority": None,
            "adopted": None,
            **changes,
        }
    )


def message(queue: str, **changes: Any) -> Message:
    """A message of a run that no database knows."""
    return message_of(
        {
            "id": new_id(),
            "dispatches": 0,
            "attempt": 1,
            "retries": 0,
            "task": "svc.add",
            "args": [1],
            "kwargs": {},
            "queue": queue,
            "exchange": queue,
            "routing_key": queue,
            "priority": None,
            "time_limit_s": None,
            "soft_time_limit_s": None,
            "start_deadline_time": None,
            "scheduled_time": None,
            **changes,
        }
    )


@asynccontextmanager
async def amqp_channel(url: str):
    connection = await aio_pika.connect(url, timeout=PATIENT_S)
    try:
        yield await connection.channel(publisher_confirms=False)
    finally:
        await connection.close()


async def taken(url: str, queue: str) -> list[str]:
    """Takes everything out of a queue; the task ids in the order in which a worker would get them."""
    found: list[str] = []
    if url.startswith("redis"):
        async with Redis.from_url(url) as client:
            while (raw := await client.rpop(list_of(queue, None))) is not None:
                found.append(orjson.loads(raw)["headers"]["id"])
        return found
    async with amqp_channel(url) as channel:
        source = await channel.get_queue(queue, ensure=False)
        while (got := await source.get(fail=False, timeout=PATIENT_S)) is not None:
            await got.ack()
            found.append(str(got.headers["id"]))
    return found


@dataclass
class Rig:
    """A database, and one dispatch stage on the broker that `url` names."""

    settings: Settings
    database: Database
    redis: Redis
    #: Where the broker really is; the stage may reach it through a proxy.
    url: str
    timeout_s: float = PATIENT_S
    brokers: list[Broker] = field(default_factory=list)

    def broker(self) -> Broker:
        made = connect(self.settings.broker_url.get_secret_value(), self.timeout_s)
        self.brokers.append(made)
        return made

    def outbox(self, name: str = "test", broker: Any = None) -> Outbox:
        return Outbox(self.settings, self.database, self.redis, broker or self.broker(), name)

    def topology(self) -> Topology:
        return Topology(self.settings, self.database, self.redis, self.broker())

    async def queue(self, name: str, **columns: Any) -> None:
        """Make the row of a queue."""
        values = {"namespace": "default", "exchange": name, "routing_key": name, "author": "test", **columns}
        async with self.database.transaction() as connection:
            await connection.execute(
                f"INSERT INTO queues (name, {', '.join(values)}) "
                f"VALUES ($1, {', '.join(f'${n}' for n in range(2, len(values) + 2))})",
                name,
                *values.values(),
            )

    async def ready_queue(self, name: str, **columns: Any) -> None:
        """Make the row of a queue and the queue."""
        await self.queue(name, **columns)
        await self.topology().run_once()

    async def runs(self, queue: str, count: int = 1, **fields: Any) -> list[UUID]:
        """Create PENDING runs, in order."""
        values: dict[str, Any] = {"task": "svc.add", "args": [1], "kwargs": {"y": 2}, **fields}
        new = [
            transition.NewRun(
                id=new_id(), kind="adhoc", namespace="default", queue=queue, author="test", retry=RETRY, **values
            )
            for _ in range(count)
        ]
        async with self.database.transaction() as connection:
            await transition.create(connection, await clock(connection), new)
        return [run.id for run in new]

    async def rows(self, ids: Sequence[UUID]) -> list[dict[str, Any]]:
        async with self.database.reading() as connection:
            return [
                dict(row) for row in await connection.fetch("SELECT * FROM runs WHERE id = ANY($1) ORDER BY id", ids)
            ]

    async def row(self, run_id: UUID) -> dict[str, Any]:
        return (await self.rows([run_id]))[0]

    async def queue_row(self, name: str) -> dict[str, Any]:
        async with self.database.reading() as connection:
            return dict(await connection.fetchrow("SELECT * FROM queues WHERE name = $1", name))

    async def execute(self, statement: str, *values: Any) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(statement, *values)

    async def close(self) -> None:
        for broker in self.brokers:
            await broker.close()


def at(url: str, port: int) -> str:
    """The same URL at another port of this machine."""
    head, _, tail = url.rpartition("@") if "@" in url else url.partition("//")
    path = tail.partition("/")[2]
    return f"{head}{'@' if '@' in url else '//'}127.0.0.1:{port}/{path}"
