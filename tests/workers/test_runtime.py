"""Context, coroutines and progress in real workers, in every pool."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.embedded import Valkey
from tests.processes import Process, wait_until
from tests.workers.conftest import shared_redis_url, worker_process
from tests.workers.plane import Plane, lines
from workers.protocol import CANCELLED, DONE, TaskId

POOLS = ("prefork", "threads", "solo")
SETTINGS = {"include": "tests.workers.runtime_tasks", "context": "tests.workers.runtime_tasks:context"}


class Worker:
    """A worker of one pool and the plane that feeds it."""

    def __init__(self, process: Process, plane: Plane, pool: str) -> None:
        self.process = process
        self.plane = plane
        self.pool = pool

    def send(self, task: str, path: Path, *args: Any, **options: Any) -> TaskId:
        return self.plane.send(f"runtime.{task}", str(path), *args, queue="work", **options)

    def result(self, task_id: TaskId) -> Any:
        return self.plane.wait_for(task_id, "SUCCESS")["result"]

    def failure(self, task_id: TaskId) -> tuple[str, str]:
        said = self.plane.wait_for(task_id, "FAILURE")["result"]
        return said["exc_type"], str(said["exc_message"][0]) if said["exc_message"] else ""


@pytest.fixture(scope="module", params=[*POOLS[:2], pytest.param(POOLS[2], marks=pytest.mark.long)])
def worker(
    request: pytest.FixtureRequest, valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    pool = request.param
    url = shared_redis_url(valkey_server)
    path = tmp_path_factory.mktemp(pool) / "worker.log"
    count = "100" if pool == "threads" else "4"
    with (
        worker_process(path, url, url, "-c", count, pool=pool, name=pool, settings=SETTINGS) as process,
        Plane(url, url) as plane,
    ):
        yield Worker(process, plane, pool)
        print(f"--- {pool}\n{process.output()[-8000:]}")


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("task", ["plain", "coroutine"])
def test_context_is_around_every_call(worker: Worker, tmp_path: Path, task: str, kind: str) -> None:
    path = tmp_path / "witness"
    task_id = worker.send(task, path, "", kind)
    assert worker.result(task_id) == [f"session of {task_id}", str(task_id)]
    assert lines(path) == [f"entered runtime.{task}", "left None"]

    failed = worker.send(task, tmp_path / "failed", "body fails", kind)
    assert worker.failure(failed) == ("ValueError", "broken")
    assert lines(tmp_path / "failed")[1:] == ["left ValueError"]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("task", ["plain", "coroutine"])
def test_context_that_fails_is_a_failure_that_says_so(worker: Worker, tmp_path: Path, task: str, kind: str) -> None:
    name = "context tests.workers.runtime_tasks:context"
    for word, message in (
        ("enter fails", f"{name}: could not be entered: LookupError: no database"),
        ("exit fails", f"{name}: could not be left: LookupError: no commit"),
    ):
        task_id = worker.send(task, tmp_path / word, word, kind)
        assert worker.failure(task_id) == ("ContextError", message)
    assert worker.plane.reports(task_id)[-1]["status"] == "FAILURE"


def test_cancel_goes_through_the_context(worker: Worker, tmp_path: Path) -> None:
    kinds = [("wait", "async"), ("wait", "sync"), ("sleep", "async"), ("sleep", "sync")]
    if worker.pool == "solo":
        kinds = kinds[:1]  # one at a time, and each waits for a heartbeat
    sent = {}
    for task, kind in kinds:
        path = tmp_path / f"{task} {kind}"
        sent[task, kind] = worker.send(task, path, 60 if task == "sleep" else "cleans", kind, *[60] * (task == "wait"))
    for task, kind in kinds:
        path = tmp_path / f"{task} {kind}"
        wait_until(lambda path=path: "start" in lines(path), 30, f"{path} has started")
        worker.plane.set_lease(sent[task, kind], CANCELLED)
    for (task, kind), task_id in sent.items():
        path = tmp_path / f"{task} {kind}"
        wait_until(lambda path=path: lines(path, "left"), 30, f"the context of {path} was left")
        # A coroutine sees what asyncio's own cancelling looks like; a context around its thread sees ours.
        left = "left CancelledError" if (task, kind) == ("wait", "async") else "left Cancelled"
        assert lines(path)[-1] == left
        worker.process.wait_for_line(f"{task_id}] ignored")
        assert set(worker.plane.states(task_id)) == {"STARTED"}
        assert worker.plane.lease(task_id) == CANCELLED
        if task == "wait":
            assert lines(path)[2:4] == ["stopped CancelledError", "cleaned"]


def test_coroutine_says_all_that_a_body_can_say(worker: Worker, tmp_path: Path) -> None:
    task_id = worker.send("steps", tmp_path / "witness")
    result = worker.result(task_id)
    assert result["ids"] == [result["id"]] * 3 == [str(task_id)] * 3
    assert result["thread"] == "jobplane-loop"
    states = worker.plane.states(task_id)
    assert states[0] == "STARTED"
    assert states.count("MERGING") == 1
    assert states[-2:] == ["PROGRESS", "SUCCESS"]
    reports = [report for report in worker.plane.reports(task_id) if report["status"] in {"PROGRESS", "MERGING"}]
    told = [report["result"].get("current", report["result"].get("n")) for report in reports]
    assert told == sorted(told)
    assert reports[0]["result"] == {"current": 1, "total": 20, "message": "step 1"}
    assert reports[-1]["result"] == {"current": 20, "total": 20, "message": "step 20"}
    wait_until(lambda: worker.plane.lease(task_id) == DONE, 30, "the lease is done")


def test_many_coroutines_at_a_time(worker: Worker, tmp_path: Path) -> None:
    if worker.pool != "threads":
        pytest.skip("the others run one at a time in each process")
    path = tmp_path / "witness"
    go = tmp_path / "go"
    sent = [worker.send("together", path, str(go)) for _ in range(60)]
    wait_until(lambda: len(lines(path, "start")) == 60, 30, "all run at once")
    assert not any("SUCCESS" in worker.plane.states(task_id) for task_id in sent)
    go.touch()
    assert {worker.result(task_id) for task_id in sent} == {"went"}


def test_soft_time_limit(worker: Worker, tmp_path: Path) -> None:
    plain = worker.send("sleep", tmp_path / "plain", 60, "sync", soft_time_limit=2)
    ended = worker.send("wait", tmp_path / "ended", "cleans", None, 60, soft_time_limit=2)
    caught = worker.send("wait", tmp_path / "caught", "returns", None, 60, soft_time_limit=2)
    assert worker.failure(plain)[0] == worker.failure(ended)[0] == "SoftTimeLimitExceeded"
    assert lines(tmp_path / "plain")[-1] == "left SoftTimeLimitExceeded"
    assert lines(tmp_path / "ended") == ["start", "stopped CancelledError", "cleaned"]
    assert worker.result(caught) == "what there was"


def test_coroutine_retries_itself(worker: Worker, tmp_path: Path) -> None:
    path, go = tmp_path / "witness", tmp_path / "go"
    task_id = worker.send("retry", path, str(go))
    by_celery = worker.send("autoretry", path, str(go))
    # Celery publishes a retry before it stores RETRY, and would keep a SUCCESS that came in between.
    for each in (task_id, by_celery):
        worker.plane.wait_for(each, "RETRY")
    go.touch()
    assert worker.result(task_id) == worker.result(by_celery) == 1
    assert lines(path) == ["start 0", "start 1"]
    for each in (task_id, by_celery):
        assert sorted(worker.plane.states(each)) == ["RETRY", "STARTED", "STARTED", "SUCCESS"]


@pytest.mark.parametrize(("word", "error"), [("cancels itself", "CoroutineCancelled"), ("body fails", "ValueError")])
def test_coroutine_that_fails(worker: Worker, tmp_path: Path, word: str, error: str) -> None:
    failed = worker.send("coroutine", tmp_path / "witness", word)
    assert worker.failure(failed)[0] == error
    assert worker.result(worker.send("steps", tmp_path / "witness", 2))["thread"] == "jobplane-loop"


def test_news_that_are_not_json_are_the_bodys_to_hear(worker: Worker, tmp_path: Path) -> None:
    assert worker.failure(worker.send("bad_news", tmp_path / "witness"))[0] == "EncodeError"


def test_first_and_last_of_many_are_sent(worker: Worker, tmp_path: Path) -> None:
    task_id = worker.send("million", tmp_path / "witness", 20_000)
    spent = worker.result(task_id)
    told = [each["result"] for each in worker.plane.reports(task_id) if each["status"] == "PROGRESS"]
    assert told[0] == {"current": 0, "total": 20_000}
    assert told[-1] == {"current": 20_000, "total": 20_000}
    assert len(told) <= 3 + spent["spent_s"] / 0.1


def test_steps_and_tracks_are_one_bar(worker: Worker, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task_id = worker.send("upload", tmp_path / "witness", str(go))

    def told() -> list[dict[str, Any]]:
        return [each["result"] for each in worker.plane.reports(task_id) if each["status"] == "PROGRESS"]

    half = {"current": 12.5, "total": 100, "message": "read · file · a"}
    wait_until(lambda: half in told(), 30, "the first file is half read")
    go.touch()
    worker.result(task_id)
    said = told()
    assert said[0] == {"current": 0, "total": 100, "message": "read"}
    assert said[-1] == {"current": 100, "total": 100, "message": "write"}
    assert [each["current"] for each in said] == sorted(each["current"] for each in said)


@pytest.mark.long
def test_coroutine_that_does_not_end_is_left(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "witness"
    task_id = worker.send("wait", path, "stays")
    wait_until(lambda: "start" in lines(path), 30, "the body has started")
    worker.plane.set_lease(task_id, CANCELLED)
    worker.process.wait_for_line(f"{task_id}] ignored", timeout=40)
    worker.process.wait_for_line("coroutine_left")
    assert worker.result(worker.send("steps", tmp_path / "next", 2))["thread"] == "jobplane-loop"


@pytest.mark.long
def test_million_calls_cost_little(worker: Worker, tmp_path: Path) -> None:
    spent = worker.result(worker.send("million", tmp_path / "witness", 1_000_000))
    assert spent["progress_s"] < 3
    assert spent["track_s"] < 3
