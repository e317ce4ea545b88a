"""Taking back what was put into a queue: on RabbitMQ and on Valkey, beside messages of others."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import aio_pika
import orjson
import pytest
from redis.asyncio import Redis

from app.database import new_id
from app.dispatch import purge
from app.dispatch.broker import CONFIRMED, BrokerAway, QueueTrouble
from app.dispatch.purge import Purge, Purged, Verdict, judge
from app.dispatch.redis import list_of
from app.progress.standing import Standing
from tests.dispatch.parts import Rig, amqp_channel, message, taken
from tests.processes import eventually
from workers.protocol import CANCELLED, HEADER, lease_key

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def standing(state: str = "PENDING", **changes: Any) -> Standing:
    made = Standing(
        **{
            **dict.fromkeys(Standing.__dataclass_fields__),
            "id": new_id(),
            "state": state,
            "attempt": 2,
            "dispatches": 4,
            "first_dispatch": 3,
            "dispatch_time": NOW,
            "due_time": NOW,
            "version": 9,
        }
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("run", "dispatch", "verdict"),
    [
        (None, 1, Verdict.LEAVE),
        (standing(), 4, Verdict.END),
        (standing(), 3, Verdict.DROP),
        (standing(), 2, Verdict.DROP),
        (standing("RETRY"), 4, Verdict.END),
        (standing("RETRY"), 3, Verdict.DROP),
        (standing("STARTED"), 4, Verdict.LEAVE),
        (standing("CRUNCHING"), 4, Verdict.LEAVE),
        (standing("STARTED"), 2, Verdict.DROP),
        (standing("SUCCESS"), 4, Verdict.DROP),
        (standing(dispatch_time=None), 4, Verdict.DROP),
        (standing(dispatch_time=None), 5, Verdict.DROP),
        (standing(dispatch_time=None, claim_time=NOW), 5, Verdict.END),
        (standing(dispatch_time=None, claim_time=NOW), 4, Verdict.DROP),
    ],
)
def test_what_becomes_of_a_message(run: Standing | None, dispatch: int, verdict: Verdict) -> None:
    assert judge(run, dispatch) is verdict


async def put_foreign(url: str, queue: str, *names: str) -> None:
    """Messages of another plane or producer, under these task ids."""
    if url.startswith("redis"):
        async with Redis.from_url(url) as client:
            for name in names:
                await client.lpush(queue, orjson.dumps({"headers": {"id": name}, "body": "e30="}))
        return
    async with amqp_channel(url) as channel:
        for name in names:
            await channel.default_exchange.publish(aio_pika.Message(b"{}", headers={"id": name}), queue)


async def dispatched(rig: Rig, queue: str, count: int, **fields: Any) -> list[UUID]:
    ids = await rig.runs(queue, count, **fields)
    outbox = rig.outbox()
    while await outbox.run_once():
        pass
    assert all(row["dispatch_time"] for row in await rig.rows(ids))
    return ids


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_ours_leave_with_their_runs_and_others_stay_in_their_order(
    rig: Rig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.ready_queue("q", type=kind)
    await put_foreign(rig.url, "q", "theirs-1")
    first = await dispatched(rig, "q", 230)
    await put_foreign(rig.url, "q", "theirs-2", "theirs-3")
    second = await dispatched(rig, "q", 20)
    strange = message("q")  # of a run that this plane does not know
    assert await rig.broker().publish([strange]) == [CONFIRMED]
    await rig.execute("UPDATE queues SET paused = true")
    waiting = await rig.runs("q", 2)

    monkeypatch.setattr(purge, "LONGEST_S", 60.0)
    assert await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q") == Purged(250, 4)

    for row in await rig.rows([*first, *second]):
        assert (row["state"], row["reason"], row["cancel_next_time"]) == ("REVOKED", "purged by ann", None)
    assert {(row["state"], row["cancel"]) for row in await rig.rows(waiting)} == {("PENDING", None)}
    assert await rig.redis.get(lease_key(first[0], 1, 0)) == CANCELLED.encode()

    async def back() -> bool:
        return (await rig.broker().backlog("q")).ready == 4

    await eventually(back, 30, "what the purge looked at and left is in its place again")
    assert await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q") == Purged(0, 4)
    assert await taken(rig.url, "q") == ["theirs-1", "theirs-2", "theirs-3", strange.task_id]


async def test_what_a_worker_has_begun_is_left_alone(rig: Rig) -> None:
    await rig.ready_queue("q")
    started, held, ended, free = await dispatched(rig, "q", 4)
    await rig.execute("UPDATE runs SET state = 'STARTED' WHERE id = $1", started)
    await rig.execute("UPDATE runs SET state = 'SUCCESS', end_time = now() WHERE id = $1", ended)
    await rig.redis.set(lease_key(held, 1, 0), "held:token")
    before = {row["id"]: row for row in await rig.rows([started, ended])}

    assert await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q") == Purged(3, 1)

    assert {row["id"]: row for row in await rig.rows([started, ended])} == before
    row = await rig.row(held)
    assert (row["state"], row["reason"], row["cancel"], row["cancel_next_time"]) == ("PENDING", None, None, None)
    assert (await rig.row(free))["state"] == "REVOKED"
    assert await taken(rig.url, "q") == [f"{started}.1"]


async def test_a_purge_looks_at_so_many_and_says_what_is_left(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "MOST", 5)
    await rig.ready_queue("q")
    ids = await dispatched(rig, "q", 12)
    sums = [await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q") for _ in range(4)]
    assert sums == [Purged(5, 7), Purged(5, 2), Purged(2, 0), Purged(0, 0)]
    assert {row["state"] for row in await rig.rows(ids)} == {"REVOKED"}


async def test_every_priority_is_purged(redis_rig: Rig) -> None:
    rig = redis_rig
    await rig.ready_queue("q")
    ids = [run for priority in (None, 3, 7, 9) for run in await dispatched(rig, "q", 2, priority=priority)]
    await put_foreign(rig.url, list_of("q", 6), "theirs")
    assert await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q") == Purged(8, 1)
    assert {row["state"] for row in await rig.rows(ids)} == {"REVOKED"}


async def test_a_worker_that_is_faster_keeps_its_run(redis_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = redis_rig
    await rig.ready_queue("q")
    first, second = await dispatched(rig, "q", 2)
    asked = Purge._ask

    async def and_a_worker_comes(self: Purge, found: Any) -> Any:
        wanted = await asked(self, found)
        if wanted:
            assert (await rig.row(first))["cancel"]["by"] == "ann"
            await rig.redis.rpop("q")
        return wanted

    monkeypatch.setattr(Purge, "_ask", and_a_worker_comes)
    assert await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q") == Purged(1, 0)
    row = await rig.row(first)
    assert (row["state"], row["cancel"], row["cancel_next_time"]) == ("PENDING", None, None)
    assert await rig.redis.get(lease_key(first, 1, 0)) is None
    assert (await rig.row(second))["state"] == "REVOKED"


async def test_a_purge_that_breaks_off_leaves_its_runs_to_who_pursues_cancels(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.ready_queue("q")
    ids = await dispatched(rig, "q", 3)

    async def broken(*_: Any) -> None:
        raise ConnectionError("the database is away")

    monkeypatch.setattr(Purge, "_finish", broken)
    with pytest.raises(ConnectionError):
        await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q")
    for row in await rig.rows(ids):
        assert (row["state"], row["cancel"]["by"], row["cancel"]["terminate"]) == ("PENDING", "ann", False)
        assert row["cancel_next_time"] is not None


async def test_what_cannot_be_purged_is_said(amqp_rig: Rig, proxied: Rig, proxy: Any) -> None:
    with pytest.raises(QueueTrouble, match="no queue 'none'"):
        await Purge(amqp_rig.database, amqp_rig.redis, amqp_rig.broker(), "ann").run("none")
    proxy.cut()
    with pytest.raises(BrokerAway):
        await Purge(proxied.database, proxied.redis, proxied.broker(), "ann").run("q")
    proxy.restore()


@pytest.mark.parametrize("headers", [None, {}, {"id": "x"}, {HEADER: {}, "id": "x"}, {HEADER: 1}, {HEADER: {}}])
async def test_odd_messages_are_not_ours(rig: Rig, headers: Any) -> None:
    await rig.ready_queue("q")
    if rig.url.startswith("redis"):
        await rig.redis.lpush("q", b"\xff", b"[]", orjson.dumps({"headers": headers}))
        expected = Purged(0, 3)
    else:
        async with amqp_channel(rig.url) as channel:
            await channel.default_exchange.publish(aio_pika.Message(b"", headers=headers), "q")
        expected = Purged(0, 1)
    assert await Purge(rig.database, rig.redis, rig.broker(), "ann").run("q") == expected
