"""`GET /runs/{id}/logs`: offsets, waiting, cuts, and parts that are away."""

import asyncio
import time
from functools import partial
from pathlib import Path

import httpx
from fastapi import FastAPI
from redis.asyncio import Redis

from app.database import Database, new_id
from app.logs.read import AT_ONCE, read
from app.logs.seal import Sealer
from app.logs.store import Store
from tests.logs.streams import over, write
from tests.processes import PATIENCE_S
from tests.progress.live import make_run


def told(answer: httpx.Response) -> tuple[str, int, int, str]:
    assert answer.status_code == 200, answer.text
    headers = answer.headers
    return (
        answer.text,
        int(headers["Jobplane-Log-Next"]),
        int(headers["Jobplane-Log-Attempt"]),
        headers["Jobplane-Log-Ended"],
    )


async def test_a_log_is_read_from_any_offset(client: httpx.AsyncClient, database: Database, redis: Redis) -> None:
    past = [{"attempt": 1, "state": "FAILURE", "end_time": "2026-01-01T00:00:00Z"}]
    run_id = await make_run(database, attempt=2, attempts=past)
    url = f"/api/v1/runs/{run_id}/logs"
    assert told(await client.get(url)) == ("", 0, 2, "false")
    await write(redis, run_id, b"earlier\n", 0, 1)
    await write(redis, run_id, "<script>é\n".encode(), 0, 2)
    await write(redis, run_id, b"behind\n", 100, 2, last=True)
    answer = await client.get(url)
    assert told(answer) == ("<script>é\n[jobplane: 89 bytes cut here]\nbehind\n", 107, 2, "false")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert told(await client.get(url, params={"offset": 103})) == ("ind\n", 107, 2, "false")
    assert told(await client.get(url, params={"offset": 50})) == (
        "[jobplane: 50 bytes cut here]\nbehind\n",
        107,
        2,
        "false",
    )
    assert told(await client.get(url, params={"offset": 9999})) == ("", 9999, 2, "false")
    assert told(await client.get(url, params={"attempt": 1})) == ("earlier\n", 8, 1, "true")
    await over(database, run_id)
    assert told(await client.get(url, params={"offset": 100})) == ("behind\n", 107, 2, "true")
    assert told(await client.get(url, params={"offset": 9999})) == ("", 9999, 2, "true")


async def test_a_run_without_a_log_has_an_empty_one(client: httpx.AsyncClient, database: Database) -> None:
    run_id = await make_run(database)
    await over(database, run_id)
    assert told(await client.get(f"/api/v1/runs/{run_id}/logs", params={"wait": 30})) == ("", 0, 1, "true")


async def test_what_cannot_be_asked(client: httpx.AsyncClient, database: Database) -> None:
    run_id = await make_run(database)
    for params, named in (
        ({"offset": -1}, "?offset"),
        ({"offset": 2**60}, "?offset"),
        ({"wait": 31}, "?wait"),
        ({"wait": "nan"}, "?wait"),
        ({"attempt": 0}, "?attempt"),
    ):
        answer = await client.get(f"/api/v1/runs/{run_id}/logs", params=params)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, named)
    answer = await client.get(f"/api/v1/runs/{run_id}/logs", params={"attempt": 2})
    assert (answer.status_code, answer.json()["detail"]) == (404, "the run has no attempt 2")
    for params in ({}, {"attempt": 1}):
        answer = await client.get(f"/api/v1/runs/{new_id()}/logs", params=params)
        assert answer.status_code == 404
        assert "there is no run" in answer.json()["detail"]


async def test_waiting_ends_with_news_or_with_the_end(
    client: httpx.AsyncClient, database: Database, redis: Redis
) -> None:
    run_id = await make_run(database)
    url = f"/api/v1/runs/{run_id}/logs"
    waiting = asyncio.create_task(client.get(url, params={"wait": 30}))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await write(redis, run_id, b"news\n", 0)
    assert told(await asyncio.wait_for(waiting, PATIENCE_S)) == ("news\n", 5, 1, "false")
    begin = time.monotonic()
    assert told(await client.get(url, params={"wait": 0.5, "offset": 5})) == ("", 5, 1, "false")
    assert time.monotonic() - begin >= 0.5
    waiting = asyncio.create_task(client.get(url, params={"wait": 30, "offset": 5}))
    await over(database, run_id)
    await write(redis, run_id, b"", 5, last=True)
    assert told(await asyncio.wait_for(waiting, PATIENCE_S)) == ("", 5, 1, "true")


