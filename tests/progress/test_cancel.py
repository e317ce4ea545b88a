"""Cancels that last: what stands in their way goes away, and then they come to their end."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from redis.asyncio import Redis

from app import faults
from app.database import Database, Record, clock
from app.embedded import free_port
from app.progress import cancelling, moves
from app.progress.cancel import Canceller
from app.progress.cancelling import Audience
from app.progress.fold import fold
from app.progress.record import Recorder
from app.progress.reports import key_of
from app.progress.standing import Standing
from app.progress.transition import apply
from app.settings import Settings
from tests.processes import Process, eventually, wait_until
from tests.progress.live import make_run, reaches, recording, row_of, stored_state
from tests.progress.standings import NEW, NOW, SENT, policy, report
from workers.protocol import CANCELLED, DONE, HELD, TaskId, lease_key

ASKED = {"time": "2026-11-22T12:00:00Z", "by": "ann", "terminate": False, "grace_s": 10.0}
STARTED = replace(SENT, state="STARTED", start_time=NOW, worker="w@h", version=3)
OURS = replace(STARTED, leased=True)


def asked(standing: Standing, **changes: Any) -> Standing:
    return replace(standing, cancel={**ASKED, **changes}, cancel_next_time=NOW)


def ask(standing: Standing, *, terminate: bool = False, grace_s: float = 10.0) -> Standing | None:
    return cancelling.ask(NOW, "ann", terminate=terminate, grace_s=grace_s)(standing)


def test_what_was_never_sent_ends_as_it_is_asked() -> None:
    ended = ask(NEW)
    assert ended is not None
    assert (ended.state, ended.reason, ended.cancel) == ("REVOKED", "cancelled by ann", ASKED)
    assert ended.cancel_next_time is None
    for touched in (SENT, STARTED, replace(NEW, claim_time=NOW, claimed_by="x"), replace(NEW, version=2)):
        assert ask(touched) == replace(touched, cancel=ASKED, cancel_next_time=NOW)


def test_terminate_is_added_and_never_taken_back() -> None:
    first = asked(STARTED)
    assert ask(first) is None
    assert ask(first, terminate=True, grace_s=3) == asked(STARTED, terminate=True, grace_s=3)
    assert ask(asked(STARTED, terminate=True), grace_s=99) is None


def test_an_ended_run_is_asked_for_its_body_only() -> None:
    by_us = moves.end(NOW, asked(OURS), "REVOKED", reason="cancelled by ann")
    more = ask(by_us, terminate=True, grace_s=3)
    assert more is not None
    assert (more.state, more.cancel_next_time) == ("REVOKED", NOW + timedelta(seconds=3))
    for end in (moves.end(NOW, OURS, "REVOKED"), moves.end(NOW, asked(OURS), "SUCCESS")):
        assert ask(end, terminate=True) is None


@pytest.mark.parametrize(
    ("standing", "next_time"),
    [
        (asked(SENT), NOW),
        (asked(replace(STARTED, state="RETRY", retries=1)), NOW),
        (asked(OURS), None),
        (asked(OURS, terminate=True), NOW + timedelta(seconds=10)),
    ],
)
def test_what_an_end_leaves_behind_is_looked_after(standing: Standing, next_time: datetime | None) -> None:
    ended = cancelling.withdraw(NOW, standing)(standing)
    assert ended is not None
    assert (ended.state, ended.reason, ended.cancel_next_time) == ("REVOKED", "cancelled by ann", next_time)


def test_nothing_is_withdrawn_that_was_not_taken() -> None:
    run = asked(OURS)
    for now in (replace(run, attempt=2), replace(run, retries=1), asked(STARTED), OURS, moves.end(NOW, run, "SUCCESS")):
        assert cancelling.withdraw(NOW, run)(now) is None


@pytest.mark.parametrize(
    ("said", "state", "attempt"),
    [
        (report("FAILURE", {"exc_type": "E", "exc_message": ["no"]}), "REVOKED", 2),
        (report("FAILURE", {"exc_type": "WorkerLostError", "exc_message": ["gone"]}), "REVOKED", 2),
        (report("REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["terminated"]}), "REVOKED", 1),
        (report("SUCCESS", 1), "SUCCESS", 1),
    ],
)
def test_no_attempt_follows_a_cancel(said: Any, state: str, attempt: int) -> None:
    run = asked(replace(STARTED, retry=policy(max_attempts=3)))
    ended = fold(said, NOW)(run)
    assert ended is not None
    assert (ended.state, ended.attempt, ended.cancel_next_time) == (state, attempt, None)
    assert ended.reason == ("cancelled by ann" if state == "REVOKED" else None)


def test_a_message_that_was_given_up_ends_a_cancelled_run() -> None:
    unknown = report("FAILURE", {"exc_type": "NotRegistered", "exc_message": ["t"]})
    ended = fold(unknown, NOW)(asked(SENT))
    assert ended is not None
    assert (ended.state, ended.reason) == ("REVOKED", "cancelled by ann")


def test_news_leave_the_reason_of_a_cancel_alone() -> None:
    run = replace(asked(STARTED), reason="cancel asked by ann: waits for Redis")
    told = fold(report("PROGRESS", {"current": 1}), NOW)(run)
    assert told is not None
    assert told.reason == run.reason
    assert moves.explain(moves.UNHEARD)(run) is None


@pytest.mark.parametrize(
    ("after_s", "audience", "expected"),
    [
        (0, Audience(), (True, 30)),
        (0, Audience(ready=3, look_time=NOW, only_ours=True), (False, 30)),
        (5, Audience(ready=0, look_time=NOW + timedelta(seconds=4), only_ours=True), (False, None)),
        (5, Audience(ready=0, look_time=NOW + timedelta(seconds=4)), (True, 30)),
        (70, Audience(ready=0, look_time=NOW + timedelta(seconds=65)), (True, None)),
        (70, Audience(ready=0, look_time=NOW - timedelta(seconds=65)), (True, 30)),
        (70, Audience(ready=1, look_time=NOW + timedelta(seconds=65)), (True, 30)),
        (3601, Audience(ready=1), (False, None)),
    ],
)
def test_workers_are_told_while_the_message_may_wait(
    after_s: int, audience: Audience, expected: tuple[bool, int | None]
) -> None:
    now = NOW + timedelta(seconds=after_s)
    tell, pause_s = expected
    next_time = None if pause_s is None else now + timedelta(seconds=pause_s)
    assert cancelling.aftermath(now, NOW, audience) == (tell, next_time)


def test_every_message_of_the_attempt_is_named() -> None:
    row = {"id": NEW.id, "first_dispatch": 3, "dispatches": 4}
    assert cancelling.ids_of(row) == [str(TaskId(NEW.id, n)) for n in (3, 4, 5)]
    assert len(cancelling.ids_of({**row, "dispatches": 100})) == 20


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is away here refuses at once; what is there may be slow, and a pass is not to give it up for that."""
    monkeypatch.setattr("app.progress.cancel._REDIS_S", 30.0)
    monkeypatch.setattr("app.progress.control._CONNECT_S", 30.0)
    monkeypatch.setattr("app.progress.control._PATIENCE_S", 60.0)


