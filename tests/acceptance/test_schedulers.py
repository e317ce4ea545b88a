"""Schedulers and API processes that are killed: every scheduled time has its run, and no end is lost."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest
from redis import Redis

from app.embedded import free_port
from tests.acceptance.plane import Plane, sleep_until, witnessed
from tests.acceptance.watching import Watcher
from tests.databases import in_thread
from tests.processes import Process, wait_until

pytestmark = pytest.mark.acceptance

JOBS, TIMES = 200, 20


def rows(plane: Plane, statement: str, *values: Any) -> list[asyncpg.Record]:
    """What the database says, on a connection of its own."""

    async def go() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(plane.database_url.replace("+asyncpg", "", 1))
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    return in_thread(lambda: asyncio.run(go()))


def in_a_tick(plane: Plane) -> set[int]:
    """Process ids of the schedulers that have written runs and not yet committed them."""
    found = rows(
        plane,
        """
        SELECT application_name AS name FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction' AND backend_xid IS NOT NULL
          AND query LIKE 'SELECT min(next_run_time)%'
        """,
    )
    return {int(row["name"].rpartition(":")[2]) for row in found}


def kill_in_a_tick(plane: Plane, schedulers: list[Process]) -> Process:
    """Kill one of these schedulers between its writes and its commit; returns it."""

    def caught() -> Process | None:
        for scheduler in [each for each in schedulers if each.pid in in_a_tick(plane)]:
            scheduler.pause()
            if scheduler.pid in in_a_tick(plane):
                return scheduler
            scheduler.resume()
        return None

    victim = wait_until(caught, 30, "a scheduler is in the middle of a tick")
    victim.kill()
    return victim


def test_three_schedulers_of_which_two_are_killed_make_one_run_of_every_scheduled_time(plane: Plane) -> None:
    api = plane.api()
    # A tick of theirs is at work for so long that a kill can be aimed at it.
    schedulers = [plane.scheduler(JOBPLANE_FAULTS="tick.before_commit=delay:0.2") for _ in range(3)]
    api.await_queue("default")
    first = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=9)
    times = [first + timedelta(seconds=n) for n in range(TIMES)]
    trigger = {
        "type": "interval",
        "every_s": 1,
        "start_time": times[0].isoformat(),
        "end_time": times[-1].isoformat(),
    }
    with httpx.Client(base_url=api.v1, timeout=20) as client:
        # A tick that comes late has the times of two seconds, and fires both.
        each = {"task": "test.add", "queue": "default", "trigger": trigger, "overlap": "allow", "misfire": "all"}
        jobs = [{"name": f"job-{n}", "args": [n, 1], **each} for n in range(JOBS)]
        made = client.post("/jobs/apply", json={"jobs": jobs})
        assert made.status_code == 200, made.text
        assert datetime.now(UTC) < first, "the jobs were made in time"
        start = time.monotonic() + (first - datetime.now(UTC)).total_seconds()
        killed = []
        for after in (5, 11):
            sleep_until(start + after)
            schedulers.remove(kill_in_a_tick(plane, schedulers))
            killed.append(datetime.now(UTC))
            plane.scheduler()
        sleep_until(start + TIMES)
        wait_until(
            lambda: not rows(plane, "SELECT FROM jobs WHERE next_run_time IS NOT NULL"), 60, "all times are dealt with"
        )
        ledgers = [
            client.get(
                f"/jobs/{job['id']}/ledger",
                params={"from": times[0].isoformat(), "to": (times[-1] + timedelta(seconds=1)).isoformat()},
            ).json()
            for job in api.every("/jobs")
        ]
    runs = rows(plane, "SELECT id, job_id, scheduled_time, create_time - scheduled_time AS late FROM runs")
    skips = rows(plane, "SELECT job_id, reason, first_time, last_time, count, exact FROM skips")
    late = sorted(run["late"].total_seconds() for run in runs)
    print(
        f"{len(runs)} runs, {sum(skip['count'] for skip in skips)} skipped; killed {[f'{at:%T.%f}' for at in killed]}"
    )
    print(f"late: median {late[len(late) // 2]:.3f} s, most {late[-1]:.3f} s")
    for at in killed:
        again = [run["late"] for run in runs if run["scheduled_time"] == at.replace(microsecond=0)]
        print(f"{len(again)} of the second {at:%T}, at most {max(again, default=None)} late")

    accounted = Counter(run["job_id"] for run in runs)
    for skip in skips:
        assert skip["exact"], skip
        accounted[skip["job_id"]] += skip["count"]
    assert len(accounted) == JOBS
    assert set(accounted.values()) == {TIMES}
    assert max(Counter((run["job_id"], run["scheduled_time"]) for run in runs).values()) == 1
    assert len(ledgers) == JOBS
    for ledger in ledgers:
        assert (ledger["scheduled"], ledger["runs"] + ledger["skipped"], ledger["exact"]) == (TIMES, TIMES, True)
    assert Counter(run["scheduled_time"] for run in runs) == dict.fromkeys(times, JOBS), skips

    # What the dead had claimed for dispatch is free again after 30 s.
    wait_until(
        lambda: not rows(plane, "SELECT FROM runs WHERE dispatch_time IS NULL"), 60, "every run is with the broker"
    )
    with Redis.from_url(plane.broker_url) as broker:
        sent = [orjson.loads(message)["headers"]["id"] for message in broker.lrange("default", 0, -1)]
    print(f"{len(sent)} messages of {len(set(sent))} dispatches")
    assert set(sent) == {f"{run['id']}.1" for run in runs}


@pytest.mark.parametrize(
    "back", ["before the run ends", pytest.param("after the run has ended", marks=pytest.mark.long)]
)
def test_an_end_is_recorded_and_reaches_a_client_although_scheduler_and_api_were_killed(
    plane: Plane, tmp_path: Path, back: str
) -> None:
    witness = tmp_path / "witness"
    api, next_port = plane.api(), free_port()
    scheduler = plane.scheduler()
    api.await_queue("default")
    plane.worker()
    with Watcher(api.socket, f"ws://127.0.0.1:{next_port}/api/v1", query="interval_ms=50") as watcher:
        wait_until(lambda: watcher.live, 30, "the feed is live")
        work = {"count": 3, "step_s": 0.2, "witness": str(witness), "until": str(tmp_path)}
        run_id = api.post("/runs", {"task": "test.steps", "queue": "default", "kwargs": work}, 201)["id"]
        wait_until(
            lambda: any(value["state"] == "PROGRESS" for value in watcher.seen().get(run_id, [])),
            30,
            "PROGRESS is seen",
        )
        scheduler.kill()
        assert api.process
        api.process.kill()
        killed = time.monotonic()
        before = len(watcher.frames)
        if back == "after the run has ended":
            (tmp_path / run_id).touch()
            wait_until(lambda: witnessed(witness)[-1]["what"] == "end", 30, "the body has ended")
        plane.scheduler()
        api = plane.api(next_port)
        (tmp_path / run_id).touch()
        print(f"back after {time.monotonic() - killed:.1f} s; the body: {witnessed(witness)[-1]['what']}")
        ended = wait_until(
            lambda: (row := api.get(f"/runs/{run_id}", wait=10, until="end"))["end_time"] and row, 60, "the end"
        )
        wait_until(lambda: watcher.seen()[run_id][-1]["state"] == "SUCCESS", 30, "the client knows of the end")
        print(f"known after {time.monotonic() - killed:.1f} s")
        wait_until(lambda: any(frame["type"] == "live" for frame in watcher.frames[before:]), 30, "it is live again")
        seen, frames = watcher.seen()[run_id], watcher.frames[before:]
    assert (ended["state"], ended["result"], ended["attempt"], ended["attempts"]) == ("SUCCESS", {"steps": 3}, 1, [])
    assert seen[-1] == ended
    assert watcher.connections == 2
    assert [frame["recovered"] for frame in frames if frame["type"] == "live"] == [True]
    steps = [value["progress"]["current"] for value in seen if value["state"] == "PROGRESS"]
    assert steps == sorted(steps)
    assert [line["what"] for line in witnessed(witness)].count("begin") == 1
    assert [event["state"] for event in api.every(f"/runs/{run_id}/events")][-1] == "SUCCESS"
