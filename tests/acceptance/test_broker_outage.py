"""RabbitMQ is away for 20 s while jobs fall due."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.following import each_second, soon, times_from
from tests.acceptance.plane import Api, Plane, witnessed
from tests.processes import Process, wait_until
from tests.servers import RabbitMQ

pytestmark = pytest.mark.acceptance

OUTAGE_S = 20
TIMES = 27
JOBS = 3


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[RabbitMQ]:
    """A RabbitMQ that no other test uses; not started yet."""
    server = RabbitMQ(tmp_path / "rabbitmq", vhosts=0)
    yield server
    server.stop()


@pytest.fixture
def plane(database_url: str, redis_url: str, own_broker: RabbitMQ, start_process: Callable[..., Process]) -> Plane:
    return Plane(start_process, database_url, redis_url, own_broker.url())


def at_work(witness: Path) -> int:
    """Bodies that have begun and not ended."""
    counts = Counter(line["what"] for line in witnessed(witness))
    return counts["begin"] - counts["end"]


def waiting(api: Api) -> list[dict[str, Any]]:
    """The runs that the broker does not have yet."""
    return [run for run in api.every("/runs", state="PENDING") if run["dispatch_time"] is None]


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("end", ["kill", pytest.param("stop", marks=pytest.mark.long)])
def test_a_broker_away_for_twenty_seconds_loses_no_run_and_repeats_none(
    plane: Plane, own_broker: RabbitMQ, tmp_path: Path, end: str
) -> None:
    own_broker.start()
    api = plane.api()
    plane.scheduler()
    api.await_queue("default")
    worker = plane.worker("default", options=("-c", "6"))
    worker.wait_for_line("queue_consumed", 20)
    witness = tmp_path / "witness"
    first = soon(4)
    jobs = [
        api.job(
            f"each-second-{n}",
            "test.steps",
            kwargs={"count": 2, "step_s": 0.2, "witness": str(witness)},
            trigger=each_second(first, TIMES),
            overlap="allow",
            misfire="all",
        )["id"]
        for n in range(JOBS)
    ]
    wait_until(lambda: len(witnessed(witness)) > 2 * JOBS and at_work(witness), 30, "bodies are at work")
    in_hand = at_work(witness)
    gone, gone_time = time.monotonic(), datetime.now(UTC)
    getattr(own_broker, end)()
    dead_time = datetime.now(UTC)
    told: dict[str, set[str]] = defaultdict(set)
    while time.monotonic() < gone + OUTAGE_S:
        for run in waiting(api):
            told[run["id"]].add(run["reason"])
        time.sleep(0.2)
    # Whatever fell due before the last few seconds of the outage says by now why it waits.
    before = gone_time + timedelta(seconds=OUTAGE_S - 4)
    wait_until(
        lambda: all(run["reason"] for run in waiting(api) if instant(run["scheduled_time"]) < before),
        30,
        "every run says why it waits",
    )
    for run in waiting(api):
        told[run["id"]].add(run["reason"])
    assert not api.ready()
    back_time = datetime.now(UTC)
    own_broker.start()
    away_s = time.monotonic() - gone

    runs = api.ended(JOBS * TIMES, 60)
    for job in jobs:
        mine = [run for run in runs if run["job_id"] == job]
        assert sorted(run["scheduled_time"] for run in mine) == times_from(first, TIMES)
        ledger = api.get(
            f"/jobs/{job}/ledger",
            **{"from": first.isoformat(), "to": (first + timedelta(seconds=TIMES)).isoformat()},
        )
        assert (ledger["scheduled"], ledger["runs"], ledger["skipped"]) == (TIMES, TIMES, 0)
    assert {(run["state"], run["attempt"], run["reason"]) for run in runs} == {("SUCCESS", 1, None)}
    began = Counter(line["run"] for line in witnessed(witness) if line["what"] == "begin")
    assert began == {run["id"]: 1 for run in runs}, "each run's body ran once"

    held_up = [run for run in runs if gone_time <= instant(run["scheduled_time"]) < before]
    assert len(held_up) >= JOBS * (OUTAGE_S - 6)
    assert all(instant(run["dispatch_time"]) > back_time for run in held_up)
    reasons = set().union(*told.values()) - {None}
    assert len(reasons) == 1, reasons
    since = re.fullmatch(r"broker away since (\S+Z)", reasons.pop())
    assert since
    assert gone_time - timedelta(seconds=1) <= instant(since[1]) <= gone_time + timedelta(seconds=10)
    assert [run["id"] for run in held_up if not told[run["id"]] - {None}] == []
    # What was sent while the broker died it may have kept, and given to the worker before the plane was back.
    unsent = [run for run in held_up if instant(run["scheduled_time"]) >= dead_time]
    in_order = sorted(unsent, key=lambda run: run["id"])
    assert in_order == sorted(in_order, key=lambda run: (run["dispatch_time"], run["id"])), "they went out in order"

    wait_until(api.ready, 40, "the plane is ready again")
    after = api.post("/runs", {"task": "test.add", "args": [1, 2]}, 201)
    wait_until(lambda: api.get(f"/runs/{after['id']}")["result"] == 3, 40, "a run after the outage")
    wait_until(
        lambda: "default\t0" in own_broker.control("list_queues", "name", "messages").splitlines(),
        40,
        "every message is acknowledged, also those that came twice",
    )
    pauses = [float(pause) for pause in re.findall(r"Trying again in ([\d.]+) seconds", worker.output())]
    assert max(pauses) <= 5, "the worker does not sleep for long when the broker is back already"
    last = max(instant(run["end_time"]) for run in runs)
    print(
        f"away {away_s:.1f} s, {in_hand} in hand, {len(held_up)} held up, last end {last - back_time} after the start"
    )
