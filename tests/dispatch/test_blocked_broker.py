"""RabbitMQ that is out of memory: it keeps its connections, and reads nothing more from publishers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.dispatch.parts import Rig
from tests.processes import eventually
from tests.servers import RabbitMQ

WATERMARK = "set_vm_memory_high_watermark"


@pytest.fixture
async def memory(rabbitmq_server: RabbitMQ) -> AsyncIterator[RabbitMQ]:
    """The server of `amqp_rig`; it has memory again afterwards."""
    yield rabbitmq_server
    await asyncio.to_thread(rabbitmq_server.control, WATERMARK, "absolute", "1GB")


async def test_a_broker_that_takes_nothing_in_is_away_until_it_does(amqp_rig: Rig, memory: RabbitMQ) -> None:
    await amqp_rig.ready_queue("q")
    amqp_rig.timeout_s = 1
    outbox = amqp_rig.outbox()
    (before,) = await amqp_rig.runs("q")

    async def sent() -> bool:
        await outbox.run_once()
        return (await amqp_rig.row(before))["dispatch_time"] is not None

    await eventually(sent, 30, "a run with the broker while it takes messages in")
    await asyncio.to_thread(memory.control, WATERMARK, "absolute", "1")
    ids = await amqp_rig.runs("q", 20)

    async def told() -> bool:
        await outbox.run_once()
        return all((row["reason"] or "").startswith("broker away since ") for row in await amqp_rig.rows(ids))

    await eventually(told, 30, "the reason on every run")
    await asyncio.to_thread(memory.control, WATERMARK, "absolute", "1GB")

    async def out() -> bool:
        await outbox.run_once()
        return all(row["dispatch_time"] for row in await amqp_rig.rows(ids))

    await eventually(out, 30, "every run with the broker")
    assert {(row["reason"], row["dispatches"]) for row in await amqp_rig.rows(ids)} == {(None, 1)}
