"""Queues over REST."""

import asyncio
from contextlib import suppress

import aio_pika
import httpx
import pytest
from redis.asyncio import Redis

from app.api.schemas.queues import QueueOut
from app.database import Connection, Database
from app.dispatch import limit_queries
from app.embedded import free_port
from app.settings import Settings
from tests.api.conftest import a_job, client_of
from tests.dispatch.parts import Rig, amqp_channel
from tests.processes import PATIENCE_S

QUEUES = "/api/v1/queues"


async def test_a_queue_is_made_read_and_deleted(client: httpx.AsyncClient) -> None:
    answer = await client.post(QUEUES, json={"name": "mail"})
    queue = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"{QUEUES}/mail")
    QueueOut.model_validate(queue)
    assert (queue["namespace"], queue["exchange"], queue["exchange_type"]) == ("default", "mail", "direct")
    assert (queue["routing_key"], queue["type"], queue["declare_time"]) == ("mail", "classic", None)
    read = (await client.get(f"{QUEUES}/mail")).json()
    QueueOut.model_validate(read)
    nothing = {"ready": 0, "consumers": 0, "waiting_runs": 0, "places_taken": None, "oldest_run": None, "problem": None}
    assert read == {**queue, "backlog": nothing}
    assert (await client.get(QUEUES)).json()["items"] == [queue]
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
    more = {
        "max_message_kib": 64,
        "result_db": 3,
        "result_prefix": "team_",
        "description": "letters",
        "max_active": 10,
        "rate_limit": "100/m",
    }
    answer = (await client.patch(url, json=more)).json()
    assert ({name: answer[name] for name in more}, answer["version"]) == (more, 4)
    back = (await client.patch(url, json=dict.fromkeys(more))).json()
    assert [back[name] for name in more] == [None, None, "", "", None, None]
    fixed = {
        "exchange": "x",
        "type": "classic",
        "exchange_type": "topic",
        "name": "x",
        "delivery_limit": 5,
        "dead_letter": True,
        "routing_key": "x",
    }
    for name, value in fixed.items():
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
        ({"name": "a", "exchange": "a*"}, "/exchange"),
        ({"name": "a", "exchange": "a" * 128}, "/exchange"),
        ({"name": "a", "exchange": "", "routing_key": "b"}, "/routing_key"),
        ({"name": "a", "exchange": "", "exchange_type": "fanout"}, "/exchange_type"),
        ({"name": "a", "exchange_type": "topic", "routing_key": "a.*"}, "/routing_key"),
        ({"name": "a", "exchange_type": "topic", "routing_key": "#"}, "/routing_key"),
        ({"name": "jobplane.dead"}, "/name"),
        ({"name": "jobplane.replies"}, "/name"),
        ({"name": "a", "delivery_limit": 5}, "/delivery_limit"),
        ({"name": "a", "type": "quorum", "delivery_limit": 0}, "/delivery_limit"),
        ({"name": "a", "dead_letter": "yes"}, "/dead_letter"),
        ({"name": "a", "max_message_kib": 0}, "/max_message_kib"),
        ({"name": "a", "max_message_kib": 10**9}, "/max_message_kib"),
        ({"name": "a", "consumer_timeout_s": 59}, "/consumer_timeout_s"),
        ({"name": "a", "result_db": -1}, "/result_db"),
        ({"name": "a", "result_db": 40000}, "/result_db"),
        ({"name": "a", "result_prefix": None}, "/result_prefix"),
        ({"name": "a", "result_prefix": "x\n"}, "/result_prefix"),
        ({"name": "a", "max_active": 0}, "/max_active"),
        ({"name": "a", "max_active": 100_001}, "/max_active"),
        ({"name": "a", "max_active": "10"}, "/max_active"),
        ({"name": "a", "rate_limit": "100"}, "/rate_limit"),
        ({"name": "a", "rate_limit": "0/m"}, "/rate_limit"),
        ({"name": "a", "rate_limit": "1.5/s"}, "/rate_limit"),
        ({"name": "a", "rate_limit": "100/m\n"}, "/rate_limit"),
        ({"name": "a", "rate_limit": 100}, "/rate_limit"),
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


