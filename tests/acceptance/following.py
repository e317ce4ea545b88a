"""The plane's first promise, followed twice at once: by a socket and by polling."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.acceptance.plane import Api
from tests.acceptance.watching import Watcher
from tests.processes import wait_until

RFC3339 = "%Y-%m-%dT%H:%M:%SZ"


def times_from(first: datetime, count: int) -> list[str]:
    """So many seconds in a row, as REST writes them."""
    return [(first + timedelta(seconds=n)).strftime(RFC3339) for n in range(count)]


def each_second(first: datetime, count: int) -> dict[str, Any]:
    """A trigger with so many scheduled times, the first of them at `first`."""
    last = first + timedelta(seconds=count - 1)
    return {"type": "interval", "every_s": 1, "start_time": first.isoformat(), "end_time": last.isoformat()}


def soon(seconds: int) -> datetime:
    """A whole second, so far from now."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


#: Of three steps; then a body goes on until both clients have seen it at work. Two children keep up with that.
STEP_S: Final = 0.2


def follow_a_job_each_second(api: Api, times: int, folder: Path) -> list[dict[str, Any]]:
    """Make a job with so many scheduled times, one each second, and follow it to its end; the runs as they ended.

    Asserts that every scheduled time has one run, that each ends with SUCCESS, and that a WebSocket client and one
    that polls both see its PROGRESS in rising order and then its end. Bodies are let go by files in the folder.
    """
    with Watcher(api.socket, query="interval_ms=50") as watcher:
        wait_until(lambda: watcher.live, 30, "the feed is live")
        first = soon(4)
        job = api.post(
            "/jobs",
            {
                "name": "each-second",
                "task": "test.steps",
                "queue": "default",
                "kwargs": {"count": 3, "step_s": STEP_S, "until": str(folder)},
                "trigger": each_second(first, times),
                "overlap": "allow",
                "misfire": "all",
            },
            201,
        )
        polled: dict[str, list[dict[str, Any]]] = {}
        deadline = time.monotonic() + times + 80
        while time.monotonic() < deadline:
            runs = list(api.every("/runs", job_id=job["id"]))
            for run in runs:
                values = polled.setdefault(run["id"], [])
                if not values or run["version"] > values[-1]["version"]:
                    values.append(run)
            shown = watcher.seen()
            for run_id, values in polled.items():
                if _at_work(values) and _at_work(shown.get(run_id, [])):
                    (folder / run_id).touch()
            if len(runs) == times and all(run["end_time"] for run in runs):
                break
            time.sleep(0.05)
        wait_until(
            lambda: sum(values[-1]["state"] == "SUCCESS" for values in watcher.seen().values()) == times,
            30,
            "a terminal frame of every run",
        )
        streamed = watcher.seen()
    assert sorted(values[-1]["scheduled_time"] for values in polled.values()) == times_from(first, times)
    for seen in (polled, streamed):
        assert len(seen) == times
        for values in seen.values():
            assert values[-1]["state"] == "SUCCESS", values[-1]
            assert values[-1]["result"] == {"steps": 3}
            steps = [value["progress"]["current"] for value in values if value["state"] == "PROGRESS"]
            assert steps, "PROGRESS was seen"
            assert steps == sorted(steps)
    ledger = api.get(
        f"/jobs/{job['id']}/ledger",
        **{"from": first.isoformat(), "to": (first + timedelta(seconds=times)).isoformat()},
    )
    assert (ledger["scheduled"], ledger["runs"], ledger["skipped"]) == (times, times, 0)
    return [values[-1] for values in polled.values()]


def _at_work(values: list[dict[str, Any]]) -> bool:
    return any(value["state"] == "PROGRESS" for value in values)