@pytest.fixture
def canceller(database: Database, redis: Redis, settings: Settings) -> Canceller:
    return Canceller(database, redis, settings)


async def cancelled(database: Database, *, terminate: bool = False, grace_s: float = 10, **columns: Any) -> UUID:
    """A run that is under way, and that somebody has asked to cancel."""
    run_id = await make_run(database, **columns)
    await ask_for(database, run_id, terminate=terminate, grace_s=grace_s)
    return run_id


async def ask_for(database: Database, run_id: UUID, *, terminate: bool = False, grace_s: float = 10) -> None:
    async with database.transaction() as connection:
        now = await clock(connection)
        await apply(connection, now, {run_id: [cancelling.ask(now, "ann", terminate=terminate, grace_s=grace_s)]})


async def begun(database: Database, **more: Any) -> UUID:
    return await cancelled(
        database, **{"state": "STARTED", "start_time": datetime.now(UTC), "leased": True, "worker": "w@h", **more}
    )


async def look_now(database: Database, run_id: UUID) -> None:
    """The time of the next look has come."""
    async with database.transaction() as connection:
        await connection.execute("UPDATE runs SET cancel_next_time = now() WHERE id = $1", run_id)


async def events(database: Database, run_id: UUID) -> list[str]:
    async with database.reading() as connection:
        rows = await connection.fetch("SELECT state FROM run_events WHERE run_id = $1 ORDER BY version", run_id)
    return [row["state"] for row in rows]


async def test_it_waits_for_redis(database: Database, redis: Redis, settings: Settings, canceller: Canceller) -> None:
    runs = [await cancelled(database), await begun(database)]
    async with Redis.from_url(f"redis://127.0.0.1:{free_port()}/0") as nowhere:
        away = Canceller(database, nowhere, settings)
        await away.run_once()
        for run_id in runs:
            row = await row_of(database, run_id)
            assert row["reason"] == "cancel asked by ann: waits for Redis"
            await look_now(database, run_id)
        await away.run_once()
        assert (await row_of(database, runs[0]))["version"] == 3, "the same reason is no news"
    for run_id in runs:
        await look_now(database, run_id)
        row = await reaches(database, run_id, "REVOKED", run_once=canceller.run_once)
        assert row["reason"] == "cancelled by ann"
        assert await redis.get(lease_key(run_id, 1, 0)) == CANCELLED.encode()


