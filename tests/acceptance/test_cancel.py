"""A cancel lasts: through an outage of Redis or of the broker, and until the body has stopped."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.embedded import Valkey
from tests.acceptance.plane import Api, Plane, begun, ended, post_run, witnessed
from tests.dispatch.parts import at
from tests.processes import Process, wait_until
from tests.proxy import TcpProxy

pytestmark = pytest.mark.acceptance


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own, to be killed."""
    server = Valkey(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def way_to_the_broker(amqp_url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(amqp_url)
    assert parts.hostname
    assert parts.port
    with TcpProxy(parts.hostname, parts.port) as proxy:
        yield proxy


def beats(witness: Path, run_id: str) -> int:
    return sum(line["run"] == run_id for line in witnessed(witness))


def stops(witness: Path, run_id: str) -> bool:
    """Whether the body says nothing more for a second, in which it would have said ten things."""
    before = beats(witness, run_id)
    try:
        wait_until(lambda: beats(witness, run_id) > before, 1)
    except AssertionError:
        return True
    return False


def in_state(api: Api, run_id: str, state: str, timeout: float = 30) -> dict[str, object]:
    def look() -> dict[str, object] | None:
        run: dict[str, object] = api.get(f"/runs/{run_id}")
        return run if run["state"] == state else None

    return wait_until(look, timeout, f"run {run_id} in {state}") or {}


def test_it_outlasts_an_outage_of_redis(
    valkey: Valkey, amqp_url: str, database_url: str, tmp_path: Path, start_process: Callable[..., Process]
) -> None:
    plane = Plane(start_process, database_url, valkey.url, amqp_url)
    witness = tmp_path / "witness"
    api = plane.api()
    plane.scheduler()
    plane.scheduler()
    api.await_queue("default")
    plane.worker(options=("-c", "2"))
    at_once, later = [post_run(api, 1000, 0.1, witness) for _ in range(2)]
    for run_id in (at_once, later):
        wait_until(lambda run_id=run_id: api.get(f"/runs/{run_id}")["state"] == "PROGRESS", 30, "bodies are at work")
    answer = api.post(f"/runs/{at_once}/cancel", None, 202)
    assert (answer["state"], answer["reason"]) == ("REVOKED", "cancelled by anonymous")
    wait_until(lambda: stops(witness, at_once), 40, "the first body stops")

    assert valkey.pid
    os.kill(valkey.pid, signal.SIGKILL)
    answer = api.post(f"/runs/{later}/cancel", None, 202)
    assert answer["reason"] == "cancel asked by anonymous: waits for Redis"
    assert answer["cancel"]["by"] == "anonymous"
    valkey.start()
    run = in_state(api, later, "REVOKED")
    assert run["reason"] == "cancelled by anonymous"
    wait_until(lambda: stops(witness, later), 40, "the second body stops")
    assert begun(witness) == {at_once: 1, later: 1}
    assert not ended(witness)
    events = [event["state"] for event in api.get(f"/runs/{later}/events")["items"]]
    assert events[-1] == "REVOKED"
    assert events.count("REVOKED") == 1


def test_it_outlasts_an_outage_of_the_broker(
    way_to_the_broker: TcpProxy,
    amqp_url: str,
    redis_url: str,
    database_url: str,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    plane = Plane(start_process, database_url, redis_url, at(amqp_url, way_to_the_broker.port))
    witness = tmp_path / "witness"
    api = plane.api()
    plane.scheduler()
    api.await_queue("default")
    sent = post_run(api, 1, 0.01, witness)
    wait_until(lambda: api.get(f"/runs/{sent}")["dispatch_time"], 40, "one message is out")
    way_to_the_broker.cut()
    waiting = post_run(api, 1, 0.01, witness)
    wait_until(lambda: "broker away" in (api.get(f"/runs/{waiting}")["reason"] or ""), 40, "the other one waits")
    for run_id in (sent, waiting):
        answer = api.post(f"/runs/{run_id}/cancel", None, 202)
        assert (answer["state"], answer["reason"]) == ("REVOKED", "cancelled by anonymous")
        again = api.post(f"/runs/{run_id}/cancel", None, 200)
        assert again == answer
    way_to_the_broker.restore()
    plane.worker()
    last = post_run(api, 1, 0.01, witness)
    in_state(api, last, "SUCCESS")
    assert begun(witness) == {last: 1}, "what was in the queue before it was refused"


@pytest.mark.long
def test_cancels_in_the_midst_of_starts_and_ends_end_each_run_once(plane: Plane, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    api = plane.api()
    plane.scheduler()
    plane.scheduler()
    api.await_queue("default")
    plane.worker(options=("-c", "2"))
    runs = [post_run(api, 2, 0.05, witness) for _ in range(30)]
    wait_until(lambda: begun(witness), 30, "bodies are at work")
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda run_id: cancel(api, run_id), runs * 2))
    assert set(answers) <= {200, 202, 409}
    found = {run["id"]: run for run in api.ended(30, 60)}
    assert {run["state"] for run in found.values()} <= {"SUCCESS", "REVOKED"}
    for run_id, run in found.items():
        events = [event["state"] for event in api.get(f"/runs/{run_id}/events")["items"]]
        assert [state for state in events if state in {"SUCCESS", "REVOKED", "FAILURE"}] == [run["state"]]
        assert run["attempt"] == 1
        assert (run["reason"] == "cancelled by anonymous") is (run["state"] == "REVOKED")
    untouched = found.keys() - begun(witness)
    assert {found[run_id]["state"] for run_id in untouched} <= {"REVOKED"}
    assert max(begun(witness).values()) == 1


def cancel(api: Api, run_id: str) -> int:
    return httpx.post(f"{api.v1}/runs/{run_id}/cancel", timeout=20).status_code
