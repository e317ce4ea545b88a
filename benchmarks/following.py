"""How soon does somebody who asked for a run know that it has ended?

A whole plane, as `jobplane up` starts it, and 200 clients on its feed; of a run that does nothing, from the request
until the first of them knows its end and until all do. Beside it the shortest way that Celery has, in the same run: a
message sent to a solo stock worker, and `AsyncResult.get`, which keeps nothing and tells one. The plane is then stopped
and started again, for how long that takes.
"""

import asyncio
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from celery import Celery
from websockets.asyncio.client import ClientConnection, connect

from app.settings import child_environment
from benchmarks.overhead import worker

RUNS = 100
CLIENTS = 200
#: Longest that one run, a start or a stop may take.
LONGEST_S = 60.0

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Waited:
    """Milliseconds from asking to knowing."""

    who: str
    median: float
    worst: float


@dataclass(frozen=True)
class Following:
    first: Waited
    all: Waited
    peer: Waited
    #: Seconds until an empty folder serves, until the plane has ended, and until it serves again.
    start_s: float
    stop_s: float
    again_s: float


def following(url: str, folder: Path) -> Following:
    """`url` is a Redis for the peer; the plane keeps its data in the folder."""
    with worker(url, "benchmarks.overhead_stock", "stock"):
        peer = _results(url)
    try:
        with _plane(folder) as up:
            first, everyone = asyncio.run(_feed(up.url))
        with _plane(folder) as again:
            pass
    finally:
        _forget(folder)
    return Following(first, everyone, peer, up.start_s, up.stop_s, again.start_s)


def _results(url: str) -> Waited:
    took = []
    with Celery("bench", broker=url, backend=url, set_as_current=False) as app:
        app.send_task("bench.nothing", queue="stock").get(timeout=LONGEST_S)
        for _ in range(RUNS):
            begin = time.perf_counter()
            app.send_task("bench.nothing", queue="stock").get(timeout=LONGEST_S)
            took.append(time.perf_counter() - begin)
    return _waited("Celery, AsyncResult.get", took)


async def _feed(url: str) -> tuple[Waited, Waited]:
    first, everyone = [], []
    address = f"{url.replace('http', 'ws', 1)}/api/v1/feed?interval_ms=100"
    async with AsyncExitStack() as stack, httpx.AsyncClient(base_url=url, timeout=LONGEST_S) as http:
        sockets = [
            await stack.enter_async_context(connect(address, compression=None, max_size=None)) for _ in range(CLIENTS)
        ]
        for n in range(-5, RUNS):  # the first five wait for the worker
            begin = time.perf_counter()
            answer = await http.post("/api/v1/runs", json={"task": "bench.nothing", "queue": "default"})
            answer.raise_for_status()
            run_id = answer.json()["id"]
            ends = await asyncio.wait_for(
                asyncio.gather(*(_until_end(socket, run_id) for socket in sockets)), LONGEST_S
            )
            if n >= 0:
                first.append(min(ends) - begin)
                everyone.append(max(ends) - begin)
    return (
        _waited(f"jobplane, the first of {CLIENTS} on the feed", first),
        _waited(f"jobplane, the last of {CLIENTS} on the feed", everyone),
    )


async def _until_end(socket: ClientConnection, run_id: str) -> float:
    while True:
        frame = await socket.recv(decode=False)
        runs = json.loads(frame).get("runs", []) if run_id.encode() in frame else []
        if any(run["id"] == run_id and run["state"] == "SUCCESS" for run in runs):
            return time.perf_counter()


def _waited(who: str, seconds: list[float]) -> Waited:
    return Waited(who, statistics.median(seconds) * 1000, max(seconds) * 1000)


@dataclass
class _Plane:
    url: str
    start_s: float
    stop_s: float = 0.0


@contextmanager
def _plane(folder: Path) -> Iterator[_Plane]:
    command = [sys.executable, "-P", "-m", "app.cli", "up", "--port", "0", "--data-dir", str(folder)]
    environment = child_environment({"JOBPLANE_WORKER_INCLUDE": "benchmarks.overhead_tasks"})
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            plane = _Plane(_address(process), 0.0)
            while httpx.get(f"{plane.url}/readyz").status_code != 200:
                time.sleep(0.05)
            plane.start_s = time.perf_counter() - begin
            yield plane
            begin = time.perf_counter()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LONGEST_S)
            plane.stop_s = time.perf_counter() - begin
        finally:
            process.kill()


def _forget(folder: Path) -> None:
    """Remove what root's PostgreSQL keeps elsewhere for this folder."""
    location = folder / "postgres.location"
    if location.exists():
        data = Path(location.read_text().strip())
        shutil.rmtree(data, ignore_errors=True)
        data.with_name(f"{data.name}.lock").unlink(missing_ok=True)


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        found = re.search(r"API and docs.*(http://\S+:\d+)", line)
        if found:
            return found[1]
    raise RuntimeError(f"the plane did not start: {''.join(said[-5:])}")