async def test_the_lease_is_taken_from_whoever_has_it(database: Database, redis: Redis, canceller: Canceller) -> None:
    held, gone, unheard, retrying = [
        await begun(database),
        await begun(database),
        await begun(database, leased=False),
        await begun(database, state="RETRY", leased=False, retries=1),
    ]
    for run_id in (held, unheard):
        await redis.set(lease_key(run_id, 1, 0), f"{HELD}abc", px=30_000)
    await redis.set(lease_key(retrying, 1, 2), f"{HELD}abc", px=30_000)
    await canceller.run_once()
    for run_id, retries in ((held, 0), (gone, 0), (unheard, 0), (retrying, 1), (retrying, 2)):
        assert (await row_of(database, run_id))["state"] == "REVOKED"
        assert await redis.get(lease_key(run_id, 1, retries)) == CANCELLED.encode()


async def test_an_end_that_came_first_stands(database: Database, redis: Redis, canceller: Canceller) -> None:
    stored, coming, failed = [await begun(database), await begun(database), await begun(database)]
    for run_id in (stored, coming):
        await redis.set(lease_key(run_id, 1, 0), DONE)
    await redis.set(key_of(TaskId(stored, 1)), stored_state(TaskId(stored, 1), "SUCCESS", 42))
    error = {"exc_type": "KeyError", "exc_message": ["no"]}
    await redis.set(key_of(TaskId(failed, 1)), stored_state(TaskId(failed, 1), "FAILURE", error))
    await canceller.run_once()
    row = await row_of(database, stored)
    assert (row["state"], row["result"], row["reason"]) == ("SUCCESS", 42, None)
    assert (await row_of(database, failed))["state"] == "FAILURE"
    row = await row_of(database, coming)
    assert row["state"] == "STARTED", "its end is about to be recorded"
    assert row["cancel_next_time"] is not None
    await redis.set(key_of(TaskId(coming, 1)), stored_state(TaskId(coming, 1), "SUCCESS", 1))
    await look_now(database, coming)
    await canceller.run_once()
    assert (await row_of(database, coming))["state"] == "SUCCESS"


async def test_a_start_by_a_stock_worker_that_nobody_heard_of_is_no_end(
    database: Database, redis: Redis, canceller: Canceller
) -> None:
    run_id = await cancelled(database)
    await redis.set(key_of(TaskId(run_id, 1)), stored_state(TaskId(run_id, 1), "STARTED", {"hostname": "s@h"}))
    await canceller.run_once()
    assert (await row_of(database, run_id))["state"] == "STARTED"
    await look_now(database, run_id)
    await canceller.run_once()
    row = await row_of(database, run_id)
    assert row["reason"] == "cancel asked by ann: a stock worker ends what it has begun only by terminate"


@pytest.mark.parametrize("point", ["cancel.after_take", "cancel.before_commit", "cancel.after_commit"])
async def test_a_crash_leaves_it_to_the_next_look(
    point: str, database: Database, redis: Redis, canceller: Canceller
) -> None:
    run_id = await begun(database)
    faults.arm(f"{point}=raise")
    try:
        with pytest.raises(faults.InjectedFault):
            await canceller.run_once()
    finally:
        faults.arm("")
    assert await redis.get(lease_key(run_id, 1, 0)) == CANCELLED.encode()
    if point != "cancel.after_commit":
        assert (await row_of(database, run_id))["cancel_next_time"] is not None
        await look_now(database, run_id)
    await canceller.run_once()
    assert (await row_of(database, run_id))["reason"] == "cancelled by ann"
    assert await events(database, run_id) == ["PENDING", "REVOKED"]


async def test_many_cancellers_end_each_run_once(database: Database, redis: Redis, settings: Settings) -> None:
    runs = [await begun(database) if n % 2 else await cancelled(database) for n in range(40)]
    cancellers = [Canceller(database, redis, settings) for _ in range(3)]
    await asyncio.gather(*(each.run_once() for each in cancellers))
    for run_id in runs:
        assert (await row_of(database, run_id))["state"] == "REVOKED"
        assert await events(database, run_id) == ["PENDING", "REVOKED"]


