"""Fixtures of the worker tests: real Celery worker processes."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.embedded import Valkey
from tests.conftest import SHARED_DATABASES
from tests.processes import Process
from tests.workers.plane import Plane

ROOT = Path(__file__).parents[2]

StartWorker = Callable[..., Process]
PlaneOn = Callable[[str, str], Plane]

_shared_databases = itertools.cycle(SHARED_DATABASES)


def shared_redis_url(valkey_server: Valkey) -> str:
    """An empty database for a worker that many tests share, which `redis_url` gives to none of them meanwhile."""
    url = f"{valkey_server.url.rpartition('/')[0]}/{next(_shared_databases)}"
    with Redis.from_url(url) as client:
        client.flushdb()
    return url


def worker_process(
    output_path: Path,
    broker_url: str,
    redis_url: str,
    *options: str,
    queues: str | None = "work",
    pool: str = "prefork",
    name: str = "w",
    ready: bool = True,
    settings: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """A worker as `jobplane worker` starts it."""
    env = {
        **(env or {}),
        "JOBPLANE_WORKER_BROKER_URL": broker_url,
        "JOBPLANE_WORKER_REDIS_URL": redis_url,
        "JOBPLANE_WORKER_INCLUDE": "tests.workers.sample_tasks",
        **{f"JOBPLANE_WORKER_{key.upper()}": value for key, value in (settings or {}).items()},
    }
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-P", pool]
    command += ["-Q", queues] if queues else []
    command += ["-n", f"{name}@test", "-l", "INFO", "--without-gossip", "--without-mingle", *options]
    process = Process(command, output_path, env=env, cwd=ROOT)
    if ready:
        try:
            process.wait_for_line(" ready.", timeout=40)
        except AssertionError:
            process.kill()
            raise
    return process


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start workers that end with the test: `start_worker(broker_url, redis_url, queues="a")`."""
    started: list[Process] = []

    def start(broker_url: str, redis_url: str, *options: str, **named: Any) -> Process:
        path = tmp_path / f"{len(started)}-worker.log"
        started.append(worker_process(path, broker_url, redis_url, *options, **named))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        print(f"--- {process.output_path.name}\n{process.output()[-6000:]}")


@pytest.fixture
def plane_on() -> Iterator[PlaneOn]:
    """Make planes that end with the test: `plane_on(broker_url, redis_url)`."""
    made: list[Plane] = []

    def make(broker_url: str, redis_url: str) -> Plane:
        made.append(Plane(broker_url, redis_url))
        return made[-1]

    yield make
    for plane in made:
        plane.__exit__()
