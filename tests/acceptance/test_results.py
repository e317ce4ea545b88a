"""Results of every size and kind, and a log that is watched, from a real worker of ours to the caller."""

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.plane import JOBPLANE, Api, Plane
from tests.processes import wait_until
from tests.workers.result_tasks import ODD

pytestmark = pytest.mark.acceptance

MIB = 1024 * 1024

WRONG = {
    "set": ("ResultNotJson", 'result["rows"][2]: set cannot be JSON'),
    "nan": ("ResultNotJson", 'result["mean"]: nan cannot be JSON'),
    "object": ("ResultNotJson", "result[0]: tests.workers.result_tasks._Thing cannot be JSON"),
    "large": ("ResultTooLarge", f"the result has {2 * MIB + 2} bytes as JSON, and this worker may send {MIB}"),
}


def run(api: Api, task: str, **kwargs: Any) -> str:
    return str(api.post("/runs", {"task": task, "queue": "default", "kwargs": kwargs}, 201)["id"])


def ended(api: Api, run_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = api.get(f"/runs/{run_id}", wait=5, until="end")
        return found if found["end_time"] else None

    return wait_until(look, 40, f"the end of {run_id}") or {}


@pytest.mark.parametrize(
    "pool", ["prefork", pytest.param("threads", marks=pytest.mark.long), pytest.param("solo", marks=pytest.mark.long)]
)
def test_from_the_body_to_the_caller(plane: Plane, tmp_path: Path, pool: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    plane.settings = {"JOBPLANE_LOG_STORE": store.as_uri()}
    api = plane.api()
    plane.scheduler()
    api.await_queue("default")
    plane.worker(
        options=("-P", pool, "-c", "1"),
        JOBPLANE_WORKER_INCLUDE="tests.workers.result_tasks",
        JOBPLANE_WORKER_RESULT_LIMIT_MIB="1",
    )
    wrong = {kind: run(api, "result.odd", kind=kind) for kind in WRONG}
    large, mark = run(api, "result.rows", count=10_000), run(api, "result.odd", kind="mark")
    typed = run(api, "result.odd", kind="typed")
    watched, seen = tmp_path / "watched", tmp_path / "seen"
    talk = run(api, "result.talk", lines=30, after=str(watched), until=str(seen))
    watching = plane.start([*JOBPLANE, "watch", talk, "--url", api.url], name="watch")
    wait_until(lambda: f"result.talk · {talk}" in watching.output(), 30, "somebody watches")
    watched.touch()
    wait_until(lambda: "PROGRESS" in watching.output(), 30, "who watches sees it at work")
    seen.touch()

    for kind, run_id in wrong.items():
        found = ended(api, run_id)
        assert (found["state"], found["attempt"]) == ("FAILURE", 1)
        assert (found["error"]["type"], found["error"]["message"]) == WRONG[kind]
    kept = ended(api, large)["result"]
    assert (kept["jobplane"], kept["path"].startswith(store.as_uri())) == ("result stored", True)
    rows = api.get(f"/runs/{large}/result")
    assert rows == [{"id": number, "name": f"number {number}"} for number in range(10_000)]
    assert ended(api, mark)["state"] == "SUCCESS"
    assert api.get(f"/runs/{mark}/result") == ODD["mark"]
    assert ended(api, typed)["result"] == [{"__type__": "datetime", "__value__": "2026-01-01T00:00:00+00:00"}]
    api.call("GET", f"/runs/{wrong['set']}/result", status=404)

    assert ended(api, talk)["state"] == "SUCCESS"
    assert watching.wait(30) == 0
    said = watching.output().splitlines()
    lines = [line.rpartition("line ")[2] for line in said if "line " in line]
    assert lines == [str(number) for number in range(1, 31)]
    assert said[-1].endswith('s: "said"')