async def test_a_look_at_an_ended_run_is_no_news(database: Database, canceller: Canceller) -> None:
    run_id = await cancelled(database)
    await canceller.run_once()
    row = await row_of(database, run_id)
    assert row["state"] == "REVOKED"
    await canceller.run_once()
    later = await row_of(database, run_id)
    assert later["cancel_next_time"] > row["cancel_next_time"], "a stock worker may come and take its message"
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author) "
            "VALUES ('default', 'default', 'default', 'default', 'test')"
        )
        await connection.execute(
            "INSERT INTO queue_sightings (queue, ready, look_time) VALUES ('default', 0, now() + interval '2 min')"
        )
    await look_now(database, run_id)
    await canceller.run_once()
    last = await row_of(database, run_id)
    assert last["cancel_next_time"] is None
    assert {key: value for key, value in last.items() if key != "cancel_next_time"} == {
        key: value for key, value in row.items() if key != "cancel_next_time"
    }


async def test_it_waits_for_the_broker(database: Database, redis: Redis, settings: Settings) -> None:
    nowhere = settings.model_copy(update={"broker_url": type(settings.broker_url)(f"amqp://127.0.0.1:{free_port()}//")})
    canceller = Canceller(database, redis, nowhere)
    begun_there, message_out = await begun(database, leased=False), await cancelled(database)
    await canceller.run_once()
    row = await row_of(database, begun_there)
    assert row["reason"] == "cancel asked by ann: waits for the broker, to tell its worker"
    assert (await row_of(database, message_out))["state"] == "REVOKED", "our workers ask Redis"
    await canceller.run_once()
    row = await row_of(database, message_out)
    assert row["cancel_next_time"] - row["end_time"] < timedelta(seconds=28)


SERVICE = """
import time
from pathlib import Path
from celery import Celery

app = Celery("stock_service", broker={broker!r}, backend={redis!r})
app.conf.update(task_track_started=True, result_extended=True, worker_prefetch_multiplier=1)


@app.task(name="stock.body")
def body(path, seconds):
    file = Path(path)
    file.write_text("begun")
    until = time.monotonic() + seconds
    while time.monotonic() < until and not Path(path + ".go").exists():
        time.sleep(0.05)
    file.write_text("ended")
"""

STUBBORN = """
import time
from pathlib import Path
from celery import shared_task


@shared_task(name="test.stubborn")
def stubborn(path):
    file = Path(path)
    file.write_text("begun")
    while True:
        try:
            time.sleep(0.2)
            file.write_text(f"beat {time.monotonic()}")
        except BaseException as error:
            file.write_text(f"heard {type(error).__name__}")
"""


