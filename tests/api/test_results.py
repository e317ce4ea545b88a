"""`GET /runs/{id}/result`: the whole result, wherever it is kept, or why it is nowhere."""

from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis

from app.database import Database
from app.logs.place import result_of
from app.progress import marks
from app.settings import Settings
from tests.feed.feeds import Runs

NOBODY = "018f3f00-0000-7000-8000-000000000000"


@pytest.fixture
def runs(database: Database, redis: Redis) -> Runs:
    return Runs(database, redis)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "store").mkdir()
    return settings.model_copy(update={"log_store": (tmp_path / "store").as_uri()})


async def ended(runs: Runs, result: Any) -> str:
    [run_id] = await runs.make()
    await runs.move(run_id, to="SUCCESS", result=result)
    return f"/api/v1/runs/{run_id}/result"


@pytest.mark.parametrize("result", [None, 7, "text", {"a": [1, {"b": None}]}, {"jobplane": "result stored", "x": 1}])
async def test_a_result_in_the_run(client: httpx.AsyncClient, runs: Runs, result: Any) -> None:
    answer = await client.get(await ended(runs, marks.given(result)))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == result


async def test_a_result_in_the_store_and_when_it_is_not_there_any_more(
    client: httpx.AsyncClient, runs: Runs, tmp_path: Path
) -> None:
    path = await ended(runs, marks.stored(9, "file:///somewhere/result.json"))
    kept = tmp_path / "store" / result_of(UUID(path.split("/")[4]))
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b'[1, "two"]')
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.content == b'[1, "two"]'
    large = b"[" + b"7," * 5_000_000 + b"7]"
    kept.write_bytes(large)
    assert (await client.get(path)).content == large
    kept.unlink()
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["type"]) == (410, "/problems/result-gone")
    assert "file:///somewhere/result.json" in answer.json()["detail"]
    (tmp_path / "store").rename(tmp_path / "away")
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")


async def test_a_result_that_is_nowhere(client: httpx.AsyncClient, runs: Runs) -> None:
    for mark, why in [
        (marks.too_large(30, 16), "the result had 30 bytes, more than 16 bytes"),
        (marks.lost(30, "the store was away"), "the result was lost (30 bytes): the store was away"),
    ]:
        answer = await client.get(await ended(runs, mark))
        assert (answer.status_code, answer.json()["detail"]) == (410, why)


async def test_a_run_that_has_none(client: httpx.AsyncClient, runs: Runs) -> None:
    [run_id] = await runs.make()
    answer = await client.get(f"/api/v1/runs/{run_id}/result")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    assert answer.json()["detail"] == f"the run {run_id} has no result yet: it is PENDING"
    await runs.move(run_id, to="REVOKED", reason="asked")
    answer = await client.get(f"/api/v1/runs/{run_id}/result")
    assert answer.json()["detail"] == f"the run {run_id} has no result: it is REVOKED"
    assert (await client.get(f"/api/v1/runs/{NOBODY}/result")).status_code == 404
