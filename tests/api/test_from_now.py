"""Making, editing, enabling, deploying and resuming mean "from now". The numbers are rows of the peers' pains."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from app.database import Database
from app.due.tick import Tick
from tests.api.conftest import a_job

JOBS = "/api/v1/jobs"
HOURLY = {"type": "interval", "every_s": 3600}


class Rig:
    """The API, and a scheduler's tick on the same database."""

    def __init__(self, client: httpx.AsyncClient, database: Database, redis: Redis) -> None:
        self.client = client
        self.database = database
        self.tick = Tick(database, redis, 100)

    async def make(self, **changes: Any) -> dict[str, Any]:
        answer = await self.client.post(JOBS, json=a_job(**changes))
        assert answer.status_code == 201, answer.text
        job: dict[str, Any] = answer.json()
        return job

    async def call(self, method: str, path: str, body: Any = None, status: int = 200) -> dict[str, Any]:
        answer = await self.client.request(method, f"/api/v1{path}", json=body)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def go_back(self, job: dict[str, Any], hours: int) -> datetime:
        """As if the job had last been looked at so many full hours ago; answers that hour."""
        async with self.database.transaction() as connection:
            then: datetime = await connection.fetchval(
                """
                UPDATE jobs SET cursor_time = date_trunc('hour', now()) - make_interval(hours => $2),
                    pause_time = pause_time - make_interval(hours => $2 + 1)
                WHERE id = $1 RETURNING cursor_time
                """,
                job["id"],
                hours,
            )
            await connection.execute("UPDATE job_versions SET cursor_time = $2 WHERE job_id = $1", job["id"], then)
        return then

    async def runs(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """The runs of the job behind a tick, oldest first."""
        await self.tick.run_once()
        found = (await self.client.get(f"{JOBS}/{job['id']}/runs")).json()["items"]
        return list(reversed(found))

    async def ledger(self, job: dict[str, Any], since: datetime) -> dict[str, Any]:
        asked = {"from": since.strftime("%Y-%m-%dT%H:%M:%SZ")}
        found: dict[str, Any] = (await self.client.get(f"{JOBS}/{job['id']}/ledger", params=asked)).json()
        return found


@pytest.fixture
def rig(within_an_hour: None, client: httpx.AsyncClient, queue: str, database: Database, redis: Redis) -> Rig:
    return Rig(client, database, redis)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def by_patch(rig: Rig, job: dict[str, Any]) -> dict[str, Any]:
    return await rig.call("PATCH", f"/jobs/{job['id']}", {"enabled": True})


async def by_put(rig: Rig, job: dict[str, Any]) -> dict[str, Any]:
    return await rig.call("PUT", f"/jobs/{job['id']}", a_job(trigger=HOURLY))


async def by_name(rig: Rig, job: dict[str, Any]) -> dict[str, Any]:
    return await rig.call("PUT", "/namespaces/default/jobs/digest", a_job(trigger=HOURLY, enabled=True))


async def by_file(rig: Rig, job: dict[str, Any]) -> dict[str, Any]:
    await rig.call("POST", "/jobs/apply", {"jobs": [a_job(trigger=HOURLY, enabled=True)]})
    return await rig.call("GET", f"/jobs/{job['id']}")


async def by_restore(rig: Rig, job: dict[str, Any]) -> dict[str, Any]:
    return await rig.call("POST", f"/jobs/{job['id']}/versions/1/restore")


@pytest.mark.parametrize("enable", [by_patch, by_put, by_name, by_file, by_restore])
async def test_pains_5_and_22_enabling_fires_nothing_of_the_past(
    rig: Rig, enable: Callable[[Rig, dict[str, Any]], Awaitable[dict[str, Any]]]
) -> None:
    job = await rig.make(trigger=HOURLY)
    await rig.call("PATCH", f"/jobs/{job['id']}", {"enabled": False})
    then = await rig.go_back(job, 5)
    enabled = await enable(rig, job)
    assert enabled["enabled"] is True
    assert instant(enabled["next_run_time"]) > datetime.now(UTC)
    assert await rig.runs(job) == []
    assert (await rig.ledger(job, then))["runs"] == 0


async def test_pain_22_resuming_runs_no_last_interval(rig: Rig) -> None:
    job = await rig.make(trigger=HOURLY)
    await rig.call("POST", f"/jobs/{job['id']}/pause", {"reason": "why not"})
    then = await rig.go_back(job, 3)
    resumed = await rig.call("POST", f"/jobs/{job['id']}/resume")
    assert instant(resumed["next_run_time"]) > datetime.now(UTC)
    assert await rig.runs(job) == []
    ledger = await rig.ledger(job, then)
    assert (ledger["runs"], ledger["skipped"]) == (0, 3)


async def test_pain_22_the_past_fires_if_it_is_asked_for(rig: Rig) -> None:
    job = await rig.make(trigger=HOURLY)
    url = f"/jobs/{job['id']}"
    await rig.call("POST", f"{url}/pause", {"reason": "why not"})
    then = await rig.go_back(job, 6)
    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    refused = await rig.call("POST", f"{url}/resume", {"from": future}, 422)
    assert refused["errors"] == [{"pointer": "/from", "detail": "must not be in the future"}]
    resumed = await rig.call("POST", f"{url}/resume", {"from": (then + timedelta(hours=3)).isoformat()})
    assert (resumed["pause"], resumed["version"]) == (None, 1)
    assert instant(resumed["next_run_time"]) == then + timedelta(hours=3), "that very time is one of them"
    runs = await rig.runs(job)
    assert [instant(run["scheduled_time"]) for run in runs] == [then + timedelta(hours=6)], "misfire: latest"
    ledger = await rig.ledger(job, then)
    skips = [(item["reason"], item["count"]) for item in ledger["items"] if item["outcome"] == "skip"]
    assert sorted(skips) == [("coalesced", 3), ("paused", 2)]
    assert (ledger["scheduled"], ledger["runs"]) == (6, 1)
    assert (await rig.call("POST", f"{url}/resume", {"from": then.isoformat()}))["pause"] is None
    assert len(await rig.runs(job)) == 1, "one that is not paused stays as it is"


async def test_what_was_dealt_with_does_not_fire_again_by_resuming_from_before_it(rig: Rig) -> None:
    job = await rig.make(trigger=HOURLY)
    url = f"/jobs/{job['id']}"
    then = await rig.go_back(job, 2)
    await rig.call("POST", f"{url}/pause")
    assert len(await rig.runs(job)) == 1, "the pause settles what was due"
    await rig.call("POST", f"{url}/resume", {"from": (then - timedelta(days=3)).isoformat()})
    assert len(await rig.runs(job)) == 1
    ledger = await rig.ledger(job, then)
    assert (ledger["scheduled"], ledger["runs"], ledger["skipped"]) == (2, 1, 1)


async def test_pain_5_the_first_time_is_the_first_behind_now_and_behind_the_start(rig: Rig) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    early = await rig.make(name="early", trigger={**HOURLY, "start_time": (now - timedelta(days=400)).isoformat()})
    assert now < instant(early["next_run_time"]) <= now + timedelta(hours=1)
    start = now + timedelta(days=2)
    late = await rig.make(name="late", trigger={**HOURLY, "start_time": start.isoformat()})
    assert instant(late["next_run_time"]) == start
    daily = {"type": "cron", "expression": "0 15 * * *", "start_time": start.isoformat()}
    cron = await rig.make(name="cron", trigger=daily)
    assert start <= instant(cron["next_run_time"]) < start + timedelta(days=1)
    assert instant(cron["next_run_time"]).hour == 15
    for job in (early, late, cron):
        assert await rig.runs(job) == []


async def test_pain_4_edits_without_end_neither_push_a_time_away_nor_bring_it_twice(rig: Rig) -> None:
    job = await rig.make(trigger=HOURLY)
    for number in range(5):
        edited = await rig.call("PATCH", f"/jobs/{job['id']}", {"description": str(number)})
        assert edited["next_run_time"] == job["next_run_time"]
    then = await rig.go_back(job, 1)
    for number in range(5, 8):
        await rig.call("PATCH", f"/jobs/{job['id']}", {"description": str(number)})
    assert [instant(run["scheduled_time"]) for run in await rig.runs(job)] == [then + timedelta(hours=1)]


async def test_pain_9_another_zone_counts_from_now_and_replays_nothing(rig: Rig) -> None:
    trigger = {"type": "cron", "expression": "* * * * *", "timezone": "UTC"}
    job = await rig.make(trigger=trigger)
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kathmandu"):
        moved = await rig.call("PATCH", f"/jobs/{job['id']}", {"trigger": {"timezone": zone}})
        assert timedelta() < instant(moved["next_run_time"]) - instant(moved["update_time"]) <= timedelta(minutes=1)
    assert len({run["scheduled_time"] for run in await rig.runs(job)}) <= 1, "at most the minute that passed meanwhile"


async def test_pain_18_a_deploy_at_a_due_time_makes_one_run_for_it(rig: Rig) -> None:
    await rig.call("POST", "/jobs/apply", {"owner": "d", "jobs": [a_job(trigger=HOURLY)]})
    job = (await rig.client.get(JOBS)).json()["items"][0]
    then = await rig.go_back(job, 1)
    for text in ("one", "two", "two"):
        body = {"owner": "d", "jobs": [a_job(trigger=HOURLY, description=text, overlap="allow")]}
        await rig.call("POST", "/jobs/apply", body)
    (run,) = await rig.runs(job)
    assert (instant(run["scheduled_time"]), run["job_version"]) == (then + timedelta(hours=1), 1)
    after = await rig.call("GET", f"/jobs/{job['id']}")
    assert (after["id"], after["version"]) == (job["id"], 3), "the same job, and the third deploy changed nothing"


async def test_pain_21_after_downtime_the_newest_runs_and_the_others_are_told(rig: Rig) -> None:
    job = await rig.make(trigger=HOURLY)
    then = await rig.go_back(job, 5)
    async with rig.database.transaction() as connection:  # nobody looked since
        await connection.execute("UPDATE jobs SET next_run_time = $2 WHERE id = $1", job["id"], then)
    (run,) = await rig.runs(job)
    assert instant(run["scheduled_time"]) == then + timedelta(hours=5)
    (skip,) = [item for item in (await rig.ledger(job, then))["items"] if item["outcome"] == "skip"]
    assert (skip["reason"], skip["count"], skip["run_id"]) == ("coalesced", 4, run["id"])
    told = await rig.call("GET", f"/runs/{run['id']}/why")
    assert told["items"], "why it has not begun"


async def test_a_planned_change_leaves_no_trace(rig: Rig) -> None:
    job = await rig.make(trigger=HOURLY)
    await rig.go_back(job, 1)
    before = await rig.call("GET", f"/jobs/{job['id']}")
    wanted = {"dry_run": True, "jobs": [a_job(trigger=HOURLY, description="x")]}
    plan = await rig.call("POST", "/jobs/apply", wanted)
    assert (plan["jobs"][0]["action"], plan["jobs"][0]["version"]) == ("update", 2)
    assert await rig.call("GET", f"/jobs/{job['id']}") == before
    assert (await rig.client.get(f"{JOBS}/{job['id']}/runs")).json()["items"] == []
