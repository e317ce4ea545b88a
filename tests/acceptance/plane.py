"""A plane of real processes for acceptance tests: API, schedulers and workers as containers would run them."""

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.embedded import free_port
from tests.processes import Process, wait_until

JOBPLANE = [sys.executable, "-P", "-m", "app.cli"]
HERE = Path(__file__).parent

Starter = Callable[..., Process]


@dataclass
class Plane:
    """Starts parts on given servers. `start` is the fixture `start_process`, which ends them with the test."""

    start: Starter
    database_url: str
    redis_url: str
    broker_url: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "JOBPLANE_DATABASE_URL": self.database_url,
            "JOBPLANE_REDIS_URL": self.redis_url,
            "JOBPLANE_BROKER_URL": self.broker_url,
            "JOBPLANE_WORKER_REDIS_URL": self.redis_url,
            "JOBPLANE_WORKER_BROKER_URL": self.broker_url,
            "JOBPLANE_LOG_FORMAT": "console",
            **self.settings,
            **more,
        }

    def api(self, port: int | None = None, **more: str) -> "Api":
        port = port or free_port()
        process = self.start(
            [*JOBPLANE, "api"], name=f"api-{port}", env=self.environment(JOBPLANE_PORT=str(port), **more)
        )
        api = Api(f"http://127.0.0.1:{port}", process)
        wait_until(api.answers, 90, "the API answers")
        return api

    def scheduler(self, **more: str) -> Process:
        process = self.start([*JOBPLANE, "scheduler"], name="scheduler", env=self.environment(**more))
        process.wait_for_line("scheduler_up", 90)
        return process

    def worker(self, *queues: str, name: str = "w", options: tuple[str, ...] = (), **more: str) -> Process:
        """A worker of ours; with `tests.acceptance.bodies` registered."""
        settings = {"JOBPLANE_WORKER_INCLUDE": "tests.acceptance.bodies", **more}
        process = self.start(
            [*JOBPLANE, "worker", "-Q", ",".join(queues or ("default",)), "-n", f"{name}@%h", "-l", "info", *options],
            name=f"worker-{name}",
            env=self.environment(**settings),
            cwd=HERE.parent.parent,
        )
        process.wait_for_line("ready.", 90)
        return process


@dataclass
class Api:
    """An API process as its callers see it."""

    url: str
    process: Process | None = None

    @property
    def v1(self) -> str:
        return f"{self.url}/api/v1"

    @property
    def socket(self) -> str:
        return f"ws{self.v1.removeprefix('http')}"

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def call(self, method: str, path: str, body: Any = None, status: int | None = None, **params: Any) -> Any:
        answer = httpx.request(method, f"{self.v1}{path}", json=body, params=params, timeout=60)
        if status is not None:
            assert answer.status_code == status, answer.text
        else:
            assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, **params)

    def post(self, path: str, body: Any = None, status: int | None = None) -> Any:
        return self.call("POST", path, body if body is not None else {}, status)

    def every(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """All items of a list, page by page."""
        cursor = None
        while True:
            page = self.get(path, **params, **({"cursor": cursor} if cursor else {}), limit=200)
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def job(self, name: str, task: str, every_s: int = 1, **more: Any) -> dict[str, Any]:
        body = {
            "name": name,
            "task": task,
            "queue": "default",
            "trigger": {"type": "interval", "every_s": every_s},
            **more,
        }
        made: dict[str, Any] = self.post("/jobs", body, 201)
        return made

    def queue(self, name: str, **more: Any) -> None:
        """Make a queue and wait until the scheduler has found or made it on the broker."""
        self.post("/queues", {"name": name, **more}, 201)
        self.await_queue(name)

    def await_queue(self, name: str) -> None:
        wait_until(lambda: self.get(f"/queues/{name}").get("declare_time"), 60, f"the queue {name} is declared")

    def ended(self, count: int, timeout: float, **filters: Any) -> list[dict[str, Any]]:
        """The runs that match, once so many have ended and none is left."""

        def all_ended() -> list[dict[str, Any]]:
            runs = list(self.every("/runs", **filters))
            done = [run for run in runs if run["end_time"]]
            return runs if len(done) == len(runs) >= count else []

        return wait_until(all_ended, timeout, f"{count} runs have ended")


def witnessed(path: Path) -> list[dict[str, Any]]:
    """What the bodies of `tests.acceptance.bodies` wrote of themselves, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begun(witness: Path) -> Counter[str]:
    """How many bodies each run has had so far."""
    return Counter(line["run"] for line in witnessed(witness) if line["what"] == "begin")


def ended(witness: Path) -> set[str]:
    """The runs of which a body came to its end."""
    return {line["run"] for line in witnessed(witness) if line["what"] == "end"}


def post_run(
    api: Api, steps: int, step_s: float, witness: Path, until: Path | None = None, gate: Path | None = None
) -> str:
    """Ask for a run of `bodies.steps`; its id."""
    files = {"witness": str(witness), "until": until and str(until), "gate": gate and str(gate)}
    work = {"count": steps, "step_s": step_s, **files}
    made: dict[str, Any] = api.post("/runs", {"task": "test.steps", "queue": "default", "kwargs": work}, 201)
    return str(made["id"])


def overlaps(witness: list[dict[str, Any]]) -> list[str]:
    """Runs of which two bodies were at work at once. A body that was killed has begun and not ended: what counts then
    is its last beat."""
    spans: dict[str, list[tuple[float, float]]] = {}
    bodies: dict[str, list[dict[str, Any]]] = {}
    for line in witness:
        bodies.setdefault(f"{line['run']} {line['body']}", []).append(line)
    for key, lines in bodies.items():
        spans.setdefault(key.split()[0], []).append((lines[0]["at"], lines[-1]["at"]))
    found = []
    for run, times in spans.items():
        times.sort()
        if any(later[0] < earlier[1] for earlier, later in itertools.pairwise(times)):
            found.append(run)
    return found


def sleep_until(moment: float) -> None:
    """Wait for a moment of `time.monotonic()`: the length of an experiment, not a condition."""
    time.sleep(max(moment - time.monotonic(), 0))
