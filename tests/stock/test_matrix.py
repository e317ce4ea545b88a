"""Stock workers are followed: each Celery, pool and route, with everything that may become of a task."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.plane import Plane
from tests.processes import Process, wait_until
from tests.stock.cells import CELLS, FEW, LATER, Bench, Cell

pytestmark = pytest.mark.acceptance

PARAMETERS = [pytest.param(cell, id=str(cell), marks=() if cell in FEW else (pytest.mark.long,)) for cell in CELLS]


@pytest.fixture(params=PARAMETERS)
def bench(
    request: pytest.FixtureRequest,
    database_url: str,
    redis_url: str,
    start_process: Callable[..., Process],
    tmp_path: Path,
) -> Bench:
    cell: Cell = request.param
    broker_url = redis_url if cell.broker == "redis" else request.getfixturevalue("amqp_url")
    made = Bench(cell, Plane(start_process, database_url, redis_url, broker_url), start_process, tmp_path)
    made.open()
    return made


def test_a_stock_worker_is_followed(bench: Bench) -> None:
    """One story, for a plane and a worker take longer to start than all of this to happen."""
    unknown = bench.post("stock.nobody_knows_this")
    bench.reaches(unknown, lambda row: row["dispatch_time"] is not None, "sent, for no worker is known")
    worker = bench.worker()
    try:
        not_registered(bench, unknown)
        reports(bench)
        cancelled_before_its_start(bench, worker)
        cancelled_while_it_runs(bench)
        if bench.cell.pool == "prefork":
            limits(bench)
            killed_children(bench)
        assert worker.poll() is None
        killed_worker(bench, worker)
        assert bench.run(unknown)["state"] == "PENDING"
    finally:
        bench.go.touch()


def not_registered(bench: Bench, run: str) -> None:
    """A worker that does not know the task gives its message up: that is no attempt, and waits for one that does."""
    row = bench.reaches(run, lambda row: row["reason"] and "stock.nobody_knows_this" in row["reason"], "it is told")
    assert (row["state"], row["attempt"], row["attempts"]) == ("PENDING", 1, []), row


def reports(bench: Bench) -> None:
    """Every word of a task, as it came."""
    sums = bench.post("stock.add", 1, 2)
    at_once, later = (bench.post("stock.retries", 1, countdown) for countdown in (0, 1))
    failing = bench.post("stock.fails")
    go = bench.folder / "words"
    words = bench.post("stock.words", str(go))

    row = bench.reaches(words, lambda run: run["progress"] and run["progress"]["current"] == 3, "PROGRESS is polled")
    assert (row["state"], row["progress"]["percent"], row["progress"]["message"]) == ("PROGRESS", 30.0, "post 3")
    assert row["worker"] == "stock1@h"
    go.touch()
    row = bench.ended(words)
    assert (row["state"], row["result"], row["progress"]["percent"]) == ("SUCCESS", {"posts": 10}, 100)
    assert bench.states(words) == ["PENDING", "STARTED", "DOWNLOADING", "PROGRESS", "SUCCESS"]

    row = bench.ended(sums)
    assert (row["state"], row["result"], row["attempt"], row["attempts"]) == ("SUCCESS", 3, 1, [])
    assert bench.states(sums) == ["PENDING", "STARTED", "SUCCESS"]
    for run in (at_once, later):
        row = bench.ended(run)
        assert (row["state"], row["result"], row["attempt"], row["attempts"]) == ("SUCCESS", 1, 1, [])
    assert bench.states(later) == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
    # Celery sends the retry before it says RETRY: without a countdown the next body may have ended by then.
    assert [state for state in bench.states(at_once) if state != "RETRY"][-1] == "SUCCESS"
    row = bench.ended(failing)
    assert row["state"] == "FAILURE"
    assert (row["error"]["type"], row["error"]["message"]) == ("KeyError", "no such post")
    assert 'raise KeyError("no such post")' in row["error"]["traceback"]
    assert bench.states(failing) == ["PENDING", "STARTED", "FAILURE"]


def cancelled_before_its_start(bench: Bench, worker: Process) -> None:
    """Its message waits in a queue that nobody consumes yet: who takes it later has been told."""
    run = bench.post("stock.waits", str(bench.go), queue=LATER)
    bench.reaches(run, lambda row: row["dispatch_time"] is not None, "it is sent")
    row = bench.api.post(f"/runs/{run}/cancel", {}, 202)
    assert (row["state"], row["reason"]) == ("REVOKED", "cancelled by anonymous")
    wait_until(lambda: run in told(worker), 40, "the worker was told")
    bench.client.control.add_consumer(LATER, destination=["stock1@h"], exchange=LATER, routing_key=LATER)
    wait_until(lambda: f"Discarding revoked task: stock.waits[{run}" in worker.output(), 20, "it is discarded")
    after = bench.post("stock.add", 1, 2, queue=LATER)
    assert bench.ended(after)["state"] == "SUCCESS"
    assert bench.said(run) == []
    assert bench.states(run) == ["PENDING", "REVOKED"]


def told(worker: Process) -> str:
    """What this worker was told not to begin."""
    return "\n".join(line for line in worker.output().splitlines() if "flagged as revoked" in line)


def cancelled_while_it_runs(bench: Bench) -> None:
    """A stock worker ends what it has begun only where it has a process of its own."""
    go = bench.folder / "cancelled"
    run = bench.post("stock.waits", str(go))
    bench.reaches(run, lambda row: row["state"] == "STARTED", "it has begun")
    row = bench.api.post(f"/runs/{run}/cancel", {"terminate": True}, 202)
    assert row["cancel"]["terminate"] is True
    if bench.cell.pool == "prefork":
        row = bench.ended(run)
        assert (row["state"], row["reason"]) == ("REVOKED", "cancelled by anonymous")
        go.touch()
    else:
        said = bench.reaches(run, lambda row: row["reason"], "it is told")["reason"]
        assert "which nobody can terminate" in said or "terminate was sent to stock1@h" in said
        go.touch()
        row = bench.ended(run)
        assert (row["state"], row["result"]) == ("SUCCESS", "waited")


def limits(bench: Bench) -> None:
    """Celery's own limits: only a prefork pool has them."""
    hard = bench.post("stock.waits", str(bench.go), time_limit_s=1)
    soft = bench.post("stock.hears_its_limit", str(bench.go), soft_time_limit_s=1)
    for run, said in ((hard, ["begin"]), (soft, ["begin", "limit"])):
        row = bench.ended(run)
        assert (row["state"], row["error"]["type"]) == ("FAILURE", "TimeLimitExceeded"), row
        assert bench.said(run) == said