async def test_a_process_that_leaves_lets_nobody_wait(
    app: FastAPI, client: httpx.AsyncClient, database: Database
) -> None:
    run_id = await make_run(database)
    waiting = asyncio.create_task(client.get(f"/api/v1/runs/{run_id}/logs", params={"wait": 30}))
    await asyncio.sleep(0.1)
    await app.state.plane.hub.drain()
    assert told(await asyncio.wait_for(waiting, 20)) == ("", 0, 1, "false")


async def test_many_who_wait_leave_connections_to_others(
    database: Database, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    run_id = await make_run(database)
    async with Redis.from_url(redis_url, max_connections=AT_ONCE + 1) as few:
        reader = partial(read, database, few, Store(tmp_path.as_uri()), run_id)
        waiting = [asyncio.create_task(reader(wait_s=30)) for _ in range(8 * AT_ONCE)]
        for _ in range(20):
            await few.ping()
            await asyncio.sleep(0.05)
        await write(redis, run_id, b"news\n", 0)
        assert {chunk.text for chunk in await asyncio.gather(*waiting)} == {"news\n"}


async def test_a_long_log_comes_in_parts(client: httpx.AsyncClient, database: Database, redis: Redis) -> None:
    run_id = await make_run(database)
    text = b"".join(b"%019d\n" % n for n in range(80_000))
    for begin in range(0, len(text), 64_000):
        await write(redis, run_id, text[begin : begin + 64_000], begin)
    url = f"/api/v1/runs/{run_id}/logs"
    first, offset, *_ = told(await client.get(url))
    assert 2**20 - 20 < len(first) <= 2**20
    rest, offset, *_ = told(await client.get(url, params={"offset": offset}))
    assert (first + rest).encode() == text
    late, *_ = told(await client.get(url, params={"offset": len(text) - 100_000}))
    assert late.encode() == text[-100_000:]


async def test_a_store_that_is_away_is_named_unless_it_is_not_needed(
    app: FastAPI,
    client: httpx.AsyncClient,
    database: Database,
    redis: Redis,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "store"
    store = Store(folder.as_uri())
    object.__setattr__(app.state.plane, "store", store)
    run_id = await make_run(database)
    url = f"/api/v1/runs/{run_id}/logs"
    await write(redis, run_id, b"sealed\n", 0)
    await Sealer(database, redis, store, "test").run_once()
    await write(redis, run_id, b"not yet\n", 7)
    assert told(await client.get(url))[0] == "sealed\nnot yet\n"
    folder.rename(tmp_path / "away")
    answer = await client.get(url)
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert f"cannot read in the log store {folder.as_uri()}" in answer.json()["detail"]
    assert told(await client.get(url, params={"offset": 7})) == ("not yet\n", 15, 1, "false")


async def test_an_ended_log_needs_no_redis(
    app: FastAPI, client: httpx.AsyncClient, database: Database, redis: Redis
) -> None:
    ended, live = await make_run(database), await make_run(database)
    for run_id in (ended, live):
        await write(redis, run_id, b"text\n", 0, last=True)
    await over(database, ended)
    plane = app.state.plane
    await Sealer(database, redis, plane.store, "test").run_once()
    away = Redis.from_url("redis://127.0.0.1:9")
    object.__setattr__(plane, "redis", away)
    assert told(await client.get(f"/api/v1/runs/{ended}/logs")) == ("text\n", 5, 1, "true")
    answer = await client.get(f"/api/v1/runs/{live}/logs")
    assert (answer.status_code, "Redis is away" in answer.json()["detail"]) == (503, True)
    await away.aclose()
