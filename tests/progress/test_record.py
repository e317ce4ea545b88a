"""Reports become states: hostile ones among good ones, troubles of the database, a recorder that goes away."""

import asyncio
import struct

import pytest
from redis.asyncio import Redis

from app import faults
from app.database import Database
from app.progress.announce import channel_of
from app.progress.record import Recorder
from app.progress.reports import key_of
from app.settings import Settings
from tests.processes import eventually
from tests.progress.live import count, make_run, reaches, recording, row_of, say, stored_state
from workers.protocol import RUNS_CHANNEL, TaskId


@pytest.fixture
def recorder(database: Database, redis: Redis, settings: Settings) -> Recorder:
    return Recorder(database, redis, settings, "one")


async def test_a_run_is_followed_to_its_end_and_told_of(database: Database, redis: Redis, recorder: Recorder) -> None:
    task_id = TaskId(await make_run(database), 1)
    async with redis.pubsub(ignore_subscribe_messages=True) as frames, recording(recorder):
        await frames.subscribe(channel_of(redis, RUNS_CHANNEL))
        await say(redis, task_id, stored_state(task_id, "STARTED", {"pid": 1, "hostname": "w@h"}))
        row = await reaches(database, task_id.run_id, "STARTED")
        assert (row["worker"], row["leased"]) == ("w@h", False)
        for i in range(1, 4):
            await say(redis, task_id, stored_state(task_id, "PROGRESS", {"current": i, "total": 4}))
        await say(redis, task_id, stored_state(task_id, "LAST_STEP", {"file": "a"}))
        await say(redis, task_id, stored_state(task_id, "SUCCESS", [1, 2]))
        row = await reaches(database, task_id.run_id, "SUCCESS")
        assert row["result"] == [1, 2]
        frame = await eventually(lambda: frames.get_message(timeout=1), what="a frame")
        assert frame is not None
        assert str(task_id.run_id).encode() in frame["data"]
        await eventually(lambda: _shortened(redis, task_id), what="a short life of the stored state")
    async with database.reading() as connection:
        states = await connection.fetch(
            "SELECT state FROM run_events WHERE run_id = $1 ORDER BY version", task_id.run_id
        )
    assert [event["state"] for event in states] == ["PENDING", "STARTED", "PROGRESS", "LAST_STEP", "SUCCESS"]


async def _shortened(redis: Redis, task_id: TaskId) -> bool:
    return 0 < await redis.ttl(key_of(task_id)) <= 3600


#: What a stranger may publish under the name of a run of ours: the state in which the run is afterwards.
HOSTILE = [
    (b"", "PENDING"),
    (b"not JSON", "PENDING"),
    (b"[1, 2, 3]", "PENDING"),
    (b'{"status": "STARTED\\n", "result": null}', "PENDING"),
    (b'{"status": "A_WORD_OF_MORE_THAN_FORTY_CHARACTERS_IN_ALL"}', "PENDING"),
    (b'{"status": 17}', "PENDING"),
    (b'{"status": "PENDING"}', "PENDING"),
    (b"[" * 50_000, "PENDING"),
    (struct.pack("<I", 10_000_000) * 2_500_000, "PENDING"),
    (b'{"status": "PROGRESS", "result": {"message": "a\\u0000b", "\\u0000": 1}}', "PROGRESS"),
    (b'{"status": "PROGRESS", "result": {"message": "\\ud800"}}', "PROGRESS"),
    (b'{"status": "PROGRESS", "result": {"current": NaN, "total": Infinity}}', "PROGRESS"),
    (b'{"status": "PROGRESS", "result": {"current": 1e308, "total": 1e-308}}', "PROGRESS"),
    (b'{"status": "PROGRESS", "result": {"current": ' + b"9" * 5000 + b"}}", "PROGRESS"),
    (b'{"status": "PROGRESS", "result": ' + b"[" * 9000 + b"]" * 9000 + b"}", "PROGRESS"),
    (b'{"status": "PROGRESS", "result": {"rows": "' + b"x" * 9_000_000 + b'"}}', "PROGRESS"),
    (b'{"status": "PROGRESS", "result": {}, "worker": {"a": 1}, "retries": 1e300, "traceback": 7}', "PROGRESS"),
    (b'{"status": "RETRY", "result": {"exc_type": "\\u0000"}, "retries": 4294967296}', "RETRY"),
    (b'{"status": "SUCCESS", "result": NaN}', "SUCCESS"),
    (b'{"status": "SUCCESS", "result": "' + b"x" * 10_000_000 + b'"}', "SUCCESS"),
    (b'{"status": "FAILURE", "result": "\\u0000", "traceback": "\\u0000\\udfff"}', "FAILURE"),
    (b'{"status": "FAILURE", "result": {"exc_type": ["x"], "exc_message": {"a": NaN}}}', "FAILURE"),
]


