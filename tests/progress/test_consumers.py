"""What must be known before a message is sent again: by tables, and with a real stock worker."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from redis.asyncio import Redis

from app.database import Database, clock
from app.progress import moves
from app.progress.consumers import Consumers, Found, Held, Who
from app.progress.control import ids_of
from app.progress.fold import Report, fold
from app.progress.reap import Reaper
from app.progress.transition import apply
from app.settings import Settings
from tests.processes import Process, eventually
from tests.progress.live import make_run, row_of
from tests.progress.test_reap import LEASE_S, Queue, calm, present
from workers.protocol import REAPED, TaskId, lease_key


@pytest.fixture(autouse=True)
def one_second_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what workers have else: each pass waits for so long, and who answers too late is asked by the next."""
    monkeypatch.setattr("app.progress.control._ALL_ANSWER_S", 1.0)


A, B, AB = frozenset({"a@h"}), frozenset({"b@h"}), frozenset({"a@h", "b@h"})


@pytest.mark.parametrize(
    ("found", "who"),
    [
        # RabbitMQ counts consumers.
        (Found(0, 0), Who.NOBODY),
        (Found(5, 0), Who.NOBODY),
        (Found(5, 1, asked=False), Who.WAITS),
        (Found(0, 1, ours=A, asked=False), Who.OURS),
        (Found(0, 2, ours=A, strangers=B), Who.NAMED),
        (Found(0, 3, ours=A, strangers=B), Who.UNKNOWN),
        (Found(0, 1, strangers=AB), Who.UNKNOWN),
        (Found(0, 1, strangers=A, asked=False), Who.UNKNOWN),
        # Redis knows none.
        (Found(0, None), Who.NOBODY),
        (Found(3, None), Who.NOBODY),
        (Found(0, None, strangers=A), Who.NOBODY),
        (Found(0, None, asked=False), Who.UNKNOWN),
        (Found(3, None, ours=A, asked=False), Who.WAITS),
        (Found(0, None, ours=A, asked=False), Who.UNKNOWN),
        (Found(0, None, ours=A), Who.OURS),
        (Found(0, None, ours=A, strangers=B), Who.NAMED),
        (Found(0, None, strangers=B, live=B), Who.NAMED),
    ],
)
def test_whom_a_message_may_have_gone_to(found: Found, who: Who) -> None:
    assert found.who is who


@pytest.mark.parametrize(
    ("held", "nodes", "lacks"),
    [
        (Held({"a@h": frozenset()}, frozenset()), A, True),
        (Held({"a@h": frozenset({"y"})}, frozenset({"z"})), A, True),
        (Held({"a@h": frozenset({"x"})}, frozenset()), A, False),
        (Held({"a@h": frozenset(), "c@h": frozenset({"x"})}, frozenset()), A, False),
        (Held({"a@h": frozenset()}, frozenset({"x"})), A, False),
        (Held({"a@h": frozenset()}, frozenset()), AB, False),
        (Held({"a@h": frozenset()}, None), A, False),
        (Held({}, frozenset()), frozenset(), False),
    ],
)
def test_when_it_is_certain_that_nobody_has_a_message(held: Held, nodes: frozenset[str], lacks: bool) -> None:
    assert held.lacks(nodes, ["x"]) is lacks


def test_an_odd_answer_is_none_and_spoils_no_other() -> None:
    odd: dict[str, Any] = {
        "error": {"error": "no"},
        "none": None,
        "words": ["x"],
        "nameless": [{}],
        "deep": [{"request": 7}],
    }
    good = {"good": [{"id": "a"}, {"eta": 1, "request": {"id": "b"}}], "idle": []}
    assert ids_of({**odd, **good}) == {"good": {"a", "b"}, "idle": set()}
    assert ids_of(None) == {}


async def test_what_the_broker_has_lent_is_read(redis: Redis, redis_url: str) -> None:
    async def backlog(_: str) -> Queue:
        return Queue(0, None)

    task = TaskId(UUID("01a203d1-2004-716f-abf6-d4e1af5e5b55"), 7)
    consumers = Consumers(redis, redis_url, backlog)
    await redis.hset("unacked", "tag", f'[{{"headers": {{"id": "{task}"}}}}, "", "q"]')
    await redis.hset("unacked", "other", "no JSON \x00")
    assert (await consumers.held([])).lent == frozenset({str(task)})
    await redis.hset("unacked", mapping={str(n): "x" for n in range(20_001)})
    assert (await consumers.held([])).lent is None
    await redis.delete("unacked")
    await redis.rpush("unacked", "not a hash")
    assert (await consumers.held([])).lent is None


