"""Versions of a job: what is kept, and the way back."""

from typing import Any

import httpx
import pytest

from app.api.schemas.versions import EXAMPLE_VERSION, VersionOut
from app.database import Database
from tests.api.conftest import a_job

JOBS = "/api/v1/jobs"


async def make(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post(JOBS, json=a_job(**changes))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_versions_tell_who_wrote_what_and_when(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client, labels={"a": "b"})
    url = f"{JOBS}/{job['id']}"
    for number in range(2, 5):
        await client.patch(url, json={"description": f"text {number}"})
    await client.post(f"{url}/pause")
    page = (await client.get(f"{url}/versions", params={"limit": 3})).json()
    rest = (await client.get(f"{url}/versions", params={"limit": 3, "cursor": page["next_cursor"]})).json()
    versions = page["items"] + rest["items"]
    assert rest["next_cursor"] is None
    assert [one["version"] for one in versions] == [4, 3, 2, 1]
    assert [one["definition"]["description"] for one in versions] == ["text 4", "text 3", "text 2", ""]
    assert {one["author"] for one in versions} == {"anonymous"}
    assert versions[3]["create_time"] == job["create_time"]
    for one in versions:
        VersionOut.model_validate(one)
        assert all(one["definition"][name] == job[name] for name in one["definition"] if name != "description")
    assert (await client.get(f"{url}/versions/2")).json() == versions[2]
    VersionOut.model_validate(EXAMPLE_VERSION)
    for path in (f"{url}/versions/5", f"{url}/versions/0", f"{url}/versions/x", f"{JOBS}/{'0' * 32}/versions"):
        answer = await client.get(path)
        assert answer.status_code in {404, 422}, path
        assert answer.headers["content-type"] == "application/problem+json"
    bad = await client.get(f"{url}/versions", params={"cursor": page["next_cursor"] + "x"})
    assert bad.status_code == 400


@pytest.mark.usefixtures("within_an_hour")
async def test_restore_is_a_new_version_from_now_on(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    job = await make(client, trigger={"type": "interval", "every_s": 3600})
    url = f"{JOBS}/{job['id']}"
    off = await client.patch(url, json={"enabled": False, "trigger": {"every_s": 60}, "name": "other"})
    assert off.json()["next_run_time"] is None
    async with database.transaction() as connection:  # as if it had been off for five hours
        await connection.execute(
            "UPDATE jobs SET cursor_time = to_timestamp(floor(extract(epoch FROM now())) - 18000) WHERE id = $1",
            job["id"],
        )
    stale = await client.post(f"{url}/versions/1/restore", headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["type"]) == (412, "/problems/precondition-failed")
    await make(client)
    taken = await client.post(f"{url}/versions/1/restore", headers={"If-Match": '"2"'})
    assert (taken.status_code, taken.json()["type"]) == (409, "/problems/name-taken")
    twin = (await client.get(JOBS, params={"name": "digest"})).json()["items"][0]
    await client.delete(f"{JOBS}/{twin['id']}")

    answer = await client.post(f"{url}/versions/1/restore", headers={"If-Match": '"2"'})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"3"')
    restored = answer.json()
    assert (restored["version"], restored["name"], restored["enabled"]) == (3, "digest", True)
    assert restored["trigger"] == job["trigger"]
    assert restored["next_run_time"] == job["next_run_time"], "the next full hour, as before"
    assert (await client.get(f"{url}/runs")).json()["items"] == []
    again = await client.post(f"{url}/versions/1/restore")
    assert (again.status_code, again.json()["version"]) == (200, 3), "equal to the newest: nothing changes"
    assert (await client.post(f"{url}/versions/9/restore")).status_code == 404


async def test_a_version_of_before_gets_defaults_for_what_came_later(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job = await make(client)
    url = f"{JOBS}/{job['id']}"
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE job_versions SET definition = definition - 'deadline_s' - 'labels' || '{\"retry\": {}}'"
        )
    old = (await client.get(f"{url}/versions/1")).json()["definition"]
    assert "deadline_s" not in old
    assert (await client.patch(url, json={"deadline_s": 60})).json()["version"] == 2
    restored = (await client.post(f"{url}/versions/1/restore")).json()
    assert (restored["version"], restored["deadline_s"], restored["retry"]) == (3, None, job["retry"])


async def test_a_version_whose_queue_is_gone_is_refused(client: httpx.AsyncClient, queue: str) -> None:
    await client.post("/api/v1/queues", json={"name": "old"})
    job = await make(client, queue="old")
    url = f"{JOBS}/{job['id']}"
    assert (await client.patch(url, json={"queue": queue})).status_code == 200
    assert (await client.delete("/api/v1/queues/old")).status_code == 204
    refused = await client.post(f"{url}/versions/1/restore")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/queue")
    assert (await client.get(url)).json()["version"] == 2
