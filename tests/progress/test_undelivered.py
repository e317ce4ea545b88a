"""Dead letters of each kind, made by a real RabbitMQ, settle their runs."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from redis.asyncio import Redis

from app.database import Database
from app.progress.replies import Replies
from app.settings import Settings
from tests.processes import eventually
from tests.progress.live import count, make_run, reaches, recording, row_of, stored_state
from tests.progress.standings import policy
from workers.protocol import HELD, REAPED, TaskId, lease_key

QUEUE = "svc"


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report comes behind a message that a worker of these tests rejects, but in the test that is about that."""
    monkeypatch.setattr("app.progress.undelivered.GRACE_S", 0.0)


@pytest.fixture
def settings(amqp_settings: Settings) -> Settings:
    return amqp_settings


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(amqp_url, timeout=10)
    yield await connection.channel()
    await connection.close()


@pytest.fixture
async def replies(database: Database, redis: Redis, settings: Settings) -> AsyncIterator[Replies]:
    async with recording(Replies(database, redis, settings, "one")) as at_work:
        yield at_work


async def declare(channel: AbstractChannel, settings: Settings, **more: Any) -> None:
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": settings.dead_letter_queue,
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    await channel.declare_queue(QUEUE, durable=True, arguments=arguments)


async def send(channel: AbstractChannel, task_id: Any, queue: str = QUEUE, **more: Any) -> None:
    message = aio_pika.Message(b"[]", correlation_id=str(task_id), headers={"id": str(task_id)}, **more)
    await channel.default_exchange.publish(message, routing_key=queue)


async def refuse(channel: AbstractChannel, *, times: int = 1, requeue: bool = False) -> None:
    """Take the next message and reject it, as a worker does that does not know the task or dies under it."""
    queue = await channel.get_queue(QUEUE, ensure=False)

    async def taken() -> Any:
        return await queue.get(fail=False, timeout=30)

    for _ in range(times):
        message = await eventually(taken, what="a message")
        await message.reject(requeue=requeue)


async def becomes(
    database: Database, task_id: TaskId, holds: Callable[[Any], bool], what: str, timeout: float = 15
) -> Any:
    async def look() -> Any:
        row = await row_of(database, task_id.run_id)
        return row if holds(row) else None

    return await eventually(look, timeout, what)


async def test_messages_that_no_worker_would_have_go_out_again(
    database: Database, settings: Settings, channel: AbstractChannel, replies: Replies
) -> None:
    await declare(channel, settings, x_max_length=1)
    rejected, expired, pushed, last = [TaskId(await make_run(database, queue=QUEUE), 1) for _ in range(4)]
    await send(channel, rejected)
    await refuse(channel)
    await send(channel, expired, expiration=0.001)
    row = await becomes(database, expired, lambda row: row["dispatch_time"] is None, "a run that waits")
    assert (row["state"], row["reason"]) == ("PENDING", "its message expired in the queue svc: sent again")
    await send(channel, pushed)
    await send(channel, last)
    row = await becomes(database, pushed, lambda row: row["dispatch_time"] is None, "a run that waits")
    assert (row["state"], row["reason"]) == ("PENDING", "its message was pushed out of the queue svc: sent again")
    row = await becomes(database, rejected, lambda row: row["dispatch_time"] is None, "a run that waits")
    assert (row["state"], row["attempt"], row["first_dispatch"], row["not_registered"]) == ("PENDING", 1, 2, 1)
    assert row["reason"].startswith("rejected by a worker of svc")
    assert (await row_of(database, last.run_id))["reason"] is None
    await eventually(lambda: _empty(channel, settings.dead_letter_queue), what="an empty queue")


async def _empty(channel: AbstractChannel, queue: str) -> bool:
    return not (await channel.declare_queue(queue, passive=True)).declaration_result.message_count


