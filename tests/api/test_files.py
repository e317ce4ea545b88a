"""Jobs as files: what a document makes, what it leaves alone, and what comes back. Numbers are rows of the pains."""

import asyncio
from typing import Any

import httpx

from app.api.schemas.files import EXAMPLE_FILE, EXAMPLE_PLAN, ApplyIn, PlanOut
from app.database import Database
from tests.api.conftest import a_job

JOBS = "/api/v1/jobs"
APPLY = f"{JOBS}/apply"


async def apply(client: httpx.AsyncClient, status: int = 200, **document: Any) -> dict[str, Any]:
    answer = await client.post(APPLY, json=document)
    assert answer.status_code == status, answer.text
    plan: dict[str, Any] = answer.json()
    if status == 200:
        PlanOut.model_validate(plan)
    return plan


def actions(plan: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["action"] for item in plan["jobs"]}


async def jobs(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    found = (await client.get(JOBS, params={"limit": 200})).json()["items"]
    return {job["name"]: job for job in found}


async def test_a_document_is_made_so_and_a_second_time_changes_nothing(client: httpx.AsyncClient) -> None:
    document: dict[str, Any] = {
        "owner": "team/deploy",
        "namespace": "team",
        "queues": [{"name": "team"}],
        "jobs": [
            a_job(name="a", queue="team", kwargs={"since": {"days": 1}}, retry={"max_attempts": 3}),
            a_job(name="b", queue="team", trigger={"type": "interval", "every_s": 86_400}, labels={"x": "y"}),
        ],
    }
    planned = await apply(client, **document, dry_run=True)
    assert (planned["summary"], planned["changed"], planned["dry_run"]) == ("3 to create", True, True)
    assert {item["id"] for item in planned["jobs"]} == {None}
    assert await jobs(client) == {}
    assert (await client.get("/api/v1/queues")).json()["items"] == []

    plan = await apply(client, **document)
    assert (plan["summary"], actions(plan)) == ("3 created", {"a": "create", "b": "create"})
    assert plan["jobs"][0]["warnings"][0]["code"] == "no_worker"
    there = await jobs(client)
    assert [(job["namespace"], job["version"]) for job in there.values()] == [("team", 1)] * 2
    assert there["b"]["labels"] == {"x": "y", "jobplane/owner": "team/deploy"}
    assert [item["id"] for item in plan["jobs"]] == [there["a"]["id"], there["b"]["id"]]

    again = await apply(client, **document)
    assert (again["summary"], again["changed"]) == ("3 unchanged", False)
    assert await jobs(client) == there, "redeployed: same version, same next time"

    document["jobs"][1]["trigger"]["every_s"] = 90_000
    document["queues"][0]["description"] = "ours"
    changed = await apply(client, **document)
    assert changed["summary"] == "2 updated, 1 unchanged"
    assert changed["jobs"][1]["changes"] == [{"pointer": "/trigger/every_s", "old": 86_400, "new": 90_000}]
    assert changed["queues"][0]["changes"] == [{"pointer": "/description", "old": "", "new": "ours"}]
    now = await jobs(client)
    assert (now["a"], now["b"]["version"], now["b"]["id"]) == (there["a"], 2, there["b"]["id"])
    ApplyIn.model_validate(EXAMPLE_FILE)
    PlanOut.model_validate(EXAMPLE_PLAN)


async def test_pain_20_a_deploy_leaves_alone_what_people_did(
    client: httpx.AsyncClient, queue: str, database: Database
) -> None:
    document = {"owner": "d", "jobs": [a_job(name="a"), a_job(name="b"), a_job(name="c", enabled=True)]}
    await apply(client, **document)
    there = await jobs(client)
    await client.post(f"{JOBS}/{there['a']['id']}/pause", json={"reason": "by hand"})
    for name in ("b", "c"):
        await client.patch(f"{JOBS}/{there[name]['id']}", json={"enabled": False})
    before = await jobs(client)

    plan = await apply(client, **document)
    after = await jobs(client)
    assert actions(plan) == {"a": "unchanged", "b": "unchanged", "c": "update"}
    assert after["a"] == before["a"]
    assert after["a"]["pause"]["reason"] == "by hand"
    assert after["b"] == before["b"]
    assert after["c"]["enabled"] is True, "the file says so explicitly"
    assert plan["jobs"][2]["changes"] == [{"pointer": "/enabled", "old": False, "new": True}]
    changed = {**document, "jobs": [a_job(name="a", description="new"), *document["jobs"][1:]]}
    await apply(client, **changed)
    edited = (await jobs(client))["a"]
    assert (edited["description"], edited["pause"], edited["next_run_time"]) == ("new", before["a"]["pause"], None)


async def test_pain_20_what_is_left_out_stays_and_an_empty_list_takes_all_away(
    client: httpx.AsyncClient, queue: str
) -> None:
    await client.post(JOBS, json=a_job(name="by-hand"))
    await apply(client, owner="other", jobs=[a_job(name="theirs")])
    await apply(client, owner="d", jobs=[a_job(name="a"), a_job(name="b")])
    await client.post("/api/v1/queues", json={"name": "far", "namespace": "far"})
    await apply(client, owner="d", namespace="far", jobs=[a_job(name="far", queue="far")])
    everything = {"by-hand", "theirs", "a", "b", "far"}

    assert (await apply(client, owner="d", jobs=[a_job(name="a")]))["summary"] == "1 unchanged"
    assert (await jobs(client)).keys() == everything, "nothing is taken away that nobody asked for"
    refused = await apply(client, 422, owner="d", prune=True)
    assert refused["errors"][0]["pointer"] == "/jobs"
    refused = await apply(client, 422, prune=True, jobs=[])
    assert refused["errors"][0]["pointer"] == "/owner"
    planned = await apply(client, owner="d", prune=True, jobs=[a_job(name="a")], dry_run=True)
    assert (actions(planned), planned["summary"]) == ({"a": "unchanged", "b": "prune"}, "1 unchanged, 1 to prune")
    assert (await jobs(client)).keys() == everything
    plan = await apply(client, owner="d", prune=True, jobs=[a_job(name="a")])
    assert actions(plan) == {"a": "unchanged", "b": "prune"}
    assert (await apply(client, owner="d", prune=True, jobs=[]))["summary"] == "1 pruned"
    assert (await jobs(client)).keys() == {"by-hand", "theirs", "far"}


async def test_a_job_of_another_owner_is_a_conflict_and_nothing_is_applied(
    client: httpx.AsyncClient, queue: str
) -> None:
    await apply(client, owner="one", jobs=[a_job(name="a")])
    await client.post(JOBS, json=a_job(name="free"))
    before = await jobs(client)
    wanted = {"jobs": [a_job(name="new"), a_job(name="a", description="x"), a_job(name="free")]}
    for owner in ({"owner": "two"}, {}):
        planned = await apply(client, **wanted, **owner, dry_run=True)
        assert actions(planned)["a"] == "conflict"
        assert planned["jobs"][1]["reason"] == "the job default/a belongs to the owner 'one'"
        refused = await apply(client, 409, **wanted, **owner)
        assert refused["type"] == "/problems/conflict"
        assert "/jobs/1: the job default/a belongs to the owner 'one'" in refused["detail"]
    assert await jobs(client) == before
    taken = await apply(client, owner="two", jobs=[a_job(name="free")])
    pointer = "/labels/jobplane~1owner"
    assert taken["jobs"][0]["changes"] == [{"pointer": pointer, "old": None, "new": "two"}], "of nobody: free to take"
    mixed = await apply(client, 422, owner="two", jobs=[a_job(labels={"jobplane/owner": "one"})])
    assert mixed["errors"][0]["pointer"] == f"/jobs/0{pointer}"


async def test_every_fault_is_named_by_its_place_and_nothing_is_half_written(
    client: httpx.AsyncClient, queue: str
) -> None:
    broken = a_job(name="c", trigger={"type": "cron", "expression": "61 * * * *"})
    answer = await apply(client, 422, jobs=[a_job(name="a"), a_job(name="b"), {"name": "x"}, broken])
    pointers = {error["pointer"]: error["detail"] for error in answer["errors"]}
    assert pointers.keys() == {"/jobs/2/task", "/jobs/2/queue", "/jobs/2/trigger", "/jobs/3/trigger/expression"}
    assert '"61" is not between 0 and 59' in pointers["/jobs/3/trigger/expression"]

    late = [a_job(name="a"), a_job(name="b", queue="nowhere"), a_job(name="c", kwargs={"x": "y" * 600_000})]
    answer = await apply(
        client, 422, queues=[{"name": "q", "type": "quorum"}, {"name": "default", "type": "quorum"}], jobs=late
    )
    assert [error["pointer"] for error in answer["errors"]] == ["/queues/1/type", "/jobs/1/queue", "/jobs/2/kwargs"]
    twice = await apply(client, 422, jobs=[a_job(), a_job(namespace="default")])
    assert twice["errors"] == [{"pointer": "/jobs/1/name", "detail": "is in the document already, as /jobs/0"}]
    many = await apply(client, 422, jobs=[a_job(name=f"j{number}") for number in range(1001)])
    assert many["errors"][0]["pointer"] == "/jobs"
    unknown = await apply(client, 422, job=[])
    assert unknown["errors"] == [{"pointer": "/job", "detail": "is not known here"}]
    assert await jobs(client) == {}
    assert [one["name"] for one in (await client.get("/api/v1/queues")).json()["items"]] == ["default"]
    assert (await apply(client))["summary"] == "nothing in the document"


async def test_two_deploys_at_once_make_each_job_once(client: httpx.AsyncClient, queue: str) -> None:
    names = [f"job-{number}" for number in range(20)]
    one = [a_job(name=name) for name in names]
    plans = await asyncio.gather(apply(client, owner="d", jobs=one), apply(client, owner="d", jobs=one[::-1]))
    assert sorted(plan["summary"] for plan in plans) == ["20 created", "20 unchanged"]
    assert {job["version"] for job in (await jobs(client)).values()} == {1}


async def test_what_is_exported_is_applied_unchanged(client: httpx.AsyncClient, queue: str) -> None:
    await client.post("/api/v1/queues", json={"name": "team", "namespace": "team", "type": "quorum", "paused": True})
    await client.post("/api/v1/queues", json={"name": "shared", "exchange": "x", "shared_with": ["team"]})
    many = [
        a_job(name="plain"),
        a_job(name="off", enabled=False, args=[1, None], kwargs={"a": {}}, labels={"x": "y"}, priority=0),
        a_job(name="rich", retry={"max_attempts": 3, "retry_on": ["KeyError"]}, time_limit_s=1.5, overlap="allow"),
        a_job(name="zone", trigger={"type": "cron", "minute": 5, "timezone": "Asia/Shanghai", "jitter_s": 3}),
        a_job(name="until", trigger={"type": "interval", "every_s": 86_400, "end_time": "2090-01-01T00:00:00+01:00"}),
        a_job(name="once", trigger={"type": "once", "run_time": "2090-01-01T00:00:00Z"}),
    ]
    await apply(client, jobs=many)
    await apply(client, owner="o", namespace="team", jobs=[a_job(name="owned", queue="team"), a_job(queue="shared")])
    before = await jobs(client)
    for asked in ({}, {"namespace": "team"}, {"owner": "o"}, {"namespace": "team", "owner": "o"}):
        document = (await client.get(f"{JOBS}/export", params=asked)).json()
        assert {name: document[name] for name in ("namespace", "owner") if name in document} == asked
        assert len(document["jobs"]) == (2 if asked else 8)
        plan = await apply(client, **document)
        assert not plan["changed"], plan
    assert await jobs(client) == before
    plain = next(job for job in (await client.get(f"{JOBS}/export")).json()["jobs"] if job["name"] == "plain")
    assert plain == a_job(name="plain"), "what has its default is left out"
    assert (await client.get("/api/v1/queues/team")).json()["paused"] is True


async def test_a_job_by_its_name(client: httpx.AsyncClient, queue: str) -> None:
    url = "/api/v1/namespaces/default/jobs/digest"
    body = {name: value for name, value in a_job().items() if name != "name"}
    expected = await client.put(url, json=body, headers={"If-Match": '"1"'})
    assert expected.status_code == 412
    made = await client.put(url, json=body)
    job = made.json()
    assert (made.status_code, made.headers["jobplane-outcome"]) == (201, "created")
    assert made.headers["location"] == f"{JOBS}/{job['id']}"
    same = await client.put(url, json=a_job(), headers={"If-Match": '"1"'})
    assert (same.status_code, same.headers["jobplane-outcome"], same.json()) == (200, "unchanged", job)
    await client.patch(f"{JOBS}/{job['id']}", json={"enabled": False, "labels": {"jobplane/owner": "o"}})
    kept = await client.put(url, json={**body, "description": "new"})
    assert (kept.headers["jobplane-outcome"], kept.headers["etag"]) == ("updated", '"3"')
    assert (kept.json()["id"], kept.json()["enabled"]) == (job["id"], False)
    assert kept.json()["labels"] == {"jobplane/owner": "o"}
    assert (await client.put(url, json={**body, "enabled": True})).json()["next_run_time"] == job["next_run_time"]
    stale = await client.put(url, json=body, headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["type"]) == (412, "/problems/precondition-failed")
    other = await client.put(url, json=a_job(name="other", namespace="x"))
    assert [error["pointer"] for error in other.json()["errors"]] == ["/namespace", "/name"]
    bad = await client.put(url, json={**body, "trigger": {"type": "cron", "expression": "61 * * * *"}})
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/trigger/expression")
    assert (await client.put(f"{url}%20", json=body)).json()["errors"][0]["pointer"] == "/name"
    at_once = await asyncio.gather(*(client.put(f"{url}-2", json=body) for _ in range(4)))
    assert sorted(answer.status_code for answer in at_once) == [200, 200, 200, 201]