async def test_hostile_reports_do_not_stop_the_good_ones(database: Database, redis: Redis, recorder: Recorder) -> None:
    hostile = [TaskId(await make_run(database), 1) for _ in HOSTILE]
    good = [TaskId(await make_run(database), 1) for _ in range(40)]
    nobody = TaskId(await make_run(database), 1)
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM runs WHERE id = $1", nobody.run_id)
    async with recording(recorder):
        for i, task_id in enumerate(good):
            await say(redis, task_id, stored_state(task_id, "STARTED"))
            if i < len(HOSTILE):
                await say(redis, hostile[i], HOSTILE[i][0])
            await redis.publish(f"celery-task-meta-{'z' * i}", b"\xff" * i)
            await say(redis, nobody, stored_state(nobody, "PROGRESS", {"i": i}))
            await say(redis, task_id, stored_state(task_id, "SUCCESS", i))
        for i, task_id in enumerate(good):
            assert (await reaches(database, task_id.run_id, "SUCCESS"))["result"] == i
        for task_id, (body, state) in zip(hostile, HOSTILE, strict=True):
            # A large result goes its own way, and may come later.
            await reaches(database, task_id.run_id, state)
            assert (await row_of(database, task_id.run_id))["state"] == state, body[:100]
    async with database.reading() as connection:
        refused = await connection.fetch("SELECT * FROM refused_reports")
    assert {row["task_id"] for row in refused} >= {str(nobody), str(hostile[1])}
    assert all(len(row["body"]) <= 4096 for row in refused)
    assert recorder.refused >= 9


async def test_what_the_database_refuses_is_set_aside_alone(
    database: Database, redis: Redis, recorder: Recorder
) -> None:
    """A constraint of the test plays the value that our cleaning does not know of."""
    async with database.transaction() as connection:
        await connection.execute("ALTER TABLE runs ADD CONSTRAINT poison CHECK (progress ->> 'message' <> 'poison')")
    poisoned = TaskId(await make_run(database), 1)
    good = [TaskId(await make_run(database), 1) for _ in range(5)]
    async with recording(recorder):
        async with redis.pipeline() as pipe:  # one batch, most likely
            for task_id in (good[0], poisoned, *good[1:]):
                pipe.publish(key_of(task_id), stored_state(task_id, "STARTED"))
            pipe.publish(key_of(poisoned), stored_state(poisoned, "PROGRESS", {"message": "poison"}))
            for task_id in (good[0], poisoned, *good[1:]):
                pipe.publish(key_of(task_id), stored_state(task_id, "SUCCESS"))
            await pipe.execute()
        for task_id in (*good, poisoned):
            await reaches(database, task_id.run_id, "SUCCESS")
    async with database.reading() as connection:
        refused = await connection.fetch("SELECT * FROM refused_reports")
    assert [(row["task_id"], "poison" in row["problem"]) for row in refused] == [(str(poisoned), True)]


@pytest.mark.parametrize("point", ["record.after_receive", "record.before_commit", "record.after_commit"])
async def test_a_batch_is_kept_until_it_is_written(
    point: str, database: Database, redis: Redis, recorder: Recorder
) -> None:
    task_id = TaskId(await make_run(database), 1)
    faults.arm(f"{point}=raise*1")
    try:
        await eventually(lambda: _listens(recorder), what="a recorder that listens")
        await say(redis, task_id, stored_state(task_id, "RETRY", {"exc_type": "E"}, retries=0))
        await say(redis, task_id, stored_state(task_id, "SUCCESS", 5))
        await eventually(lambda: _waiting(recorder, 2), what="both reports")  # one batch
        with pytest.raises(faults.InjectedFault):
            await recorder.run_once()
        assert await recorder.run_once()
    finally:
        faults.arm("")
        await recorder.close()
    assert (await row_of(database, task_id.run_id))["result"] == 5
    assert await count(database, "refused_reports") == 0