async def test_the_report_of_a_worker_that_rejects_comes_first(
    database: Database,
    settings: Settings,
    channel: AbstractChannel,
    replies: Replies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Celery rejects, then stores NotRegistered: the report names the worker, and its dispatch is not counted twice."""
    monkeypatch.setattr("app.progress.undelivered.GRACE_S", 300.0)
    await declare(channel, settings)
    task_id = TaskId(await make_run(database, queue=QUEUE), 1)
    await send(channel, task_id)
    await refuse(channel)
    body = stored_state(task_id, "FAILURE", {"exc_type": "NotRegistered", "exc_message": ["t"]}, worker="thief@h")
    await channel.default_exchange.publish(
        aio_pika.Message(body, correlation_id=str(task_id)), routing_key=settings.reply_queue
    )
    row = await becomes(database, task_id, lambda row: row["not_registered"] == 1, "not registered")
    assert "thief@h" in row["reason"]
    await eventually(lambda: _waits(replies), what="the dead letter")
    monkeypatch.setattr("app.progress.undelivered.GRACE_S", 0.0)
    await eventually(lambda: _settled(channel, settings, replies), what="a settled dead letter")
    assert (await row_of(database, task_id.run_id))["version"] == row["version"]


async def _waits(replies: Replies) -> bool:
    return bool(replies._undelivered._letters)


async def _settled(channel: AbstractChannel, settings: Settings, replies: Replies) -> bool:
    return not replies._undelivered._letters and await _empty(channel, settings.dead_letter_queue)


async def test_a_message_that_was_delivered_too_often_ends_its_attempt(
    database: Database, redis: Redis, settings: Settings, channel: AbstractChannel, replies: Replies
) -> None:
    await declare(channel, settings, x_delivery_limit=1)
    waiting = TaskId(await make_run(database, queue=QUEUE), 1)
    running = TaskId(await make_run(database, queue=QUEUE, retry=policy(max_attempts=2), state="STARTED"), 1)
    leased = TaskId(await make_run(database, queue=QUEUE, state="STARTED", leased=True), 1)
    held = TaskId(await make_run(database, queue=QUEUE), 1)
    for task_id in (leased, held):
        await redis.set(lease_key(task_id.run_id, 1, 0), f"{HELD}token")
    for task_id in (leased, held, running, waiting):
        await send(channel, task_id)
        await refuse(channel, times=2, requeue=True)
    row = await reaches(database, waiting.run_id, "FAILURE")
    assert row["error"]["type"] == "DeadLettered"
    assert "svc" in row["error"]["message"]
    row = await becomes(database, running, lambda row: row["attempt"] == 2, "the next attempt")
    assert (row["state"], row["attempts"][0]["error"]["type"]) == ("PENDING", "DeadLettered")
    for task_id in (waiting, running):
        assert await redis.get(lease_key(task_id.run_id, 1, 0)) == REAPED.encode(), "nobody begins it any more"
    await eventually(lambda: _settled(channel, settings, replies), what="settled dead letters")
    assert [(await row_of(database, task_id.run_id))["state"] for task_id in (leased, held)] == ["STARTED", "PENDING"]


async def test_a_message_that_a_task_rejects_ends_its_attempt_and_strangers_do_not_pile_up(
    database: Database, settings: Settings, channel: AbstractChannel, replies: Replies
) -> None:
    await declare(channel, settings)
    started = TaskId(await make_run(database, queue=QUEUE, state="STARTED"), 1)
    nobody, written = [TaskId(await make_run(database), 1) for _ in range(2)]
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM runs WHERE id = $1", nobody.run_id)
    for task_id in ("f61bdecf-0d55-4000-8000-000000000000", nobody, started):
        await send(channel, task_id)
        await refuse(channel)
    await send(channel, "", settings.dead_letter_queue)
    await send(channel, written, settings.dead_letter_queue)
    row = await reaches(database, started.run_id, "FAILURE")
    assert row["error"]["type"] == "DeadLettered"
    await eventually(lambda: _settled(channel, settings, replies), what="settled dead letters")
    await eventually(lambda: _both_refused(database), what="both set aside")
    assert (await row_of(database, written.run_id))["state"] == "PENDING"
    async with database.reading() as connection:
        rows = await connection.fetch("SELECT source, task_id FROM refused_reports")
    assert {(row["source"], row["task_id"]) for row in rows} == {
        ("record:rpc", str(nobody)),
        ("record:rpc", str(written)),
    }


async def _both_refused(database: Database) -> bool:
    return await count(database, "refused_reports") >= 2


async def test_without_redis_a_dead_letter_waits(
    database: Database, settings: Settings, channel: AbstractChannel
) -> None:
    """Nobody can know then who holds the lease; replies are recorded all the same."""
    nothing = Redis.from_url("redis://127.0.0.1:1/0")
    async with recording(Replies(database, nothing, settings, "one")) as replies:
        await declare(channel, settings, x_delivery_limit=1)
        dead, alive = [TaskId(await make_run(database, queue=QUEUE), 1) for _ in range(2)]
        await send(channel, dead)
        await refuse(channel, times=2, requeue=True)

        async def away() -> bool:
            return replies._undelivered._again_at > 0

        await eventually(away, what="a try")
        body = stored_state(alive, "SUCCESS", 1)
        await channel.default_exchange.publish(
            aio_pika.Message(body, correlation_id=str(alive)), routing_key=settings.reply_queue
        )
        await reaches(database, alive.run_id, "SUCCESS")
        assert (await row_of(database, dead.run_id))["state"] == "PENDING"
    await nothing.aclose()
    assert await count(database, "refused_reports") == 0
