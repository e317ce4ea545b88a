"""Overlap, limits of a job and pausing after failures, as callers meet them."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from app.database import Database, clock
from app.progress import moves, transition
from app.progress.standing import Standing
from app.states import FAILURE, REVOKED, SUCCESS
from tests.api.conftest import a_job

JOBS = "/api/v1/jobs"
POLICIES = ["skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow"]


async def make(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post(JOBS, json=a_job(**changes))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def trigger(client: httpx.AsyncClient, job: dict[str, Any], status: int = 201, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"{JOBS}/{job['id']}/trigger", json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def run_of(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    return dict((await client.get(f"/api/v1/runs/{run_id}")).json())


async def end(database: Database, run_id: str, state: str) -> None:
    """What a worker's last word does to the row."""
    async with database.transaction() as connection:
        now = await clock(connection)
        error = {"error": {"type": "E", "message": "", "traceback": None}} if state == FAILURE else {}

        def move(standing: Standing) -> Standing:
            return moves.end(now, standing, state, start_time=now, **error)

        assert await transition.apply(connection, now, {UUID(run_id): [move]})


@pytest.mark.parametrize("overlap", POLICIES)
async def test_every_policy_is_kept_and_shown(client: httpx.AsyncClient, queue: str, overlap: str) -> None:
    job = await make(client, overlap=overlap, max_active=3, pause_after_failures=5)
    assert (job["overlap"], job["max_active"], job["pause_after_failures"]) == (overlap, 3, 5)
    (version,) = (await client.get(f"{JOBS}/{job['id']}/versions")).json()["items"]
    assert version["definition"]["overlap"] == overlap
    exported = (await client.get(f"{JOBS}/export")).json()["jobs"][0]
    assert (exported["max_active"], exported["pause_after_failures"]) == (3, 5)


async def test_a_trigger_says_what_is_in_its_way(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    job = await make(client)
    first = await trigger(client, job)
    assert first["waits_for"] is None
    problem = await trigger(client, job, 409, overlap="skip")
    assert (problem["type"], first["id"] in problem["detail"]) == ("/problems/no-room", True)
    second = await trigger(client, job, overlap="buffer_one")
    assert (second["waits_for"], second["reason"]) == (first["id"], f"waits for run {first['id']}")
    (why,) = (await client.get(f"/api/v1/runs/{second['id']}/why")).json()["items"][-1:]
    assert (why["code"], why["run_id"]) == ("waits_for_run", first["id"])
    assert second["id"] in (await trigger(client, job, 409, overlap="buffer_one"))["detail"]
    assert (await trigger(client, job, 422, overlap="some"))["errors"][0]["pointer"] == "/overlap"

    await end(database, first["id"], SUCCESS)
    freed = await run_of(client, second["id"])
    assert (freed["waits_for"], freed["reason"], freed["version"]) == (None, None, 2)
    third = await trigger(client, job, overlap="cancel_other")
    assert third["waits_for"] == second["id"]
    assert (await run_of(client, second["id"]))["cancel"]["by"] == "the overlap policy of its job"


async def test_a_run_that_waits_is_cancelled_at_once_and_its_next_moves_up(
    client: httpx.AsyncClient, queue: str
) -> None:
    """Pain 19: a place in line does not leak."""
    job = await make(client)
    a, b, c = [await trigger(client, job, overlap="buffer_all") for _ in range(3)]
    answer = await client.post(f"/api/v1/runs/{b['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, REVOKED)
    assert (await run_of(client, c["id"]))["waits_for"] == a["id"]
    await client.post(f"/api/v1/runs/{a['id']}/cancel")
    assert (await run_of(client, c["id"]))["waits_for"] is None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"enabled": False}),
        ("POST", "/pause", {"reason": "x"}),
        ("DELETE", "", None),
    ],
)
async def test_runs_that_wait_go_on_while_their_job_stands_still(
    client: httpx.AsyncClient, queue: str, database: Database, method: str, path: str, body: Any
) -> None:
    job = await make(client)
    first, second = [await trigger(client, job, overlap="buffer_all") for _ in range(2)]
    answer = await client.request(method, f"{JOBS}/{job['id']}{path}", json=body)
    assert answer.is_success, answer.text
    assert (await run_of(client, second["id"]))["waits_for"] == first["id"]
    await end(database, first["id"], SUCCESS)
    run = await run_of(client, second["id"])
    assert (run["state"], run["waits_for"]) == ("PENDING", None)


