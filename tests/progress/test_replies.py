"""Workers with `rpc://` results, and dead letters, on a real RabbitMQ that may go away."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from celery import Celery
from pydantic import SecretStr
from redis.asyncio import Redis

from app import faults
from app.database import Database
from app.embedded import free_port
from app.progress.replies import Replies
from app.settings import Settings
from tests.acceptance.plane import JOBPLANE
from tests.processes import Process, eventually
from tests.progress.live import count, make_run, reaches, recording, row_of, stored_state
from tests.progress.standings import policy
from tests.servers import RabbitMQ
from workers.protocol import TaskId

SERVICE = """
import time
from celery import Celery

app = Celery("other_service", broker={url!r}, backend="rpc://")
app.conf.update(task_track_started=True, result_persistent=True)


@app.task(bind=True, name="svc.words")
def words(self, posts):
    self.update_state(state="DOWNLOADING", meta={{"file": "posts.csv"}})
    for i in range(1, posts + 1):
        self.update_state(state="PROGRESS", meta={{"current": i, "total": posts, "message": f"post {{i}}"}})
        time.sleep(0.02)
    return {{"scored": posts}}


@app.task(name="svc.fails")
def fails():
    raise KeyError("no such post")


@app.task(bind=True, name="svc.retries", max_retries=2)
def retries(self):
    if self.request.retries < 1:
        raise self.retry(countdown=1, exc=ValueError("not yet"))
    return self.request.retries
"""

Started = Callable[..., Process]


@pytest.fixture
def settings(amqp_settings: Settings) -> Settings:
    return amqp_settings


@pytest.fixture
def replies(database: Database, redis: Redis, settings: Settings) -> Replies:
    return Replies(database, redis, settings, "one")


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(amqp_url, timeout=10)
    yield await connection.channel()
    await connection.close()


async def answer(channel: AbstractChannel, queue: str, task_id: Any, *bodies: bytes) -> None:
    """Send replies as a worker does: unmarked but for the task's id."""
    for body in bodies:
        message = aio_pika.Message(body, correlation_id=str(task_id), delivery_mode=1)
        await channel.default_exchange.publish(message, routing_key=queue)


async def states_of(database: Database, task_id: TaskId) -> list[str]:
    async with database.reading() as connection:
        events = await connection.fetch(
            "SELECT state FROM run_events WHERE run_id = $1 ORDER BY version", task_id.run_id
        )
    return [event["state"] for event in events]


async def test_a_stock_worker_with_rpc_results_is_followed_to_the_end(
    database: Database,
    redis: Redis,
    settings: Settings,
    amqp_url: str,
    replies: Replies,
    tmp_path: Path,
    start_process: Started,
) -> None:
    (tmp_path / "other_service.py").write_text(SERVICE.format(url=amqp_url))
    options = ["-Q", "svc", "-c", "1", "-n", "other@h", "-l", "info", "--without-mingle", "--without-gossip"]
    worker = start_process(
        [sys.executable, "-m", "celery", "-A", "other_service", "worker", *options], name="other", cwd=tmp_path
    )
    scored, failed, unknown, retried = [TaskId(await make_run(database, retry=policy()), 1) for _ in range(4)]

    def send(client: Celery, task: str, task_id: TaskId, *args: Any) -> None:
        client.send_task(
            task, args, task_id=str(task_id), queue="svc", reply_to=settings.reply_queue, ignore_result=False
        )

    def send_all() -> None:
        with Celery(broker=amqp_url, set_as_current=False, fixups=[]) as client:
            send(client, "svc.retries", retried)
            send(client, "svc.words", scored, 10)
            send(client, "svc.fails", failed)
            send(client, "svc.nobody_knows_this", unknown)

    async with recording(replies):
        await asyncio.to_thread(worker.wait_for_line, "ready.")
        await asyncio.to_thread(send_all)
        row = await reaches(database, scored.run_id, "SUCCESS")
        assert (row["result"], row["progress"]["percent"]) == ({"scored": 10}, 100)
        assert row["worker"] == "other@h"
        row = await reaches(database, failed.run_id, "FAILURE")
        assert (row["error"]["type"], row["error"]["message"]) == ("KeyError", "no such post")
        assert 'raise KeyError("no such post")' in row["error"]["traceback"]
        row = await reaches(database, retried.run_id, "SUCCESS")
        assert row["result"] == 1
        await eventually(lambda: _given_up(database, unknown), what="word of the task that nobody knows")
    row = await row_of(database, unknown.run_id)
    assert (row["state"], row["not_registered"]) == ("PENDING", 1)
    assert await states_of(database, scored) == ["PENDING", "STARTED", "DOWNLOADING", "PROGRESS", "SUCCESS"]
    assert await states_of(database, retried) == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
    assert await count(database, "leases") == 0
    assert await count(database, "refused_reports") == 0


