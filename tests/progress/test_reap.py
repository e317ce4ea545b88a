"""Runs that nobody else would end, on a real Valkey that may forget."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import faults
from app.database import Database
from app.embedded import Valkey
from app.progress import moves
from app.progress.reap import Reaper
from app.progress.reports import key_of
from app.settings import Settings
from tests.processes import Process, eventually
from tests.progress.live import make_run, reaches, row_of, stored_state
from tests.progress.standings import policy
from workers.protocol import CANCELLED, DONE, HEARTBEAT_S, HELD, REAPED, TaskId, lease_key, presence_key

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
#: A reaper believes that a lease is gone soon after its start, and doubts for longer than any test takes: `Clock`.
LEASE_S = 0.02
SILENCE_S = 100.0


class Clock:
    """The module `time`, as far as a reaper needs it, for tests that put it forward instead of waiting."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@dataclass(frozen=True, slots=True)
class Queue:
    """What a broker would say of a queue."""

    ready: int
    consumers: int | None


@pytest.fixture
async def reaper(database: Database, redis: Redis, settings: Settings) -> Reaper:
    """A reaper whose first lease has gone by."""
    made = Reaper(database, redis, settings, None, lease_s=LEASE_S, silence_s=SILENCE_S)
    await calm(made)
    return made


@pytest.fixture
def reapers_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("reap", "search", "verdicts"):
        monkeypatch.setattr(f"app.progress.{module}.time", clock)
    return clock


async def silent_since_long_ago(database: Database, run_id: UUID) -> None:
    async with database.transaction() as connection:
        await connection.execute("UPDATE runs SET update_time = $2 WHERE id = $1", run_id, LONG_AGO)


async def calm(*reapers: Reaper) -> None:
    async def look() -> bool:
        for reaper in reapers:
            await reaper.run_once()
        return all(reaper.calm for reaper in reapers)

    await eventually(look, what="a calm Redis")


async def started(database: Database, **columns: Any) -> UUID:
    """A run that a worker of ours has, and of which it has said nothing for a long time."""
    stands = {"state": "STARTED", "start_time": datetime.now(UTC), "update_time": LONG_AGO, "leased": True}
    return await make_run(database, **{**stands, "worker": "w@h", **columns})


async def store(redis: Redis, run_id: UUID, status: str, result: Any = None, **more: Any) -> None:
    task_id = TaskId(run_id, 1)
    await redis.set(key_of(task_id), stored_state(task_id, status, result, **more))


async def test_only_a_run_whose_lease_ended_is_lost(database: Database, redis: Redis, reaper: Reaper) -> None:
    lost, held, stock, at_most_once = [
        await started(database),
        await started(database, state="PROGRESS"),
        await started(database, leased=False),
        await started(database, retry=policy(max_lost=0)),
    ]
    await redis.set(lease_key(held, 1, 0), f"{HELD}abc", px=30_000)
    await reaper.run_once()
    row = await row_of(database, lost)
    assert (row["state"], row["attempt"], row["lost"], row["first_dispatch"]) == ("PENDING", 2, 1, 2)
    assert row["attempts"][0]["error"]["type"] == "WorkerLost"
    assert await redis.get(lease_key(lost, 1, 0)) == REAPED.encode()
    assert (await row_of(database, held))["state"] == "PROGRESS"
    assert (await row_of(database, stock))["state"] == "STARTED"
    row = await row_of(database, at_most_once)
    assert (row["state"], row["error"]["type"]) == ("FAILURE", "WorkerLost")
    before = reaper.moved
    await reaper.run_once()
    assert reaper.moved == before


async def test_a_result_that_is_stored_counts(database: Database, redis: Redis, reaper: Reaper) -> None:
    done, retried, hostile = [await started(database) for _ in range(3)]
    await store(redis, done, "SUCCESS", 42)
    await store(redis, retried, "RETRY", {"exc_type": "E"}, retries=0)
    await redis.set(key_of(TaskId(hostile, 1)), b"\xff not JSON")
    await reaper.run_once()
    row = await row_of(database, done)
    assert (row["state"], row["result"]) == ("SUCCESS", 42)
    row = await row_of(database, retried)
    assert (row["state"], row["retries"], row["attempt"]) == ("RETRY", 1, 1)
    assert (await row_of(database, hostile))["attempt"] == 2


