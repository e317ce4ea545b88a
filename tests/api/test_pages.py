"""Keyset pages: every item once, and no cursor where it does not belong."""

import httpx
import pytest

from app.api.pages import PageQuery, place
from app.errors import BadRequest, CursorMismatch
from tests.api.conftest import a_job


async def walk(client: httpx.AsyncClient, path: str, **query: str | int) -> list[str]:
    """The ids or names of all pages, each of at most two items."""
    found: list[str] = []
    cursor = None
    for _ in range(20):
        params = {"limit": 2, **query, **({"cursor": cursor} if cursor else {})}
        body = (await client.get(path, params=params)).json()
        assert len(body["items"]) <= 2
        found += [item.get("name") or item.get("id") or str(item["version"]) for item in body["items"]]
        cursor = body["next_cursor"]
        if cursor is None:
            return found
    raise AssertionError("the pages never end")


async def test_every_list_can_be_walked(client: httpx.AsyncClient, queue: str) -> None:
    for name in "bca":
        await client.post("/api/v1/queues", json={"name": name})
    for name in "vwxyz":
        await client.post("/api/v1/jobs", json=a_job(name=name))
    runs = [(await client.post("/api/v1/runs", json={"task": "x"})).json()["id"] for _ in range(5)]
    job = (await client.get("/api/v1/jobs?name=v")).json()["items"][0]
    made = [(await client.post(f"/api/v1/jobs/{job['id']}/trigger")).json()["id"] for _ in range(3)]
    assert await walk(client, "/api/v1/queues") == ["a", "b", "c", "default"]
    assert await walk(client, "/api/v1/jobs") == list("vwxyz")
    assert await walk(client, "/api/v1/runs", kind="adhoc") == runs[::-1]
    assert await walk(client, f"/api/v1/jobs/{job['id']}/runs") == made[::-1]
    await client.post(f"/api/v1/runs/{runs[0]}/cancel")
    assert await walk(client, f"/api/v1/runs/{runs[0]}/events", limit=1) == ["1", "2"]


async def test_a_cursor_belongs_to_its_list_and_filters(client: httpx.AsyncClient, queue: str) -> None:
    for name in "ab":
        await client.post("/api/v1/jobs", json=a_job(name=name))
    cursor = (await client.get("/api/v1/jobs?limit=1&enabled=true")).json()["next_cursor"]
    assert (await client.get(f"/api/v1/jobs?limit=50&enabled=true&cursor={cursor}")).status_code == 200
    for url in (f"/api/v1/runs?cursor={cursor}", f"/api/v1/jobs?cursor={cursor}", f"/api/v1/queues?cursor={cursor}"):
        answer = await client.get(url)
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/cursor-mismatch"), url


@pytest.mark.parametrize("text", ["x", "%%%", "eyJhIjoxfQ", "WzEsMiwzXQ", "WyJqb2JzIiwxXQ", "a" * 1000])
async def test_garbage_is_no_cursor(client: httpx.AsyncClient, text: str) -> None:
    answer = await client.get("/api/v1/jobs", params={"cursor": text})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/bad-request")


def test_a_cursor_with_a_forged_key_is_refused() -> None:
    from app.api.pages import as_id

    here = place("jobs", PageQuery())
    forged = place("jobs", PageQuery(cursor=here.cursor("'; DROP TABLE jobs")))
    with pytest.raises(BadRequest):
        as_id(forged.after)
    with pytest.raises(CursorMismatch):
        place("runs", PageQuery(cursor=here.cursor("x")))
