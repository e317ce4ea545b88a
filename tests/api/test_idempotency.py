"""One key, one effect, one answer."""

import asyncio

import httpx

from app.database import Database
from tests.api.conftest import a_job

KEY = {"Idempotency-Key": "9f1c"}


async def count(database: Database, table: str) -> int:
    async with database.reading() as connection:
        number: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def test_the_same_answer_again(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    first = await client.post("/api/v1/jobs", json=a_job(kwargs={"b": 1, "a": 2}), headers=KEY)
    again = await client.post("/api/v1/jobs", json=a_job(kwargs={"a": 2, "b": 1}), headers=KEY)
    assert first.status_code == again.status_code == 201
    assert again.content == first.content
    for name in ("location", "etag", "content-type"):
        assert again.headers[name] == first.headers[name]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await count(database, "jobs") == 1


async def test_another_body_is_refused(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    await client.post("/api/v1/runs", json={"task": "x"}, headers=KEY)
    other = await client.post("/api/v1/runs", json={"task": "y"}, headers=KEY)
    assert other.status_code == 422
    assert other.json()["errors"][0]["pointer"] == "Idempotency-Key"
    assert await count(database, "runs") == 1


async def test_keys_belong_to_their_operation(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    job = (await client.post("/api/v1/jobs", json=a_job(), headers=KEY)).json()
    other = (await client.post("/api/v1/jobs", json=a_job(name="other"))).json()
    runs = [
        (await client.post(f"/api/v1/jobs/{one['id']}/trigger", headers=KEY)).json()["id"]
        for one in (job, other, job, other)
    ]
    assert runs[:2] == runs[2:]
    assert await count(database, "runs") == 2


async def test_a_failure_is_not_kept(client: httpx.AsyncClient, queue: str) -> None:
    body = a_job(queue="later")
    assert (await client.post("/api/v1/jobs", json=body, headers=KEY)).status_code == 422
    await client.post("/api/v1/queues", json={"name": "later"})
    made = await client.post("/api/v1/jobs", json=body, headers=KEY)
    assert made.status_code == 201
    assert "idempotency-replayed" not in made.headers


async def test_at_the_same_time_one_waits_for_the_other(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    answers = await asyncio.gather(*(client.post("/api/v1/runs", json={"task": "x"}, headers=KEY) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 7
    assert await count(database, "runs") == 1


async def test_a_bad_key(client: httpx.AsyncClient, queue: str) -> None:
    for key in ("", "k" * 256):
        answer = await client.post("/api/v1/runs", json={"task": "x"}, headers={"Idempotency-Key": key})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"].lower() == "idempotency-key"
