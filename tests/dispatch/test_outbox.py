"""Runs go out at least once and in order, say why they wait, and survive what may happen in between."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from app import faults
from app.database import clock
from app.dispatch.broker import Broker, Outcome
from app.dispatch.message import Message
from app.dispatch.outbox import Outbox
from app.logs.place import log_of
from app.logs.store import Store
from app.progress import transition
from app.progress.announce import channel_of
from app.progress.fold import Report, fold
from tests.dispatch.parts import Rig, amqp_channel, taken
from tests.processes import eventually
from tests.proxy import TcpProxy
from workers.protocol import RUNS_CHANNEL, TaskId


class Slow:
    """A broker that waits for `go`: before it has sent a batch, or behind that with its word on it."""

    def __init__(self, broker: Broker, *, sent: bool) -> None:
        self._broker = broker
        self._sent = sent
        self.waits, self.go = asyncio.Event(), asyncio.Event()

    async def publish(self, batch: Sequence[Message]) -> list[Outcome]:
        word = await self._broker.publish(batch) if self._sent else None
        self.waits.set()
        await self.go.wait()
        return word or await self._broker.publish(batch)


async def drain(outbox: Outbox) -> None:
    """Pass until there is no more to do."""
    while await outbox.run_once():
        pass


async def test_due_runs_go_out_in_order_and_are_marked(rig: Rig) -> None:
    await rig.ready_queue("q")
    ids = await rig.runs("q", 250)
    await drain(rig.outbox())
    for row in await rig.rows(ids):
        assert (row["state"], row["reason"], row["dispatches"], row["version"]) == ("PENDING", None, 1, 2)
        assert row["dispatch_time"] is not None
        assert (row["claim_time"], row["claimed_by"]) == (None, None)
        assert row["log_path"] == Store(rig.settings.log_store).url(log_of(row["id"], 1))
    assert await taken(rig.url, "q") == [f"{run}.1" for run in ids]


async def test_two_thousand_runs(rig: Rig) -> None:
    await rig.ready_queue("q")
    ids = await rig.runs("q", 2000)
    await drain(rig.outbox())
    assert (await rig.broker().backlog("q")).ready == len(ids)


async def test_what_was_dispatched_is_announced(redis_rig: Rig, redis: Redis) -> None:
    await redis_rig.ready_queue("q")
    (run,) = await redis_rig.runs("q")
    async with redis.pubsub(ignore_subscribe_messages=True) as feed:
        await feed.subscribe(channel_of(redis, RUNS_CHANNEL))
        await eventually(lambda: _subscribed(redis), 30, "the subscription")
        await redis_rig.outbox().run_once()

        async def heard() -> bool:
            news = await feed.get_message(timeout=0.1)
            return news is not None and str(run).encode() in news["data"]

        await eventually(heard, 30, "the announcement")


async def _subscribed(redis: Redis) -> bool:
    return bool((await redis.pubsub_numsub(channel_of(redis, RUNS_CHANNEL)))[0][1])


async def test_runs_that_are_not_due_or_too_late_stay(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    later, late, ready = [(await redis_rig.runs("q"))[0] for _ in range(3)]
    await redis_rig.execute("UPDATE runs SET due_time = clock_timestamp() + interval '1 hour' WHERE id = $1", later)
    await redis_rig.execute("UPDATE runs SET start_deadline_time = clock_timestamp() WHERE id = $1", late)
    await drain(redis_rig.outbox())
    assert await taken(redis_rig.url, "q") == [f"{ready}.1"]
    assert [row["dispatch_time"] for row in await redis_rig.rows([later, late])] == [None, None]


async def test_two_outboxes_at_once_send_each_run_once(rig: Rig) -> None:
    await rig.ready_queue("q")
    ids = await rig.runs("q", 1000)
    await asyncio.gather(*(drain(rig.outbox(name)) for name in ("one", "two", "three")))
    assert sorted(await taken(rig.url, "q")) == sorted(f"{run}.1" for run in ids)
    assert {row["version"] for row in await rig.rows(ids)} == {2}


async def test_a_paused_queue_holds_its_runs_and_says_so_and_nobody_elses(rig: Rig) -> None:
    await rig.ready_queue("held", paused=True)
    await rig.ready_queue("open")
    (held,) = await rig.runs("held")
    (free,) = await rig.runs("open")
    outbox = rig.outbox()
    await drain(outbox)
    row = await rig.row(held)
    assert (row["reason"], row["dispatch_time"], row["version"]) == ("queue paused", None, 2)
    assert await taken(rig.url, "open") == [f"{free}.1"]
    await rig.execute("UPDATE queues SET paused = false")
    await drain(outbox)
    row = await rig.row(held)
    assert (row["reason"], row["version"]) == (None, 3)
    assert await taken(rig.url, "held") == [f"{held}.1"]


async def test_a_queue_that_is_not_there_or_in_trouble_is_the_reason(redis_rig: Rig) -> None:
    await redis_rig.queue("new")
    await redis_rig.queue("sick", problem="it has a cold")
    ids = [(await redis_rig.runs(queue))[0] for queue in ("gone", "new", "sick")]
    await drain(redis_rig.outbox())
    assert [row["reason"] for row in await redis_rig.rows(ids)] == [
        "there is no queue gone",
        "queue not yet found on the broker",
        "queue in trouble: it has a cold",
    ]


async def test_an_unroutable_run_waits_with_the_reason_and_goes_out_once_it_can(amqp_rig: Rig) -> None:
    await amqp_rig.ready_queue("q")
    await amqp_rig.ready_queue("other")
    async with amqp_channel(amqp_rig.url) as channel:
        await channel.queue_delete("q")
    (run,) = await amqp_rig.runs("q")
    (free,) = await amqp_rig.runs("other")
    outbox = amqp_rig.outbox()
    await drain(outbox)
    row = await amqp_rig.row(run)
    assert (row["state"], row["reason"], row["dispatches"], row["dispatch_time"]) == ("PENDING", "unroutable", 0, None)
    assert timedelta(seconds=1) < row["due_time"] - row["update_time"] < timedelta(seconds=10)
    assert await taken(amqp_rig.url, "other") == [f"{free}.1"]
    await amqp_rig.topology().run_once()
    await amqp_rig.execute("UPDATE runs SET due_time = clock_timestamp()")
    await drain(outbox)
    assert await taken(amqp_rig.url, "q") == [f"{run}.1"]
    assert (await amqp_rig.row(run))["reason"] is None


async def test_a_lost_exchange_is_told_on_its_runs_and_holds_nobody_up(amqp_rig: Rig) -> None:
    for name in ("q", "other"):
        await amqp_rig.ready_queue(name)
    async with amqp_channel(amqp_rig.url) as channel:
        await channel.exchange_delete("q")
    lost, free = [(await amqp_rig.runs(name))[0] for name in ("q", "other")]
    outbox = amqp_rig.outbox()
    await drain(outbox)
    assert outbox.broker_away is None
    assert "no exchange 'q'" in (await amqp_rig.row(lost))["reason"]
    assert await taken(amqp_rig.url, "other") == [f"{free}.1"]


async def test_a_run_of_which_no_message_can_be_made_harms_no_other(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    bad, good = await redis_rig.runs("q", 2)
    await redis_rig.execute("UPDATE runs SET args = '\"no list\"' WHERE id = $1", bad)
    await drain(redis_rig.outbox())
    row = await redis_rig.row(bad)
    assert row["reason"].startswith("no message can be made of it: ")
    assert row["dispatch_time"] is None
    assert await taken(redis_rig.url, "q") == [f"{good}.1"]


@pytest.mark.parametrize("how", ["cut", "freeze"])
async def test_runs_wait_for_a_broker_that_is_away_and_say_so(proxied: Rig, proxy: TcpProxy, how: str) -> None:
    await proxied.ready_queue("q")
    if how == "freeze":
        proxied.timeout_s = 1
    outbox = proxied.outbox()
    first = await proxied.runs("q", 20)

    async def sent() -> bool:
        await drain(outbox)
        return all(row["dispatch_time"] for row in await proxied.rows(first))

    await eventually(sent, 30, "every run with the broker before it goes away")
    await asyncio.to_thread(getattr(proxy, how))
    ids = await proxied.runs("q", 250)

    async def passed() -> bool:
        await drain(outbox)
        return all((row["reason"] or "").startswith("broker away since 20") for row in await proxied.rows(ids))

    await eventually(passed, 30, "the reason on every waiting run")
    rows = await proxied.rows(ids)
    assert {(row["state"], row["version"], row["claimed_by"], row["dispatches"]) for row in rows} == {
        ("PENDING", 2, None, 0)
    }
    assert len({row["reason"] for row in rows}) == 1
    assert rows[0]["reason"] == outbox.broker_away
    for _ in range(3):
        await outbox.run_once()
    assert await proxied.rows(ids) == rows  # nothing is written again while nothing changes

    await asyncio.to_thread(proxy.restore if how == "cut" else proxy.thaw)

    async def out() -> bool:
        await drain(outbox)
        return all(row["dispatch_time"] for row in await proxied.rows(ids))

    await eventually(out, 30, "every run with the broker")
    assert {(row["reason"], row["dispatches"]) for row in await proxied.rows(ids)} == {(None, 1)}
    assert outbox.broker_away is None
    got = await taken(proxied.url, "q")
    # What a black hole swallowed may have arrived as well, under the same task ids; the last copy of each is in order.
    last = {task_id: n for n, task_id in enumerate(got)}
    assert sorted(last, key=last.__getitem__) == [f"{run}.1" for run in [*first, *ids]]
    if how == "cut":
        assert len(got) == len(first) + len(ids)


@pytest.mark.parametrize("point", ["dispatch.before_confirm", "dispatch.after_publish"])
async def test_a_crash_before_the_mark_sends_the_same_task_id_again(rig: Rig, point: str) -> None:
    await rig.ready_queue("q")
    ids = await rig.runs("q", 3)
    faults.arm(f"{point}=raise*1")
    with pytest.raises(faults.InjectedFault):
        await rig.outbox("dead").run_once()
    heir = rig.outbox("heir")
    await drain(heir)
    assert {row["dispatch_time"] for row in await rig.rows(ids)} == {None}  # the claim still stands
    await rig.execute("UPDATE runs SET claim_time = claim_time - interval '31 s'")
    await drain(heir)
    assert {(row["dispatches"], row["claimed_by"]) for row in await rig.rows(ids)} == {(1, None)}
    got = await taken(rig.url, "q")
    assert got[-3:] == [f"{run}.1" for run in ids]
    # What the dead one had sent by then is there twice: all of it, or the first message on a new channel.
    assert got[:-3] == got[-3:][: len(got) - 3] != []


@pytest.mark.parametrize("point", ["dispatch.after_claim", "dispatch.before_publish"])
async def test_a_pass_that_failed_before_it_published_is_taken_up_by_the_next(redis_rig: Rig, point: str) -> None:
    await redis_rig.ready_queue("q")
    ids = await redis_rig.runs("q", 3)
    faults.arm(f"{point}=raise*1")
    outbox = redis_rig.outbox()
    with pytest.raises(faults.InjectedFault):
        await outbox.run_once()
    await drain(outbox)
    assert await taken(redis_rig.url, "q") == [f"{run}.1" for run in ids]


async def test_what_was_confirmed_before_a_failure_is_marked_by_the_next_pass_and_not_sent_again(
    redis_rig: Rig,
) -> None:
    await redis_rig.ready_queue("q")
    ids = await redis_rig.runs("q", 3)
    faults.arm("dispatch.after_publish=raise*1")
    outbox = redis_rig.outbox()
    with pytest.raises(faults.InjectedFault):
        await outbox.run_once()
    await drain(outbox)
    assert {(row["dispatches"], row["version"]) for row in await redis_rig.rows(ids)} == {(1, 2)}
    assert await taken(redis_rig.url, "q") == [f"{run}.1" for run in ids]


async def test_a_late_outbox_marks_nothing_that_another_has_sent(redis_rig: Rig) -> None:
    """One that slept through its claim wakes up after another has taken its runs over."""
    await redis_rig.ready_queue("q")
    ids = await redis_rig.runs("q", 3)
    slow = Slow(redis_rig.broker(), sent=False)
    late = asyncio.ensure_future(redis_rig.outbox("late", slow).run_once())
    await asyncio.wait_for(slow.waits.wait(), 30)
    await redis_rig.execute("UPDATE runs SET claim_time = claim_time - interval '31 s'")
    await drain(redis_rig.outbox("quick"))
    rows = await redis_rig.rows(ids)
    slow.go.set()
    await late
    assert await redis_rig.rows(ids) == rows
    assert {(row["dispatches"], row["version"]) for row in rows} == {(1, 2)}


@pytest.mark.parametrize("state", ["STARTED", "SUCCESS"])
async def test_a_report_may_come_before_the_mark(redis_rig: Rig, state: str) -> None:
    await redis_rig.ready_queue("q")
    (run,) = await redis_rig.runs("q")
    slow = Slow(redis_rig.broker(), sent=True)
    passing = asyncio.ensure_future(redis_rig.outbox("test", slow).run_once())
    await asyncio.wait_for(slow.waits.wait(), 30)
    assert (await redis_rig.row(run))["claimed_by"] is not None
    async with redis_rig.database.transaction() as connection:
        now = await clock(connection)
        await transition.apply(connection, now, {run: [fold(Report(TaskId(run, 1), state, meta=7), now)]})
    row = await redis_rig.row(run)
    slow.go.set()
    await passing
    assert await redis_rig.row(run) == row
    assert (row["state"], row["dispatches"], row["claimed_by"]) == (state, 1, None)


async def test_the_next_dispatch_of_a_run_has_the_next_number(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    (run,) = await redis_rig.runs("q")
    outbox = redis_rig.outbox()
    await drain(outbox)
    await redis_rig.execute("UPDATE runs SET dispatch_time = NULL, first_dispatch = 2, attempt = 2 WHERE id = $1", run)
    await drain(outbox)
    assert await taken(redis_rig.url, "q") == [f"{run}.1", f"{run}.2"]
    assert (await redis_rig.row(run))["dispatches"] == 2


async def test_a_message_larger_than_its_queue_takes_waits_and_says_so(rig: Rig) -> None:
    await rig.ready_queue("small")
    (fits,) = await rig.runs("small")
    (large,) = await rig.runs("small", args=["x" * 2600])
    await rig.execute("UPDATE queues SET max_message_kib = 2")
    outbox = rig.outbox()
    await outbox.run_once()
    assert (await rig.row(fits))["dispatches"] == 1
    row = await rig.row(large)
    assert (row["dispatches"], row["dispatch_time"], row["state"]) == (0, None, "PENDING")
    assert row["reason"] == "the message of 3 KiB is larger than the queue's limit of 2 KiB"
    await rig.execute("UPDATE queues SET max_message_kib = 3")
    await rig.execute("UPDATE runs SET due_time = now()")
    await outbox.run_once()
    row = await rig.row(large)
    assert (row["dispatches"], row["reason"]) == (1, None)