async def _waiting(recorder: Recorder, number: int) -> bool:
    assert recorder._listener is not None
    return recorder._listener.waiting.count >= number


async def test_a_table_that_is_away_for_a_while_loses_nothing(
    database: Database, redis: Redis, recorder: Recorder
) -> None:
    task_id = TaskId(await make_run(database), 1)
    try:
        await eventually(lambda: _listens(recorder), what="a recorder that listens")
        async with database.transaction() as connection:
            await connection.execute("ALTER TABLE run_events RENAME TO run_events_away")
        await say(redis, task_id, stored_state(task_id, "SUCCESS", 5))
        await eventually(lambda: _waiting(recorder, 1), what="the report")
        for _ in range(3):
            with pytest.raises(Exception, match="run_events"):
                await recorder.run_once()
        async with database.transaction() as connection:
            await connection.execute("ALTER TABLE run_events_away RENAME TO run_events")
        await recorder.run_once()
        assert (await row_of(database, task_id.run_id))["state"] == "SUCCESS"
    finally:
        await recorder.close()


async def _listens(recorder: Recorder) -> bool:
    await recorder.run_once()
    return recorder.listening


async def test_what_was_said_while_nobody_listened_is_read(
    database: Database, redis: Redis, recorder: Recorder
) -> None:
    quiet = TaskId(await make_run(database), 1)
    claimed = TaskId(await make_run(database, sent=False), 1)
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE runs SET claim_time = clock_timestamp(), claimed_by = 'x' WHERE id = $1", claimed.run_id
        )
    for task_id in (quiet, claimed):
        await say(redis, task_id, stored_state(task_id, "SUCCESS", 1))
    many = [TaskId(await make_run(database), 1) for _ in range(3)]
    for task_id in many:
        await say(redis, task_id, stored_state(task_id, "PROGRESS", {"current": 1}))
    async with recording(recorder):
        for task_id in (quiet, claimed):
            await reaches(database, task_id.run_id, "SUCCESS")
        for task_id in many:
            await reaches(database, task_id.run_id, "PROGRESS")


async def test_the_truth_is_read_again_and_again(database: Database, redis: Redis, settings: Settings) -> None:
    recorder = Recorder(database, redis, settings, "one", truth_every_s=0.2)
    task_id = TaskId(await make_run(database), 1)
    async with recording(recorder):
        await redis.set(key_of(task_id), stored_state(task_id, "STARTED"))  # a push that was lost
        await reaches(database, task_id.run_id, "STARTED")
        before = (await row_of(database, task_id.run_id))["version"]
        await asyncio.sleep(0.6)
        assert (await row_of(database, task_id.run_id))["version"] == before
        await redis.set(key_of(task_id), stored_state(task_id, "SUCCESS"))
        await reaches(database, task_id.run_id, "SUCCESS")


async def test_another_recorder_takes_over(
    database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is not closed but just does nothing any more, as a killed process."""
    monkeypatch.setattr("app.progress.turn.LEASE_S", 120.0)
    first, second = (Recorder(database, redis, settings, name) for name in ("one", "two"))
    task_id = TaskId(await make_run(database), 1)
    try:
        async with recording(second):
            pass  # closed: the lease is free at once
        await first.run_once()
        assert first.holds
        assert not await second.run_once()
        await say(redis, task_id, stored_state(task_id, "SUCCESS", 7))
        async with database.transaction() as connection:  # as if it had done nothing for as long as its lease
            await connection.execute("UPDATE leases SET until_time = clock_timestamp() - interval '1 s'")
        first._turn._held_at -= 120
        row = await reaches(database, task_id.run_id, "SUCCESS", run_once=second.run_once)
        assert row["result"] == 7
        assert second.holds
        assert not await first.run_once()
        assert not first.listening
    finally:
        await first.close()
        await second.close()
    assert await count(database, "leases") == 0
