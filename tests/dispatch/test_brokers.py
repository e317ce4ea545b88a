"""What RabbitMQ and Valkey say of a batch, whole, in part and when they are away."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator

import pytest
from aio_pika import DeliveryMode
from aio_pika.abc import AbstractIncomingMessage
from redis.asyncio import Redis

from app.dispatch.broker import CONFIRMED, UNROUTABLE, Backlog, Broker, BrokerAway, Fate, QueueTrouble, connect
from tests.dispatch.parts import PATIENT_S, amqp_channel, at, message, route, taken
from tests.processes import eventually
from tests.proxy import TcpProxy


@pytest.fixture
async def broker(either_url: str) -> AsyncIterator[Broker]:
    made = connect(either_url, PATIENT_S)
    yield made
    await made.close()


@pytest.fixture
async def far(either_url: str, proxy: TcpProxy) -> AsyncIterator[Broker]:
    """The broker behind `proxy`."""
    made = connect(at(either_url, proxy.port), PATIENT_S)
    yield made
    await made.close()


@pytest.fixture
async def rabbit(amqp_url: str) -> AsyncIterator[Broker]:
    made = connect(amqp_url, PATIENT_S)
    yield made
    await made.close()


async def test_a_batch_arrives_in_order(broker: Broker, either_url: str) -> None:
    await broker.declare(route("q"))
    batch = [message("q") for _ in range(1500)]
    assert await broker.publish([]) == []
    assert await broker.publish(batch) == [CONFIRMED] * 1500
    backlog = await broker.backlog("q")
    assert backlog.ready == 1500
    assert await taken(either_url, "q") == [each.task_id for each in batch]


async def test_a_cut_is_uncertain_and_the_next_batch_goes_out(far: Broker, either_url: str, proxy: TcpProxy) -> None:
    await far.declare(route("q"))
    assert await far.publish([message("q")]) == [CONFIRMED]
    await asyncio.to_thread(proxy.cut)
    outcomes = await far.publish([message("q"), message("q")])
    assert [outcome.fate for outcome in outcomes] == [Fate.UNCERTAIN] * 2
    with pytest.raises(BrokerAway):
        await far.check()
    with pytest.raises(BrokerAway):
        await far.backlog("q")
    await asyncio.to_thread(proxy.restore)
    await far.check()
    assert await far.publish([message("q")]) == [CONFIRMED]


async def test_a_frozen_broker_costs_no_more_than_the_timeout(broker: Broker, either_url: str, proxy: TcpProxy) -> None:
    await broker.declare(route("q"))
    hasty = connect(at(either_url, proxy.port), 0.5)

    async def confirms() -> bool:
        return await hasty.publish([message("q")]) == [CONFIRMED]

    await eventually(confirms, 30, "a confirm before the frost")
    proxy.freeze()
    began = time.monotonic()
    outcomes = await hasty.publish([message("q") for _ in range(10)])
    assert [outcome.fate for outcome in outcomes] == [Fate.UNCERTAIN] * 10
    with pytest.raises(BrokerAway):
        await hasty.check()
    assert time.monotonic() - began < 2 * 0.5 + 20, "it would hang for ever"
    proxy.thaw()
    await eventually(confirms, 30, "a confirm after the frost")
    await hasty.close()


async def test_cuts_in_the_midst_of_batches_never_raise_and_never_confirm_what_is_not_there(
    far: Broker, either_url: str, proxy: TcpProxy
) -> None:
    await far.declare(route("q"))
    proxy.delay_s = 0.002
    confirmed: list[str] = []
    for n in range(12):
        batch = [message("q") for _ in range(60)]
        publishing = asyncio.ensure_future(far.publish(batch))
        await asyncio.wait([publishing], timeout=0.003 * n)
        await asyncio.to_thread(proxy.cut)
        await asyncio.to_thread(proxy.restore)
        outcomes = await publishing
        confirmed += [each.task_id for each, outcome in zip(batch, outcomes, strict=True) if outcome == CONFIRMED]

    async def works_again() -> bool:
        # The first word may still go to a connection that was cut without our having noticed.
        return await far.publish([message("q")]) == [CONFIRMED]

    await eventually(works_again, 30, "a confirm after the last cut")
    assert set(confirmed) <= set(await taken(either_url, "q"))


async def test_a_url_that_nobody_listens_at_is_a_broker_away(proxy: TcpProxy, either_url: str) -> None:
    broker = connect(at(either_url, proxy.port), PATIENT_S)
    await asyncio.to_thread(proxy.cut)
    with pytest.raises(BrokerAway):
        await broker.check()
    (outcome,) = await broker.publish([message("q")])
    assert outcome.fate is Fate.UNCERTAIN
    assert outcome.reason
    await broker.close()


async def test_a_connection_that_could_not_be_made_leaves_nothing_to_be_closed(
    far: Broker, proxy: TcpProxy, recwarn: pytest.WarningsRecorder
) -> None:
    gc.collect()
    recwarn.clear()  # what tests before this one left is not ours
    proxy.freeze()
    checking = asyncio.ensure_future(far.check())
    await asyncio.wait([checking], timeout=0.2)
    gc.disable()
    try:
        await asyncio.to_thread(proxy.cut)
        with pytest.raises(BrokerAway):
            await checking
        del checking
        # Where no event loop runs, nobody could wait for what closing would start.
        await asyncio.to_thread(gc.collect)
    finally:
        gc.enable()
    assert not [str(warning.message) for warning in recwarn]


async def test_what_no_queue_is_bound_for_comes_back_alone(rabbit: Broker, amqp_url: str) -> None:
    await rabbit.declare(route("q"))
    batch = [message("q", routing_key=key) for key in ("q", "nowhere", "q", "elsewhere", "q")]
    assert await rabbit.publish(batch) == [CONFIRMED, UNROUTABLE, CONFIRMED, UNROUTABLE, CONFIRMED]
    assert await taken(amqp_url, "q") == [batch[0].task_id, batch[2].task_id, batch[4].task_id]


async def test_a_missing_exchange_hurts_nobody_else(rabbit: Broker, amqp_url: str) -> None:
    await rabbit.declare(route("q"))
    batch = [message("q", exchange=name) for name in ("q", "gone", "q", "gone", "gone", "q")]
    outcomes = await rabbit.publish(batch)
    assert [outcome.fate for outcome in outcomes] == [
        Fate.CONFIRMED if each.exchange == "q" else Fate.REFUSED for each in batch
    ]
    assert all("no exchange 'gone'" in (outcomes[n].reason or "") for n in (1, 3, 4))
    assert await rabbit.publish([message("q")]) == [CONFIRMED]


async def test_a_message_that_cannot_be_encoded_is_refused_alone(rabbit: Broker) -> None:
    await rabbit.declare(route("q"))
    outcomes = await rabbit.publish([message("q"), message("q", routing_key="k" * 300), message("q")])
    assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.REFUSED, Fate.CONFIRMED]


async def test_a_full_queue_that_rejects_is_a_refusal(rabbit: Broker, amqp_url: str) -> None:
    async with amqp_channel(amqp_url) as channel:
        await channel.declare_queue("q", durable=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    await rabbit.declare(route("q"))
    fates = [outcome.fate for outcome in await rabbit.publish([message("q") for _ in range(50)])]
    assert fates[0] is Fate.CONFIRMED
    assert fates[-1] is Fate.REFUSED


async def test_messages_are_kept_on_disk(rabbit: Broker, amqp_url: str) -> None:
    await rabbit.declare(route("q"))
    await rabbit.publish([message("q")])
    async with amqp_channel(amqp_url) as channel:
        got = await (await channel.get_queue("q", ensure=False)).get(timeout=PATIENT_S)
        assert got.delivery_mode == DeliveryMode.PERSISTENT
        assert got.expiration is None


async def _keep(_: AbstractIncomingMessage) -> None:
    """Neither acknowledges nor gives back."""


async def test_the_backlog_counts_what_waits_and_who_takes(rabbit: Broker, amqp_url: str) -> None:
    with pytest.raises(QueueTrouble):
        await rabbit.backlog("q")
    await rabbit.declare(route("q"))
    await rabbit.publish([message("q"), message("q")])
    assert await rabbit.backlog("q") == Backlog(2, 0)
    async with amqp_channel(amqp_url) as channel:
        await channel.set_qos(1)
        await (await channel.get_queue("q", ensure=False)).consume(_keep)
        assert await rabbit.backlog("q") == Backlog(1, 1)


async def test_on_redis_a_priority_is_a_list_of_its_own_and_counts_in_the_backlog(redis: Redis, redis_url: str) -> None:
    broker = connect(redis_url, PATIENT_S)
    batch = [message("q", priority=priority) for priority in (None, 0, 3, 5, 9, 40)]
    assert await broker.publish(batch) == [CONFIRMED] * 6
    assert await broker.backlog("q") == Backlog(6, None)
    assert [await redis.llen(key) for key in ("q", "q\x06\x163", "q\x06\x166", "q\x06\x169")] == [2, 2, 0, 2]
    await broker.close()


async def test_on_redis_a_key_of_another_kind_is_a_refusal_of_that_queue(redis: Redis, redis_url: str) -> None:
    broker = connect(redis_url, PATIENT_S)
    await redis.set("taken", "by somebody")
    outcomes = await broker.publish([message("q"), message("taken"), message("q")])
    assert [outcome.fate for outcome in outcomes] == [Fate.CONFIRMED, Fate.REFUSED, Fate.CONFIRMED]
    assert "WRONGTYPE" in (outcomes[1].reason or "")
    await broker.close()