async def _given_up(database: Database, task_id: TaskId) -> bool:
    return bool((await row_of(database, task_id.run_id))["not_registered"])


async def test_rpc_protects_nothing_and_the_first_end_wins(
    database: Database, settings: Settings, replies: Replies, channel: AbstractChannel
) -> None:
    """What a worker that lost its broker in mid task sends: all of it twice. Strangers write to the queue as well."""
    twice, changed, lost = [TaskId(await make_run(database), 1) for _ in range(3)]
    nobody = TaskId(await make_run(database), 1)
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM runs WHERE id = $1", nobody.run_id)
        await connection.execute("ALTER TABLE runs ADD CONSTRAINT poison CHECK (progress ->> 'message' <> 'poison')")
    poisoned = TaskId(await make_run(database), 1)
    queue = settings.reply_queue
    async with recording(replies):
        await answer(channel, queue, poisoned, stored_state(poisoned, "PROGRESS", {"message": "poison"}))
        await answer(channel, queue, "f61bdecf-0d55-4000-8000-000000000000", b"\xff" * 100)
        await answer(channel, queue, nobody, stored_state(nobody, "STARTED"))
        await answer(channel, queue, changed, b"\xff not JSON", stored_state(changed, "FAILURE", {"exc_type": "E"}))
        await answer(channel, queue, changed, stored_state(changed, "SUCCESS", 1))
        both = stored_state(twice, "STARTED", {"hostname": "w@h"}), stored_state(twice, "SUCCESS", "first")
        await answer(channel, queue, twice, *both, both[0], stored_state(twice, "SUCCESS", "second"))
        refused = {"exc_type": "OperationalError", "exc_message": ["refused"], "exc_module": "kombu.exceptions"}
        await answer(channel, queue, lost, stored_state(lost, "STARTED"), stored_state(lost, "FAILURE", refused))
        await answer(channel, queue, poisoned, stored_state(poisoned, "SUCCESS", 1))
        # Of a batch that the database refuses, each run is written by itself, in the order in which they came first.
        await reaches(database, poisoned.run_id, "SUCCESS")
        assert (await reaches(database, changed.run_id, "FAILURE"))["error"]["type"] == "E"
        assert (await reaches(database, twice.run_id, "SUCCESS"))["result"] == "first"
        assert (await reaches(database, lost.run_id, "FAILURE"))["error"]["type"] == "OutcomeUnknown"
        await eventually(lambda: _empty(channel, queue), what="an empty queue")
    assert (await row_of(database, twice.run_id))["result"] == "first"
    assert await states_of(database, twice) == ["PENDING", "STARTED", "SUCCESS"]
    assert (await row_of(database, changed.run_id))["error"]["type"] == "E"
    async with database.reading() as connection:
        rows = await connection.fetch("SELECT source, task_id FROM refused_reports")
    assert {(row["source"], row["task_id"]) for row in rows} == {
        ("record:rpc", str(task_id)) for task_id in (poisoned, nobody, changed)
    }


async def _empty(channel: AbstractChannel, queue: str) -> bool:
    return not (await channel.declare_queue(queue, passive=True)).declaration_result.message_count


@pytest.mark.parametrize("point", ["record.after_receive", "record.before_commit", "record.after_commit"])
async def test_what_was_not_acknowledged_is_read_by_the_next_one(
    point: str, database: Database, redis: Redis, settings: Settings, replies: Replies, channel: AbstractChannel
) -> None:
    """The first one fails for good in the middle of a batch; more replies pile up while nobody reads."""
    runs = [TaskId(await make_run(database), 1) for _ in range(20)]
    queue = settings.reply_queue
    try:
        await eventually(lambda: _listens(replies), what="a recorder that listens")
        faults.arm(f"{point}=raise")
        for task_id in runs:
            await answer(channel, queue, task_id, stored_state(task_id, "STARTED"), stored_state(task_id, "SUCCESS", 5))
        await eventually(lambda: _fails(replies), what="a fault")
    finally:
        faults.arm("")
        await replies.close()
    for task_id in runs:
        await answer(channel, queue, task_id, stored_state(task_id, "STARTED"), stored_state(task_id, "SUCCESS", 6))
    async with recording(Replies(database, redis, settings, "two")):
        for task_id in runs:
            assert (await reaches(database, task_id.run_id, "SUCCESS"))["result"] == 5
            assert await states_of(database, task_id) == ["PENDING", "STARTED", "SUCCESS"]
        await eventually(lambda: _empty(channel, queue), what="an empty queue")


async def _listens(replies: Replies) -> bool:
    await replies.run_once()
    return replies.listening


async def _fails(replies: Replies) -> bool:
    try:
        await replies.run_once()
    except faults.InjectedFault:
        return True
    return False


