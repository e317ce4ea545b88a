"""Whatever goes wrong, the answer is a problem document, and it tells nothing of the inside."""

import gzip
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message
from structlog.testing import capture_logs

from app import faults
from app.database import Database
from tests.api.conftest import a_job


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "request_id"}
    assert body["status"] == answer.status_code
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["type"].startswith("/problems/")
    return answer.status_code, body["type"].removeprefix("/problems/")


async def test_the_router_and_the_body(client: httpx.AsyncClient) -> None:
    assert problem(await client.get("/nothing")) == (404, "not-found")
    assert problem(await client.get("/api/v1/jobs/")) == (404, "not-found")
    assert problem(await client.get("/static-offline-docs/nothing.js")) == (404, "not-found")
    wrong = await client.put("/api/v1/jobs", json={})
    assert problem(wrong) == (405, "method-not-allowed")
    assert wrong.headers["allow"] == "GET, POST"
    assert (await client.options(f"/api/v1/jobs/{UUID(int=7)}")).headers["allow"] == "GET, PUT, PATCH, DELETE"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/merge-patch+json", ""):
        answer = await client.post("/api/v1/jobs", content=b"{}", headers={"Content-Type": kind})
        assert problem(answer) == (415, "unsupported-media-type"), kind
    assert problem(await client.post("/api/v1/jobs", content=b"{")) == (415, "unsupported-media-type")


async def test_a_body_that_never_ends(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * 1024 * 1024:
            sent += 65_536
            yield b" " * 65_536

    json_type = {"Content-Type": "application/json"}
    assert problem(await client.post("/api/v1/jobs", content=endless(), headers=json_type)) == (413, "body-too-large")
    assert problem(await client.post("/api/v1/jobs", content=b" " * 5_000_000, headers=json_type)) == (
        413,
        "body-too-large",
    )


async def test_a_caller_that_goes_away_in_the_midst_of_its_body(app: FastAPI, database: Database) -> None:
    said: list[Message] = []
    parts: list[Message] = [
        {"type": "http.request", "body": b'{"name":', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return parts.pop(0)

    async def send(message: Message) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/v1/jobs", "query_string": b"", "http_version": "1.1"}
    headers = [(b"content-type", b"application/json")]
    with capture_logs() as lines:
        await app({**scope, "headers": headers, "root_path": "", "scheme": "http"}, receive, send)
    assert said == []
    assert "request_failed" not in {line["event"] for line in lines}


async def test_every_type_is_explained(client: httpx.AsyncClient) -> None:
    from app.api.problems import kinds

    for name, kind in kinds().items():
        page = await client.get(f"/problems/{name}")
        assert page.status_code == 200
        assert kind.title in page.text
        assert kind.__doc__, f"{name} needs a sentence"
    assert problem(await client.get("/problems/nothing")) == (404, "not-found")


async def test_the_unexpected(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("app.api.health.Probes.look", broken)
    with capture_logs() as lines:
        answer = await client.get("/readyz", headers={"X-Request-ID": "mine-1"})
    assert problem(answer) == (500, "internal")
    assert answer.headers["x-request-id"] == "mine-1"
    assert "secret" not in answer.text
    assert [str(line["exc_info"]) for line in lines if line["event"] == "request_failed"] == ["a secret"]


async def test_a_fault_before_the_commit_leaves_nothing(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    faults.arm("api.before_commit=raise")
    try:
        with capture_logs():
            answer = await client.post("/api/v1/jobs", json=a_job(), headers={"Idempotency-Key": "k"})
    finally:
        faults.arm("")
    assert problem(answer) == (500, "internal")
    async with database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM jobs") == 0
    assert (await client.post("/api/v1/jobs", json=a_job(), headers={"Idempotency-Key": "k"})).status_code == 201


async def test_the_database_is_away(client: httpx.AsyncClient, app: FastAPI) -> None:
    await app.state.plane.database.close()
    answer = await client.get("/api/v1/jobs")
    assert problem(answer) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert (await client.get("/healthz")).status_code == 200
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["database"]["ok"]) == (503, False)
    assert "jobplane_database_up 0.0" in (await client.get("/metrics")).text


async def test_headers_and_compression(client: httpx.AsyncClient, queue: str) -> None:
    for name in "abcdefghij":
        await client.post("/api/v1/jobs", json=a_job(name=name))
    async with client.stream("GET", "/api/v1/jobs", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert len(gzip.decompress(raw)) > 5 * len(raw)
    plain = await client.get("/api/v1/jobs", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == gzip.decompress(raw)
    assert plain.headers["x-content-type-options"] == "nosniff"
    assert plain.headers["cache-control"] == "no-store"
    given = await client.get("/healthz", headers={"X-Request-ID": "bad id\tx"})
    assert given.headers["x-request-id"] != "bad id\tx"
