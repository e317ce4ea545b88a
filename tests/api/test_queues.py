"""Queues over REST."""

import httpx

from app.api.schemas.queues import QueueOut
from tests.api.conftest import a_job

QUEUES = "/api/v1/queues"


async def test_a_queue_is_made_read_and_deleted(client: httpx.AsyncClient) -> None:
    answer = await client.post(QUEUES, json={"name": "mail"})
    queue = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"{QUEUES}/mail")
    QueueOut.model_validate(queue)
    assert (queue["namespace"], queue["exchange"], queue["exchange_type"]) == ("default", "mail", "direct")
    assert (queue["routing_key"], queue["type"], queue["declare_time"]) == ("mail", "classic", None)
    assert (await client.get(f"{QUEUES}/mail")).json() == queue
    again = await client.post(QUEUES, json={"name": "mail", "namespace": "team-b"})
    assert (again.status_code, again.json()["type"]) == (409, "/problems/name-taken")
    assert (await client.delete(f"{QUEUES}/mail")).status_code == 204
    assert (await client.get(f"{QUEUES}/mail")).status_code == 404
    assert (await client.get(f"{QUEUES}/%00")).status_code == 404


async def test_what_may_change(client: httpx.AsyncClient) -> None:
    await client.post(QUEUES, json={"name": "mail", "exchange": "post", "type": "quorum"})
    url = f"{QUEUES}/mail"
    patched = await client.patch(url, json={"paused": True, "shared_with": ["b", "a", "b"], "exchange": "post"})
    assert patched.status_code == 200, patched.text
    assert (patched.json()["paused"], patched.json()["shared_with"]) == (True, ["a", "b"])
    assert (patched.json()["version"], patched.headers["etag"]) == (2, '"2"')
    assert (await client.patch(url, json={"paused": True})).json() == patched.json()
    assert (await client.patch(url, json={"paused": None})).json()["paused"] is False
    stale = await client.patch(url, json={"paused": True}, headers={"If-Match": '"1"'})
    assert stale.status_code == 412
    for name, value in (("exchange", "x"), ("type", "classic"), ("exchange_type", "topic"), ("name", "x")):
        change = {name: value}
        answer = await client.patch(url, json=change)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(change))}"
        assert "cannot change" in answer.json()["detail"]


async def test_bad_queues(client: httpx.AsyncClient) -> None:
    for body, pointer in [
        ({}, "/name"),
        ({"name": "amq.mine"}, "/name"),
        ({"name": "a b"}, "/name"),
        ({"name": "a", "exchange": "amq.direct"}, "/exchange"),
        ({"name": "a", "exchange": ""}, "/exchange"),
        ({"name": "a", "routing_key": "x" * 256}, "/routing_key"),
        ({"name": "a", "exchange_type": "headers"}, "/exchange_type"),
        ({"name": "a", "type": "stream"}, "/type"),
        ({"name": "a", "max_priority": 0}, "/max_priority"),
        ({"name": "a", "type": "quorum", "max_priority": 5}, "/max_priority"),
        ({"name": "a", "shared_with": "all"}, "/shared_with"),
        ({"name": "a", "shared_with": [1]}, "/shared_with/0"),
        ({"name": "a", "durable": False}, "/durable"),
    ]:
        answer = await client.post(QUEUES, json=body)
        assert answer.status_code == 422, body
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer], (body, answer.text)
    assert (await client.get(QUEUES)).json()["items"] == []


async def test_a_queue_in_use_stays(client: httpx.AsyncClient) -> None:
    await client.post(QUEUES, json={"name": "mail", "shared_with": ["team-b"], "max_priority": 5})
    job = (await client.post("/api/v1/jobs", json=a_job(queue="mail", namespace="team-b"))).json()
    run = (await client.post(f"/api/v1/jobs/{job['id']}/trigger")).json()
    unshared = await client.patch(f"{QUEUES}/mail", json={"shared_with": []})
    assert (unshared.status_code, unshared.json()["type"]) == (409, "/problems/queue-in-use")
    too_high = await client.post("/api/v1/runs", json={"task": "x", "queue": "mail", "priority": 6})
    assert too_high.json()["errors"][0]["pointer"] == "/priority"
    in_use = await client.delete(f"{QUEUES}/mail")
    assert (in_use.status_code, in_use.json()["type"]) == (409, "/problems/queue-in-use")
    assert "1 job and by 1 live run" in in_use.json()["detail"]
    await client.delete(f"/api/v1/jobs/{job['id']}")
    assert (await client.delete(f"{QUEUES}/mail")).status_code == 409
    await client.post(f"/api/v1/runs/{run['id']}/cancel")
    assert (await client.delete(f"{QUEUES}/mail")).status_code == 204


async def test_filters(client: httpx.AsyncClient) -> None:
    await client.post(QUEUES, json={"name": "a", "namespace": "team-a"})
    await client.post(QUEUES, json={"name": "b", "paused": True})

    async def names(query: str) -> list[str]:
        return [queue["name"] for queue in (await client.get(f"{QUEUES}?{query}")).json()["items"]]

    assert (await names(""), await names("namespace=team-a"), await names("paused=true")) == (["a", "b"], ["a"], ["b"])
