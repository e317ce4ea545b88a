"""A catalogue on either broker, and stock Celery services of another code base."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis.asyncio import Redis

from app.catalogue import ask
from app.catalogue.look import Catalogue
from app.database import Database
from app.dispatch.broker import Broker, connect
from tests.dispatch.parts import PATIENT_S, route
from tests.processes import Process
from tests.workers.conftest import StartWorker, start_worker

__all__ = ["start_worker"]

SERVICE = """
from celery import Celery

app = Celery("svc", broker={broker!r}, backend={backend!r})
app.conf.update(broker_connection_retry_on_startup=True, accept_content=["json", "pickle"])
app.conf.task_serializer = {serializer!r}


def body(path=None, seconds=0):
    if path:
        import pathlib, time
        pathlib.Path(path).write_text("begun")
        time.sleep(seconds)


for name in {tasks!r}:
    app.task(name=name)(body)
"""


@dataclass
class Rig:
    """A database, a Redis and a broker, and catalogues over them."""

    database: Database
    redis: Redis
    broker_url: str
    redis_url: str
    folder: Path
    start: Callable[..., Process]
    start_ours: StartWorker
    closers: list[Callable[[], Awaitable[Any]]] = field(default_factory=list)

    @property
    def on_rabbitmq(self) -> bool:
        return self.broker_url.startswith("amqp")

    def catalogue(self, name: str = "one", broker_url: str | None = None) -> Catalogue:
        url = broker_url or self.broker_url
        broker: Broker = connect(url, PATIENT_S)
        made = Catalogue(self.database, self.redis, url, broker.backlog, name)
        self.closers += [made.close, broker.close]
        return made

    async def queue(self, name: str) -> None:
        """A queue of the plane, made on the broker."""
        await self.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ($1, 'default', $1, $1, 't')",
            name,
        )
        broker = connect(self.broker_url, PATIENT_S)
        await broker.declare(route(name))
        await broker.close()

    def stock(
        self,
        name: str,
        queue: str,
        *tasks: str,
        pool: str = "solo",
        serializer: str = "json",
        node: str | None = None,
    ) -> Process:
        """A stock worker that consumes one queue and registers these tasks; `ready` waits for it."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "svc.py").write_text(
            SERVICE.format(broker=self.broker_url, backend=self.redis_url, tasks=list(tasks), serializer=serializer)
        )
        options = ["-Q", queue, "-P", pool, "-c", "1", "-n", f"{node or name}@test", "-l", "info"]
        return self.start(
            [sys.executable, "-m", "celery", "-A", "svc", "worker", *options, "--without-gossip", "--without-mingle"],
            name=name,
            cwd=folder,
            env={"C_FORCE_ROOT": "1"},
        )

    def send(self, task: str, queue: str, *args: Any) -> None:
        """A message of nobody's run."""
        with Celery(broker=self.broker_url, set_as_current=False, fixups=[]) as client:
            client.send_task(task, args, queue=queue, retry=False)

    def ours(self, node: str, queue: str, **options: Any) -> Process:
        return self.start_ours(
            self.broker_url, self.redis_url, "-c", "1", queues=queue, name=node, ready=False, **options
        )

    @staticmethod
    def ready(*workers: Process) -> None:
        """Wait until all of these, which may start at once, are ready."""
        for worker in workers:
            worker.wait_for_line(" ready.", 60)

    async def worker(self, node: str) -> dict[str, Any] | None:
        async with self.database.reading() as connection:
            row = await connection.fetchrow("SELECT * FROM workers WHERE node = $1", f"{node}@test")
        return dict(row) if row else None

    async def sighting(self, queue: str) -> dict[str, Any]:
        async with self.database.reading() as connection:
            row = await connection.fetchrow("SELECT * FROM queue_sightings WHERE queue = $1", queue)
        return dict(row) if row else {}

    async def execute(self, statement: str, *values: Any) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(statement, *values)


@pytest.fixture(params=[pytest.param("redis", marks=pytest.mark.long), "amqp"])
def either_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def rig(
    database: Database,
    redis: Redis,
    redis_url: str,
    either_url: str,
    tmp_path: Path,
    start_process: Callable[..., Process],
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Rig]:
    # Who answers later than this is heard by another look: these tests look until they have heard.
    monkeypatch.setattr(ask, "SILENCE_S", 0.3)
    made = Rig(database, redis, either_url, redis_url, tmp_path, start_process, start_worker)
    yield made
    for close in made.closers:
        await close()