@pytest.mark.long
async def test_a_scheduler_that_is_killed_between_commit_and_word_to_the_broker_is_followed_by_another(
    database: Database,
    settings: Settings,
    database_url: str,
    redis_url: str,
    amqp_url: str,
    channel: AbstractChannel,
    start_process: Started,
) -> None:
    environment = {
        "JOBPLANE_DATABASE_URL": database_url,
        "JOBPLANE_REDIS_URL": redis_url,
        "JOBPLANE_BROKER_URL": amqp_url,
    }
    doomed = start_process(
        [*JOBPLANE, "scheduler"], env={**environment, "JOBPLANE_FAULTS": "record.after_commit=kill"}, name="doomed"
    )
    await asyncio.to_thread(doomed.wait_for_line, '"mailbox_open"')
    task_id = TaskId(await make_run(database), 1)
    other = start_process([*JOBPLANE, "scheduler"], env=environment, name="other")
    await asyncio.to_thread(other.wait_for_line, '"scheduler_up"')
    await answer(channel, settings.reply_queue, task_id, stored_state(task_id, "STARTED"))
    await asyncio.to_thread(doomed.wait)
    await answer(channel, settings.reply_queue, task_id, stored_state(task_id, "SUCCESS", 1))
    await reaches(database, task_id.run_id, "SUCCESS")
    assert await states_of(database, task_id) == ["PENDING", "STARTED", "SUCCESS"]
    assert await asyncio.to_thread(other.stop) == 0


async def test_a_broker_that_is_away_is_no_error(database: Database, redis: Redis, settings: Settings) -> None:
    nowhere = settings.model_copy(update={"broker_url": SecretStr(f"amqp://guest:guest@127.0.0.1:{free_port()}/")})
    away = Replies(database, redis, nowhere, "one")
    try:
        for _ in range(3):
            assert await away.run_once()
        assert away.holds
        assert not away.listening
    finally:
        await away.close()


async def test_a_queue_that_is_deleted_is_made_again(
    database: Database, settings: Settings, replies: Replies, channel: AbstractChannel
) -> None:
    task_id = TaskId(await make_run(database), 1)
    async with recording(replies):
        await channel.queue_delete(settings.reply_queue)
        await eventually(lambda: _deaf(replies), what="the loss of the queue")
        await eventually(lambda: _hears(replies), what="a new queue")
        await answer(channel, settings.reply_queue, task_id, stored_state(task_id, "SUCCESS", 1))
        await reaches(database, task_id.run_id, "SUCCESS")


async def _deaf(replies: Replies) -> bool:
    return not replies.listening


async def _hears(replies: Replies) -> bool:
    return replies.listening


@pytest.mark.long
async def test_a_broker_that_is_restarted_brings_what_was_not_written_once_more(
    database: Database, redis: Redis, settings: Settings, servers_folder: Path
) -> None:
    """The queue holds its messages, a batch in hand is dropped and comes again, and nothing is asked of anybody."""
    server = RabbitMQ(servers_folder / "replies-broker", vhosts=0)
    await asyncio.to_thread(server.start)
    own = settings.model_copy(update={"broker_url": SecretStr(server.url())})
    runs = [TaskId(await make_run(database), 1) for _ in range(50)]
    replies = Replies(database, redis, own, "one")
    try:
        await eventually(lambda: _listens(replies), what="a recorder that listens")
        faults.arm("record.before_commit=raise")
        await send_to(server.url(), own.reply_queue, runs, "STARTED")
        await eventually(lambda: _fails(replies), what="a fault")
        # Not killed: RabbitMQ 3.10 loses a quorum queue that was made in the last seconds before that.
        await asyncio.to_thread(server.stop)
        await eventually(lambda: _hears_nothing(replies), what="the loss of the broker")
        faults.arm("")
        await asyncio.to_thread(server.start)
        # A quorum queue answers some seconds after its broker does.
        await eventually(lambda: _listens(replies), 60, "the broker")
        async with recording(replies):
            for task_id in runs:
                await reaches(database, task_id.run_id, "STARTED")
            await send_to(server.url(), own.reply_queue, runs, "SUCCESS")
            for task_id in runs:
                await reaches(database, task_id.run_id, "SUCCESS")
                assert await states_of(database, task_id) == ["PENDING", "STARTED", "SUCCESS"]
    finally:
        faults.arm("")
        await replies.close()
        await asyncio.to_thread(server.stop)


async def send_to(url: str, queue: str, runs: list[TaskId], state: str) -> None:
    connection = await aio_pika.connect(url, timeout=10)
    channel = await connection.channel()
    for task_id in runs:
        await answer(channel, queue, task_id, stored_state(task_id, state))
    await connection.close()


async def _hears_nothing(replies: Replies) -> bool:
    with suppress(faults.InjectedFault):
        await replies.run_once()
    return not replies.listening