def killed_children(bench: Bench) -> None:
    once = bench.post("stock.dies", 1)
    never_again = bench.post("stock.dies", 1, retry={"max_lost": 0})
    row = bench.ended(once)
    assert (row["state"], row["result"], row["attempt"]) == ("SUCCESS", "survived", 2), row
    assert [(kept["attempt"], kept["error"]["type"]) for kept in row["attempts"]] == [(1, "WorkerLost")]
    assert "SIGKILL" in row["attempts"][0]["error"]["message"]
    row = bench.ended(never_again)
    assert (row["state"], row["error"]["type"], row["attempt"]) == ("FAILURE", "WorkerLost", 1), row
    assert bench.said(never_again) == ["begin"]


def killed_worker(bench: Bench, worker: Process) -> None:
    """Its message was not acknowledged, so the broker gives it to another worker: the same attempt runs again."""
    run = bench.post("stock.waits", str(bench.go))
    bench.reaches(run, lambda row: row["state"] == "STARTED", "it has begun")
    worker.kill()
    # Redis gives back what was taken longer ago than the least timeout of any worker on it; a worker looks when it
    # starts, and then not for 100 s: its start must take longer than that.
    heir = bench.worker(STOCK_VISIBILITY_TIMEOUT_S="0.1")
    wait_until(lambda: bench.said(run) == ["begin", "begin"], 40, "the heir has it")
    bench.go.touch()
    row = bench.ended(run)
    assert (row["state"], row["result"], row["attempt"], row["attempts"]) == ("SUCCESS", "waited", 1, []), row
    # By rpc:// Celery 5.4 names the worker in STARTED only, and the second STARTED of an attempt is no news.
    assert row["worker"] == ("stock1@h" if (bench.cell.celery, bench.cell.results) == ("5.4", "rpc") else "stock2@h")
    assert heir.poll() is None
