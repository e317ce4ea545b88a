"""Runs over REST: ad-hoc, lists, news, retry, cancel."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis

from app.api.schemas.runs import EventOut, RunOut
from app.database import Database, clock
from app.progress.announce import announce
from app.progress.moves import end
from app.progress.standing import Standing
from app.progress.transition import apply
from tests.api.conftest import a_job
from workers.protocol import DONE, lease_key

RUNS = "/api/v1/runs"


class World:
    """What dispatch, workers and the recorder would do to runs."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self.database, self.redis = database, redis

    async def change(self, run_id: str, change: Callable[[Standing, datetime], Standing]) -> None:
        async with self.database.transaction() as connection:
            now = await clock(connection)
            rows = await apply(connection, now, {UUID(run_id): [lambda standing: change(standing, now)]})
        assert rows
        await announce(self.redis, rows)

    async def dispatched(self, run_id: str) -> None:
        await self.change(run_id, lambda run, now: replace(run, dispatches=1, dispatch_time=now))

    async def started(self, run_id: str, *, leased: bool) -> None:
        await self.dispatched(run_id)
        await self.change(
            run_id, lambda run, now: replace(run, state="STARTED", start_time=now, worker="celery@h", leased=leased)
        )

    async def ended(self, run_id: str, state: str = "SUCCESS") -> None:
        error = {"type": "ValueError", "message": "no", "traceback": None} if state == "FAILURE" else None
        await self.change(run_id, lambda run, now: end(now, run, state, error=error))

    async def lease(self, run_id: str, attempt: int = 1) -> str | None:
        value = await self.redis.get(lease_key(run_id, attempt, 0))
        return None if value is None else value.decode()


@pytest.fixture
def world(database: Database, redis: Redis) -> World:
    return World(database, redis)


