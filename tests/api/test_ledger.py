"""The ledger over HTTP: every scheduled time as it stands, by the definition of its day, in bounded windows."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis

from app.database import Database, clock
from app.due.tick import Tick
from tests.api.conftest import a_job

JOBS = "/api/v1/jobs"
EVERY_TEN_S = {"type": "interval", "every_s": 10}


async def job_since(client: httpx.AsyncClient, database: Database, ago_s: int, **changes: Any) -> tuple[UUID, datetime]:
    """A job that nobody has looked at for so long, and its cursor: a whole multiple of 10 s."""
    made = await client.post(JOBS, json=a_job(trigger=EVERY_TEN_S, overlap="allow", **changes))
    assert made.status_code == 201, made.text
    job = UUID(made.json()["id"])
    async with database.transaction() as connection:
        now = await clock(connection)
        cursor = now.replace(microsecond=0) - timedelta(seconds=ago_s + now.second % 10)
        await connection.execute("UPDATE jobs SET cursor_time = $2, next_run_time = $2 WHERE id = $1", job, cursor)
        await connection.execute("UPDATE job_versions SET cursor_time = $2 WHERE job_id = $1", job, cursor)
    return job, cursor


async def ledger(client: httpx.AsyncClient, job: UUID, begin: datetime, end: datetime, **more: Any) -> dict[str, Any]:
    answer = await client.get(f"{JOBS}/{job}/ledger", params={"from": begin.isoformat(), "to": end.isoformat(), **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_it_says_what_each_time_became_and_which_are_still_to_come(
    client: httpx.AsyncClient, queue: str, database: Database, redis: Redis
) -> None:
    job, cursor = await job_since(client, database, 300)
    end = cursor + timedelta(hours=1)
    before = await ledger(client, job, cursor, end)
    assert (before["scheduled"], before["pending"], before["balanced"]) == (0, 359, True)
    assert [(item["outcome"], item["reason"], item["count"]) for item in before["items"]] == [("pending", "due", 359)]

    await Tick(database, redis, 10).run_once()
    found = await ledger(client, job, cursor, end)
    assert (found["runs"], found["exact"], found["balanced"]) == (1, True, True)
    assert found["scheduled"] == 1 + found["skipped"] >= 30
    assert found["scheduled"] + found["pending"] == 359
    assert found["summary"] == (
        f"{found['scheduled']} scheduled times, 1 run + {found['skipped']} skipped: each is accounted for once; "
        f"{found['pending']} not yet dealt with"
    )
    skip, run, pending = found["items"]
    assert (skip["outcome"], skip["reason"], skip["run_id"]) == ("skip", "coalesced", run["run_id"])
    assert (run["outcome"], run["state"]) == ("run", "PENDING")
    assert (pending["outcome"], pending["reason"], pending["count"]) == ("pending", None, found["pending"])

    pages: list[dict[str, Any]] = []
    cursor_of: dict[str, Any] = {}
    while not pages or cursor_of:
        page = await ledger(client, job, cursor, end, limit=1, **cursor_of)
        assert {name: page[name] for name in ("scheduled", "balanced")} == {
            name: found[name] for name in ("scheduled", "balanced")
        }
        pages += page["items"]
        cursor_of = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
    assert pages == found["items"]


async def test_of_a_row_that_reaches_over_the_window_only_what_lies_inside_is_told(
    client: httpx.AsyncClient, queue: str, database: Database, redis: Redis
) -> None:
    job, cursor = await job_since(client, database, 300)
    await Tick(database, redis, 10).run_once()
    begin = cursor + timedelta(seconds=60)
    found = await ledger(client, job, begin, begin + timedelta(seconds=60.5))
    assert (found["scheduled"], found["runs"], found["skipped"], found["balanced"]) == (7, 0, 7, True)
    (item,) = found["items"]
    assert (item["outcome"], item["reason"], item["count"]) == ("skip", "coalesced", 7)
    assert datetime.fromisoformat(item["first_time"]) == begin
    assert datetime.fromisoformat(item["last_time"]) == begin + timedelta(seconds=60)


async def test_each_time_is_judged_by_the_definition_of_its_day(
    client: httpx.AsyncClient, queue: str, database: Database, redis: Redis
) -> None:
    job, cursor = await job_since(client, database, 300)
    for patch in (
        {"enabled": False},
        {"enabled": True, "trigger": {"type": "cron", "expression": "* * * * * *", "every_s": None}},
    ):
        assert (await client.patch(f"{JOBS}/{job}", json=patch)).status_code == 200
    async with database.transaction() as connection:  # as if the job had been off for a minute
        await connection.execute(
            "UPDATE job_versions SET cursor_time = cursor_time + interval '60 s' WHERE version = 3"
        )
        await connection.execute("UPDATE jobs SET cursor_time = cursor_time + interval '90 s', next_run_time = NULL")
        now = await clock(connection)
    found = await ledger(client, job, cursor, now + timedelta(minutes=10))
    assert (found["balanced"], found["scheduled"]) == (False, found["runs"] + found["skipped"] + 30)
    assert found["summary"].split("; ")[0].endswith("30 times are not accounted for")


async def test_holes_and_doubles_are_told(
    client: httpx.AsyncClient, queue: str, database: Database, redis: Redis
) -> None:
    job, cursor = await job_since(client, database, 300)
    await Tick(database, redis, 10).run_once()
    async with database.transaction() as connection:
        await connection.execute("UPDATE runs SET scheduled_time = scheduled_time - interval '30 s'")
    found = await ledger(client, job, cursor, cursor + timedelta(hours=1))
    assert found["balanced"] is False
    assert "1 run or row of skips at times of another row" in found["summary"]
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM skips")
    found = await ledger(client, job, cursor, cursor + timedelta(hours=1))
    assert (found["balanced"], "times are not accounted for" in found["summary"]) == (False, True)


async def test_what_retention_may_have_deleted_is_not_called_a_hole(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job, cursor = await job_since(client, database, 20 * 86_400)
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET cursor_time = $1, next_run_time = NULL", cursor + timedelta(hours=1))
    found = await ledger(client, job, cursor, cursor + timedelta(hours=1))
    assert (found["scheduled"], found["balanced"]) == (359, None)
    assert "may have been deleted" in found["summary"]


@pytest.mark.parametrize(
    ("trigger", "days", "words"),
    [
        ({"type": "cron", "expression": "* * * * * *"}, 300, "at most 1,000,000 can"),
        (EVERY_TEN_S, 367, "at most 366 days"),
    ],
)
async def test_a_window_is_bounded(
    client: httpx.AsyncClient, queue: str, database: Database, trigger: dict[str, Any], days: int, words: str
) -> None:
    job = (await client.post(JOBS, json=a_job(trigger=trigger))).json()["id"]
    async with database.reading() as connection:
        now = await clock(connection)
    answer = await client.get(
        f"{JOBS}/{job}/ledger", params={"from": now.isoformat(), "to": (now + timedelta(days=days)).isoformat()}
    )
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["?from"]
    assert words in answer.json()["detail"]


async def test_a_job_that_is_parked_or_paused_says_that_its_times_wait(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job, cursor = await job_since(client, database, 60)
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET next_run_time = NULL, problem = 'no such zone any more'")
    found = await ledger(client, job, cursor, cursor + timedelta(hours=1))
    assert [(item["outcome"], item["reason"]) for item in found["items"]] == [("pending", "parked")]
    # An edit puts it back, from now on; what nobody could fire was missed.
    assert (await client.patch(f"{JOBS}/{job}", json={"description": "mended"})).status_code == 200
    found = await ledger(client, job, cursor, cursor + timedelta(hours=1))
    assert (found["balanced"], found["runs"]) == (True, 0)
    assert [item.get("reason") for item in found["items"]] == ["missed", None]
