"""Every process is restarted, one after the other, under fifty runs a second: nobody who watches notices."""

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.embedded import free_port
from tests.acceptance.following import soon
from tests.acceptance.plane import Api, Plane, overlaps, sleep_until, witnessed
from tests.acceptance.watching import Watcher
from tests.processes import Process, wait_until

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

JOBS = 25
POSTS_PER_S = 27
#: Clients at once: one that meets an API which is being restarted must not hold up the others.
CALLERS = 3
#: Every so many a run takes two seconds, so that a worker which is stopped has some in hand.
LONG_EACH = 10


def work(n: int, witness: Path) -> dict[str, Any]:
    steps, step_s = (8, 0.25) if n % LONG_EACH == 0 else (1, 0.0)
    kwargs = {"count": steps, "step_s": step_s, "witness": str(witness)}
    return {"task": "test.steps", "queue": "default", "kwargs": kwargs}


class Caller:
    """Posts runs to whichever API answers, as behind a load balancer: with the same key, until one has taken it."""

    def __init__(self, apis: list[str], witness: Path) -> None:
        self._apis, self._witness = apis, witness
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(n,), daemon=True) for n in range(CALLERS)]
        self.runs: list[str] = []
        self.refused: list[str] = []
        self.retried = 0
        self.error: BaseException | None = None

    def __enter__(self) -> "Caller":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _post(self, mine: int) -> None:
        try:
            with httpx.Client(timeout=10) as client:
                began = time.monotonic()
                for n in itertools.count(mine, CALLERS):
                    if self._stop.wait(max(began + n / POSTS_PER_S - time.monotonic(), 0)):
                        break
                    self.runs.append(self._one(client, n))
        except BaseException as error:
            self.error = error

    def _one(self, client: httpx.Client, n: int) -> str:
        key = str(uuid.uuid4())
        deadline = time.monotonic() + 30
        for turn in range(n, n + 10_000):
            url = f"{self._apis[turn % len(self._apis)]}/api/v1/runs"
            try:
                answer = client.post(url, json=work(n, self._witness), headers={"Idempotency-Key": key})
            except httpx.TransportError:
                pass
            else:
                if answer.status_code == 201:
                    return str(answer.json()["id"])
                if answer.status_code != 503:
                    self.refused.append(answer.text)
            self.retried += 1
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        raise AssertionError(f"no API took a run for 30 s: {self.refused}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_a_rolling_restart_is_not_noticed(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> None:
    plane: Plane = request.getfixturevalue({"valkey": "plane", "rabbitmq": "amqp_plane"}[broker])
    witness = tmp_path / "witness"
    ports = [free_port(), free_port()]
    apis = [plane.api(port) for port in ports]
    schedulers = [plane.scheduler() for _ in ports]
    apis[0].await_queue("default")

    def worker(n: int) -> Process:
        # What a stopped worker has in hand it gives back after half a second. A body may be ended behind its last line,
        # so that what ends it is told by a context: what has returned is never run again.
        settings = {"JOBPLANE_WORKER_SOFT_SHUTDOWN_S": "0.5", "JOBPLANE_WORKER_CONTEXT": "tests.acceptance.bodies:ends"}
        return plane.worker(name=f"w{n}", options=("-c", "10"), **settings)

    workers = [worker(n) for n in range(2)]

    with Watcher(*(api.socket for api in apis), query="interval_ms=100") as watcher:
        wait_until(lambda: watcher.live, 60, "the feed is live")
        with Caller([api.url for api in apis], witness) as caller:
            first = soon(12)
            trigger = {"type": "interval", "every_s": 1, "start_time": first.isoformat()}
            wanted = [
                {"name": f"job-{n}", "trigger": trigger, "overlap": "allow", **work(n, witness)} for n in range(JOBS)
            ]
            apis[0].post("/jobs/apply", {"jobs": wanted}, 200)
            jobs = list(apis[0].every("/jobs"))
            assert len(jobs) == JOBS
            sleep_until(time.monotonic() + (first - datetime.now(UTC)).total_seconds())
            begun, posted = time.monotonic(), len(caller.runs)
            restart_all(workers, worker)
            restart_all(schedulers, lambda _: plane.scheduler())
            restart_all([api.process for api in apis if api.process], lambda n: plane.api(ports[n]).process)
            restarted_s = time.monotonic() - begun
            posts_per_s = (len(caller.runs) - posted) / restarted_s
            for job in jobs:
                apis[0].call("PATCH", f"/jobs/{job['id']}", {"enabled": False})
        assert caller.error is None
        assert caller.refused == []
        fired = check_ledgers(apis[0], jobs, first)
        runs = check_runs(apis[0], len(caller.runs) + fired)
        assert set(caller.runs) <= runs.keys()
        wait_until(lambda: not unknown_ends(watcher, runs), 60, "the client of the feed knows every end")
    lines = witnessed(witness)
    bodies = Counter(line["run"] for line in lines if line["what"] == "begin")
    given_back = [run for run, count in bodies.items() if count > 1]
    print(
        f"restarts {restarted_s:.1f} s under {JOBS + posts_per_s:.0f} runs a second;"
        f" {len(runs)} runs ({fired} fired), {len(given_back)} given back,"
        f" {caller.retried} posts retried, {watcher.connections} connections of the feed"
    )
    assert Counter(line["run"] for line in lines if line["what"] == "end") == dict.fromkeys(runs, 1)
    assert overlaps(lines) == []
    # The client came back by itself, and was never told to begin anew.
    assert watcher.connections >= 2
    live = [frame for frame in watcher.frames if frame["type"] == "live"]
    assert all(frame["recovered"] for frame in live[1:])


def restart_all(processes: list[Process], start: Callable[[int], Process | None]) -> None:
    """Stop each and start it again before the next one goes."""
    for n, process in enumerate(processes):
        assert process.stop(60) in {0, -15}, process.output()[-2000:]
        started = start(n)
        assert started is not None
        processes[n] = started


def check_ledgers(api: Api, jobs: list[dict[str, Any]], first: datetime) -> int:
    """Every scheduled time has its run, or is one of two that a busy machine has made into one; returns the runs."""
    last: dict[str, str] = {}
    for run in api.every("/runs", kind="schedule"):
        last[run["job_id"]] = max(run["scheduled_time"], last.get(run["job_id"], ""))
    runs = 0
    for job in jobs:
        # A busy machine may have made it when its time had come already.
        made = datetime.fromisoformat(job["create_time"]).replace(microsecond=0) + timedelta(seconds=1)
        begin, end = max(first, made), datetime.fromisoformat(last[job["id"]]) + timedelta(seconds=1)
        ledger = api.get(f"/jobs/{job['id']}/ledger", **{"from": begin.isoformat(), "to": end.isoformat()})
        assert ledger["scheduled"] == ledger["runs"] + ledger["skipped"] == (end - begin).total_seconds()
        runs += ledger["runs"]
    return runs


def check_runs(api: Api, count: int) -> dict[str, dict[str, Any]]:
    """Every run has ended well in its first attempt."""
    runs = {run["id"]: run for run in api.ended(count, 120)}
    assert len(runs) == count
    told = Counter((run["state"], run["attempt"], len(run["attempts"])) for run in runs.values())
    assert told == {("SUCCESS", 1, 0): count}
    return runs


def unknown_ends(watcher: Watcher, runs: dict[str, dict[str, Any]]) -> set[str]:
    """The runs of which the client of the feed does not know the end."""
    seen = watcher.seen()
    return {run for run in runs if run not in seen or seen[run][-1]["state"] != "SUCCESS"}
