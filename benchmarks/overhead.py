"""Two thousand calls of a task that does nothing: what does our base class add to a call, over Celery's?

The same broker, the same Redis for results, one solo worker for each, in turns, so that a slow moment of the machine
hits both. Ours takes a lease, reports STARTED with it, and ends the lease; the stock worker reports STARTED as well,
for a plane that follows it. Then one task calls `progress` a million times.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import uuid_utils
from celery import Celery
from redis import Redis

from workers.protocol import HEADER, TaskId, header

CALLS = 2_000
ROUNDS = 3
TOLD = 1_000_000
#: Longest that one round may take.
LONGEST_S = 120.0

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Measured:
    who: str
    #: Of one call, the median of the rounds.
    ms: float


@dataclass(frozen=True)
class Told:
    """A million calls in one body."""

    progress_s: float
    track_s: float


def overhead(url: str) -> tuple[Measured, Measured, Told]:
    """Ours, the peer, and the million calls; `url` is a Redis that is broker and result backend."""
    ours, stock = [], []
    with worker(url, "benchmarks.overhead_ours", "ours"), worker(url, "benchmarks.overhead_stock", "stock"):
        for queue in ("ours", "stock"):
            _round(url, queue, 200)
        for _ in range(ROUNDS):
            ours.append(_round(url, "ours", CALLS))
            stock.append(_round(url, "stock", CALLS))
        with Celery("bench", broker=url, backend=url, set_as_current=False) as app:
            told = Told(*app.send_task("bench.million", (TOLD,), queue="ours").get(timeout=LONGEST_S))
    return (
        Measured("jobplane's task", statistics.median(ours)),
        Measured("Celery's task", statistics.median(stock)),
        told,
    )


def _round(url: str, queue: str, calls: int) -> float:
    """Milliseconds of a call, from when the worker may begin until the last has ended."""
    app = Celery("bench", broker=url, set_as_current=False)
    last = f"bench:{uuid4()}"
    with Redis.from_url(url, socket_timeout=None) as redis, app, app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        app.send_task("bench.hold", (last,), queue=queue, producer=producer)
        for _ in range(calls):
            task_id = TaskId(UUID(str(uuid_utils.uuid7())), 1)
            app.send_task(
                "bench.nothing",
                queue=queue,
                task_id=str(task_id),
                headers={HEADER: header(task_id.run_id, 1)},
                producer=producer,
            )
        app.send_task("bench.mark", (last,), queue=queue, producer=producer)
        begin = time.perf_counter()
        redis.rpush(f"{last}:go", "go")
        if redis.blpop([f"{last}:end"], timeout=LONGEST_S) is None:
            raise RuntimeError(f"the worker of {queue} has not ended {calls} calls in {LONGEST_S} s")
        return (time.perf_counter() - begin) * 1000 / calls


@contextmanager
def worker(url: str, module: str, queue: str) -> Iterator[None]:
    """A solo worker of one queue, with the app of that module."""
    command = [sys.executable, "-m", "celery", "-A", module, "worker", "-P", "solo", "-Q", queue, "-l", "WARNING"]
    command += ["-n", f"{queue}@bench", "--without-gossip", "--without-mingle"]
    environment = {"JOBPLANE_WORKER_BROKER_URL": url, "JOBPLANE_WORKER_REDIS_URL": url, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
