"""A backfill on real processes: two schedulers, one of them killed, and a worker."""

from datetime import datetime, timedelta

import httpx
import pytest

from tests.acceptance.plane import Plane
from tests.processes import wait_until

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

TIMES = 60


def test_each_time_once_and_quickly_though_a_scheduler_is_killed(plane: Plane) -> None:
    api = plane.api()
    plane.worker()
    doomed, _ = plane.scheduler(JOBPLANE_FAULTS="backfill.before_commit=kill*10"), plane.scheduler()
    api.await_queue("default")
    begin = datetime.fromisoformat("2026-03-01T00:00:00+00:00")
    job = api.job("digest", "test.add", every_s=3600, args=[1, 2], enabled=False)
    window = {"from": begin.isoformat(), "to": (begin + timedelta(hours=TIMES)).isoformat()}
    made = api.post(f"/jobs/{job['id']}/backfill", window, 201)

    def ended() -> bool:
        answer = httpx.get(f"{api.v1}/backfills/{made['id']}", params={"wait": 10, "after_version": 10**6}, timeout=20)
        return answer.json()["state"] == "DONE"

    wait_until(ended, 120, "the backfill is done")
    done = api.get(f"/backfills/{made['id']}")
    assert done["counts"]["succeeded"] == TIMES
    assert doomed.poll() is not None
    runs = list(api.every("/runs", backfill_id=made["id"]))
    times = [datetime.fromisoformat(run["scheduled_time"]) for run in reversed(runs)]
    assert times == [begin + timedelta(hours=n) for n in range(TIMES)]
    # One after the other, and not each of them cost a poll of a second.
    assert [run["end_time"] for run in runs] == sorted((run["end_time"] for run in runs), reverse=True)
    took = datetime.fromisoformat(done["end_time"]) - datetime.fromisoformat(done["create_time"])
    assert took < timedelta(seconds=TIMES), took