async def test_a_lease_that_nobody_told_us_of_is_learnt(
    database: Database, redis: Redis, reaper: Reaper, reapers_clock: Clock
) -> None:
    """The pushes of STARTED were lost: of the first try of one run, of Celery's second try of the other."""
    unknown, retried = await started(database, leased=False), await started(database)
    await redis.set(lease_key(unknown, 1, 0), f"{HELD}abc", px=300_000)
    await redis.set(lease_key(retried, 1, 0), DONE)
    await redis.set(lease_key(retried, 1, 1), f"{HELD}abc", px=30_000)
    await reaper.run_once()
    assert (await row_of(database, unknown))["leased"]
    await reaper.run_once()
    reapers_clock.ahead_s += SILENCE_S
    await reaper.run_once()
    row = await row_of(database, retried)
    assert (row["state"], row["retries"], row["attempt"]) == ("STARTED", 1, 1)
    await redis.delete(lease_key(unknown, 1, 0))
    await reaper.run_once()
    assert (await row_of(database, unknown))["attempt"] == 1, "given back before its time: the next may take it"


async def test_what_a_stopped_worker_gave_back_is_lost_when_nobody_takes_it(
    database: Database, redis: Redis, reaper: Reaper, reapers_clock: Clock
) -> None:
    run_id = await started(database)
    await redis.set(lease_key(run_id, 1, 0), f"{HELD}abc", px=300_000)
    await reaper.run_once()
    await redis.delete(lease_key(run_id, 1, 0))
    await reaper.run_once()
    assert (await row_of(database, run_id))["attempt"] == 1
    reapers_clock.ahead_s += 301
    row = await reaches(database, run_id, "PENDING", run_once=reaper.run_once)
    assert row["attempt"] == 2


async def test_a_lease_that_was_given_back_before_we_saw_it_is_no_loss(
    database: Database, redis: Redis, reaper: Reaper
) -> None:
    run_id = await started(database, update_time=datetime.now(UTC) + timedelta(hours=1))
    await reaper.run_once()
    assert (await row_of(database, run_id))["attempt"] == 1
    await silent_since_long_ago(database, run_id)
    row = await reaches(database, run_id, "PENDING", run_once=reaper.run_once)
    assert (row["attempt"], row["lost"]) == (2, 1), "nobody took it"


@pytest.mark.parametrize(("value", "state"), [(DONE, "FAILURE"), (CANCELLED, "REVOKED")])
async def test_an_ended_lease_beside_a_live_run_is_believed_after_a_while(
    value: str, state: str, database: Database, redis: Redis, reaper: Reaper, reapers_clock: Clock
) -> None:
    run_id = await started(database)
    await redis.set(lease_key(run_id, 1, 0), value)
    await reaper.run_once()
    assert (await row_of(database, run_id))["state"] == "STARTED"
    reapers_clock.ahead_s += SILENCE_S
    row = await reaches(database, run_id, state, run_once=reaper.run_once)
    assert row["attempt"] == 1, "what was done is never done again without knowing"
    assert row["error"] is None or row["error"]["type"] == "OutcomeUnknown"


@pytest.mark.parametrize("point", ["reap.before_take", "reap.after_take", "reap.after_commit"])
async def test_a_crash_anywhere_leaves_what_the_next_pass_ends(
    point: str, database: Database, redis: Redis, reaper: Reaper
) -> None:
    run_id = await started(database)
    faults.arm(f"{point}=raise*1")
    try:
        with pytest.raises(faults.InjectedFault):
            await reaper.run_once()
    finally:
        faults.arm("")
    await reaper.run_once()
    row = await row_of(database, run_id)
    assert (row["attempt"], row["lost"]) == (2, 1)


async def test_two_reapers_lose_a_run_once(database: Database, redis: Redis, settings: Settings) -> None:
    reapers = [Reaper(database, redis, settings, None, lease_s=LEASE_S) for _ in range(3)]
    await calm(*reapers)
    runs = [await started(database) for _ in range(20)]
    await asyncio.gather(*(reaper.run_once() for reaper in reapers))
    assert [(await row_of(database, run_id))["lost"] for run_id in runs] == [1] * 20
    assert sum(reaper.moved for reaper in reapers) == 20