async def make(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post(RUNS, json={"task": "files.digest", **changes})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_an_adhoc_run(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    deadlines = {"start_deadline_s": 60, "deadline_s": 90}
    answer = await client.post(RUNS, json={"task": "files.digest", "args": [[1, 2], None], "priority": 0, **deadlines})
    run = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"{RUNS}/{run['id']}")
    RunOut.model_validate(run)
    assert (run["kind"], run["state"], run["queue"], run["args"]) == ("adhoc", "PENDING", "default", [[1, 2], None])
    read = await client.get(answer.headers["location"])
    assert read.json() == run
    assert read.headers["etag"] == '"1"'
    assert (await client.get(answer.headers["location"], headers={"If-None-Match": '"1"'})).status_code == 304
    events = (await client.get(f"{RUNS}/{run['id']}/events")).json()["items"]
    assert [EventOut.model_validate(event).state for event in events] == ["PENDING"]
    async with database.reading() as connection:
        row = await connection.fetchrow("SELECT * FROM runs")
    assert row["start_deadline_time"] - row["create_time"] == timedelta(seconds=60)
    assert row["deadline_time"] - row["create_time"] == timedelta(seconds=90)
    assert row["retry"]["max_attempts"] == 1


async def test_what_does_not_exist(client: httpx.AsyncClient) -> None:
    unknown = "019a8b7e-6c5d-7000-8000-000000000000"
    for answer in (
        await client.get(f"{RUNS}/{unknown}"),
        await client.get(f"{RUNS}/{unknown}?wait=0.1"),
        await client.get(f"{RUNS}/not-an-id"),
        await client.get(f"{RUNS}/{unknown}/events"),
        await client.post(f"{RUNS}/{unknown}/cancel"),
        await client.post(f"{RUNS}/{unknown}/retry"),
        await client.get(f"/api/v1/jobs/{unknown}/runs"),
        await client.get(f"/api/v1/jobs/{unknown}/ledger"),
        await client.post(f"/api/v1/jobs/{unknown}/trigger"),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found"), answer.url


async def test_filters(client: httpx.AsyncClient, queue: str, world: World) -> None:
    await client.post("/api/v1/queues", json={"name": "other"})
    job = (await client.post("/api/v1/jobs", json=a_job())).json()
    one, two, three = (
        (await make(client))["id"],
        (await make(client, queue="other", task="x"))["id"],
        (await make(client))["id"],
    )
    four = (await client.post(f"/api/v1/jobs/{job['id']}/trigger")).json()["id"]
    await world.started(one, leased=True)
    await world.ended(one)
    await world.started(three, leased=True)

    async def ids(**query: Any) -> list[str]:
        answer = await client.get(RUNS, params=query)
        assert answer.status_code == 200, answer.text
        return [run["id"] for run in answer.json()["items"]]

    assert await ids() == [four, three, two, one]
    assert await ids(state="SUCCESS") == [one]
    assert await ids(state=["SUCCESS", "STARTED"]) == [three, one]
    assert await ids(state=["PENDING", "STARTED"]) == [four, three, two]
    assert await ids(queue="other") == await ids(task="x") == [two]
    assert await ids(kind="manual") == await ids(job_id=job["id"]) == [four]
    assert await ids(namespace="nobody") == []
    created = (await client.get(f"{RUNS}/{three}")).json()["create_time"]
    assert await ids(created_after=created) == [four, three]
    assert await ids(created_before=created) == [two, one]
    assert await ids(created_before="2020-01-01T00:00:00Z") == []


async def test_the_list_says_where_the_feed_goes_on(client: httpx.AsyncClient, queue: str) -> None:
    from app.feed.cursor import Position

    body = (await client.get(RUNS)).json()
    assert Position.parse(body["feed_cursor"]) is not None


async def test_waiting_for_news(client: httpx.AsyncClient, queue: str, world: World) -> None:
    run = await make(client)
    url = f"{RUNS}/{run['id']}"
    assert (await client.get(url, params={"wait": 30, "after_version": 0})).json() == run

    waiting = asyncio.create_task(client.get(url, params={"wait": 30, "after_version": 1}))
    until_end = asyncio.create_task(client.get(url, params={"wait": 30, "until": "end"}))
    await world.started(run["id"], leased=True)
    news = (await asyncio.wait_for(waiting, 20)).json()
    assert news["version"] > 1
    RunOut.model_validate(news)
    assert not until_end.done()
    await world.ended(run["id"])
    last = (await asyncio.wait_for(until_end, 20)).json()
    assert last["state"] == "SUCCESS"
    assert last == (await client.get(url)).json()
    assert (await client.get(url, params={"wait": 30, "until": "end"})).json() == last
    assert (await client.get(url, params={"wait": 0.1, "after_version": last["version"]})).json() == last


async def test_retry_is_the_same_work_again(client: httpx.AsyncClient, queue: str, world: World) -> None:
    job = (await client.post("/api/v1/jobs", json=a_job(args=[1], time_limit_s=5, deadline_s=90))).json()
    run = (await client.post(f"/api/v1/jobs/{job['id']}/trigger", json={"kwargs": {"x": 1}})).json()
    early = await client.post(f"{RUNS}/{run['id']}/retry")
    assert (early.status_code, early.json()["type"]) == (409, "/problems/conflict")
    await world.ended(run["id"], "FAILURE")
    await client.patch(f"/api/v1/jobs/{job['id']}", json={"args": [2]})
    answer = await client.post(f"{RUNS}/{run['id']}/retry")
    again = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"{RUNS}/{again['id']}")
    same = ("task", "args", "kwargs", "queue", "job_id", "job_version", "kind", "namespace")
    assert {name: again[name] for name in same} == {name: run[name] for name in same}
    assert (again["state"], again["attempt"]) == ("PENDING", 1)
    assert again["deadline_time"] > run["deadline_time"], "as long again, from now on"


async def test_cancel_before_dispatch_needs_no_redis(client: httpx.AsyncClient, queue: str, world: World) -> None:
    run = await make(client)
    answer = await client.post(f"{RUNS}/{run['id']}/cancel", json={"terminate": False})
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["reason"]) == ("REVOKED", "cancelled by anonymous")
    assert await world.lease(run["id"]) is None
    again = await client.post(f"{RUNS}/{run['id']}/cancel")
    assert (again.status_code, again.json()) == (200, answer.json())


