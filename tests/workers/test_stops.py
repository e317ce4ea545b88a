"""A stop that meets a body which has returned, and whose end is not recorded yet."""

import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.processes import wait_until
from tests.proxy import TcpProxy
from tests.workers.conftest import PlaneOn, StartWorker
from tests.workers.plane import lines
from workers.protocol import DONE, lease_key

MODULE = "tests.workers.runtime_tasks"


@pytest.mark.parametrize(
    ("pool", "task", "word", "end"),
    [
        ("prefork", "plain", "waits", "SUCCESS"),
        pytest.param("prefork", "coroutine", "waits", "SUCCESS", marks=pytest.mark.long),
        pytest.param("prefork", "plain", "waits after failure", "FAILURE", marks=pytest.mark.long),
        pytest.param("prefork", "plain", "waits after retry", "RETRY", marks=pytest.mark.long),
        ("prefork", "coroutine", "waits after retry", "RETRY"),
        ("threads", "plain", "waits", "SUCCESS"),
        pytest.param("threads", "coroutine", "waits", "SUCCESS", marks=pytest.mark.long),
        pytest.param("threads", "plain", "waits after failure", "FAILURE", marks=pytest.mark.long),
        pytest.param("threads", "plain", "waits after retry", "RETRY", marks=pytest.mark.long),
        pytest.param("solo", "plain", "waits", "SUCCESS", marks=pytest.mark.long),
        pytest.param("solo", "coroutine", "waits", "SUCCESS", marks=pytest.mark.long),
    ],
)
def test_what_has_ended_is_not_run_again(
    amqp_url: str,
    redis_url: str,
    tmp_path: Path,
    start_worker: StartWorker,
    plane_on: PlaneOn,
    pool: str,
    task: str,
    word: str,
    end: str,
) -> None:
    """The context is still being left when the worker hands back what has not ended."""
    plane = plane_on(amqp_url, redis_url)
    plane.declare("work")
    settings = {"include": f"{MODULE},tests.workers.patient", "context": f"{MODULE}:context"}
    first = start_worker(
        amqp_url, redis_url, "-c", "1", name="first", pool=pool, settings={**settings, "soft_shutdown_s": "0.5"}
    )
    path = tmp_path / "witness"
    kind = "sync" if task == "plain" else "async"
    task_id = plane.send(f"runtime.{task}", str(path), word, kind, queue="work")
    wait_until(lambda: lines(path, "left"), 30, "the body has ended")
    first.send_signal(signal.SIGTERM)
    first.wait_for_line("handing_back" if pool == "prefork" else "stopping")
    time.sleep(1)  # for the child to be told: without this pause the test would show less, and never fail
    (tmp_path / "witness.go").touch()
    assert first.wait(60) == 0
    plane.wait_for(task_id, end)
    assert plane.lease(task_id) == DONE

    start_worker(amqp_url, redis_url, "-c", "1", name="second", settings=settings)
    after = plane.send("runtime.plain", str(tmp_path / "after"), queue="work")
    plane.wait_for(after, "SUCCESS")
    if end == "RETRY":
        plane.wait_for(task_id, "SUCCESS")
    assert plane.states(task_id).count("STARTED") == len(lines(path, "entered")) == (2 if end == "RETRY" else 1)
    assert plane.states(task_id).count(end) == 1


@pytest.mark.parametrize(
    ("pool", "task"),
    [
        pytest.param("prefork", "plain", marks=pytest.mark.long),
        pytest.param("prefork", "coroutine", marks=pytest.mark.long),
        ("threads", "plain"),
        pytest.param("threads", "coroutine", marks=pytest.mark.long),
        pytest.param("solo", "plain", marks=pytest.mark.long),
    ],
)
def test_what_cannot_be_left_is_handed_back(
    amqp_url: str,
    redis_url: str,
    tmp_path: Path,
    start_worker: StartWorker,
    plane_on: PlaneOn,
    pool: str,
    task: str,
) -> None:
    """A context that takes for ever stops no stop."""
    plane = plane_on(amqp_url, redis_url)
    plane.declare("work")
    settings = {"include": MODULE, "context": f"{MODULE}:context", "soft_shutdown_s": "0.5"}
    first = start_worker(amqp_url, redis_url, "-c", "1", name="first", pool=pool, settings=settings)
    path = tmp_path / "witness"
    kind = "sync" if task == "plain" else "async"
    task_id = plane.send(f"runtime.{task}", str(path), "waits", kind, queue="work")
    wait_until(lambda: lines(path, "left"), 30, "the body has ended")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert plane.lease(task_id) is None
    assert plane.states(task_id) == ["STARTED"]

    (tmp_path / "witness.go").touch()
    start_worker(amqp_url, redis_url, "-c", "1", name="second", settings=settings)
    assert plane.wait_for(task_id, "SUCCESS")["worker"] == "second@test"
    assert len(lines(path, "entered")) == 2


def test_what_cannot_be_recorded_is_handed_back(
    amqp_url: str, redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    """Redis is away when a body ends, and when its worker is stopped."""
    plane = plane_on(amqp_url, redis_url)
    plane.declare("work")
    parts = urlsplit(redis_url)
    with TcpProxy("127.0.0.1", parts.port or 0) as proxy:
        far = redis_url.replace(f":{parts.port}", f":{proxy.port}")
        first = start_worker(amqp_url, far, "-c", "1", name="first", settings={"soft_shutdown_s": "0.5"})
        path, go = tmp_path / "witness", tmp_path / "go"
        task_id = plane.send("sample.steps", str(path), 1, 0, None, str(go), queue="work")
        plane.wait_for(task_id, "PROGRESS")
        proxy.cut()
        go.touch()
        wait_until(lambda: lines(path, "end"), 30, "the body has ended")
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
        plane.redis.delete(lease_key(task_id.run_id, 1, 0))  # as if its time were over, which is half a minute
        start_worker(amqp_url, redis_url, "-c", "1", name="second")
        assert plane.wait_for(task_id, "SUCCESS")["worker"] == "second@test"
    assert len(lines(path, "end")) == 2