STOCK = """
from celery import Celery
app = Celery(broker={broker!r}, backend={url!r})

@app.task(name="known.task")
def known():
    return 1

@app.task(name="untold.task")
def untold():
    return 1
"""


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
async def test_of_stock_workers_only_what_surely_nobody_has_is_sent_again(
    broker: str,
    request: pytest.FixtureRequest,
    database: Database,
    redis: Redis,
    settings: Settings,
    redis_url: str,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    """Not what a worker keeps for later, nor where no stock worker has ever told us of that task."""
    url = redis_url
    if broker == "rabbitmq":
        settings = request.getfixturevalue("amqp_settings")
        url = settings.broker_url.get_secret_value()
    (tmp_path / "stock.py").write_text(STOCK.format(url=redis_url, broker=url))
    options = ["-Q", "shared", "-c", "1", "-n", "stock@h", "-l", "info", "--without-mingle"]
    worker = start_process([sys.executable, "-m", "celery", "-A", "stock", "worker", *options], cwd=tmp_path)
    worker.wait_for_line("ready.")
    ago = datetime.now(UTC) - timedelta(seconds=2)
    sent: dict[str, Any] = {"queue": "shared", "dispatch_time": ago}
    lost, kept = [await make_run(database, task="known.task", **sent) for _ in range(2)]
    untold = await make_run(database, task="untold.task", **sent)
    told = await make_run(database, task="known.task", **sent)
    async with database.transaction() as connection:
        now = await clock(connection)
        await apply(connection, now, {told: [fold(Report(TaskId(told, 1), "SUCCESS", 1), now)]})
    with Celery(broker=url, set_as_current=False, fixups=[]) as client:
        client.send_task("known.task", task_id=str(TaskId(kept, 1)), queue="shared", countdown=300)
    worker.wait_for_line(f"{kept}.1] received")
    reaper = searching(database, redis, settings, consumers=None if broker == "redis" else 1)

    async def sent_again() -> bool:
        await reaper.run_once()
        return (await row_of(database, lost))["dispatch_time"] is None

    await eventually(sent_again, what="the lost run to be sent again")
    row = await row_of(database, lost)
    assert (row["reason"], row["attempt"], row["dispatches"]) == ("lost on the way: sent again", 1, 1)
    for run_id in (kept, untold):
        row = await row_of(database, run_id)
        assert (row["reason"], row["dispatches"]) == (moves.UNHEARD, 1)
        assert row["dispatch_time"] is not None


def searching(database: Database, redis: Redis, settings: Settings, consumers: int | None = None) -> Reaper:
    async def backlog(_: str) -> Queue:
        return Queue(0, consumers)

    quick = settings.model_copy(update={"dispatch_timeout_s": 1.0})
    return Reaper(database, redis, quick, backlog, lease_s=LEASE_S, silence_s=0.3, look_every_s=0)


async def test_a_retry_whose_message_is_lost_is_a_lost_attempt(
    database: Database,
    redis: Redis,
    settings: Settings,
    redis_url: str,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    """A worker answers for ours here: it keeps one of the two messages until its time comes."""
    (tmp_path / "stock.py").write_text(STOCK.format(url=redis_url, broker=redis_url))
    options = ["-Q", "ours", "-c", "1", "-n", "a@h", "-l", "info", "--without-mingle"]
    worker = start_process([sys.executable, "-m", "celery", "-A", "stock", "worker", *options], cwd=tmp_path)
    worker.wait_for_line("ready.")
    await present(redis, "a@h", "ours")
    ago = datetime.now(UTC) - timedelta(seconds=2)
    waits: dict[str, Any] = {
        "queue": "ours",
        "state": "RETRY",
        "retries": 1,
        "worker": "a@h",
        "dispatch_time": ago,
        "update_time": ago,
    }
    lost, kept = [await make_run(database, **waits) for _ in range(2)]
    with Celery(broker=redis_url, set_as_current=False, fixups=[]) as client:
        client.send_task("known.task", task_id=str(TaskId(kept, 1)), queue="ours", countdown=300)
    worker.wait_for_line(f"{kept}.1] received")
    reaper = searching(database, redis, settings)
    await calm(reaper)

    async def run_again() -> bool:
        await reaper.run_once()
        return bool((await row_of(database, lost))["attempt"] == 2)

    await eventually(run_again, what="the next attempt")
    row = await row_of(database, lost)
    assert (row["state"], row["lost"], row["attempts"][0]["retries"]) == ("PENDING", 1, 1)
    assert await redis.get(lease_key(lost, 1, 1)) == REAPED.encode()
    row = await row_of(database, kept)
    assert (row["state"], row["attempt"]) == ("RETRY", 1)


async def test_a_run_on_a_stock_worker_that_is_gone_says_so(
    database: Database, redis: Redis, settings: Settings
) -> None:
    now = datetime.now(UTC)
    began = now - timedelta(minutes=10)
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('q', 'n', 'q', 'q', 'a')"
        )
        await connection.execute("INSERT INTO queue_sightings (queue, look_time) VALUES ('q', clock_timestamp())")
        for node, start, seen in (
            ("gone@h", began - timedelta(hours=1), now - timedelta(minutes=5)),
            ("anew@h", now - timedelta(minutes=1), now),
            ("here@h", began - timedelta(hours=1), now),
        ):
            await connection.execute(
                "INSERT INTO workers (node, queues, tasks, start_time, first_seen_time, seen_time)"
                " VALUES ($1, '{q}', '{}', $2, $2, $3)",
                node,
                start,
                seen,
            )
    running: dict[str, Any] = {"state": "STARTED", "start_time": began, "update_time": began, "queue": "q"}
    runs = {node: await make_run(database, **running, worker=f"{node}@h") for node in ("gone", "anew", "here")}
    leased = await make_run(database, **running, worker="gone@h", leased=True)
    lively = await make_run(database, **{**running, "update_time": now}, worker="gone@h")
    reaper = Reaper(database, redis, settings, None)
    for _ in range(2):
        await reaper.run_once()
    seen_time = (now - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    row = await row_of(database, runs["gone"])
    assert (row["state"], row["reason"], row["version"]) == (
        "STARTED",
        f"worker gone@h has not been seen since {seen_time}",
        2,
    )
    assert (await row_of(database, runs["anew"]))["reason"] == (
        "worker anew@h was started anew and does not say that it has it"
    )
    for run_id in (runs["here"], leased, lively):
        assert (await row_of(database, run_id))["reason"] is None
    async with database.transaction() as connection:
        await connection.execute("UPDATE workers SET seen_time = clock_timestamp() WHERE node = 'gone@h'")
    await reaper.run_once()
    assert (await row_of(database, runs["gone"]))["reason"] is None