@pytest.fixture(params=["redis", "amqp"])
def any_settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings with Valkey, and with RabbitMQ, as the broker."""
    return settings if request.param == "redis" else request.getfixturevalue("amqp_settings")


@pytest.fixture
async def recorder(database: Database, redis: Redis, settings: Settings) -> AsyncIterator[Recorder]:
    async with recording(Recorder(database, redis, settings, "one")) as made:
        yield made


def send(settings: Settings, task: str, run_id: UUID, *args: Any) -> None:
    header = {"version": 1, "run_id": str(run_id), "attempt": 1}
    with Celery(broker=settings.broker_url.get_secret_value(), set_as_current=False, fixups=[]) as client:
        client.send_task(
            task,
            args,
            task_id=str(TaskId(run_id, 1)),
            queue="game",
            ignore_result=False,
            headers={"jobplane": header},
        )


def start_stock(settings: Settings, folder: Path, start: Callable[..., Process], *options: str) -> Process:
    broker, redis = settings.broker_url.get_secret_value(), settings.redis_url.get_secret_value()
    (folder / "stock_service.py").write_text(SERVICE.format(broker=broker, redis=redis))
    command = [sys.executable, "-m", "celery", "-A", "stock_service", "worker", "-Q", "game", "-c", "1"]
    command += ["-n", "stock@h", "-l", "info", "--without-mingle", "--without-gossip", *options]
    worker = start(command, name="stock", cwd=folder)
    worker.wait_for_line("ready.")
    return worker


async def test_a_stock_worker_is_told_as_far_as_celery_allows(
    any_settings: Settings,
    database: Database,
    redis: Redis,
    recorder: Recorder,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    worker = start_stock(any_settings, tmp_path, start_process)
    canceller = Canceller(database, redis, any_settings)
    running, waiting = [await make_run(database, queue="game") for _ in range(2)]
    send(any_settings, "stock.body", running, str(tmp_path / "running"), 60)
    await reaches(database, running, "STARTED")
    send(any_settings, "stock.body", waiting, str(tmp_path / "waiting"), 0)
    for run_id in (running, waiting):
        await ask_for(database, run_id)
    await canceller.run_once()
    assert (await row_of(database, waiting))["state"] == "REVOKED"
    row = await row_of(database, running)
    reason = "cancel asked by ann: a stock worker ends what it has begun only by terminate"
    assert (row["state"], row["reason"]) == ("STARTED", reason)
    await canceller.run_once()  # tells of the other one
    worker.wait_for_line(f"Tasks flagged as revoked: {TaskId(waiting, 1)}"[:60])

    await ask_for(database, running, terminate=True)
    row = await reaches(database, running, "REVOKED", run_once=canceller.run_once)
    assert (row["reason"], row["cancel_next_time"]) == ("cancelled by ann", None)
    worker.wait_for_line(f"Terminating {TaskId(running, 1)}")
    worker.wait_for_line(f"Discarding revoked task: stock.body[{TaskId(waiting, 1)}]")
    assert (tmp_path / "running").read_text() == "begun"
    assert not (tmp_path / "waiting").exists()


async def test_a_worker_with_threads_cannot_terminate(
    settings: Settings,
    database: Database,
    redis: Redis,
    recorder: Recorder,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    start_stock(settings, tmp_path, start_process, "-P", "threads")
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO workers (node, queues, tasks, pool, first_seen_time, seen_time) "
            "VALUES ('stock@h', '{game}', '{stock.body}', 'threads', now(), now())"
        )
    run_id = await make_run(database, queue="game")
    send(settings, "stock.body", run_id, str(tmp_path / "running"), 60)
    await reaches(database, run_id, "STARTED")
    await ask_for(database, run_id, terminate=True)
    await Canceller(database, redis, settings).run_once()
    row = await row_of(database, run_id)
    assert row["reason"] == "cancel asked by ann: stock@h runs its tasks in threads, which nobody can terminate"
    (tmp_path / "running.go").touch()
    row = await reaches(database, run_id, "SUCCESS")
    assert row["cancel"]["by"] == "ann"


async def test_a_body_of_ours_that_heeds_nothing_is_killed_after_its_grace(
    any_settings: Settings,
    database: Database,
    redis: Redis,
    recorder: Recorder,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    (tmp_path / "stubborn_tasks.py").write_text(STUBBORN)
    env = {
        "JOBPLANE_WORKER_BROKER_URL": any_settings.broker_url.get_secret_value(),
        "JOBPLANE_WORKER_REDIS_URL": any_settings.redis_url.get_secret_value(),
        "JOBPLANE_WORKER_INCLUDE": "stubborn_tasks",
        "PYTHONPATH": str(tmp_path),
    }
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", "game", "-c", "1"]
    with (
        Celery(broker=any_settings.broker_url.get_secret_value(), set_as_current=False, fixups=[]) as client,
        client.connection_for_write() as connection,
    ):
        client.amqp.queues["game"](connection.default_channel).declare()
    worker = start_process(
        [*command, "-n", "ours@h", "-l", "info", "--without-mingle"],
        name="ours",
        cwd=Path(__file__).parents[2],
        env=env,
    )
    worker.wait_for_line("ready.")
    canceller = Canceller(database, redis, any_settings)
    run_id = await make_run(database, queue="game")
    path = tmp_path / "body"
    send(any_settings, "test.stubborn", run_id, str(path))
    row = await reaches(database, run_id, "STARTED")
    assert row["leased"]
    await ask_for(database, run_id, terminate=True, grace_s=1)
    row = await reaches(database, run_id, "REVOKED", run_once=canceller.run_once)
    assert row["worker"] == "ours@h"
    assert row["cancel_next_time"] - row["end_time"] == timedelta(seconds=1)

    async def terminating() -> bool:
        await look_now_if_due(database, run_id)
        await canceller.run_once()
        return f"Terminating {TaskId(run_id, 1)}" in worker.output()

    await eventually(terminating, what="the worker is told")

    async def silent() -> bool:
        before = path.read_text()
        await asyncio.sleep(0.6)
        return path.read_text() == before

    await eventually(silent, what="the body is dead")

    async def over() -> Record | None:
        await look_now_if_due(database, run_id)
        await canceller.run_once()
        row = await row_of(database, run_id)
        return row if row["cancel_next_time"] is None else None

    await eventually(over, what="nothing is left to do")
    second = await make_run(database, queue="game")
    other = tmp_path / "second"
    send(any_settings, "test.stubborn", second, str(other))
    wait_until(other.exists, what="the worker goes on with the next message")


async def look_now_if_due(database: Database, run_id: UUID) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE runs SET cancel_next_time = now() WHERE id = $1 AND cancel_next_time IS NOT NULL", run_id
        )
