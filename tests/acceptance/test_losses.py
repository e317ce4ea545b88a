"""Valkey and workers that are killed in the middle of runs: every run ends, and no two bodies of one are at work."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.embedded import Valkey
from tests.acceptance.plane import Plane, begun, ended, overlaps, post_run, sleep_until, witnessed
from tests.processes import Process, wait_until

pytestmark = pytest.mark.acceptance


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own, to be killed."""
    server = Valkey(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.mark.long
def test_runs_end_once_although_valkey_was_killed_for_five_seconds(
    valkey: Valkey, database_url: str, tmp_path: Path, start_process: Callable[..., Process]
) -> None:
    plane = Plane(start_process, database_url, valkey.url, valkey.url)
    witness = tmp_path / "witness"
    api = plane.api()
    plane.scheduler()
    api.await_queue("default")
    plane.worker(options=("-c", "4"))
    # Bodies that end while Valkey is away, bodies that outlast that, and runs that wait.
    steps = {post_run(api, count, 0.25, witness): count for count in [16, 36] * 6}
    wait_until(lambda: len(begun(witness)) >= 6, 60, "the second wave has begun")
    assert valkey.pid
    os.kill(valkey.pid, signal.SIGKILL)
    gone = time.monotonic()
    print(f"killed with {len(begun(witness))} begun and {len(ended(witness))} ended bodies")
    assert len(begun(witness)) < 12
    sleep_until(gone + 5)
    print(f"back with {len(begun(witness))} begun and {len(ended(witness))} ended bodies")
    valkey.start()
    found = api.ended(12, 120)
    print(f"all ended {time.monotonic() - gone:.1f} s after the kill")
    assert {run["id"]: run["result"] for run in found} == {run_id: {"steps": count} for run_id, count in steps.items()}
    assert [(run["state"], run["attempt"]) for run in found] == [("SUCCESS", 1)] * 12
    assert begun(witness) == Counter(steps.keys())
    assert ended(witness) == steps.keys()
    wait_until(api.ready, 20, "ready again")


@pytest.mark.parametrize("broker", ["valkey", pytest.param("rabbitmq", marks=pytest.mark.long)])
def test_the_runs_of_a_killed_worker_run_again(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> None:
    plane: Plane = request.getfixturevalue({"valkey": "plane", "rabbitmq": "amqp_plane"}[broker])
    witness = tmp_path / "witness"
    api = plane.api()
    plane.scheduler()
    api.await_queue("default")
    victim = plane.worker(name="victim", options=("-c", "20"))
    at_work = [post_run(api, 5, 0.2, witness, tmp_path) for _ in range(20)]
    wait_until(lambda: len(begun(witness)) == 20, 60, "all have begun")
    waiting = [post_run(api, 2, 0.1, witness) for _ in range(4)]
    assert not ended(witness)
    victim.kill()
    killed, killed_at = time.monotonic(), time.time()
    for run_id in at_work:
        (tmp_path / run_id).touch()
    heir = plane.worker(name="heir", options=("-c", "20"))
    found = {run["id"]: run for run in api.ended(24, 140)}
    print(f"all ended {time.monotonic() - killed:.1f} s after the kill")
    assert found.keys() == {*at_work, *waiting}
    assert Counter(run["state"] for run in found.values()) == {"SUCCESS": 24}
    lines = witnessed(witness)
    assert overlaps(lines) == []
    again = [
        line["at"] - killed_at
        for line in lines
        if line["what"] == "begin" and line["at"] > killed_at and line["run"] in at_work
    ]
    print(f"begun again after {min(again):.1f} to {max(again):.1f} s")
    for run_id in at_work:
        run = found[run_id]
        assert begun(witness)[run_id] == run["attempt"] == 2, run
        assert [attempt["error"]["type"] for attempt in run["attempts"]] == ["WorkerLost"], run
        assert run["worker"].startswith("heir@")
        assert run["result"] == {"steps": 5}
    if broker == "rabbitmq":
        # It delivers what the dead had not acknowledged again at once: to find that their leases still stand.
        assert heir.output().count("delivery_refused") == 20
    for run_id in waiting:
        assert begun(witness)[run_id] == found[run_id]["attempt"] == 1, found[run_id]
