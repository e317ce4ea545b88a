"""The deadline of a whole run: who is refused first, which end is believed, and what is known of the outcome."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.database import Database, Record
from app.embedded import Valkey
from app.progress import moves
from app.progress.fold import fold
from app.progress.reap import Reaper
from app.settings import Settings
from tests.progress.live import make_run, reaches, row_of
from tests.progress.standings import NOW, SENT, policy, report
from tests.progress.test_reap import LEASE_S, LONG_AGO, SILENCE_S, Clock, calm, reapers_clock, started, store
from workers.protocol import CANCELLED, DONE, HELD, lease_key

__all__ = ["reapers_clock"]

LATE: dict[str, Any] = {"deadline_time": LONG_AGO}


@pytest.fixture
async def reaper(database: Database, redis: Redis, settings: Settings) -> Reaper:
    made = Reaper(database, redis, settings, None, lease_s=LEASE_S, silence_s=SILENCE_S)
    await calm(made)
    return made


async def consumed(database: Database, queue: str, *, ours: bool, node: str = "w@h") -> None:
    """A live worker on this queue."""
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO workers (node, ours, queues, tasks, first_seen_time, seen_time)"
            " VALUES ($1, $2, $3, '{}', now(), clock_timestamp())",
            node,
            ours,
            [queue],
        )


def failure(row: Record) -> tuple[str, str | None]:
    return row["state"], (row["error"] or {}).get("type")


EXCEEDED, UNKNOWN = ("FAILURE", moves.DEADLINE_EXCEEDED), ("FAILURE", moves.OUTCOME_UNKNOWN)


async def test_a_run_that_was_never_sent(database: Database, reaper: Reaper) -> None:
    unsent = await make_run(database, sent=False, reason="queue paused", **LATE)
    backoff = await make_run(database, sent=False, attempt=2, dispatches=1, first_dispatch=2, **LATE)
    in_time = await make_run(database, sent=False, deadline_time=datetime.now(UTC) + timedelta(hours=1))
    await reaper.run_once()
    row = await row_of(database, unsent)
    assert failure(row) == EXCEEDED
    assert row["error"]["message"] == (
        "the deadline was 2020-01-01T00:00:00Z, and attempt 1 was not sent yet (queue paused)"
    )
    assert failure(await row_of(database, backoff)) == EXCEEDED
    assert (await row_of(database, in_time))["state"] == "PENDING"


async def test_a_worker_of_ours_is_refused_first(database: Database, redis: Redis, reaper: Reaper) -> None:
    """Held, also by a lease that we had not heard of; between two retries; waiting in a queue of ours alone."""
    await consumed(database, "ours", ours=True)
    runs = {
        "held": await started(database, **LATE, retry=policy(max_attempts=3)),
        "unheard of": await started(database, **LATE, leased=False),
        "retry": await make_run(database, queue="ours", state="RETRY", retries=1, **LATE),
        "waits": await make_run(database, queue="ours", **LATE),
    }
    for name in ("held", "unheard of"):
        await redis.set(lease_key(runs[name], 1, 0), f"{HELD}abc", px=30_000)
    await redis.set(lease_key(runs["retry"], 1, 0), DONE)
    await reaper.run_once()
    for run_id in runs.values():
        assert failure(await row_of(database, run_id)) == EXCEEDED
    keys = [lease_key(runs[name], 1, 0) for name in ("held", "unheard of", "waits")]
    keys += [lease_key(runs["retry"], 1, number) for number in (1, 2)]
    assert await redis.mget(keys) == [CANCELLED.encode()] * 5
    row = await row_of(database, runs["held"])
    assert row["error"]["message"] == "the deadline was 2020-01-01T00:00:00Z, and attempt 1 had not ended on w@h"
    assert row["attempt"] == 1, "a deadline is the end of the whole run"


async def test_of_a_stock_worker_the_outcome_is_not_known(database: Database, redis: Redis, reaper: Reaper) -> None:
    await consumed(database, "ours", ours=True)
    await consumed(database, "mixed", ours=True, node="a@h")
    await consumed(database, "mixed", ours=False, node="b@h")
    said = datetime(2026, 11, 22, 10, tzinfo=UTC)
    has_it = await started(database, queue="ours", **LATE, leased=False, update_time=said)
    waits = [await make_run(database, queue=queue, **LATE, dispatch_time=said) for queue in ("mixed", "nobody")]
    await reaper.run_once()
    for run_id in [has_it, *waits]:
        row = await row_of(database, run_id)
        assert failure(row) == UNKNOWN
        assert "heard of" in row["error"]["message"]
        assert f"{'at' if run_id == has_it else 'since'} 2026-11-22T10:00:00Z" in row["error"]["message"]
        assert await redis.get(lease_key(run_id, 1, 0)) == CANCELLED.encode(), "a worker of ours refuses it later"


async def test_an_end_that_is_stored_counts_and_one_that_comes_later_is_kept(
    database: Database, redis: Redis, reaper: Reaper, reapers_clock: Clock
) -> None:
    done, about_to = await started(database, **LATE), await started(database, **LATE)
    await store(redis, done, "SUCCESS", 42)
    await redis.set(lease_key(about_to, 1, 0), DONE)
    await reaper.run_once()
    row = await row_of(database, done)
    assert (row["state"], row["result"]) == ("SUCCESS", 42)
    assert (await row_of(database, about_to))["state"] == "STARTED", "its last word is on its way"
    reapers_clock.ahead_s += SILENCE_S
    row = await reaches(database, about_to, "FAILURE", run_once=reaper.run_once)
    assert row["attempt"] == 1


def test_a_report_after_the_deadline_is_a_late_end() -> None:
    overdue = fold(report("STARTED"), NOW)(SENT)
    assert overdue is not None
    assert moves.exceed(NOW, moves.OUTCOME_UNKNOWN, "x")(overdue) is None, "it has no deadline"
    ended = moves.exceed(NOW, moves.OUTCOME_UNKNOWN, "x")(replace(overdue, deadline_time=NOW))
    assert ended is not None
    later = fold(report("SUCCESS", 1), NOW)(ended)
    assert later is not None
    assert [kept["state"] for kept in later.late] == ["SUCCESS"]
    assert replace(later, late=[]) == ended


async def test_what_was_perhaps_sent_is_refused_before_it_ends(
    database: Database, redis: Redis, reaper: Reaper
) -> None:
    """The broker's word did not come, so the claim was given back: its message may be out all the same."""
    perhaps = {"sent": False, "version": 2, "reason": "broker away since 2019-12-31T23:00:00Z"}
    late, too_late_to_start = (
        await make_run(database, **perhaps, **LATE),
        await make_run(database, **perhaps, start_deadline_time=LATE["deadline_time"]),
    )
    begun = await make_run(database, **perhaps, start_deadline_time=LATE["deadline_time"])
    await redis.set(lease_key(begun, 1, 0), f"{HELD}abc", px=30_000)
    await reaper.run_once()
    assert failure(await row_of(database, late)) == EXCEEDED
    assert (await row_of(database, too_late_to_start))["state"] == "REVOKED"
    assert (await row_of(database, begun))["state"] == "PENDING"
    for run_id in (late, too_late_to_start):
        assert await redis.get(lease_key(run_id, 1, 0)) == CANCELLED.encode()


async def test_no_redis_is_needed_for_what_was_never_sent(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    server = Valkey(tmp_path)
    server.start()
    url = server.url
    server.stop()
    unsent, sent = await make_run(database, sent=False, **LATE), await make_run(database, **LATE)
    redis = Redis.from_url(url)
    try:
        with pytest.raises(RedisError):
            await Reaper(database, redis, settings, None).run_once()
    finally:
        await redis.aclose()
    assert failure(await row_of(database, unsent)) == EXCEEDED
    assert (await row_of(database, sent))["state"] == "PENDING"


async def test_two_reapers_end_a_run_once(database: Database, redis: Redis, settings: Settings) -> None:
    reapers = [Reaper(database, redis, settings, None, lease_s=LEASE_S) for _ in range(3)]
    runs = [await started(database, **LATE) for _ in range(10)]
    await asyncio.gather(*(each.run_once() for each in reapers))
    rows = [await row_of(database, run_id) for run_id in runs]
    assert [(failure(row), row["version"]) for row in rows] == [(EXCEEDED, 2)] * 10
