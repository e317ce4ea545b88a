"""Health, readiness and metrics."""

import asyncio
import time

import httpx
import pytest
import redis as redis_sync
from pydantic import SecretStr

from app.database import Database
from app.embedded import free_port
from app.main import create_app
from app.settings import Settings
from tests.api.conftest import a_job, client_of
from tests.processes import PATIENCE_S


async def test_readiness_names_each_part(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.health._CHECK_S", 30.0)  # all of them are there
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    parts = answer.json()["parts"]
    assert {name: part["ok"] for name, part in parts.items()} == {
        "database": True,
        "redis": True,
        "broker": True,
        "scheduler": False,
    }
    assert (await client.get("/readyz?part=database&part=redis")).status_code == 200
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO processes (id, kind, detail, start_time, beat_time)"
            " VALUES ('s', 'scheduler', '{}', now(), now() + interval '1 h')"
        )
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert answer.json()["parts"]["scheduler"]["detail"] == "1 alive"
    assert (await client.get("/readyz?part=moon")).status_code == 422


async def test_metrics_tell_of_the_plane(settings: Settings, queue: str) -> None:
    async with client_of(settings) as client:
        await client.post("/api/v1/runs", json={"task": "x"})
        job = (await client.post("/api/v1/jobs", json=a_job())).json()
        await client.get(f"/api/v1/jobs/{job['id']}")
        await client.get("/nothing")
        text = (await client.get("/metrics")).text
    assert 'jobplane_runs_live{state="PENDING"} 1.0' in text
    assert "jobplane_runs_waiting 1.0" in text
    assert "jobplane_jobs_due 0.0" in text
    assert "jobplane_schedulers 0.0" in text
    assert 'jobplane_http_requests_total{method="GET",route="/api/v1/jobs/{job_id}",status="200"} 1.0' in text
    assert 'jobplane_http_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert "process_cpu_seconds_total" in text


async def test_writes_ring_the_doorbell_and_announce_runs(
    client: httpx.AsyncClient, queue: str, redis_url: str
) -> None:
    from app.progress.announce import channel_of
    from workers.protocol import DOORBELL_CHANNEL, RUNS_CHANNEL

    with redis_sync.Redis.from_url(redis_url) as listener, listener.pubsub(ignore_subscribe_messages=True) as heard:
        channels = {channel_of(listener, name) for name in (DOORBELL_CHANNEL, RUNS_CHANNEL)}
        heard.subscribe(*channels)
        while heard.get_message(timeout=0.2) is not None:
            pass
        run = (await client.post("/api/v1/runs", json={"task": "x"})).json()
        messages = {}
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            message = heard.get_message(timeout=0.2)
            if message is None or (message["data"] != b"1" and run["id"].encode() not in message["data"]):
                continue  # channels are the server's: another test may speak on them
            messages[message["channel"].decode()] = message["data"]
            if len(messages) == 2:
                break
    assert set(messages) == channels


async def test_without_redis_writes_go_on_and_a_cancel_says_what_it_waits_for(
    settings: Settings, database: Database
) -> None:
    nowhere = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    app = create_app(settings.model_copy(update={"redis_url": nowhere}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://plane") as client,
        asyncio.timeout(60),
    ):
        assert (await client.post("/api/v1/queues", json={"name": "default"})).status_code == 201
        fresh, dispatched = [(await client.post("/api/v1/runs", json={"task": "x"})).json()["id"] for _ in range(2)]
        async with database.transaction() as connection:
            await connection.execute(
                "UPDATE runs SET dispatches = 1, dispatch_time = now(), version = 2 WHERE id = $1", dispatched
            )
        assert (await client.post(f"/api/v1/runs/{fresh}/cancel")).status_code == 202
        asked = await client.post(f"/api/v1/runs/{dispatched}/cancel")
        assert (asked.status_code, asked.json()["state"]) == (202, "PENDING")
        assert asked.json()["reason"] == "cancel asked by anonymous: waits for Redis"
        assert (await client.get(f"/api/v1/runs/{dispatched}")).json() == asked.json()
        assert (await client.get("/readyz")).json()["parts"]["redis"]["ok"] is False
