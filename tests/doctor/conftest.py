"""A plane on a Valkey of its own, stock services that are badly set, and `jobplane doctor` as people start it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.embedded import Valkey
from tests.acceptance.plane import JOBPLANE, Plane
from tests.databases import execute
from tests.processes import Process

SERVICE = """
from celery import Celery

app = Celery("svc", broker={broker!r}, backend={backend!r})
app.conf.update(broker_connection_retry_on_startup=True, **{conf!r})


def body():
    pass


for name in {tasks!r}:
    app.task(name=name)(body)
"""


@dataclass
class Rig:
    """What a test plants its faults in."""

    plane: Plane
    folder: Path
    start: Callable[..., Process]
    started: list[str] = field(default_factory=list)
    waited: list[Process] = field(default_factory=list)

    def doctor(self, **settings: str) -> tuple[int, list[dict[str, Any]]]:
        """Its exit status and what it found."""
        done = subprocess.run(
            [*JOBPLANE, "doctor", "--json"],
            env={**os.environ, **self.plane.environment(**settings)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return done.returncode, found

    def sound(self) -> tuple[int, list[dict[str, Any]]]:
        """As `doctor`, once it finds nothing, or what it finds a minute later: parts may just have started."""
        return self._until(lambda status, _: status == 0)

    def finds(self, codes: Collection[tuple[str, str]], **settings: str) -> tuple[int, list[dict[str, Any]]]:
        """As `doctor`, once it finds these by code and subject, likewise: a busy machine may answer too late."""
        return self._until(lambda _, found: set(codes) <= {(one["code"], one["subject"]) for one in found}, **settings)

    def _until(
        self, good: Callable[[int, list[dict[str, Any]]], bool], **settings: str
    ) -> tuple[int, list[dict[str, Any]]]:
        until = time.monotonic() + 60
        while True:
            status, found = self.doctor(**settings)
            if good(status, found) or time.monotonic() > until:
                return status, found

    def stock(
        self, node: str, queue: str, *tasks: str, backend: str | None, pool: str = "solo", **conf: Any
    ) -> Process:
        """A stock worker; a node of that name may be there already."""
        folder = self.folder / f"{len(self.started)}-{node}"
        self.started.append(node)
        folder.mkdir()
        (folder / "svc.py").write_text(
            SERVICE.format(broker=self.plane.broker_url, backend=backend, tasks=list(tasks), conf=conf)
        )
        options = ["-Q", queue, "-P", pool, "-c", "1", "-n", f"{node}@test", "-l", "info"]
        process = self.start(
            [sys.executable, "-m", "celery", "-A", "svc", "worker", *options, "--without-gossip", "--without-mingle"],
            name=node,
            cwd=folder,
            env={"C_FORCE_ROOT": "1"},
        )
        self.waited.append(process)
        return process

    def ready(self) -> None:
        """All stock workers that were started are at work."""
        for process in self.waited:
            process.wait_for_line(" ready.")

    def execute(self, *statements: str) -> None:
        execute(self.plane.database_url, *statements)

    def queue(self, name: str, **columns: Any) -> None:
        values = {"name": name, "namespace": "default", "exchange": "", "routing_key": name, "author": "t", **columns}
        listed = ", ".join("NULL" if value is None else f"'{value}'" for value in values.values())
        self.execute(f"INSERT INTO queues ({', '.join(values)}) VALUES ({listed})")

    def job(self, task: str, queue: str, time_limit_s: float | None = None) -> None:
        limit = "NULL" if time_limit_s is None else time_limit_s
        self.execute(
            "INSERT INTO jobs (id, namespace, name, task, queue, trigger, retry, author, cursor_time, overlap,"
            f" misfire, catchup_window_s, time_limit_s) VALUES (gen_random_uuid(), 'default', '{task}', '{task}',"
            f" '{queue}', '{{}}', '{{}}', 't', date_trunc('second', now()), 'skip', 'latest', 60, {limit})"
        )


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey that a test may set as badly as it likes."""
    server = Valkey(tmp_path_factory.mktemp("valkey") / "own")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def rig(own_valkey: Valkey, database_url: str, tmp_path: Path, start_process: Callable[..., Process]) -> Rig:
    """A plane whose broker is its Redis."""
    return Rig(Plane(start_process, database_url, own_valkey.url, own_valkey.url), tmp_path, start_process)


@pytest.fixture
def amqp_rig(
    redis_url: str, amqp_url: str, database_url: str, tmp_path: Path, start_process: Callable[..., Process]
) -> Rig:
    """A plane on RabbitMQ."""
    return Rig(Plane(start_process, database_url, redis_url, amqp_url), tmp_path, start_process)