async def test_max_active_holds_for_triggers_and_retries(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    job = await make(client, overlap="allow", max_active=1)
    first = await trigger(client, job)
    await end(database, first["id"], FAILURE)
    again = (await client.post(f"/api/v1/runs/{first['id']}/retry")).json()
    assert again["waits_for"] is None
    assert (await trigger(client, job))["waits_for"] == again["id"]
    more = await client.post(f"/api/v1/runs/{first['id']}/retry")
    assert (more.status_code, more.json()["waits_for"] is not None) == (201, True)
    items = (await client.get(f"{JOBS}/{job['id']}/why")).json()["items"]
    (live,) = (item for item in items if item["code"] == "live_runs")
    assert live["count"] == 3
    assert "At most 1 run is active at once" in live["detail"]


async def test_a_trigger_with_a_key_makes_one_run_that_waits(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client)
    await trigger(client, job)
    answers = [
        await client.post(
            f"{JOBS}/{job['id']}/trigger", json={"overlap": "buffer_all"}, headers={"Idempotency-Key": "one"}
        )
        for _ in range(2)
    ]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert len((await client.get(f"{JOBS}/{job['id']}/runs")).json()["items"]) == 2


async def test_failures_before_a_resume_are_forgiven(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    job = await make(client, pause_after_failures=2)
    for _ in range(2):
        await end(database, (await trigger(client, job))["id"], FAILURE)
    # An edit settles the job first, and finds that it has failed too often.
    paused = (await client.patch(f"{JOBS}/{job['id']}", json={"description": "x"})).json()
    assert (paused["pause"]["by"], paused["next_run_time"]) == ("jobplane", None)
    assert paused["pause"]["reason"].startswith("2 runs in a row failed")
    resumed = (await client.post(f"{JOBS}/{job['id']}/resume")).json()
    assert (resumed["pause"], resumed["next_run_time"] is not None) == (None, True)
    await end(database, (await trigger(client, job))["id"], FAILURE)
    assert (await client.patch(f"{JOBS}/{job['id']}", json={"description": "y"})).json()["pause"] is None


async def test_runs_that_wait_heed_the_policy_that_the_job_gets(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client, overlap="allow", max_active=2)
    a, b, c, d, e = [await trigger(client, job) for _ in range(5)]
    assert [run["waits_for"] for run in (a, b, c, d, e)] == [None, None, a["id"], c["id"], d["id"]]

    async def edit(**changes: Any) -> list[str | None]:
        answer = await client.patch(f"{JOBS}/{job['id']}", json=changes)
        assert answer.status_code == 200, answer.text
        return [(await run_of(client, run["id"]))["waits_for"] for run in (c, d, e)]

    # Fewer: nobody goes who would be one too many.
    assert await edit(max_active=1) == [a["id"], c["id"], d["id"]]
    await client.post(f"/api/v1/runs/{a['id']}/cancel")
    assert (await run_of(client, c["id"]))["waits_for"] == b["id"]
    # More: whoever may go goes at once.
    assert await edit(max_active=2) == [None, c["id"], d["id"]]
    assert await edit(max_active=None) == [None, None, None]


async def test_what_waits_under_a_policy_of_its_own_goes_on_so(client: httpx.AsyncClient, queue: str) -> None:
    job = await make(client, overlap="allow")
    first = await trigger(client, job)
    second = await trigger(client, job, overlap="buffer_one")
    await client.patch(f"{JOBS}/{job['id']}", json={"max_active": 3})
    assert (await run_of(client, second["id"]))["waits_for"] == first["id"]