async def test_the_default_exchange_is_one_that_always_works(client: httpx.AsyncClient) -> None:
    for name in ("a", "b"):
        queue = (await client.post(QUEUES, json={"name": name, "exchange": ""})).json()
        assert (queue["exchange"], queue["exchange_type"], queue["routing_key"]) == ("", "direct", name)
    answer = await client.patch(f"{QUEUES}/a", json={"description": "x", "exchange": ""})
    assert answer.status_code == 200, answer.text
    assert (await client.patch(f"{QUEUES}/a", json={"exchange": None})).status_code == 422


async def test_a_route_reaches_one_queue(client: httpx.AsyncClient) -> None:
    async def refused(name: str, **queue: str) -> tuple[str, str]:
        answer = await client.post(QUEUES, json={"name": name, **queue})
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        return error["pointer"], error["detail"]

    async def made(name: str, **queue: str) -> None:
        answer = await client.post(QUEUES, json={"name": name, **queue})
        assert answer.status_code == 201, answer.text

    await made("mail")
    pointer, detail = await refused("letters", exchange="mail", routing_key="mail")
    assert (pointer, detail) == (
        "/routing_key",
        "a route must reach one queue, and this one of 'mail' also meets the queue 'mail'",
    )
    await made("letters", exchange="mail")
    assert (await refused("x", exchange="mail", exchange_type="topic"))[0] == "/exchange_type"
    await made("shop.a", exchange="shop", exchange_type="topic")
    await made("shop.b", exchange="shop", exchange_type="topic")
    await made("news", exchange="news", exchange_type="fanout")
    pointer, detail = await refused("more", exchange="news", exchange_type="fanout")
    assert (pointer, "'news'" in detail) == ("/exchange", True)


