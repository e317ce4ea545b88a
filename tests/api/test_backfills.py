"""Backfills over REST: what is refused, what a dry run tells, and the life of one."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from app.api.schemas.backfills import EXAMPLE_BACKFILL, BackfillOut, DryRunOut
from app.database import Database
from app.due.backfill import Backfiller
from app.due.tick import Tick
from tests.api.conftest import a_job
from tests.due.test_waiting import end
from tests.processes import PATIENCE_S

JOBS = "/api/v1/jobs"
BACKFILLS = "/api/v1/backfills"
HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = {"Idempotency-Key": "9f1c"}


@pytest.fixture
async def job(client: httpx.AsyncClient, queue: str) -> str:
    """The path of an hourly job."""
    made = await client.post(JOBS, json=a_job(trigger={"type": "interval", "every_s": 3600}))
    assert made.status_code == 201, made.text
    return f"{JOBS}/{made.json()['id']}"


def window(hours: int = 3, **changes: Any) -> dict[str, Any]:
    return {"from": NOON.isoformat(), "to": (NOON + hours * HOUR).isoformat(), **changes}


async def make(client: httpx.AsyncClient, job: str, **changes: Any) -> dict[str, Any]:
    answer = await client.post(f"{job}/backfill", json=window(**changes))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{BACKFILLS}/{made['id']}"
    return made


async def execute(database: Database, statement: str, *values: Any) -> None:
    async with database.transaction() as connection:
        await connection.execute(statement, *values)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"to": None}, "/to", "RFC 3339"),
    ({"from": 1}, "/from", "RFC 3339"),
    ({"from": "2026-03-01T12:00:00"}, "/from", "no zone"),
    ({"to": NOON.isoformat()}, "/to", "after `from`"),
    ({"to": "2998-01-01T00:00:00Z"}, "/to", "must not be in the future"),
    ({"mode": "some"}, "/mode", "'missing', 'failed' or 'all'"),
    ({"overlap": "skip"}, "/overlap", "'allow' or 'buffer_all'"),
    ({"max_active": 0}, "/max_active", "greater"),
    ({"max_active": 101}, "/max_active", "less"),
    ({"max_active": "3"}, "/max_active", "integer"),
    ({"dry_run": "yes"}, "/dry_run", "boolean"),
    ({"reverse": True}, "/reverse", "not known"),
    ({"from": "2026-03-01T12:00:01Z", "to": "2026-03-01T13:00:00Z"}, "/to", "no scheduled time"),
]


async def test_bad_input_is_named_and_leaves_nothing(client: httpx.AsyncClient, job: str) -> None:
    for changes, pointer, sentence in BAD:
        answer = await client.post(f"{job}/backfill", json=window(**changes))
        assert answer.status_code == 422, changes
        (error,) = answer.json()["errors"]
        assert error["pointer"] == pointer, changes
        assert sentence in error["detail"], error
    answer = await client.post(f"{job}/backfill", json={})
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/from", "/to"]
    assert (await client.get(BACKFILLS)).json() == {"items": [], "next_cursor": None}


async def test_too_many_times_are_named(client: httpx.AsyncClient, queue: str) -> None:
    triggers = [
        ({"type": "interval", "every_s": 1}, "2026-01-01T00:00:00Z", "5,097,600 scheduled times lie in it"),
        ({"type": "solar", "event": "sunrise", "latitude": 48, "longitude": 2}, "1990-01-01T00:00:00Z", "only 5,001"),
    ]
    for number, (trigger, begin, sentence) in enumerate(triggers):
        made = (await client.post(JOBS, json=a_job(name=f"n{number}", trigger=trigger))).json()
        for dry_run in (False, True):
            body = {"from": begin, "to": "2026-03-01T00:00:00Z", "dry_run": dry_run}
            answer = await client.post(f"{JOBS}/{made['id']}/backfill", json=body)
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/from")
            assert sentence in answer.json()["detail"]


async def test_the_life_of_one(client: httpx.AsyncClient, job: str, database: Database, redis: Redis) -> None:
    made = await make(client, job)
    BackfillOut.model_validate(made)
    BackfillOut.model_validate(EXAMPLE_BACKFILL)
    assert (made["state"], made["mode"], made["overlap"], made["max_active"]) == ("ACTIVE", "missing", "allow", 1)
    assert (made["from"], made["to"]) == ("2026-03-01T12:00:00Z", "2026-03-01T15:00:00Z")
    assert made["progress"] == {"current": 0, "total": 3, "percent": 0.0}
    other = await client.post(f"{job}/backfill", json=window())
    assert (other.status_code, other.json()["type"]) == (409, "/problems/backfill-active")
    assert made["id"] in other.json()["detail"]

    filler = Backfiller(database, redis)
    path = f"{BACKFILLS}/{made['id']}"
    for number in range(3):
        await filler.run_once()
        (run,) = (await client.get("/api/v1/runs", params={"backfill_id": made["id"]})).json()["items"][:1]
        assert datetime.fromisoformat(run["scheduled_time"]) == NOON + number * HOUR
        why = (await client.get(f"/api/v1/runs/{run['id']}/why")).json()
        assert why["items"]
        of_job = (await client.get(f"{job}/why")).json()["items"]
        (item,) = [one for one in of_job if one["code"] == "backfill"]
        assert (item["backfill_id"], item["count"]) == (made["id"], 1)
        assert f"{number} of 3 times are dealt with, 1 run of it has not ended, in nobody's way" in item["detail"]
        assert "overlap" not in {one["code"] for one in of_job}
        await end(database, UUID(run["id"]))
    await filler.run_once()
    done = (await client.get(path)).json()
    assert (done["state"], done["progress"]) == ("DONE", {"current": 3, "total": 3, "percent": 100.0})
    assert done["counts"] == {"made": 3, "active": 0, "succeeded": 3, "failed": 0, "revoked": 0, "skipped": 0}
    assert done["end_time"] is not None
    for verb in ("pause", "resume", "cancel"):
        assert (await client.post(f"{path}/{verb}")).status_code == 409
    unchanged = await client.get(path, headers={"If-None-Match": f'"{done["version"]}"'})
    assert unchanged.status_code == 304

    again = await make(client, job)
    await filler.run_once()
    skipped = (await client.get(f"{BACKFILLS}/{again['id']}")).json()
    assert (skipped["state"], skipped["counts"]["skipped"], skipped["counts"]["made"]) == ("DONE", 3, 0)
    ledger = (await client.get(f"{job}/ledger", params={"from": window()["from"], "to": window()["to"]})).json()
    assert ledger["items"] == []  # backfills are no scheduled times


async def test_a_dry_run_tells_and_writes_nothing(client: httpx.AsyncClient, job: str, database: Database) -> None:
    retry = {"state": "PENDING", "end_time": None}
    for hour, state in ((1, "SUCCESS"), (2, "FAILURE"), (3, retry["state"])):
        await execute(
            database,
            "INSERT INTO runs (id, job_id, job_version, namespace, kind, scheduled_time, task, queue, retry, state,"
            " end_time, error, author) VALUES (gen_random_uuid(), $1, 1, 'default', 'schedule', $2, 't', 'default',"
            " '{}', $3, CASE WHEN $3 <> 'PENDING' THEN now() END, CASE WHEN $3 = 'FAILURE' THEN '{}'::jsonb END, 'a')",
            job.rpartition("/")[2],
            NOON + hour * HOUR,
            state,
        )
    expected = {
        "missing": ([0, 4], {"has_run": 2, "succeeded": 0, "live": 1}),
        "failed": ([0, 2, 4], {"has_run": 0, "succeeded": 1, "live": 1}),
        "all": ([0, 1, 2, 4], {"has_run": 0, "succeeded": 0, "live": 1}),
    }
    for mode, (hours, skipped) in expected.items():
        answer = await client.post(f"{job}/backfill", json=window(5, mode=mode, dry_run=True), headers=KEY)
        assert answer.status_code == 200
        found = answer.json()
        DryRunOut.model_validate(found)
        assert [datetime.fromisoformat(time) for time in found["times"]] == [NOON + hour * HOUR for hour in hours]
        assert (found["runs"], found["skipped"], found["total"]) == (len(hours), skipped, 5)
        assert (found["exact"], found["more"]) == (True, False)
    nothing = (
        await client.post(f"{job}/backfill", json={**window(), "from": "2026-03-01T14:00:01Z", "dry_run": True})
    ).json()
    assert (nothing["total"], nothing["runs"], nothing["times"]) == (0, 0, [])
    assert (await client.get(BACKFILLS)).json()["items"] == []


async def test_a_dry_run_of_very_many_times_looks_at_the_first(client: httpx.AsyncClient, queue: str) -> None:
    made = (await client.post(JOBS, json=a_job(trigger={"type": "interval", "every_s": 1}))).json()
    body = {"from": "2026-03-01T00:00:00Z", "to": "2026-03-12T00:00:00Z", "dry_run": True}
    found = (await client.post(f"{JOBS}/{made['id']}/backfill", json=body)).json()
    assert (found["total"], found["looked_at"], found["runs"]) == (950_400, 50_000, 50_000)
    assert (found["exact"], found["more"], len(found["times"])) == (False, True, 1000)


async def test_the_same_key_makes_one(client: httpx.AsyncClient, job: str) -> None:
    answers = [await client.post(f"{job}/backfill", json=window(), headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert len((await client.get(f"{job}/backfills")).json()["items"]) == 1


async def test_of_two_at_the_same_time_one_is_made(client: httpx.AsyncClient, job: str) -> None:
    answers = await asyncio.gather(*(client.post(f"{job}/backfill", json=window()) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


async def test_pause_resume_and_cancel(client: httpx.AsyncClient, job: str, database: Database, redis: Redis) -> None:
    made = await make(client, job, max_active=2)
    path = f"{BACKFILLS}/{made['id']}"
    filler = Backfiller(database, redis)
    await filler.run_once()
    for _ in range(2):
        paused = (await client.post(f"{path}/pause", json={"reason": "lunch"})).json()
        assert (paused["state"], paused["reason"], paused["counts"]["active"]) == ("PAUSED", "lunch", 2)
    assert (await client.get(BACKFILLS, params={"state": "PAUSED"})).json()["items"] == [paused]
    (item,) = [one for one in (await client.get(f"{job}/why")).json()["items"] if one["code"] == "backfill"]
    assert "is paused (lunch)" in item["detail"]
    for _ in range(2):
        resumed = (await client.post(f"{path}/resume")).json()
        assert (resumed["state"], resumed["version"]) == ("ACTIVE", paused["version"] + 1)
    kept = (await client.post(f"{path}/cancel", json={"runs": "keep"})).json()
    assert (kept["state"], kept["reason"], kept["counts"]["active"]) == ("CANCELLED", "cancelled by anonymous", 2)
    runs = (await client.get("/api/v1/runs", params={"backfill_id": made["id"]})).json()["items"]
    assert {(run["state"], run["cancel"] is None) for run in runs} == {("PENDING", True)}
    # A second one asks for the end of the runs, too; the one of before stays.
    cancelled = (await client.post(f"{path}/cancel")).json()
    assert cancelled["counts"] == {"made": 2, "active": 0, "succeeded": 0, "failed": 0, "revoked": 2, "skipped": 0}
    assert cancelled["end_time"] == kept["end_time"]
    assert (await client.post(f"{path}/cancel")).json() == cancelled
    await make(client, job)  # and there is room for another one


async def test_a_halted_job_is_backfilled_and_a_deleted_one_is_not(
    client: httpx.AsyncClient, job: str, database: Database, redis: Redis
) -> None:
    await client.patch(job, json={"enabled": False}, headers={"Content-Type": "application/merge-patch+json"})
    await client.post(f"{job}/pause")
    made = await make(client, job)
    await Backfiller(database, redis).run_once()
    assert (await client.get(f"{BACKFILLS}/{made['id']}")).json()["counts"]["active"] == 1
    assert (await client.delete(job)).status_code == 204
    await Backfiller(database, redis).run_once()
    found = (await client.get(f"{BACKFILLS}/{made['id']}")).json()
    assert (found["state"], found["reason"]) == ("CANCELLED", "the job was deleted")
    assert (await client.post(f"{job}/backfill", json=window())).status_code == 404
    assert (await client.get(f"{job}/backfills")).status_code == 404


@pytest.mark.usefixtures("within_an_hour")
async def test_what_is_due_is_the_schedules_first(
    client: httpx.AsyncClient, job: str, database: Database, redis: Redis
) -> None:
    """No time gets a run of both: not of a job whose times were not dealt with yet, nor by a resume that goes back."""
    for paused in (False, True):
        if paused:
            await client.post(f"{job}/pause")
        await execute(database, "UPDATE jobs SET cursor_time = date_trunc('hour', now()) - interval '6 h'")
        async with database.reading() as connection:
            hour = await connection.fetchval("SELECT date_trunc('hour', now())")
        if paused:
            await execute(database, "UPDATE jobs SET pause_time = $1, next_run_time = NULL", hour - 7 * HOUR)
        body = {
            "from": (hour - 5 * HOUR).isoformat(),
            "to": (hour - HOUR).isoformat(),
            "mode": "missing",
            "max_active": 9,
        }
        made = (await client.post(f"{job}/backfill", json=body)).json()
        await Backfiller(database, redis).run_once()
        if paused:
            answer = await client.post(f"{job}/resume", json={"from": (hour - 5 * HOUR).isoformat()})
            assert answer.status_code == 200
        await Tick(database, redis, 10).run_once()
        async with database.reading() as connection:
            twice = await connection.fetch(
                "SELECT scheduled_time FROM runs GROUP BY job_id, scheduled_time HAVING count(*) > 1"
            )
        assert [row[0] for row in twice] == []
        assert made["progress"]["total"] == 4
        await client.post(f"{BACKFILLS}/{made['id']}/cancel")
        await execute(database, "DELETE FROM runs")
        await execute(database, "DELETE FROM skips")


async def test_lists_are_pages(client: httpx.AsyncClient, job: str) -> None:
    ids = []
    for _ in range(3):
        made = await make(client, job)
        ids.insert(0, made["id"])
        await client.post(f"{BACKFILLS}/{made['id']}/cancel")
    for path, params in ((BACKFILLS, {"job_id": job.rpartition("/")[2]}), (f"{job}/backfills", {"state": "CANCELLED"})):
        first = (await client.get(path, params={**params, "limit": 2})).json()
        rest = (await client.get(path, params={**params, "limit": 2, "cursor": first["next_cursor"]})).json()
        assert [one["id"] for one in (*first["items"], *rest["items"])] == ids
        assert rest["next_cursor"] is None
    assert (await client.get(BACKFILLS, params={"state": "OVER"})).status_code == 422


async def test_a_long_poll_holds_no_connection(app: FastAPI, client: httpx.AsyncClient, job: str) -> None:
    """More waiters than the pool has places; a change answers all of them."""
    made = await make(client, job)
    path = f"{BACKFILLS}/{made['id']}"
    known = await client.get(path, params={"wait": 5, "after_version": 0})
    assert known.json() == made
    waits = [asyncio.create_task(client.get(path, params={"wait": 30, "after_version": 1})) for _ in range(40)]
    hub = app.state.plane.hub
    async with asyncio.timeout(PATIENCE_S):
        while hub.backfills.waiting < 40:
            await asyncio.sleep(0.01)
    await client.post(f"{path}/pause")
    assert {(await wait).json()["state"] for wait in waits} == {"PAUSED"}
    assert hub.backfills.waiting == 0
    assert (await client.get(path, params={"wait": 0.05})).json()["state"] == "PAUSED"
    await client.post(f"{path}/cancel")
    async with asyncio.timeout(20):  # nothing more comes: answered at once
        assert (await client.get(path, params={"wait": 30, "after_version": 99})).json()["state"] == "CANCELLED"
    assert (await client.get(f"{BACKFILLS}/{job.rpartition('/')[2]}", params={"wait": 5})).status_code == 404


async def test_a_retry_names_the_time_too(
    client: httpx.AsyncClient, job: str, database: Database, redis: Redis
) -> None:
    """What failed and was run again by hand is not run again by a backfill."""
    made = await make(client, job, hours=1)
    await Backfiller(database, redis).run_once()
    (run,) = (await client.get("/api/v1/runs", params={"backfill_id": made["id"]})).json()["items"]
    await end(database, UUID(run["id"]), state="FAILURE")
    retried = (await client.post(f"/api/v1/runs/{run['id']}/retry")).json()
    assert (retried["kind"], retried["scheduled_time"], retried["backfill_id"]) == (
        "manual",
        run["scheduled_time"],
        None,
    )
    await end(database, UUID(retried["id"]))
    found = (await client.post(f"{job}/backfill", json=window(1, mode="failed", dry_run=True))).json()
    assert (found["runs"], found["skipped"]["succeeded"]) == (0, 1)
