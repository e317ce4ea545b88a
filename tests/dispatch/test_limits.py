"""No queue gets more than its limits let, whoever dies or is away in between; what waits for them says so."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from app import faults
from app.database import clock
from app.dispatch import limit_queries
from app.progress import moves, transition
from app.progress.standing import Move
from tests.dispatch.parts import Rig, taken
from tests.dispatch.test_outbox import drain
from tests.processes import eventually
from tests.proxy import TcpProxy

FULL = "queue limit: at most 2 runs are active"
ERROR = {"type": "ValueError", "message": "no", "traceback": None}


async def moved(rig: Rig, ids: Sequence[UUID], make: Any) -> None:
    async with rig.database.transaction() as connection:
        now = await clock(connection)
        assert len(await transition.apply(connection, now, {run: [make(now)] for run in ids})) == len(ids)


def succeed(now: datetime) -> Move:
    return lambda run: moves.end(now, run, "SUCCESS")


async def active(rig: Rig, queue: str = "q") -> list[UUID]:
    """The runs that count: sent, and not ended."""
    async with rig.database.reading() as connection:
        rows = await connection.fetch(
            "SELECT id FROM runs WHERE queue = $1 AND end_time IS NULL AND dispatch_time IS NOT NULL ORDER BY id", queue
        )
    return [row["id"] for row in rows]


async def places(rig: Rig) -> int:
    async with rig.database.reading() as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM queue_places")
    return count


async def test_the_oldest_go_out_up_to_the_limit_and_the_others_say_so(rig: Rig) -> None:
    await rig.ready_queue("q", max_active=2)
    await rig.ready_queue("free")
    ids = [(await rig.runs("q", task=f"svc.{name}"))[0] for name in "bcabc"]
    await rig.runs("free", 3)
    outbox = rig.outbox()
    await drain(outbox)
    assert await active(rig) == ids[:2]
    assert len(await taken(rig.url, "free")) == 3
    rows = await rig.rows(ids)
    assert [row["reason"] for row in rows] == [None, None, FULL, FULL, FULL]
    outbox._tell_at = 0.0
    await drain(outbox)
    assert await rig.rows(ids) == rows  # nothing is written again while nothing changes
    await moved(rig, [ids[1]], succeed)
    await drain(outbox)
    assert await active(rig) == [ids[0], ids[2]]
    assert (await rig.row(ids[2]))["reason"] is None
    assert await taken(rig.url, "q") == [f"{run}.1" for run in ids[:3]]


async def test_many_schedulers_together_keep_the_limit(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q", max_active=7)
    ids = await redis_rig.runs("q", 40)
    other = await redis_rig.runs("q", 40, task="svc.other")
    outboxes = [redis_rig.outbox(name) for name in ("one", "two", "three", "four")]
    done: list[UUID] = []
    for _ in range(40):
        await asyncio.gather(*(outbox.run_once() for outbox in outboxes))
        now = await active(redis_rig)
        assert len(now) <= 7
        await moved(redis_rig, now, succeed)
        done += now
        if len(done) == 80:
            break
    assert sorted(done) == sorted([*ids, *other])
    assert {row["dispatches"] for row in await redis_rig.rows(done)} == {1}


@pytest.mark.parametrize(
    "make",
    [
        succeed,
        lambda now: lambda run: moves.after_error(now, run, ERROR),
        lambda now: moves.cancel(now, "cancelled by ann"),
        lambda now: moves.lose_sight(now, 1, "gone"),
        lambda now: lambda run: moves.next_attempt(now, run, ERROR, 60, lost=False),
        lambda now: lambda run: moves.not_registered(now, run, 1, None),
    ],
    ids=["success", "failure", "cancel", "reaped", "backoff", "not registered"],
)
async def test_every_way_out_gives_the_place_back(redis_rig: Rig, make: Any) -> None:
    """Pain 19: places do not leak."""
    await redis_rig.ready_queue("q", max_active=1)
    first, second = await redis_rig.runs("q", 2)
    outbox = redis_rig.outbox()
    await drain(outbox)
    assert await active(redis_rig) == [first]
    await moved(redis_rig, [first], make)
    # What goes out again later does so much later: only its place is the matter.
    await redis_rig.execute("UPDATE runs SET due_time = due_time + interval '1 hour' WHERE id = $1", first)
    await drain(outbox)
    assert await active(redis_rig) == [second]
    assert await places(redis_rig) == 1


async def test_a_run_that_is_gone_takes_its_place_with_it(redis_rig: Rig) -> None:
    """Pain 19: deleted, too."""
    await redis_rig.ready_queue("q", max_active=1)
    first, _ = await redis_rig.runs("q", 2)
    await drain(redis_rig.outbox())
    await moved(redis_rig, [first], succeed)
    await redis_rig.execute("DELETE FROM runs WHERE id = $1", first)
    assert await places(redis_rig) == 0


@pytest.mark.parametrize("point", ["dispatch.after_claim", "dispatch.after_publish"])
async def test_what_a_dead_scheduler_had_claimed_keeps_its_places(redis_rig: Rig, point: str) -> None:
    await redis_rig.ready_queue("q", max_active=2)
    later, *ids = await redis_rig.runs("q", 4)
    await redis_rig.execute("UPDATE runs SET due_time = now() + interval '1 hour' WHERE id = $1", later)
    faults.arm(f"{point}=raise*1")
    with pytest.raises(faults.InjectedFault):
        await redis_rig.outbox("dead").run_once()
    await redis_rig.execute("UPDATE runs SET due_time = now() WHERE id = $1", later)
    heir = redis_rig.outbox("heir")
    await drain(heir)
    assert (await active(redis_rig), await places(redis_rig)) == ([], 2)
    await redis_rig.execute("UPDATE runs SET claim_time = claim_time - interval '31 s' WHERE claim_time IS NOT NULL")
    await drain(heir)
    # An older run does not take the place of one that may be on the broker.
    assert (await active(redis_rig), await places(redis_rig)) == (ids[:2], 2)
    assert set(await taken(redis_rig.url, "q")) == {f"{run}.1" for run in ids[:2]}


async def test_a_pass_that_was_interrupted_takes_no_second_place(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q", max_active=2)
    ids = await redis_rig.runs("q", 3)
    outbox = redis_rig.outbox()
    faults.arm("dispatch.after_claim=raise*1")
    with pytest.raises(faults.InjectedFault):
        await outbox.run_once()
    await drain(outbox)
    assert (await active(redis_rig), await places(redis_rig)) == (ids[:2], 2)


async def test_what_was_on_its_way_as_the_broker_went_away_keeps_its_place(proxied: Rig, proxy: TcpProxy) -> None:
    await proxied.ready_queue("q", max_active=2)
    later, *ids = await proxied.runs("q", 4)
    await proxied.execute("UPDATE runs SET due_time = now() + interval '1 hour' WHERE id = $1", later)
    outbox = proxied.outbox()
    await asyncio.to_thread(proxy.cut)
    await outbox.run_once()
    assert outbox.broker_away is not None
    await proxied.execute("UPDATE runs SET due_time = now() WHERE id = $1", later)
    await asyncio.to_thread(proxy.restore)

    async def out() -> bool:
        await drain(outbox)
        outbox._tell_at = 0.0
        return len(await active(proxied)) == 2

    await eventually(out, 30, "as many as may be active")
    await drain(outbox)
    assert await active(proxied) == ids[:2]
    assert [row["reason"] for row in await proxied.rows([later, ids[2]])] == [FULL, FULL]


async def test_a_queue_that_somebody_has_in_hand_is_passed_over(redis_rig: Rig) -> None:
    for name in ("q", "other"):
        await redis_rig.ready_queue(name, max_active=1)
        await redis_rig.runs(name)
    outbox = redis_rig.outbox()
    async with redis_rig.database.transaction() as connection:
        await connection.execute("SELECT FROM queues WHERE name = 'q' FOR NO KEY UPDATE")
        await outbox.run_once()
        assert (len(await active(redis_rig)), len(await active(redis_rig, "other"))) == (0, 1)
    await drain(outbox)
    assert len(await active(redis_rig)) == 1


async def test_a_rate_lets_them_out_one_by_one_however_many_ask(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q", rate_limit="3/h")
    ids = await redis_rig.runs("q", 4)
    outboxes = [redis_rig.outbox(name) for name in ("one", "two", "three")]
    await asyncio.gather(*(drain(outbox) for outbox in outboxes))
    assert await active(redis_rig) == ids[:1]
    assert [row["reason"] for row in await redis_rig.rows(ids)] == [None, *["queue rate limit: 3/h"] * 3]
    rows = await redis_rig.rows(ids)
    await drain(outboxes[0])
    assert await redis_rig.rows(ids) == rows
    for count in (2, 3):
        await redis_rig.execute("UPDATE queues SET rate_time = rate_time - interval '20 min'")
        await asyncio.gather(*(drain(outbox) for outbox in outboxes))
        assert await active(redis_rig) == ids[:count]
    assert await places(redis_rig) == 0


async def test_both_limits_hold_together(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q", max_active=15, rate_limit="100/s")
    await redis_rig.runs("q", 50)
    outbox = redis_rig.outbox()
    await outbox.run_once()
    assert len(await active(redis_rig)) == 10

    async def full() -> bool:
        await outbox.run_once()
        return len(await active(redis_rig)) >= 15

    await eventually(full, 30, "a full queue")
    await redis_rig.execute("UPDATE queues SET rate_time = rate_time - interval '1 hour'")
    await outbox.run_once()
    assert len(await active(redis_rig)) == 15


async def test_the_next_pass_comes_when_there_may_be_room(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q", rate_limit="200/m")
    outbox = redis_rig.outbox()
    await outbox.run_once()
    assert outbox.pause_s == 1
    await redis_rig.runs("q", 2)
    await outbox.run_once()
    assert 0.05 <= outbox.pause_s <= 0.3
    await redis_rig.ready_queue("full", max_active=1)
    await redis_rig.execute("UPDATE queues SET rate_limit = NULL, rate_tokens = NULL WHERE name = 'q'")
    await redis_rig.runs("full", 2)
    pauses = []
    for _ in range(6):
        await outbox.run_once()
        pauses.append(outbox.pause_s)
    # Nobody tells of an end, so it is looked for: soon, and later as long as none comes.
    assert (min(pauses) >= 0.1, pauses[-1]) == (True, 1)


async def test_no_limit_is_set_while_a_claim_is_under_way(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    async with redis_rig.database.transaction() as claiming:
        await limit_queries.pass_the_gate(claiming)

        async def set_limit() -> None:
            async with redis_rig.database.transaction() as connection:
                await limit_queries.shut_the_gate(connection)

        setting = asyncio.ensure_future(set_limit())

        async def waits() -> bool:
            async with redis_rig.database.reading() as connection:
                waiting: bool = await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
                    "(SELECT oid FROM pg_database WHERE datname = current_database()))"
                )
            return waiting

        await eventually(waits, 30, "the one who sets the limit")
        assert not setting.done()
    await setting


async def test_what_may_be_out_keeps_its_place_whatever_holds_its_queue_meanwhile(rig: Rig) -> None:
    """Else an older run, whose backoff is over by then, comes in beside it."""
    await rig.ready_queue("q", max_active=1)
    old, out = (await rig.runs("q", 2))[:2]
    async with rig.database.transaction() as connection:
        await connection.execute("UPDATE runs SET due_time = now() + interval '1 h' WHERE id = $1", old)
        await connection.execute("UPDATE runs SET reason = 'broker away since noon' WHERE id = $1", out)
        await connection.execute("INSERT INTO queue_places (run_id, queue) VALUES ($1, 'q')", out)
        await connection.execute("UPDATE queues SET paused = true")
    outbox = rig.outbox()
    await drain(outbox)
    async with rig.database.transaction() as connection:
        await connection.execute("UPDATE queues SET paused = false")
        await connection.execute("UPDATE runs SET due_time = now() WHERE id = $1", old)
    await drain(outbox)
    assert await active(rig) == [out]