async def test_of_two_that_want_one_route_at_once_one_gets_it(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.post(QUEUES, json={"name": f"q{n}", "exchange": "shop", "routing_key": "same"}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [422] * 7


async def test_pause_and_resume(client: httpx.AsyncClient) -> None:
    await client.post(QUEUES, json={"name": "mail"})
    url = f"{QUEUES}/mail"
    for action, paused, version in (("pause", True, 2), ("pause", True, 2), ("resume", False, 3), ("resume", False, 3)):
        answer = await client.post(f"{url}/{action}")
        assert (answer.status_code, answer.json()["paused"], answer.json()["version"]) == (200, paused, version)
        assert answer.headers["etag"] == f'"{version}"'
    assert (await client.post(f"{url}/pause", json={"reason": "x"})).status_code == 422
    assert (await client.post(f"{QUEUES}/none/pause")).status_code == 404


async def test_what_a_queue_allows_is_checked_when_work_is_saved(client: httpx.AsyncClient) -> None:
    await client.post(QUEUES, json={"name": "strict", "consumer_timeout_s": 600, "max_message_kib": 1})
    job = (await client.post("/api/v1/jobs", json=a_job(queue="strict", time_limit_s=599.5))).json()
    for change, pointer in [
        ({"time_limit_s": 600}, "/time_limit_s"),
        ({"args": ["x" * 1024]}, "/args"),
        ({"kwargs": {"text": "x" * 1024}}, "/kwargs"),
    ]:
        for answer in (
            await client.patch(f"/api/v1/jobs/{job['id']}", json=change),
            await client.post("/api/v1/jobs", json=a_job(**{"queue": "strict", "name": "other", **change})),
            await client.post("/api/v1/runs", json={"task": "x", "queue": "strict", **change}),
        ):
            assert answer.status_code == 422, answer.text
            assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    trigger = await client.post(f"/api/v1/jobs/{job['id']}/trigger", json={"args": ["x" * 1024]})
    assert trigger.json()["errors"][0]["pointer"] == "/args"


async def test_priorities_are_for_classic_queues_and_for_redis(
    client: httpx.AsyncClient, amqp_client: httpx.AsyncClient
) -> None:
    for made in (client, amqp_client):
        await made.post(QUEUES, json={"name": "q", "type": "quorum"})
        await made.post(QUEUES, json={"name": "c"})
    run = {"task": "x", "queue": "q", "priority": 3}
    assert (await client.post("/api/v1/runs", json=run)).status_code == 201
    refused = await amqp_client.post("/api/v1/runs", json=run)
    assert refused.json()["errors"][0]["pointer"] == "/priority"
    refused = await amqp_client.post("/api/v1/jobs", json=a_job(queue="q", priority=0))
    assert refused.json()["errors"][0]["pointer"] == "/priority"
    assert (await amqp_client.post("/api/v1/runs", json={**run, "queue": "c"})).status_code == 201


async def test_what_the_broker_does_to_an_adopted_queue_may_be_told_later(
    amqp_client: httpx.AsyncClient, database: Database
) -> None:
    await amqp_client.post(QUEUES, json={"name": "q", "consumer_timeout_s": 60})
    change = {"consumer_timeout_s": 3600}
    refused = await amqp_client.patch(f"{QUEUES}/q", json=change)
    assert refused.json()["errors"][0]["pointer"] == "/consumer_timeout_s"
    async with database.transaction() as connection:
        await connection.execute("UPDATE queues SET adopted = true")
    answer = await amqp_client.patch(f"{QUEUES}/q", json=change)
    assert (answer.status_code, answer.json()["consumer_timeout_s"]) == (200, 3600)


async def test_the_backlog_names_what_waits(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    runs = [(await client.post("/api/v1/runs", json={"task": "x"})).json() for _ in range(3)]
    await client.post(f"/api/v1/runs/{runs[0]['id']}/cancel")
    async with database.transaction() as connection:
        await connection.execute(
            """
            INSERT INTO workers (node, queues, tasks, first_seen_time, seen_time) VALUES
                ('a', '{default,mail}', '{}', now(), now()), ('b', '{mail}', '{}', now(), now()),
                ('gone', '{default}', '{}', now(), now() - interval '31 seconds')
            """
        )
    backlog = (await client.get(f"{QUEUES}/{queue}")).json()["backlog"]
    assert (backlog["ready"], backlog["consumers"], backlog["waiting_runs"]) == (0, 1, 2)
    assert backlog["oldest_run"] == {"id": runs[1]["id"], "create_time": runs[1]["create_time"], "reason": None}


async def test_the_backlog_on_rabbitmq_is_the_brokers_word(amqp_client: httpx.AsyncClient, amqp_url: str) -> None:
    await amqp_client.post(QUEUES, json={"name": "q"})
    backlog = (await amqp_client.get(f"{QUEUES}/q")).json()["backlog"]
    assert (backlog["ready"], backlog["consumers"]) == (None, None)
    assert "no queue 'q'" in backlog["problem"]
    async with amqp_channel(amqp_url) as channel:
        await channel.declare_queue("q", durable=True)
        for _ in range(2):
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), "q")
        await (await channel.get_queue("q", ensure=False)).get(no_ack=True, timeout=5)
        backlog = (await amqp_client.get(f"{QUEUES}/q")).json()["backlog"]
    assert (backlog["ready"], backlog["consumers"], backlog["problem"]) == (1, 0, None)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
async def test_a_broker_that_is_away_is_told_in_the_backlog(settings: Settings, scheme: str) -> None:
    away = Settings.load(**{**dict(settings), "broker_url": f"{scheme}://127.0.0.1:{free_port()}"})
    async with client_of(away) as made:
        await made.post(QUEUES, json={"name": "q"})
        answer = await made.get(f"{QUEUES}/q")
        refused = await made.post(f"{QUEUES}/q/purge")
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
    assert answer.status_code == 200
    assert answer.json()["backlog"]["ready"] is None
    assert answer.json()["backlog"]["problem"].startswith("the broker is away: ")


async def test_a_purge_ends_the_runs_that_it_takes_back(
    client: httpx.AsyncClient, settings: Settings, database: Database, redis: Redis, redis_url: str
) -> None:
    await client.post(QUEUES, json={"name": "mail"})
    run = (await client.post("/api/v1/runs", json={"task": "x", "queue": "mail"})).json()
    rig = Rig(settings, database, redis, redis_url)
    await rig.topology().run_once()
    await rig.outbox().run_once()
    await client.post(f"{QUEUES}/mail/pause")
    later = (await client.post("/api/v1/runs", json={"task": "x", "queue": "mail"})).json()
    assert (await client.get(f"{QUEUES}/mail")).json()["backlog"]["ready"] == 1
    answer = await client.post(f"{QUEUES}/mail/purge")
    assert (answer.status_code, answer.json()) == (200, {"purged": 1, "left": 0})
    run = (await client.get(f"/api/v1/runs/{run['id']}")).json()
    assert (run["state"], run["reason"], run["cancel"]["by"]) == ("REVOKED", "purged by anonymous", "anonymous")
    assert (await client.get(f"/api/v1/runs/{later['id']}")).json()["state"] == "PENDING"
    assert (await client.post(f"{QUEUES}/none/purge")).status_code == 404
    assert (await client.post(f"{QUEUES}/mail/purge", json={"all": True})).status_code == 422
    await rig.close()


async def test_a_purge_of_a_queue_that_the_broker_does_not_have_is_refused(amqp_client: httpx.AsyncClient) -> None:
    await amqp_client.post(QUEUES, json={"name": "q"})
    refused = await amqp_client.post(f"{QUEUES}/q/purge")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/conflict")
    assert "no queue 'q'" in refused.json()["detail"]


async def test_runs_that_were_sent_before_count_for_a_new_limit(
    client: httpx.AsyncClient, settings: Settings, database: Database, redis: Redis, redis_url: str
) -> None:
    await client.post(QUEUES, json={"name": "mail"})
    rig = Rig(settings, database, redis, redis_url)
    await rig.topology().run_once()
    sent = await rig.runs("mail", 3)
    outbox = rig.outbox()
    await outbox.run_once()
    answer = await client.patch(f"{QUEUES}/mail", json={"max_active": 2, "rate_limit": "1000/h"})
    assert (answer.json()["max_active"], answer.json()["rate_limit"]) == (2, "1000/h")
    (later,) = await rig.runs("mail")

    async def backlog() -> tuple[int | None, int]:
        found = (await client.get(f"{QUEUES}/mail")).json()["backlog"]
        return found["places_taken"], found["ready"]

    await outbox.run_once()
    assert await backlog() == (3, 3)
    await rig.execute("UPDATE runs SET state = 'SUCCESS', end_time = now() WHERE id = ANY($1)", sent[:1])
    await outbox.run_once()
    assert await backlog() == (2, 3)
    await rig.execute("UPDATE runs SET state = 'SUCCESS', end_time = now() WHERE id = ANY($1)", sent[1:2])
    await outbox.run_once()
    assert (await backlog(), (await rig.row(later))["dispatches"]) == ((2, 4), 1)
    # Without a limit nobody counts, and a new one begins anew.
    assert (await client.patch(f"{QUEUES}/mail", json={"max_active": None})).status_code == 200
    assert await backlog() == (None, 4)
    await client.patch(f"{QUEUES}/mail", json={"max_active": 5})
    assert await backlog() == (2, 4)
    await rig.close()


async def test_a_file_and_a_patch_that_set_limits_do_not_wait_for_each_other(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever locks rows of queues has shut the gate before, if at all."""
    for name in "ab":
        await client.post(QUEUES, json={"name": name})
    shut, begun, has_shut = limit_queries.shut_the_gate, asyncio.Event(), asyncio.Event()

    async def dawdle(connection: Connection) -> None:
        if not begun.is_set():  # the file
            begun.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(has_shut.wait(), 1)
            await asyncio.sleep(0.2)
        await shut(connection)
        has_shut.set()

    monkeypatch.setattr(limit_queries, "shut_the_gate", dawdle)
    file = {"queues": [{"name": "a", "description": "x"}, {"name": "b", "max_active": 2}]}
    applying = asyncio.create_task(client.post("/api/v1/jobs/apply", json=file))
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    answers = await asyncio.gather(applying, client.patch(f"{QUEUES}/a", json={"max_active": 3}))
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
