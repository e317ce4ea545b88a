"""What happens to an attempt when its worker or its Redis goes."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.embedded import Valkey
from tests.processes import Process, alive, wait_until
from tests.proxy import TcpProxy
from tests.workers.conftest import PlaneOn, StartWorker, shared_redis_url, worker_process
from tests.workers.plane import Plane, lines
from workers.protocol import DONE, HELD, REAPED, presence_key


@pytest.fixture(scope="module")
def shared(valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Plane]]:
    """One worker for the tests that leave it alive."""
    url = shared_redis_url(valkey_server)
    path = tmp_path_factory.mktemp("shared") / "worker.log"
    with worker_process(path, url, url, "-c", "2") as process, Plane(url, url) as plane:
        yield process, plane
        print(process.output()[-6000:])


def test_redis_killed_during_a_body(tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn) -> None:
    """Broker and results are gone for seconds, also when the body ends: one body, one SUCCESS."""
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        start_worker(valkey.url, valkey.url, "-c", "2")
        plane = plane_on(valkey.url, valkey.url)
        over, within, gone = tmp_path / "over", tmp_path / "within", tmp_path / "gone"
        ends_after = plane.send("sample.steps", str(over), 36, 0.1, None, str(gone), queue="work")
        ends_meanwhile = plane.send("sample.steps", str(within), 12, 0.1, "MERGING", str(gone), queue="work")
        for task_id in (ends_after, ends_meanwhile):
            plane.wait_for(task_id, "PROGRESS")
        wait_until(lambda: plane.redis.info("persistence")["aof_pending_bio_fsync"] == 0, 30, "the file is written")

        assert valkey.pid is not None
        _kill(valkey)
        gone.touch()
        wait_until(lambda: lines(over, "end"), 30, "the body went on without Redis")
        valkey.start()

        for task_id, path in ((ends_after, over), (ends_meanwhile, within)):
            wait_until(
                lambda task_id=task_id: (plane.stored(task_id) or {}).get("status") == "SUCCESS", 40, f"end of {path}"
            )
            wait_until(lambda task_id=task_id: plane.lease(task_id) == DONE, 30, "the lease is done")
            assert len(lines(path, "start")) == len(lines(path, "end")) == 1
        again = plane.send("sample.steps", str(tmp_path / "next"), 1, 0, queue="work")
        wait_until(lambda: (plane.stored(again) or {}).get("status") == "SUCCESS", 40, "the worker serves on")
        assert len(lines(over, "start")) == len(lines(within, "start")) == 1
    finally:
        valkey.stop()


def _kill(valkey: Valkey) -> None:
    pid = valkey.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: valkey.poll() is not None or not alive(pid), 30, "Valkey is dead")


def test_killed_worker_leaves_its_lease(
    redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    worker, plane = start_worker(redis_url, redis_url, "-c", "1"), plane_on(redis_url, redis_url)
    task_id = plane.send("sample.sleep", str(tmp_path / "witness"), 30.0, queue="work")
    started = plane.wait_for(task_id, "STARTED")
    key = presence_key("w@test")
    wait_until(lambda: plane.redis.exists(key), 30, "presence")
    worker.kill()
    token = started["result"]["jobplane_lease"]["token"]
    assert plane.lease(task_id) == f"{HELD}{token}"
    assert 0 < plane.redis.pttl(f"jobplane:lease:{task_id.run_id}:1:0") <= 30_000
    assert 0 < plane.redis.pttl(key) <= 15_000
    wait_until(lambda: not alive(started["result"]["pid"]), 30, "the child died with its parent")


def test_lost_child_is_a_failure(shared: tuple[Process, Plane], tmp_path: Path) -> None:
    _, plane = shared
    task_id = plane.send("sample.sleep", str(tmp_path / "witness"), 30.0, queue="work")
    child = plane.wait_for(task_id, "STARTED")["result"]["pid"]
    os.kill(child, signal.SIGKILL)
    failed = plane.wait_for(task_id, "FAILURE")
    assert failed["result"]["exc_type"] == "WorkerLostError"
    after = plane.send("sample.steps", str(tmp_path / "after"), 1, 0, queue="work")
    plane.wait_for(after, "SUCCESS")


@pytest.mark.parametrize(
    ("pool", "end"),
    [
        ("prefork", "SystemExit"),
        pytest.param("threads", "LeaseLost", marks=pytest.mark.long),
        pytest.param("solo", "LeaseLost", marks=pytest.mark.long),
    ],
)
def test_stopped_worker_hands_back_and_the_next_one_runs(
    amqp_url: str, redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn, pool: str, end: str
) -> None:
    """What is not done in time is taken up by another worker at once, not after the lease."""
    plane = plane_on(amqp_url, redis_url)
    plane.declare("work")
    settings = {"soft_shutdown_s": "0.5"}
    first = start_worker(amqp_url, redis_url, "-c", "1", name="first", pool=pool, settings=settings)
    path, go = tmp_path / "witness", tmp_path / "go"
    task_id = plane.send("sample.steps", str(path), 3, 0.05, None, str(go), queue="work")
    plane.wait_for(task_id, "PROGRESS")
    wait_until(lambda: plane.redis.exists(presence_key("first@test")), 30, "presence")
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    go.touch()
    assert len(lines(path, f"stopped {end}")) == 1
    assert plane.lease(task_id) is None
    assert not plane.redis.exists(presence_key("first@test"))

    start_worker(amqp_url, redis_url, "-c", "1", name="second")
    assert plane.wait_for(task_id, "SUCCESS")["worker"] == "second@test"
    assert len(lines(path, "start")) == 2
    assert len(lines(path, "end")) == 1
    assert plane.states(task_id).count("SUCCESS") == 1


@pytest.mark.parametrize(
    ("task", "args"),
    [
        ("sleep", (30, "sync", "rollback fails")),
        ("sleep", (30, "async", "rollback fails")),
        ("wait", ("rollback fails", "sync")),
        ("sleep", (30, "sync", "keeps all")),
        pytest.param("sleep", (30, "async", "keeps all"), marks=pytest.mark.long),
        pytest.param("wait", ("keeps all", "sync"), marks=pytest.mark.long),
    ],
)
def test_context_that_cannot_be_left_stops_no_handing_back(
    redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn, task: str, args: tuple[object, ...]
) -> None:
    plane = plane_on(redis_url, redis_url)
    module = "tests.workers.runtime_tasks"
    settings = {"soft_shutdown_s": "0.5", "include": module, "context": f"{module}:context"}
    worker = start_worker(redis_url, redis_url, "-c", "1", settings=settings)
    path = tmp_path / "witness"
    task_id = plane.send(f"runtime.{task}", str(path), *args, queue="work")
    wait_until(lambda: lines(path, "start"), 30, "the body has started")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert len(lines(path, "left SystemExit")) == 1
    assert plane.states(task_id) == ["STARTED"]
    assert plane.lease(task_id) is None


def test_broker_lost_during_a_body(
    amqp_url: str, redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    """RabbitMQ delivers again what it thinks is lost; the body that still runs is the only one."""
    plane = plane_on(amqp_url, redis_url)
    plane.declare("work")
    target = urlsplit(amqp_url)
    assert target.port is not None
    with TcpProxy("127.0.0.1", target.port) as proxy:
        url = amqp_url.replace(str(target.port), str(proxy.port))
        worker = start_worker(url, redis_url, "-c", "2")
        path, go = tmp_path / "witness", tmp_path / "go"
        task_id = plane.send("sample.steps", str(path), 3, 0.1, None, str(go), queue="work")
        plane.wait_for(task_id, "PROGRESS")
        proxy.cut()
        proxy.restore()
        worker.wait_for_line(f"{task_id}] ignored", timeout=40)
        go.touch()
        plane.wait_for(task_id, "SUCCESS")
        after = plane.send("sample.steps", str(tmp_path / "after"), 1, 0, queue="work")
        plane.wait_for(after, "SUCCESS")
    assert len(lines(path, "start")) == len(lines(path, "end")) == 1
    assert plane.states(task_id).count("SUCCESS") == plane.states(task_id).count("STARTED") == 1


def test_warm_stop_finishes_what_runs(
    redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    worker, plane = start_worker(redis_url, redis_url, "-c", "1"), plane_on(redis_url, redis_url)
    go = tmp_path / "go"
    task_id = plane.send("sample.steps", str(tmp_path / "witness"), 3, 0.1, None, str(go), queue="work")
    plane.wait_for(task_id, "PROGRESS")
    worker.send_signal(signal.SIGTERM)
    worker.wait_for_line("stopping")
    go.touch()
    assert worker.wait(30) == 0
    plane.wait_for(task_id, "SUCCESS")
    assert plane.states(task_id)[-1] == "SUCCESS"
    assert plane.lease(task_id) == DONE
    assert not plane.redis.exists(presence_key("w@test"))


def test_stop_while_redis_is_gone(tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn) -> None:
    """Broker and results never come back: a stop as `jobplane worker` gets it still ends in time."""
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        settings = {"soft_shutdown_s": "1", "include": "tests.workers.sample_tasks,tests.workers.impatient"}
        worker = start_worker(valkey.url, valkey.url, "-c", "2", settings=settings)
        plane = plane_on(valkey.url, valkey.url)
        plane.wait_for(plane.send("sample.steps", str(tmp_path / "witness"), 300, 0.1, queue="work"), "PROGRESS")
        worker.send_signal(signal.SIGQUIT)
        _kill(valkey)
        worker.wait(30)
    finally:
        valkey.stop()


def test_a_stop_that_hangs_is_ended(
    amqp_url: str, redis_url: str, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    plane_on(amqp_url, redis_url).declare("work")
    settings = {"soft_shutdown_s": "0.5", "include": "tests.workers.hanging_end"}
    worker = start_worker(amqp_url, redis_url, "-c", "1", settings=settings)
    worker.send_signal(signal.SIGQUIT)
    assert worker.wait(30) == os.EX_SOFTWARE
    assert "shutdown_hangs" in worker.output()


def test_paused_worker_is_ended_when_it_wakes(shared: tuple[Process, Plane], tmp_path: Path) -> None:
    """SIGSTOP, reaped meanwhile, SIGCONT: the old body ends within a heartbeat and says nothing more."""
    worker, plane = shared
    path = tmp_path / "witness"
    task_id = plane.send("sample.sleep", str(path), 60.0, queue="work")
    plane.wait_for(task_id, "STARTED")
    worker.pause()
    plane.set_lease(task_id, REAPED)
    worker.resume()
    wait_until(lambda: lines(path, "stopped LeaseLost"), 30, "the old body is stopped")
    worker.wait_for_line(f"{task_id}] ignored")
    assert plane.states(task_id) == ["STARTED"]
    assert plane.lease(task_id) == REAPED


def test_ends_are_stored_in_order_with_what_was_said(shared: tuple[Process, Plane], tmp_path: Path) -> None:
    """No PROGRESS ever covers an end, also not one that was still waiting for its turn."""
    _, plane = shared
    sent = [plane.send("sample.steps", str(tmp_path / f"{n}"), 20, 0.004, queue="work") for n in range(40)]
    for task_id in sent:
        plane.wait_for(task_id, "SUCCESS", 30)
    wait_until(lambda: all(plane.lease(task_id) == DONE for task_id in sent), 30, "all leases are done")
    for task_id in sent:
        assert plane.states(task_id)[-1] == "SUCCESS"
        stored = plane.stored(task_id)
        assert stored is not None
        assert stored["status"] == "SUCCESS"
        assert json.dumps(stored["result"]) == "20"


def test_nothing_is_taken_in_while_redis_is_away(
    amqp_url: str, redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    """What a worker cannot begin is another's; and it consumes again when Redis is back."""
    plane = plane_on(amqp_url, redis_url)
    plane.declare("work")
    parts = urlsplit(redis_url)
    with TcpProxy("127.0.0.1", parts.port or 0) as proxy:
        far = redis_url.replace(f":{parts.port}", f":{proxy.port}")
        cut_off = start_worker(amqp_url, far, "-c", "2", name="far")
        plane.wait_for(plane.send("sample.steps", str(tmp_path / "before"), 1, 0, queue="work"), "SUCCESS")
        proxy.cut()
        hoarded = plane.send("sample.steps", str(tmp_path / "hoarded"), 1, 0, queue="work")
        cut_off.wait_for_line("resting", timeout=30)
        start_worker(amqp_url, redis_url, "-c", "2", name="near")
        meanwhile = [plane.send("sample.steps", str(tmp_path / f"{n}"), 1, 0, queue="work") for n in range(10)]
        for task_id in (*meanwhile, hoarded):
            assert plane.wait_for(task_id, "SUCCESS", 40)["worker"] == "near@test"
        assert len(lines(tmp_path / "hoarded", "start")) == 1
        proxy.restore()
        wait_until(lambda: cut_off.output().count("queue_consumed") == 2, 40, "it consumes again")
