"""Jobs over REST: what is stored, when it fires next, and what each write leaves alone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.api.schemas.jobs import JobOut
from app.database import Database
from tests.api.conftest import a_job

JOBS = "/api/v1/jobs"


async def make(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post(JOBS, json=a_job(**changes))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_job_is_made_read_and_deleted(client: httpx.AsyncClient, queue: str) -> None:
    every_five = {"type": "cron", "expression": "*/5 * * * *"}
    definition = a_job(trigger=every_five, labels={"team": "etl"}, args=[1, [2]], kwargs={"a": None})
    answer = await client.post(JOBS, json=definition)
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{JOBS}/{job['id']}"
    assert answer.headers["etag"] == '"1"'
    JobOut.model_validate(job)
    assert (job["version"], job["author"], job["last_run"], job["pause"]) == (1, "anonymous", None, None)
    assert job["trigger"] == {
        "type": "cron",
        "expression": "*/5 * * * *",
        "timezone": "UTC",
        "start_time": None,
        "end_time": None,
        "jitter_s": 0,
    }
    assert job["retry"]["max_lost"] == 2
    assert timedelta() < instant(job["next_run_time"]) - instant(job["create_time"]) <= timedelta(minutes=5)

    read = await client.get(answer.headers["location"])
    assert job["warnings"][0]["code"] == "no_worker"
    assert read.json() == {**job, "warnings": None}, "warnings are told to who writes"
    assert (await client.delete(answer.headers["location"])).status_code == 204
    gone = await client.get(answer.headers["location"])
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/not-found")
    await make(client)  # the name is free again


async def test_a_name_is_taken_once_in_its_namespace(client: httpx.AsyncClient, queue: str) -> None:
    await make(client)
    again = await client.post(JOBS, json=a_job())
    assert (again.status_code, again.json()["type"]) == (409, "/problems/name-taken")
    await client.post("/api/v1/queues", json={"name": "other", "namespace": "team-b"})
    await make(client, namespace="team-b", queue="other")
    other = await make(client, name="other")
    renamed = await client.patch(f"{JOBS}/{other['id']}", json={"name": "digest"})
    assert (renamed.status_code, renamed.json()["type"]) == (409, "/problems/name-taken")


async def test_put_replaces_and_an_equal_definition_changes_nothing(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job = await make(client, description="old", labels={"a": "b"})
    url = f"{JOBS}/{job['id']}"
    same = await client.put(url, json=a_job(description="old", labels={"a": "b"}))
    assert same.json() == job
    changed = await client.put(url, json=a_job(trigger={"type": "interval", "every_s": 60}))
    assert (changed.json()["version"], changed.json()["description"], changed.json()["labels"]) == (2, "", {})
    assert changed.headers["etag"] == '"2"'
    async with database.reading() as connection:
        versions = await connection.fetch("SELECT version, definition FROM job_versions ORDER BY version")
    assert [row["version"] for row in versions] == [1, 2]
    assert versions[0]["definition"]["description"] == "old"
    assert versions[1]["definition"]["trigger"]["every_s"] == 60


async def test_a_policy_of_before_is_shown_whole_and_stays_equal(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job = await make(client)
    assert (job["retry"]["jitter"], job["retry"]["retry_on"]) == ("none", None)
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET retry = retry - 'jitter' - 'retry_on'")
    url = f"{JOBS}/{job['id']}"
    assert (await client.get(url)).json() == {**job, "warnings": None}
    assert (await client.put(url, json=a_job())).json() == job
    assert (await client.patch(url, json={"retry": {"max_attempts": None}})).json() == job
    changed = (await client.patch(url, json={"retry": {"jitter": "full", "retry_on": ["KeyError"]}})).json()
    assert (changed["version"], changed["retry"]["retry_on"], changed["retry"]["max_lost"]) == (2, ["KeyError"], 2)


async def test_a_merge_patch_changes_what_it_names(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client, kwargs={"keep": 1, "drop": 2}, catchup_window_s=60, labels={"team": "etl"})
    patched = await client.patch(
        f"{JOBS}/{job['id']}",
        json={
            "kwargs": {"drop": None, "add": [1, None]},
            "catchup_window_s": None,
            "trigger": {"timezone": "Asia/Shanghai"},
        },
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert patched.status_code == 200, patched.text
    assert patched.json()["kwargs"] == {"keep": 1, "add": [1, None]}
    assert patched.json()["catchup_window_s"] == 86_400
    assert patched.json()["trigger"]["timezone"] == "Asia/Shanghai"
    assert patched.json()["labels"] == {"team": "etl"}
    nothing = await client.patch(f"{JOBS}/{job['id']}", json={})
    assert nothing.json() == patched.json()


async def test_etags(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client)
    url = f"{JOBS}/{job['id']}"
    assert (await client.get(url, headers={"If-None-Match": '"9"'})).status_code == 200
    for request in (
        client.put(url, json=a_job(description="x"), headers={"If-Match": '"2"'}),
        client.patch(url, json={"description": "x"}, headers={"If-Match": '"2"'}),
        client.delete(url, headers={"If-Match": '"2"'}),
    ):
        answer = await request
        assert (answer.status_code, answer.json()["type"]) == (412, "/problems/precondition-failed")
    assert (await client.get(url)).json() == {**job, "warnings": None}
    assert (await client.patch(url, json={"description": "x"}, headers={"If-Match": '"1"'})).json()["version"] == 2


@pytest.mark.usefixtures("within_an_hour")
async def test_pause_takes_a_job_out_and_resume_means_from_now(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job = await make(client, trigger={"type": "interval", "every_s": 3600})
    url = f"{JOBS}/{job['id']}"
    paused = (await client.post(f"{url}/pause", json={"reason": "upstream is down"})).json()
    assert (paused["pause"]["reason"], paused["pause"]["by"]) == ("upstream is down", "anonymous")
    assert (paused["next_run_time"], paused["version"]) == (None, 1)
    assert (await client.post(f"{url}/pause")).json() == paused
    edited = (await client.patch(url, json={"description": "edited while paused"})).json()
    assert (edited["next_run_time"], edited["pause"]) == (None, paused["pause"])

    async with database.transaction() as connection:  # as if the pause had lasted for three hours and a bit
        await connection.execute(
            "UPDATE jobs SET cursor_time = to_timestamp(floor(extract(epoch FROM now()) / 3600) * 3600 - 10800)"
        )
        await connection.execute("UPDATE job_versions SET cursor_time = jobs.cursor_time FROM jobs")
    resumed = (await client.post(f"{url}/resume")).json()
    assert (resumed["pause"], resumed["version"]) == (None, 2)
    assert instant(resumed["next_run_time"]) > datetime.now(UTC)
    assert (await client.post(f"{url}/resume")).json()["next_run_time"] == resumed["next_run_time"]
    since = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ledger = (await client.get(f"{url}/ledger", params={"from": since})).json()
    assert (ledger["scheduled"], ledger["runs"], ledger["skipped"], ledger["exact"]) == (3, 0, 3, True)
    assert [(item["outcome"], item["reason"], item["count"]) for item in ledger["items"]] == [("skip", "paused", 3)]


@pytest.mark.usefixtures("within_an_hour")
async def test_an_edit_settles_what_the_old_definition_owed(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job = await make(client, trigger={"type": "interval", "every_s": 3600})
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE jobs SET cursor_time = date_trunc('hour', now()) - interval '2 h', next_run_time = now()"
        )
        await connection.execute("UPDATE job_versions SET cursor_time = jobs.cursor_time FROM jobs")
    changed = (await client.patch(f"{JOBS}/{job['id']}", json={"trigger": {"every_s": 7200}})).json()
    assert changed["last_run"]["state"] == "PENDING"
    runs = (await client.get(f"{JOBS}/{job['id']}/runs")).json()["items"]
    assert [(run["kind"], run["job_version"]) for run in runs] == [("schedule", 1)]
    ledger = (await client.get(f"{JOBS}/{job['id']}/ledger")).json()
    assert (ledger["scheduled"], ledger["runs"], ledger["skipped"]) == (2, 1, 1)
    page = (await client.get(f"{JOBS}/{job['id']}/ledger", params={"limit": 1})).json()
    assert page["items"] == ledger["items"][:1]
    rest = (await client.get(f"{JOBS}/{job['id']}/ledger", params={"limit": 1, "cursor": page["next_cursor"]})).json()
    assert rest["items"] == ledger["items"][1:]


async def test_disabled_and_finished_jobs_have_no_next_time(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client, enabled=False)
    assert job["next_run_time"] is None
    enabled = (await client.patch(f"{JOBS}/{job['id']}", json={"enabled": True})).json()
    assert enabled["next_run_time"] is not None
    once = await make(client, name="once", trigger={"type": "once", "run_time": "2020-01-01T00:00:00Z"})
    assert once["next_run_time"] is None


async def test_trigger_makes_a_manual_run_also_of_a_disabled_job(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client, enabled=False, args=[1], kwargs={"a": 1}, priority=3, deadline_s=60)
    answer = await client.post(f"{JOBS}/{job['id']}/trigger", json={"kwargs": {"b": 2}})
    run = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/v1/runs/{run['id']}"
    assert (run["kind"], run["args"], run["kwargs"], run["priority"]) == ("manual", [1], {"b": 2}, 3)
    assert (run["job_id"], run["job_version"], run["job_name"]) == (job["id"], 1, "digest")
    assert (run["state"], run["scheduled_time"]) == ("PENDING", None)
    assert instant(run["deadline_time"]) - instant(run["create_time"]) == timedelta(seconds=60)
    assert (await client.post(f"{JOBS}/{job['id']}/trigger")).status_code == 201
    shown = (await client.get(f"{JOBS}/{job['id']}")).json()
    assert shown["last_run"]["state"] == "PENDING"
    unknown = await client.post(f"{JOBS}/{job['id']}/trigger", json={"queue": "nowhere"})
    assert unknown.json()["errors"] == [{"pointer": "/queue", "detail": "there is no queue 'nowhere'"}]


async def test_next_and_preview_agree(client: httpx.AsyncClient, queue: str) -> None:
    trigger = {"type": "cron", "expression": "30 2 * * *", "timezone": "America/New_York"}
    job = await make(client, trigger=trigger)
    times = (await client.get(f"{JOBS}/{job['id']}/next", params={"count": 3})).json()
    preview = (await client.post("/api/v1/triggers/preview", json={"trigger": trigger, "count": 3})).json()
    assert times == preview
    assert len(times["times"]) == 3
    assert instant(times["times"][0]["time"]) == instant(job["next_run_time"])
    gap = await client.post(
        "/api/v1/triggers/preview", json={"trigger": trigger, "count": 1, "after": "2026-03-07T12:00:00Z"}
    )
    assert gap.json()["times"] == [
        {
            "time": "2026-03-08T07:00:00Z",
            "local": "2026-03-08T03:00:00-04:00",
            "note": "02:30 does not exist on 2026-03-08 in America/New_York; fires at 03:00",
        }
    ]


async def test_a_job_goes_to_a_queue_of_its_namespace_or_a_shared_one(client: httpx.AsyncClient, queue: str) -> None:
    await client.post("/api/v1/queues", json={"name": "theirs", "namespace": "team-b"})
    refused = await client.post(JOBS, json=a_job(queue="theirs"))
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/queue"
    assert "team-b" in refused.json()["detail"]
    await client.patch("/api/v1/queues/theirs", json={"shared_with": ["default"]})
    await make(client, queue="theirs")


async def test_filters(client: httpx.AsyncClient, queue: str) -> None:
    await make(client, name="a", labels={"team": "etl", "tier": "1"}, task="x.one")
    await make(client, name="b", labels={"team": "web"}, enabled=False)
    await make(client, name="c")

    async def names(query: str) -> list[str]:
        answer = await client.get(f"{JOBS}?{query}")
        assert answer.status_code == 200, answer.text
        return [job["name"] for job in answer.json()["items"]]

    assert await names("") == ["a", "b", "c"]
    assert await names("label=team:etl&label=tier") == ["a"]
    assert await names("label=team") == ["a", "b"]
    assert await names("enabled=false") == ["b"]
    assert await names("task=x.one") == ["a"]
    assert await names("name=c&queue=default&namespace=default") == ["c"]
    assert await names("namespace=other") == []
