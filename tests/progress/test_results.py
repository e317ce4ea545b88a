"""Results too large for their run: in the store before the run has ended, on both routes, and with the store away."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import aio_pika
import pytest
from redis.asyncio import Redis

from app.database import Database
from app.logs.place import result_of
from app.progress import withdraw
from app.progress.record import Recorder
from app.progress.replies import Replies
from app.progress.reports import key_of
from app.progress.standing import Standing
from app.progress.withdraw import Whose
from app.settings import Settings
from tests.processes import eventually
from tests.progress.live import make_run, reaches, recording, row_of, say, stored_state
from workers.protocol import TaskId

ROWS = [{"id": number, "name": "n" * 20} for number in range(60_000)]


def end(task_id: TaskId, result: Any = ROWS, **more: Any) -> bytes:
    return stored_state(task_id, "SUCCESS", result, worker="w@h", **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.fixture
def settings(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(update={"log_store": folder.as_uri()})


@pytest.fixture
def recorder(database: Database, redis: Redis, settings: Settings) -> Recorder:
    return Recorder(database, redis, settings, "one")


async def kept(database: Database, folder: Path, run_id: UUID) -> Any:
    """The result of a run that is in the store."""
    result = (await row_of(database, run_id))["result"]
    text = (folder / result_of(run_id)).read_bytes()
    assert result == {
        "jobplane": "result stored",
        "bytes": len(text),
        "path": f"{folder.as_uri()}/{result_of(run_id)}",
    }
    return json.loads(text)


async def test_a_large_result_is_in_the_store_and_the_others_do_not_wait(
    database: Database, redis: Redis, recorder: Recorder, folder: Path
) -> None:
    large, medium, small, args = [TaskId(await make_run(database), 1) for _ in range(4)]
    async with recording(recorder):
        await say(redis, large, end(large))
        await say(redis, medium, end(medium, "x" * 70_000))
        await say(redis, small, end(small, "x" * 60_000))
        await say(redis, args, end(args, 7, args=["x" * 2_000_000]))
        for task_id in (large, medium, small, args):
            assert (await reaches(database, task_id.run_id, "SUCCESS"))["worker"] == "w@h"
    assert await kept(database, folder, large.run_id) == ROWS
    assert await kept(database, folder, medium.run_id) == "x" * 70_000
    assert (await row_of(database, small.run_id))["result"] == "x" * 60_000
    assert (await row_of(database, args.run_id))["result"] == 7


async def test_over_the_limit_it_is_nowhere(database: Database, redis: Redis, settings: Settings, folder: Path) -> None:
    limited = settings.model_copy(update={"result_limit_mib": 1})
    nearly, over, far = [TaskId(await make_run(database), 1) for _ in range(3)]
    async with recording(Recorder(database, redis, limited, "one")):
        await say(redis, nearly, end(nearly, "x" * (1024 * 1024 - 2)))
        await say(redis, over, end(over, "x" * (1024 * 1024 - 1)))
        await say(redis, far, end(far, "x" * 4_000_000))
        for task_id in (nearly, over, far):
            await reaches(database, task_id.run_id, "SUCCESS")
    assert len(await kept(database, folder, nearly.run_id)) == 1024 * 1024 - 2
    assert (await row_of(database, over.run_id))["result"] == {
        "jobplane": "result too large",
        "bytes": 1024 * 1024 + 1,
        "limit_bytes": 1024 * 1024,
    }
    assert (await row_of(database, far.run_id))["result"]["bytes"] > 4_000_000
    assert not (folder / result_of(over.run_id)).exists()


async def test_with_the_store_away_the_end_waits_and_the_others_do_not(
    database: Database, redis: Redis, recorder: Recorder, folder: Path
) -> None:
    """First for less than the recorder is patient, then for longer."""
    folder.rename(folder.with_name("elsewhere"))
    folder.touch()  # a file: no folder can be made there
    first, second, third = [TaskId(await make_run(database), 1) for _ in range(3)]
    small = TaskId(await make_run(database), 1)
    async with recording(recorder):
        await say(redis, first, end(first))
        await asyncio.sleep(0)
        await say(redis, small, end(small, 1))
        await reaches(database, small.run_id, "SUCCESS")
        assert (await row_of(database, first.run_id))["state"] == "PENDING"
        folder.unlink()
        folder.with_name("elsewhere").rename(folder)
        await reaches(database, first.run_id, "SUCCESS")
        assert await kept(database, folder, first.run_id) == ROWS
        folder.rename(folder.with_name("elsewhere"))
        folder.touch()
        recorder._results._patience_s = 0.5
        await say(redis, second, end(second))
        await say(redis, third, end(third, "x" * 70_000))
        for task_id in (second, third):
            result = (await reaches(database, task_id.run_id, "SUCCESS"))["result"]
            assert result["jobplane"] == "result lost"
            assert result["bytes"] > 70_000
            assert "log store" in result["why"]


async def test_what_waits_is_read_again_by_the_next_recorder(
    database: Database, redis: Redis, settings: Settings, folder: Path
) -> None:
    folder.rmdir()
    folder.touch()
    task_id = TaskId(await make_run(database), 1)
    first = Recorder(database, redis, settings, "one")
    async with recording(first):
        await say(redis, task_id, end(task_id))
        await eventually(lambda: _waits(first, task_id), what="an end that waits")
    folder.unlink()
    async with recording(Recorder(database, redis, settings, "two")):
        await reaches(database, task_id.run_id, "SUCCESS")
    assert await kept(database, folder, task_id.run_id) == ROWS


async def _waits(recorder: Recorder | Replies, task_id: TaskId) -> bool:
    return recorder._results.waits(task_id)


async def test_the_result_of_an_end_that_counts_is_never_written_over(
    database: Database, redis: Redis, recorder: Recorder, folder: Path
) -> None:
    task_id = TaskId(await make_run(database), 1)
    other = TaskId(await make_run(database), 1)
    async with recording(recorder):
        await say(redis, task_id, end(task_id))
        before = await reaches(database, task_id.run_id, "SUCCESS")
        await say(redis, task_id, end(task_id, "y" * 80_000))
        await eventually(lambda: _done(recorder, task_id), what="the second end")
        await say(redis, other, end(other, 1))
        await reaches(database, other.run_id, "SUCCESS")
    assert await row_of(database, task_id.run_id) == before
    assert await kept(database, folder, task_id.run_id) == ROWS


async def _done(recorder: Recorder, task_id: TaskId) -> bool:
    return not recorder._results.waits(task_id)


async def test_a_cancel_leaves_a_large_end_that_is_stored_to_the_recorder(
    database: Database, redis: Redis, recorder: Recorder, folder: Path
) -> None:
    task_id = TaskId(await make_run(database), 1)
    await redis.set(key_of(task_id), end(task_id))
    taken = await withdraw.take(redis, Standing.of(await row_of(database, task_id.run_id)))
    assert taken.whose is Whose.DONE
    assert await withdraw.write(database, taken) == []
    async with recording(recorder):
        await reaches(database, task_id.run_id, "SUCCESS")
    assert await kept(database, folder, task_id.run_id) == ROWS


@pytest.fixture
async def reply(amqp_settings: Settings) -> Any:
    """Sends as a worker with `rpc://` results does: `reply(task_id, body)`."""
    connection = await aio_pika.connect(amqp_settings.broker_url.get_secret_value())
    channel = await connection.channel()

    async def send(task_id: TaskId, body: bytes) -> None:
        message = aio_pika.Message(body, correlation_id=str(task_id), content_type="application/json")
        await channel.default_exchange.publish(message, amqp_settings.reply_queue)

    yield send
    await connection.close()


async def test_a_large_result_through_rpc(
    database: Database,
    redis: Redis,
    amqp_settings: Settings,
    folder: Path,
    reply: Callable[[TaskId, bytes], Awaitable[None]],
) -> None:
    """Also with the store away: the others are recorded, and a process that goes meanwhile leaves it to the next."""
    settings = amqp_settings.model_copy(update={"log_store": folder.as_uri()})
    large, waits, leaves, small = [TaskId(await make_run(database), 1) for _ in range(4)]
    first = Replies(database, redis, settings, "one")
    async with recording(first):
        await reply(large, end(large))
        await reaches(database, large.run_id, "SUCCESS")
        assert await kept(database, folder, large.run_id) == ROWS
        folder.rename(folder.with_name("elsewhere"))
        folder.touch()
        await reply(waits, stored_state(waits, "STARTED"))
        await reply(waits, end(waits))
        await reply(waits, stored_state(waits, "PROGRESS", {"current": 1}))
        await reply(small, end(small, 1))
        await reaches(database, small.run_id, "SUCCESS")
        assert await _waits(first, waits)
        folder.unlink()
        folder.with_name("elsewhere").rename(folder)
        await reaches(database, waits.run_id, "SUCCESS")
        assert await kept(database, folder, waits.run_id) == ROWS
        folder.rename(folder.with_name("elsewhere"))
        folder.touch()
        await reply(leaves, end(leaves))
        await eventually(lambda: _waits(first, leaves), what="an end that waits")
    folder.unlink()
    folder.with_name("elsewhere").rename(folder)
    async with recording(Replies(database, redis, settings, "two")):
        await reaches(database, leaves.run_id, "SUCCESS")
    assert await kept(database, folder, leaves.run_id) == ROWS