async def test_cancel_takes_the_lease_first(client: httpx.AsyncClient, queue: str, world: World) -> None:
    waiting, running = await make(client), await make(client)
    await world.dispatched(waiting["id"])
    await world.started(running["id"], leased=True)
    await world.redis.set(lease_key(running["id"], 1, 0), "held:somebody")
    for run in (waiting, running):
        answer = await client.post(f"{RUNS}/{run['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "REVOKED")
        assert await world.lease(run["id"]) == "cancelled"


async def test_a_run_that_ended_otherwise_cannot_be_cancelled(
    client: httpx.AsyncClient, queue: str, world: World
) -> None:
    ended = await make(client)
    await world.ended(ended["id"])
    before = (await client.get(f"{RUNS}/{ended['id']}")).json()
    answer = await client.post(f"{RUNS}/{ended['id']}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/run-ended")
    assert (await client.get(f"{RUNS}/{ended['id']}")).json() == before


async def test_what_cannot_be_cancelled_at_once_stays_asked(
    client: httpx.AsyncClient, queue: str, world: World
) -> None:
    stock, done = await make(client), await make(client)
    await world.started(stock["id"], leased=False)
    await world.started(done["id"], leased=True)
    await world.redis.set(lease_key(done["id"], 1, 0), DONE)
    for run in (stock, done):
        answer = await client.post(f"{RUNS}/{run['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "STARTED")
        assert answer.json()["cancel"].items() >= {"by": "anonymous", "terminate": False, "grace_s": 10}.items()
        RunOut.model_validate(answer.json())
        again = await client.post(f"{RUNS}/{run['id']}/cancel")
        assert (again.status_code, again.json()) == (202, answer.json())
        more = await client.post(f"{RUNS}/{run['id']}/cancel", json={"terminate": True, "grace_s": 1})
        asked = {**answer.json()["cancel"], "terminate": True, "grace_s": 1}
        assert (more.status_code, more.json()["cancel"]) == (202, asked)
        less = await client.post(f"{RUNS}/{run['id']}/cancel", json={"terminate": False})
        assert less.json()["cancel"] == asked
    assert await world.lease(stock["id"]) is None, "a key would look like a lease of the stock worker"


async def test_terminate_may_be_added_to_a_run_that_the_cancel_has_ended(
    client: httpx.AsyncClient, queue: str, world: World
) -> None:
    run = await make(client)
    await world.started(run["id"], leased=True)
    first = (await client.post(f"{RUNS}/{run['id']}/cancel")).json()
    assert (first["state"], first["cancel"]["terminate"]) == ("REVOKED", False)
    answer = await client.post(f"{RUNS}/{run['id']}/cancel", json={"terminate": True})
    second = answer.json()
    assert (answer.status_code, second["state"], second["cancel"]["terminate"]) == (200, "REVOKED", True)
    assert second["version"] > first["version"]
    assert (await client.post(f"{RUNS}/{run['id']}/cancel", json={"terminate": True})).json() == second


@pytest.mark.parametrize("body", [{"grace_s": -1}, {"grace_s": 3601}, {"terminate": "soon"}, {"after_s": 1}])
async def test_a_cancel_that_cannot_be(
    body: dict[str, Any], client: httpx.AsyncClient, queue: str, world: World
) -> None:
    run = await make(client)
    answer = await client.post(f"{RUNS}/{run['id']}/cancel", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(body))}"
    assert (await client.get(f"{RUNS}/{run['id']}")).json()["state"] == "PENDING"


async def test_cancels_at_the_same_time_end_the_run_once(client: httpx.AsyncClient, queue: str, world: World) -> None:
    run = await make(client)
    await world.dispatched(run["id"])
    answers = await asyncio.gather(*(client.post(f"{RUNS}/{run['id']}/cancel") for _ in range(6)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert {answer.json()["state"] for answer in answers} == {"REVOKED"}
    events = (await client.get(f"{RUNS}/{run['id']}/events")).json()["items"]
    assert [event["state"] for event in events] == ["PENDING", "REVOKED"]