async def test_nothing_is_reaped_for_one_lease_after_redis_was_away_or_restarted(
    database: Database,
    settings: Settings,
    tmp_path: Path,
    reapers_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.progress.calm.time", reapers_clock)
    server = Valkey(tmp_path)
    server.start()
    redis = Redis.from_url(server.url)
    reaper = Reaper(database, redis, settings, None, lease_s=60 - HEARTBEAT_S)

    async def look_for(seconds: int) -> None:
        for _ in range(0, seconds, 5):  # who does not look for long has to wait again
            reapers_clock.ahead_s += 5
            await reaper.run_once()

    try:
        run_id = await started(database)
        await reaper.run_once()
        await look_for(30)
        server.stop()
        with pytest.raises(RedisError):
            await reaper.run_once()
        server.start()
        await reaper.run_once()
        await look_for(35)  # by now the reaper's own first minute is over, but not the one since the restart
        assert (await row_of(database, run_id))["state"] == "STARTED"
        await look_for(25)
        assert (await row_of(database, run_id))["state"] == "PENDING"
    finally:
        await redis.aclose()
        server.stop()


async def test_start_deadlines(database: Database, redis: Redis, reaper: Reaper) -> None:
    late: dict[str, Any] = {"start_deadline_time": LONG_AGO}
    now = datetime.now(UTC)
    unsent = await make_run(database, sent=False, **late)
    waiting = await make_run(database, **late)
    held = await make_run(database, **late)
    done = await make_run(database, **late)
    running = await started(database, **late, leased=False)
    in_time = await make_run(database, sent=False, start_deadline_time=now + timedelta(hours=1))
    await redis.set(lease_key(held, 1, 0), f"{HELD}abc", px=30_000)
    await store(redis, done, "SUCCESS", 1)
    await reaper.run_once()
    for run_id in (unsent, waiting):
        row = await row_of(database, run_id)
        assert (row["state"], row["reason"]) == ("REVOKED", "start deadline")
    assert await redis.get(lease_key(waiting, 1, 0)) == CANCELLED.encode()
    states = [(await row_of(database, run_id))["state"] for run_id in (held, done, running, in_time)]
    assert states == ["PENDING", "SUCCESS", "STARTED", "PENDING"]


async def test_a_deadline_needs_no_redis_for_what_was_never_sent(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    server = Valkey(tmp_path)
    server.start()
    url = server.url
    server.stop()
    unsent = await make_run(database, sent=False, start_deadline_time=LONG_AGO)
    sent = await make_run(database, start_deadline_time=LONG_AGO)
    redis = Redis.from_url(url)
    try:
        with pytest.raises(RedisError):
            await Reaper(database, redis, settings, None).run_once()
    finally:
        await redis.aclose()
    assert [(await row_of(database, run_id))["state"] for run_id in (unsent, sent)] == ["REVOKED", "PENDING"]


async def test_a_revocation_from_outside_is_the_end_after_silence(database: Database, reaper: Reaper) -> None:
    outside = await make_run(database, reason=moves.REVOKED_OUTSIDE)
    other = await make_run(database, reason="something else", update_time=LONG_AGO)
    await reaper.run_once()
    assert (await row_of(database, outside))["state"] == "PENDING"
    await silent_since_long_ago(database, outside)
    row = await reaches(database, outside, "REVOKED", run_once=reaper.run_once)
    assert row["reason"] == moves.REVOKED_OUTSIDE
    assert (await row_of(database, other))["state"] == "PENDING"


async def present(redis: Redis, node: str, *queues: str) -> None:
    await redis.set(presence_key(node), orjson.dumps({"queues": queues, "nodename": node}))


def searching(database: Database, redis: Redis, settings: Settings, queues: dict[str, Queue]) -> Reaper:
    async def backlog(name: str) -> Queue:
        return queues[name]  # KeyError: the broker has no such queue

    return Reaper(database, redis, settings, backlog, lease_s=LEASE_S, silence_s=0.3)


async def test_a_message_that_was_lost_is_sent_again_only_where_that_is_safe(
    database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.progress.control._ALL_ANSWER_S", 0.1)  # there is nobody who could answer
    queues = {
        "ours": Queue(0, 2),
        "mixed": Queue(0, 2),
        "busy": Queue(3, 1),
        "nobody": Queue(0, 0),
        "paused": Queue(0, 1),
    }
    await present(redis, "a@h", "ours", "mixed", "busy", "paused")
    await present(redis, "b@h", "ours")
    await redis.set(presence_key("c@h"), b"nonsense")
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO queues (name, namespace, exchange, routing_key, author, paused)"
            " VALUES ('paused', 'default', 'paused', 'paused', 'test', true)"
        )
    ago = datetime.now(UTC) - timedelta(seconds=settings.dispatch_timeout_s + 5)
    runs = {name: await make_run(database, queue=name, dispatch_time=ago) for name in [*queues, "gone"]}
    fresh = await make_run(database, queue="ours")
    held = await make_run(database, queue="ours", dispatch_time=ago)
    said = await make_run(database, queue="ours", dispatch_time=ago)
    resent = await make_run(database, queue="ours", dispatch_time=ago, dispatches=2)
    await redis.set(lease_key(held, 1, 0), f"{HELD}abc")
    await store(redis, said, "STARTED", {"hostname": "a@h"})
    reaper = searching(database, redis, settings, queues)
    await calm(reaper)  # a Valkey that is younger than these messages may have forgotten a lease
    await reaper.run_once()
    await reaper.run_once()

    row = await row_of(database, runs["ours"])
    assert (row["state"], row["dispatch_time"], row["dispatches"], row["attempt"]) == ("PENDING", None, 1, 1)
    assert row["reason"] == "lost on the way: sent again"
    for name, reason in (("mixed", moves.UNHEARD), ("nobody", moves.NO_WORKER)):
        row = await row_of(database, runs[name])
        assert (row["reason"], row["version"]) == (reason, 2)
    for run_id in (runs["busy"], runs["paused"], runs["gone"], fresh, held, resent):
        row = await row_of(database, run_id)
        assert (row["reason"], row["version"], row["state"]) == (None, 1, "PENDING")
        assert row["dispatch_time"] is not None
    assert (await row_of(database, said))["state"] == "STARTED"


STRANGER = "from celery import Celery\napp = Celery(broker={url!r})\n"


async def test_on_redis_all_workers_are_asked(
    database: Database,
    redis: Redis,
    settings: Settings,
    redis_url: str,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    """A stock worker beside ours consumes one of two queues: there nothing is sent again."""
    (tmp_path / "stranger.py").write_text(STRANGER.format(url=redis_url))
    worker = start_process(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "stranger",
            "worker",
            "-Q",
            "shared",
            "-P",
            "solo",
            "-n",
            "stranger@h",
            "-l",
            "info",
            "--without-mingle",
            "--without-gossip",
        ],
        name="stranger",
        cwd=tmp_path,
    )
    worker.wait_for_line("ready.")
    await present(redis, "a@h", "shared", "ours")
    reaper = searching(database, redis, settings, {"ours": Queue(0, None), "shared": Queue(0, None)})
    await calm(reaper)
    ago = datetime.now(UTC) - timedelta(seconds=settings.dispatch_timeout_s + 5)
    ours = await make_run(database, queue="ours", dispatch_time=ago)
    shared = await make_run(database, queue="shared", dispatch_time=ago)
    await eventually(lambda: _sent_again(reaper, database, ours), what="the run to be sent again")
    assert (await row_of(database, shared))["reason"] == moves.UNHEARD


async def _sent_again(reaper: Reaper, database: Database, run_id: UUID) -> bool:
    await reaper.run_once()
    return (await row_of(database, run_id))["dispatch_time"] is None


async def test_a_key_that_is_no_lease_stops_nobody(database: Database, redis: Redis, reaper: Reaper) -> None:
    odd, honest = await started(database), await started(database)
    await redis.rpush(lease_key(odd, 1, 0), "no lease")
    await reaches(database, honest, "PENDING", run_once=reaper.run_once)
    await reaches(database, odd, "PENDING", run_once=reaper.run_once)
