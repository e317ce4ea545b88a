"""One attempt, one body: leases, reports and their ends, in every pool that Celery offers us."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.embedded import Valkey
from tests.processes import Process, wait_until
from tests.workers.conftest import shared_redis_url, worker_process
from tests.workers.plane import Plane, lines, new_run
from workers.protocol import (
    CANCELLED,
    DONE,
    HELD,
    LEASE_REPORT,
    REAPED,
    RESULT_KEY_PREFIX,
    TaskId,
    lease_key,
    presence_key,
)


class Worker:
    """A worker of one pool and the plane that feeds it."""

    def __init__(self, process: Process, plane: Plane, pool: str) -> None:
        self.process = process
        self.plane = plane
        self.pool = pool


POOLS = ("prefork", "threads", "solo")


@pytest.fixture(scope="module", params=POOLS)
def worker(
    request: pytest.FixtureRequest, valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    pool = request.param
    url = shared_redis_url(valkey_server)
    path = tmp_path_factory.mktemp(pool) / "worker.log"
    with worker_process(path, url, url, "-c", "3", pool=pool, name=pool) as process, Plane(url, url) as plane:
        yield Worker(process, plane, pool)
        print(f"--- {pool}\n{process.output()[-8000:]}")


def test_run_is_reported_from_start_to_end(worker: Worker, tmp_path: Path) -> None:
    plane, path = worker.plane, tmp_path / "witness"
    task_id = plane.send("sample.steps", str(path), 6, 0.12, "MERGING", queue="work")
    ended = plane.wait_for(task_id, "SUCCESS")
    wait_until(lambda: plane.lease(task_id) == DONE, 30, "the lease is done")

    states = plane.states(task_id)
    assert states[0] == "STARTED"
    assert states.count("STARTED") == states.count("MERGING") == states.count("SUCCESS") == 1
    assert states[-1] == "SUCCESS"
    started = plane.reports(task_id)[0]
    lease = started["result"][LEASE_REPORT]
    assert lease["lease_s"] == 30
    assert started["worker"] == f"{worker.pool}@test"
    assert started["name"] == "sample.steps"
    assert started["retries"] == 0
    told = [report["result"] for report in plane.reports(task_id) if report["status"] == "PROGRESS"]
    assert [each["current"] for each in told] == sorted({each["current"] for each in told})
    assert told[-1] == {"current": 6, "total": 6, "message": "step 6"}
    assert ended["result"] == 6
    assert ended["args"] == [str(path), 6, 0.12, "MERGING"]
    assert lines(path, "start")[0].split()[1] == lease["token"]
    assert len(lines(path, "end")) == 1


def test_failure_is_reported_and_ends_the_lease(worker: Worker) -> None:
    task_id = worker.plane.send("sample.fail", "broken", queue="work")
    failed = worker.plane.wait_for(task_id, "FAILURE")
    assert failed["result"]["exc_type"] == "ValueError"
    assert failed["result"]["exc_message"] == ["broken"]
    wait_until(lambda: worker.plane.lease(task_id) == DONE, 30, "the lease is done")


@pytest.mark.parametrize("time", [None, datetime(2026, 3, 1, 23, tzinfo=UTC)])
def test_a_body_knows_the_time_that_it_is_for_also_in_its_own_retry(worker: Worker, time: datetime | None) -> None:
    task_id = worker.plane.send("sample.when", queue="work", scheduled_time=time)
    assert worker.plane.wait_for(task_id, "SUCCESS")["result"] == repr(time)


def test_second_delivery_stores_nothing(worker: Worker, tmp_path: Path) -> None:
    plane, path = worker.plane, tmp_path / "witness"
    task_id = plane.send("sample.steps", str(path), 6, 0.2, queue="work")
    plane.wait_for(task_id, "STARTED")
    again = plane.send("sample.steps", str(path), 6, 0.2, queue="work", run_id=task_id.run_id)
    other = plane.send("sample.steps", str(path), 6, 0.2, queue="work", run_id=task_id.run_id, dispatch=2)
    assert again == task_id
    plane.wait_for(task_id, "SUCCESS")
    after = plane.send("sample.steps", str(path), 6, 0.2, queue="work", run_id=task_id.run_id, dispatch=3)
    worker.process.wait_for_line(f"{after}] ignored")

    assert plane.states(task_id).count("STARTED") == plane.states(task_id).count("SUCCESS") == 1
    assert plane.states(other) == plane.states(after) == []
    assert plane.stored(other) is None
    assert len(lines(path, "start")) == len(lines(path, "end")) == 1
    wait_until(lambda: plane.lease(task_id) == DONE, 30, "the lease is done")


@pytest.mark.parametrize("value", [f"{HELD}somebody", DONE, REAPED, CANCELLED])
def test_attempt_that_is_not_ours_is_refused(worker: Worker, tmp_path: Path, value: str) -> None:
    plane, run_id = worker.plane, new_run()
    plane.redis.set(lease_key(run_id, 1, 0), value, px=60_000)
    task_id = plane.send("sample.steps", str(tmp_path / "witness"), queue="work", run_id=run_id)
    worker.process.wait_for_line(f"{task_id}] ignored")
    assert plane.stored(task_id) is None
    assert plane.lease(task_id) == value
    assert not lines(tmp_path / "witness")


def test_attempt_that_has_ended_is_refused_without_its_lease(worker: Worker, tmp_path: Path) -> None:
    plane, path = worker.plane, tmp_path / "witness"
    task_id = plane.send("sample.steps", str(path), 1, 0, queue="work")
    plane.wait_for(task_id, "SUCCESS")
    wait_until(lambda: plane.lease(task_id) == DONE, 30, "the lease is done")
    plane.redis.delete(lease_key(task_id.run_id, 1, 0))
    plane.send("sample.steps", str(path), 1, 0, queue="work", run_id=task_id.run_id)
    worker.process.wait_for_line(f"{task_id}] ignored")
    assert len(lines(path, "start")) == 1


def test_next_attempt_has_a_lease_of_its_own(worker: Worker, tmp_path: Path) -> None:
    plane, path = worker.plane, tmp_path / "witness"
    first = plane.send("sample.fail", "once", queue="work")
    plane.wait_for(first, "FAILURE")
    second = plane.send("sample.steps", str(path), queue="work", run_id=first.run_id, attempt=2, dispatch=2)
    plane.wait_for(second, "SUCCESS")
    wait_until(lambda: plane.lease(second, attempt=2) == DONE, 30, "the second lease is done")


def test_retry_inside_an_attempt_has_a_lease_of_its_own(worker: Worker, tmp_path: Path) -> None:
    plane, path = worker.plane, tmp_path / "witness"
    go = tmp_path / "go"
    task_id = plane.send("sample.retry", str(path), str(go), queue="work")
    # Celery publishes the retry before it stores RETRY, and would keep a SUCCESS that came in between.
    plane.wait_for(task_id, "RETRY")
    wait_until(lambda: plane.lease(task_id) == DONE, 30, "the first lease is done")
    go.touch()
    assert plane.wait_for(task_id, "SUCCESS")["result"] == 1
    wait_until(lambda: plane.lease(task_id, retries=1) == DONE, 30, "the second lease is done")
    assert [line.split()[1] for line in lines(path)] == ["0", "1"]
    assert sorted(plane.states(task_id)) == ["RETRY", "STARTED", "STARTED", "SUCCESS"]


def test_cancel_stops_bodies(worker: Worker, tmp_path: Path) -> None:
    """One that reports, one that never does and swallows every Exception, one in a blocking call."""
    plane = worker.plane
    bodies = {"steps": ("sample.steps", 600, 0.1), "spin": ("sample.spin", 60.0), "sleep": ("sample.sleep", 60.0)}
    if worker.pool == "threads":
        del bodies["sleep"]  # no signal reaches a thread
    elif worker.pool == "solo":
        del bodies["spin"]  # one at a time, and the test has no time
    sent = {}
    for name, (task, *args) in bodies.items():
        sent[name] = plane.send(task, str(tmp_path / name), *args, queue="work")
        if worker.pool == "solo":
            _cancel(plane, sent[name], tmp_path / name)
    for name, task_id in sent.items():
        if worker.pool != "solo":
            _cancel(plane, task_id, tmp_path / name)
    for name, task_id in sent.items():
        wait_until(lambda name=name: lines(tmp_path / name, "stopped Cancelled"), 30, f"{name} is stopped")
        worker.process.wait_for_line(f"{task_id}] ignored")
        assert not lines(tmp_path / name, "end")
        assert set(plane.states(task_id)) <= {"STARTED", "PROGRESS"}
        assert plane.lease(task_id) == CANCELLED


def _cancel(plane: Plane, task_id: object, path: Path) -> None:
    wait_until(lambda: lines(path, "start"), 30, "the body has started")
    plane.set_lease(task_id, CANCELLED)  # type: ignore[arg-type]


def test_progress_is_throttled_and_the_newest_goes_out(worker: Worker) -> None:
    task_id = worker.plane.send("sample.many", 5000, queue="work")
    result = worker.plane.wait_for(task_id, "SUCCESS")["result"]
    told = [each["result"]["current"] for each in worker.plane.reports(task_id) if each["status"] == "PROGRESS"]
    assert told[0] == 1
    assert told[-1] == 5000
    assert len(told) <= 3 + result["spent_s"] / 0.1
    assert result["cpu_s"] < 2


def test_digest_of_a_real_folder(worker: Worker, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for n in range(60):
        (root / f"{n}.bin").write_bytes(bytes([n]) * 1024**2)
    task_id = worker.plane.send("files.digest", str(root), queue="work")
    result = worker.plane.wait_for(task_id, "SUCCESS")["result"]
    shell = f"(cd {root} && find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 -r sha256sum --) | sha256sum"
    printed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert result == {"files": 60, "bytes": 60 * 1024**2, "sha256": printed.split()[0]}
    told = [each["result"] for each in worker.plane.reports(task_id) if each["status"] == "PROGRESS"]
    assert told[0] == {"current": 0, "total": 60 * 1024**2}
    assert told[-1] == {"current": 60 * 1024**2, "total": 60 * 1024**2}


def test_wrong_argument_is_a_failure_that_names_it(worker: Worker) -> None:
    refused = worker.plane.send("http.request", "GET", "http://169.254.169.254/latest/meta-data/", queue="work")
    failed = worker.plane.wait_for(refused, "FAILURE")
    assert failed["result"]["exc_type"] == "ValueError"
    assert "url: 169.254.169.254" in failed["result"]["exc_message"][0]
    missing = worker.plane.send("files.digest", str(Path("/no/such/folder")), queue="work")
    assert "path: no such folder" in worker.plane.wait_for(missing, "FAILURE")["result"]["exc_message"][0]


def test_stock_message_runs_as_in_a_stock_worker(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "witness"
    worker.plane.celery.send_task(
        "sample.steps", (str(path), 3, 0.12, "MERGING"), task_id="theirs-" + worker.pool, queue="work"
    )
    worker.plane.wait_for("theirs-" + worker.pool, "SUCCESS")
    states = worker.plane.states("theirs-" + worker.pool)
    assert states[0] == "STARTED"
    assert "MERGING" in states
    assert "PROGRESS" in states
    assert lines(path, "start")[0].split()[1] == "None"


def test_worker_says_that_it_lives(worker: Worker) -> None:
    key = presence_key(f"{worker.pool}@test")

    def consuming() -> dict[str, Any] | None:
        # The first words of a worker come before it consumes anything.
        value = worker.plane.redis.get(key)
        said: dict[str, Any] = json.loads(value) if value else {}
        return said if said.get("queues") else None

    said = wait_until(consuming, 30, "presence, with what is consumed") or {}
    assert said["nodename"] == f"{worker.pool}@test"
    assert said["queues"] == ["work"]
    assert {"files.digest", "http.request", "sample.steps"} <= set(said["tasks"])
    assert not any(name.startswith("celery.") for name in said["tasks"])
    assert said["pool"] == {"threads": "thread"}.get(worker.pool, worker.pool)
    assert said["concurrency"] == (1 if worker.pool == "solo" else 3)
    assert said["pid"] == worker.process.pid
    assert 0 < worker.plane.redis.pttl(key) <= 15_000


def test_of_messages_that_expired_only_one_that_nobody_began_is_given_up(worker: Worker, tmp_path: Path) -> None:
    """The start deadline of a run: its lease knows more of it than the header does."""
    plane, path = worker.plane, tmp_path / "witness"
    past = datetime(2026, 1, 1, tzinfo=UTC)
    late = plane.send("sample.steps", str(path), 1, queue="work", expires=past)
    assert plane.wait_for(late, "REVOKED")["result"]["exc_message"] == ["expired"]
    assert plane.states(late) == ["REVOKED"]
    assert plane.lease(late) is None

    at_work, handed_back, again = (new_run() for _ in range(3))
    held = TaskId(at_work, 1)
    plane.set_lease(held, f"{HELD}:another")
    plane.send("sample.steps", str(path), 1, queue="work", run_id=at_work, expires=past)
    # Its worker was stopped after it had begun: the lease is free, and STARTED was said.
    plane.redis.set(f"{RESULT_KEY_PREFIX}{handed_back}.1", json.dumps({"status": "STARTED", "result": None}))
    back = plane.send("sample.steps", str(path), 1, queue="work", run_id=handed_back, expires=past)
    retried = plane.send("sample.steps", str(path), 1, queue="work", run_id=again, expires=past, retries=1)
    for task_id in (back, retried):
        plane.wait_for(task_id, "SUCCESS")
    assert plane.states(held) == []
    assert plane.lease(held) == f"{HELD}:another"
