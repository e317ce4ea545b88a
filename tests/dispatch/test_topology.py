"""Queues on the broker: found, made, adopted, in trouble. On a real RabbitMQ, beside services of other people."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu
import pytest

from app.dispatch import topology
from app.dispatch.broker import CONFIRMED, UNROUTABLE, BrokerAway
from app.settings import Settings
from tests.dispatch.parts import Rig, amqp_channel, message, taken
from tests.processes import eventually
from tests.schedule.test_routes import TOPICS

DEAD = "jobplane.dead"
DEAD_LETTER = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD}
ODD = {"x-message-ttl": 3600000, "x-dead-letter-exchange": "amq.fanout"}


async def as_service(url: str, *entities: Any) -> None:
    """Declare entities as another code base does it: kombu, blocking."""

    def declare() -> None:
        with kombu.Connection(url, connect_timeout=30) as connection:
            for entity in entities:
                entity(connection).declare()

    with ThreadPoolExecutor(1) as executor:
        await asyncio.get_running_loop().run_in_executor(executor, declare)


def service_queue(name: str, exchange: str = "", **options: Any) -> Callable[[Any], Any]:
    return lambda connection: kombu.Queue(
        name, kombu.Exchange(exchange, durable=True) if exchange else None, name, channel=connection, **options
    )


async def test_a_new_queue_is_what_celery_declares(amqp_rig: Rig) -> None:
    await amqp_rig.ready_queue("q")
    row = await amqp_rig.queue_row("q")
    assert (row["adopted"], row["problem"], row["version"]) == (False, None, 1)
    assert row["declare_time"] is not None
    # Celery's own declaration of `-Q q`: the same queue, exchange and binding, or RabbitMQ would refuse it.
    await as_service(amqp_rig.url, service_queue("q", "q"))
    sent = message("q")
    assert await amqp_rig.broker().publish([sent]) == [CONFIRMED]
    assert await taken(amqp_rig.url, "q") == [sent.task_id]


@pytest.mark.parametrize(
    ("columns", "arguments"),
    [
        ({"type": "quorum"}, {"x-queue-type": "quorum"}),
        ({"max_priority": 5}, {"x-max-priority": 5}),
        ({"consumer_timeout_s": 90}, {"x-consumer-timeout": 90_000}),
        ({"dead_letter": True}, DEAD_LETTER),
        (
            {"type": "quorum", "delivery_limit": 7, "dead_letter": True},
            {
                "x-queue-type": "quorum",
                "x-delivery-limit": 7,
                **DEAD_LETTER,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        ),
    ],
)
async def test_a_queue_is_made_of_the_kind_that_is_asked_for(
    amqp_rig: Rig, columns: dict[str, Any], arguments: dict[str, Any]
) -> None:
    await amqp_rig.ready_queue("q", **columns)
    async with amqp_channel(amqp_rig.url) as channel:
        await channel.declare_queue("q", durable=True, arguments=arguments)
    assert await amqp_rig.broker().publish([message("q", priority=3)]) == [CONFIRMED]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_what_a_worker_gives_up_goes_to_the_queue_of_dead_letters(amqp_rig: Rig, kind: str) -> None:
    await amqp_rig.ready_queue("q", type=kind, dead_letter=True)
    async with amqp_channel(amqp_rig.url) as channel:
        await channel.declare_queue(DEAD, durable=True, arguments={"x-queue-type": "quorum"})
    sent = message("q")
    assert await amqp_rig.broker().publish([sent]) == [CONFIRMED]
    async with amqp_channel(amqp_rig.url) as channel:
        got = await (await channel.get_queue("q", ensure=False)).get(timeout=30)
        await got.reject(requeue=False)

    async def letters() -> list[str]:
        return await taken(amqp_rig.url, DEAD)

    assert await eventually(letters, 30, "the dead letter") == [sent.task_id]


async def test_dead_letters_that_cannot_be_kept_trouble_only_who_wants_them(amqp_rig: Rig) -> None:
    amqp_rig.settings = Settings.load(**{**dict(amqp_rig.settings), "dead_letter_queue": "amq.dead"})
    await amqp_rig.queue("a", dead_letter=True)
    await amqp_rig.ready_queue("b")
    problem = (await amqp_rig.queue_row("a"))["problem"]
    assert "the queue of dead letters, 'amq.dead'" in problem
    assert "reserved" in problem
    row = await amqp_rig.queue_row("b")
    assert row["problem"] is None
    assert row["declare_time"] is not None


async def test_an_exchange_may_serve_several_queues_by_routing_key(amqp_rig: Rig) -> None:
    for name in ("a", "b"):
        await amqp_rig.queue(name, exchange="shop", exchange_type="topic", routing_key=f"shop.{name}")
    await amqp_rig.topology().run_once()
    sent = [message(name, exchange="shop", routing_key=f"shop.{name}") for name in ("a", "b", "a")]
    assert await amqp_rig.broker().publish(sent) == [CONFIRMED] * 3
    assert await taken(amqp_rig.url, "a") == [sent[0].task_id, sent[2].task_id]


async def test_topics_are_what_rabbitmq_makes_of_them(amqp_rig: Rig) -> None:
    numbers = {pattern: n for n, pattern in enumerate(sorted({pattern for pattern, _, _ in TOPICS}))}
    async with amqp_channel(amqp_rig.url) as channel:
        for pattern, n in numbers.items():
            exchange = await channel.declare_exchange(f"e{numbers[pattern]}", "topic")
            queue = await channel.declare_queue(f"q{n}", durable=True)
            await queue.bind(exchange, pattern)
    sent = [message("q", exchange=f"e{numbers[pattern]}", routing_key=key) for pattern, key, _ in TOPICS]
    outcomes = await amqp_rig.broker().publish(sent)
    assert outcomes == [CONFIRMED if matches else UNROUTABLE for _, _, matches in TOPICS]


async def test_a_queue_that_exists_is_adopted_as_it_is_and_its_service_still_starts(amqp_rig: Rig) -> None:
    await as_service(amqp_rig.url, service_queue("odd", queue_arguments=ODD))
    await amqp_rig.queue("odd", type="quorum")
    loop = amqp_rig.topology()
    for _ in range(2):
        await loop.run_once()
        row = await amqp_rig.queue_row("odd")
        assert (row["adopted"], row["problem"]) == (True, None)
    await as_service(amqp_rig.url, service_queue("odd", queue_arguments=ODD))
    sent = message("odd")
    assert await amqp_rig.broker().publish([sent]) == [CONFIRMED]
    assert await taken(amqp_rig.url, "odd") == [sent.task_id]


async def test_an_exchange_that_exists_is_used_whatever_its_type(amqp_rig: Rig) -> None:
    async with amqp_channel(amqp_rig.url) as channel:
        await channel.declare_exchange("news", "topic", durable=False, auto_delete=False)
    await amqp_rig.ready_queue("q", exchange="news")
    assert (await amqp_rig.queue_row("q"))["problem"] is None
    assert await amqp_rig.broker().publish([message("q", exchange="news")]) == [CONFIRMED]


async def test_an_adopted_queue_that_vanished_waits_for_its_owner(
    amqp_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "ALL_EVERY_S", 0)
    monkeypatch.setattr(topology, "TROUBLED_EVERY_S", 0)
    await as_service(amqp_rig.url, service_queue("odd", queue_arguments=ODD))
    await amqp_rig.queue("odd")
    loop = amqp_rig.topology()
    await loop.run_once()
    async with amqp_channel(amqp_rig.url) as channel:
        await channel.queue_delete("odd")
    await loop.run_once()
    assert "its owner must declare it again" in (await amqp_rig.queue_row("odd"))["problem"]
    await as_service(amqp_rig.url, service_queue("odd", queue_arguments=ODD))
    await loop.run_once()
    row = await amqp_rig.queue_row("odd")
    assert (row["adopted"], row["problem"]) == (True, None)


async def test_a_queue_of_ours_that_vanished_is_made_again(amqp_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "ALL_EVERY_S", 0)
    await amqp_rig.queue("q")
    loop = amqp_rig.topology()
    await loop.run_once()
    async with amqp_channel(amqp_rig.url) as channel:
        await channel.queue_delete("q")
        await channel.exchange_delete("q")
    await loop.run_once()
    assert await amqp_rig.broker().publish([message("q")]) == [CONFIRMED]


async def test_trouble_is_told_on_one_queue_and_the_others_go_on(amqp_rig: Rig) -> None:
    await amqp_rig.queue("amq.reserved", exchange="x")
    await amqp_rig.queue("b-default-exchange", exchange="", routing_key="other")
    await amqp_rig.queue("c-missing", exchange="amq.nothing")
    await amqp_rig.queue("k" * 300)
    await amqp_rig.queue("z")
    await amqp_rig.topology().run_once()
    problems = {name: (await amqp_rig.queue_row(name))["problem"] for name in ("amq.reserved", "c-missing", "k" * 300)}
    assert "reserved" in problems["amq.reserved"]
    assert "no exchange 'amq.nothing'" in problems["c-missing"]
    assert problems["k" * 300]
    assert "default exchange" in (await amqp_rig.queue_row("b-default-exchange"))["problem"]
    row = await amqp_rig.queue_row("z")
    assert row["problem"] is None
    assert row["declare_time"] is not None


async def test_of_two_schedulers_one_looks_and_a_queue_of_ours_is_not_taken_for_adopted(amqp_rig: Rig) -> None:
    for n in range(20):
        await amqp_rig.queue(f"q{n}")
    await asyncio.gather(*(amqp_rig.topology().run_once() for _ in range(3)))
    rows = [await amqp_rig.queue_row(f"q{n}") for n in range(20)]
    assert [row["adopted"] for row in rows] == [False] * 20


async def test_a_broker_that_is_away_is_nobodys_problem(proxied: Rig, proxy: Any) -> None:
    await proxied.queue("q")
    await asyncio.to_thread(proxy.cut)
    loop = proxied.topology()
    if proxied.url.startswith("amqp"):
        with pytest.raises(BrokerAway):
            await loop.run_once()
        row = await proxied.queue_row("q")
        assert (row["declare_time"], row["problem"]) == (None, None)
        await asyncio.to_thread(proxy.restore)
    # Redis is asked nothing, for a list needs no declaration.
    await loop.run_once()
    assert (await proxied.queue_row("q"))["declare_time"] is not None


async def test_the_default_queues_are_there_from_the_start(rig: Rig) -> None:
    settings = Settings.load(**{**dict(rig.settings), "task_queues": "default,mail"})
    for _ in range(2):
        await topology.ensure_default_queues(rig.database, settings)
    await rig.topology().run_once()
    for name in ("default", "mail"):
        row = await rig.queue_row(name)
        assert row["type"] == ("classic" if rig.url.startswith("redis") else "quorum")
        assert (row["namespace"], row["exchange"], row["routing_key"], row["problem"]) == ("default", name, name, None)
        assert row["declare_time"] is not None
        assert row["dead_letter"] is not rig.url.startswith("redis")
