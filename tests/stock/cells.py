"""One cell of the matrix: a stock worker of some Celery, pool and route, beside a plane of its own."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from tests.acceptance.plane import Api, Plane, witnessed
from tests.processes import Process, wait_until

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

PYTHONS = {"5.7": Path(sys.executable), "5.4": ROOT / ".venv-celery54" / "bin" / "python"}
POOLS = ("prefork", "threads", "solo")
#: Broker and results: how messages reach the worker, and how its words reach us.
ROUTES = ("redis+redis", "amqp+redis", "amqp+rpc")

QUEUE = "stock"
#: A queue that the worker does not consume at first.
LATER = "stock_later"


@dataclass(frozen=True, slots=True)
class Cell:
    celery: str
    pool: str
    route: str

    def __str__(self) -> str:
        return f"{self.celery}-{self.pool}-{self.route}"

    @property
    def broker(self) -> str:
        return self.route.partition("+")[0]

    @property
    def results(self) -> str:
        return self.route.partition("+")[2]


CELLS = [Cell(*cell) for cell in itertools.product(PYTHONS, POOLS, ROUTES)]

#: Every Celery with every pool and with every route.
FEW = [
    Cell("5.4", "prefork", "amqp+rpc"),
    Cell("5.4", "threads", "redis+redis"),
    Cell("5.4", "solo", "amqp+redis"),
    Cell("5.7", "prefork", "redis+redis"),
    Cell("5.7", "threads", "amqp+redis"),
    Cell("5.7", "solo", "amqp+rpc"),
]


@dataclass
class Bench:
    """A plane, a stock worker, and what a test asks of both."""

    cell: Cell
    plane: Plane
    start_process: Callable[..., Process]
    folder: Path
    nodes: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def open(self) -> None:
        self.api: Api = self.plane.api()
        self.plane.scheduler()
        for queue in (QUEUE, LATER):
            self.api.queue(queue)
        self.client = Celery(broker=self.plane.broker_url, set_as_current=False, fixups=[])

    def worker(self, **environment: str) -> Process:
        python = PYTHONS[self.cell.celery]
        assert python.exists(), "make .venv-celery54/installed"
        results = {"redis": self.plane.redis_url, "rpc": "rpc://"}[self.cell.results]
        options = ["-n", f"stock{next(self.nodes)}@h", "-P", self.cell.pool, "-c", "12", "-l", "info"]
        worker = self.start_process(
            [python, "-m", "celery", "-A", "tasks", "worker", *options, "--without-mingle", "--without-gossip"],
            name=f"stock-{self.cell}",
            cwd=HERE / "service",
            env={
                "STOCK_BROKER_URL": self.plane.broker_url,
                "STOCK_RESULT_BACKEND": results,
                "STOCK_QUEUE": QUEUE,
                "STOCK_WITNESS": str(self.witness),
                **environment,
            },
        )
        worker.wait_for_line("ready.", 60)
        return worker

    @property
    def go(self) -> Path:
        """The file for which bodies wait that are to be at work for a while."""
        return self.folder / "go"

    @property
    def witness(self) -> Path:
        return self.folder / "witness"

    def said(self, run: str) -> list[str]:
        """What the bodies of this run wrote, in order."""
        return [line["what"] for line in witnessed(self.witness) if line["run"] == run]

    def post(self, task: str, *args: Any, queue: str = QUEUE, **more: Any) -> str:
        made: dict[str, Any] = self.api.post("/runs", {"task": task, "args": args, "queue": queue, **more}, 201)
        return str(made["id"])

    def run(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/runs/{run}")
        return found

    def reaches(self, run: str, holds: Callable[[dict[str, Any]], bool], what: str, timeout: float = 40) -> Any:
        return wait_until(lambda: (found := self.run(run)) and holds(found) and found, timeout, f"{what}: {run}")

    def ended(self, run: str, timeout: float = 60) -> dict[str, Any]:
        found: dict[str, Any] = self.reaches(run, lambda row: row["end_time"] is not None, "the end", timeout)
        return found

    def states(self, run: str) -> list[str]:
        """The states that the run went through, as its history has them."""
        return [event["state"] for event in self.api.every(f"/runs/{run}/events")]
