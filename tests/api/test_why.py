"""Why a run or a job does not run, asked over REST of states that are really in the database."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from app.api.schemas.why import EXAMPLE_JOB_WHY, EXAMPLE_RUN_WHY, JobWhyOut, RunWhyOut
from app.database import Database
from app.dispatch.broker import connect
from app.dispatch.outbox import Outbox
from app.settings import Settings
from tests.api.conftest import a_job
from tests.api.test_runs import RUNS, World, make, world
from tests.dispatch.parts import at
from tests.processes import eventually
from tests.proxy import TcpProxy

__all__ = ["world"]

JOBS = "/api/v1/jobs"


@pytest.fixture(autouse=True)
async def scheduler(database: Database) -> None:
    """One lives, as far as the database knows, for as long as any test takes."""
    await execute(
        database,
        "INSERT INTO processes (id, kind, detail, start_time, beat_time)"
        " VALUES ('s', 'scheduler', '{}', now(), now() + interval '1 h')",
    )


async def execute(database: Database, statement: str, *values: Any) -> None:
    async with database.transaction() as connection:
        await connection.execute(statement, *values)


async def sighting(database: Database, **columns: Any) -> None:
    values = {"consumers": 1, "workers": ["celery@a"], "known_tasks": None, "common_tasks": None, "ready": 3, **columns}
    await execute(
        database,
        f"INSERT INTO queue_sightings (queue, look_time, {', '.join(values)}) "
        f"VALUES ('default', clock_timestamp(), {', '.join(f'${n}' for n in range(1, len(values) + 1))})",
        *values.values(),
    )


async def worker(database: Database, node: str, tasks: list[str], age_s: float = 0) -> None:
    await execute(
        database,
        """
        INSERT INTO workers (node, queues, tasks, pool, concurrency, active, first_seen_time, seen_time)
        SELECT $1, '{default}', $2, 'prefork', 4, 4, at, at FROM (VALUES (clock_timestamp() - $3::interval)) AS t (at)
        """,
        node,
        tasks,
        timedelta(seconds=age_s),
    )


async def why(client: httpx.AsyncClient, run: Any) -> list[dict[str, Any]]:
    run_id = run["id"] if isinstance(run, dict) else run
    answer = await client.get(f"{RUNS}/{run_id}/why")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    RunWhyOut.model_validate(body)
    assert body["run_id"] == str(run_id)
    items: list[dict[str, Any]] = body["items"]
    return items


async def why_job(client: httpx.AsyncClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.get(f"{JOBS}/{job['id']}/why")
    assert answer.status_code == 200, answer.text
    JobWhyOut.model_validate(answer.json())
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def codes(items: list[dict[str, Any]]) -> list[str]:
    return [item["code"] for item in items]


async def open_queue(database: Database) -> None:
    await execute(database, "UPDATE queues SET declare_time = now()")


async def test_the_way_of_a_run(client: httpx.AsyncClient, queue: str, world: World, database: Database) -> None:
    run = await make(client, start_deadline_s=600)
    assert codes(await why(client, run)) == ["queue_not_declared", "start_deadline"]
    await open_queue(database)
    assert codes(await why(client, run)) == ["sending", "start_deadline"]
    before = await make(client)
    await world.dispatched(before["id"])
    await world.dispatched(run["id"])
    await sighting(database, known_tasks=["files.digest"], common_tasks=["files.digest"])
    await worker(database, "celery@a", ["files.digest"])
    waits = await why(client, run)
    assert codes(waits) == ["dispatched_waiting", "start_deadline"]
    assert "behind 1 other run; 3 messages waited there" in waits[0]["detail"]
    assert "celery@a works at 4 of 4" in waits[0]["detail"]
    assert (waits[0]["queue"], waits[0]["count"], waits[0]["workers"]) == ("default", 1, ["celery@a"])
    other = await make(client)
    await world.started(other["id"], leased=True)
    (has,) = await why(client, other)
    assert (has["code"], has["worker"]) == ("running", "celery@h")
    await world.ended(other["id"], "FAILURE")
    (ended,) = await why(client, other)
    assert ended["code"] == "ended"
    assert ended["detail"].endswith("after its start: ValueError: no.")


async def test_nobody_registers_the_task(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await open_queue(database)
    await sighting(database, known_tasks=["x"], common_tasks=["x"])
    (item,) = await why(client, await make(client))
    assert item["code"] == "task_not_registered"
    assert item["detail"] == "No worker on the queue default registers the task files.digest (celery@a consumes it)."
    assert (item["workers"], item["task"], item["queue"]) == (["celery@a"], "files.digest", "default")


async def test_a_thief_is_named(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await open_queue(database)
    await sighting(database, known_tasks=["files.digest"], common_tasks=[])
    await worker(database, "celery@a", ["files.digest"])
    await worker(database, "thief@b", [])
    run = await make(client)
    await execute(
        database,
        "UPDATE runs SET not_registered = 5, due_time = now() + interval '80 s', "
        "reason = 'not registered: worker thief@b without files.digest took it; waits until ...'",
    )
    (item,) = await why(client, run)
    assert (item["code"], item["worker"], item["workers"], item["count"]) == (
        "not_registered_taken",
        "thief@b",
        ["thief@b"],
        5,
    )
    assert item["detail"] == (
        "The worker thief@b, which does not register files.digest, took it and gave it up (5 times so far); of the "
        "live workers on the queue, thief@b does not register it; it waits until every live worker on the queue does."
    )


async def test_nobody_consumes_and_nobody_schedules(
    client: httpx.AsyncClient, queue: str, world: World, database: Database
) -> None:
    await open_queue(database)
    await sighting(database, consumers=0, workers=[])
    run = await make(client)
    await world.dispatched(run["id"])
    assert codes(await why(client, run)) == ["no_worker", "dispatched_waiting"]
    await execute(database, "UPDATE processes SET beat_time = now() - interval '11 s'")
    assert codes(await why(client, run)) == ["no_worker", "dispatched_waiting", "no_scheduler"]
    assert codes(await why(client, await make(client))) == ["no_scheduler"]


async def test_a_worker_that_is_gone(client: httpx.AsyncClient, queue: str, world: World, database: Database) -> None:
    await sighting(database)
    await worker(database, "celery@h", ["files.digest"], age_s=630)
    run = await make(client)
    await world.started(run["id"], leased=False)
    gone, running = await why(client, run)
    assert (gone["code"], running["code"]) == ("worker_gone", "running")
    assert "10 minutes ago" in gone["detail"]


async def test_a_paused_queue_says_who(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await open_queue(database)
    await client.patch("/api/v1/queues/default", json={"paused": True})
    (item,) = await why(client, await make(client))
    assert (item["code"], item["by"], item["queue"]) == ("queue_paused", "anonymous", "default")


async def test_a_limit_names_who_has_the_places(
    client: httpx.AsyncClient, queue: str, world: World, database: Database, settings: Settings
) -> None:
    await open_queue(database)
    first = await make(client)
    await world.started(first["id"], leased=True)
    await client.patch("/api/v1/queues/default", json={"max_active": 1})
    run = await make(client)
    (item,) = await why(client, run)
    assert (item["code"], item["count"], item["workers"], item["run_id"]) == (
        "queue_limit",
        1,
        ["celery@h"],
        first["id"],
    )
    assert f"1 has a place: {first['id']} on celery@h." in item["detail"]
    await world.ended(first["id"])
    assert codes(await why(client, run)) == ["sending"]
    await client.patch("/api/v1/queues/default", json={"max_active": None, "rate_limit": "2/h"})
    assert codes(await why(client, run)) == ["sending"]
    await execute(database, "UPDATE queues SET rate_tokens = 0.5, rate_time = now()")
    (item,) = await why(client, run)
    assert item["code"] == "queue_rate"
    assert "takes 2/h; " in item["detail"]
    assert item["detail"].endswith("in 14 minutes.")


async def test_a_broker_that_is_away(
    client: httpx.AsyncClient, queue: str, database: Database, settings: Settings, world: World
) -> None:
    await open_queue(database)
    run = await make(client)
    url = settings.broker_url.get_secret_value()
    with TcpProxy("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])) as proxy:
        await asyncio.to_thread(proxy.cut)
        broker = connect(at(url, proxy.port), 1)
        outbox = Outbox(settings, database, world.redis, broker, "test")

        async def told() -> bool:
            await outbox.run_once()
            return codes(await why(client, run)) == ["broker_away"]

        await eventually(told, what="a broker that is away")
        await broker.close()
    (item,) = await why(client, run)
    assert item["detail"].startswith(f"The broker has been away since {item['time']}, for ")


async def test_the_way_of_a_job(client: httpx.AsyncClient, queue: str, world: World, database: Database) -> None:
    """Pains 21 and 37: why there was no run is a sentence, and names the times."""
    await open_queue(database)
    job = (await client.post(JOBS, json=a_job())).json()
    (item,) = await why_job(client, job)
    assert (item["code"], item["time"]) == ("next_time", job["next_run_time"])

    run = (await client.post(f"{JOBS}/{job['id']}/trigger")).json()
    await world.started(run["id"], leased=True)
    overlap, following = await why_job(client, job)
    assert (overlap["code"], following["code"]) == ("overlap", "next_time")
    assert (overlap["run_id"], overlap["worker"], overlap["count"]) == (run["id"], "celery@h", 1)
    assert codes(overlap["items"]) == ["running"]
    await execute(
        database,
        """
        INSERT INTO skips (job_id, reason, run_id, first_time, last_time, count)
        VALUES ($1, 'overlap', $2, '2026-11-22T12:00:00Z', '2026-11-22T12:10:00Z', 3)
        """,
        UUID(job["id"]),
        UUID(run["id"]),
    )
    await world.ended(run["id"])
    assert codes(await why_job(client, job)) == ["next_time", "last_skip"]

    await client.post(f"{JOBS}/{job['id']}/pause", json={"reason": "the disk is full"})
    paused, skipped = await why_job(client, job)
    assert (paused["code"], paused["by"]) == ("paused", "anonymous")
    assert paused["detail"].endswith(": the disk is full.")
    assert skipped["detail"] == (
        "3 scheduled times from 2026-11-22T12:00:00Z to 2026-11-22T12:10:00Z were skipped: "
        "an earlier run had not ended."
    )
    await client.patch(f"{JOBS}/{job['id']}", json={"enabled": False})
    assert codes(await why_job(client, job)) == ["disabled", "paused", "last_skip"]


async def test_runs_that_may_overlap(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await open_queue(database)
    job = (await client.post(JOBS, json=a_job(overlap="allow"))).json()
    first, *_ = [(await client.post(f"{JOBS}/{job['id']}/trigger")).json()["id"] for _ in range(3)]
    live, following = await why_job(client, job)
    assert (live["code"], live["run_id"], live["count"]) == ("live_runs", first, 3)
    assert codes(live["items"]) == ["sending"]
    assert following["code"] == "next_time"


async def test_what_does_not_exist(client: httpx.AsyncClient, queue: str) -> None:
    unknown = "019a8b7e-6c5d-7000-8000-000000000000"
    job = (await client.post(JOBS, json=a_job())).json()
    await client.delete(f"{JOBS}/{job['id']}")
    for url in (f"{RUNS}/{unknown}/why", f"{JOBS}/{unknown}/why", f"{JOBS}/{job['id']}/why", f"{RUNS}/x/why"):
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found"), url


def test_examples_are_what_their_models_say() -> None:
    RunWhyOut.model_validate(EXAMPLE_RUN_WHY)
    JobWhyOut.model_validate(EXAMPLE_JOB_WHY)
