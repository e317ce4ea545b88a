"""Runs go where a worker can run them, wait where none can, and say so."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.dispatch.hold import hold_of
from app.progress.moves import NO_WORKER, NOT_REGISTERED_MOST
from tests.dispatch.parts import Rig, taken
from tests.dispatch.test_outbox import drain
from tests.feed.feeds import api, client
from tests.processes import eventually

HELD = "no worker on the queue registers the task (celery@a, celery@b consume it)"


async def seen(
    rig: Rig,
    queue: str,
    *,
    workers: list[str],
    known: list[str] | None,
    common: list[str] | None = None,
    consumers: int | None = None,
    age_s: float = 0,
) -> None:
    """What the catalogue has just seen of a queue."""
    await rig.execute(
        """
        INSERT INTO queue_sightings (queue, ready, consumers, workers, known_tasks, common_tasks, look_time)
        VALUES ($1, 0, $2, $3, $4, $5, clock_timestamp() - make_interval(secs => $6))
        ON CONFLICT (queue) DO UPDATE SET consumers = excluded.consumers, workers = excluded.workers,
            known_tasks = excluded.known_tasks, common_tasks = excluded.common_tasks, look_time = excluded.look_time
        """,
        queue,
        len(workers) if consumers is None else consumers,
        workers,
        known,
        known if common is None else common,
        float(age_s),
    )


async def reason_of(rig: Rig, outbox: Any, run: Any, wanted: str | None) -> None:
    async def says() -> bool:
        outbox._tell_at = 0.0
        await drain(outbox)
        return bool((await rig.row(run))["reason"] == wanted)

    await eventually(says, 30, f"the reason {wanted!r}")


async def test_a_task_that_no_worker_registers_waits_and_says_so(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    await seen(redis_rig, "q", workers=["celery@a", "celery@b"], known=["svc.other"])
    unknown, also = await redis_rig.runs("q", 2)
    (known,) = await redis_rig.runs("q", task="svc.other")
    outbox = redis_rig.outbox()
    with capture_logs() as logs:
        await reason_of(redis_rig, outbox, unknown, HELD)
        await drain(outbox)
    assert await taken(redis_rig.url, "q") == [f"{known}.1"]
    row = await redis_rig.row(unknown)
    assert (row["dispatch_time"], row["claimed_by"], row["version"]) == (None, None, 2)
    held = [line for line in logs if line["event"] == "runs_held"]
    assert [(line["log_level"], line["queue"], line["task"], line["workers"], line["count"]) for line in held] == [
        ("warning", "q", "svc.add", ["celery@a", "celery@b"], 2)
    ]

    await seen(redis_rig, "q", workers=["celery@a", "celery@c"], known=["svc.other", "svc.add"], common=["svc.other"])
    await drain(outbox)
    assert await taken(redis_rig.url, "q") == [f"{unknown}.1", f"{also}.1"]
    assert (await redis_rig.row(unknown))["reason"] is None


async def test_what_every_worker_has_and_none_tells_of_is_not_held(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    await seen(redis_rig, "q", workers=["celery@a", "celery@b"], known=["svc.other"])
    (run,) = await redis_rig.runs("q", task="celery.backend_cleanup")
    await redis_rig.execute("UPDATE runs SET not_registered = $1", NOT_REGISTERED_MOST)
    outbox = redis_rig.outbox()
    await drain(outbox)
    assert await taken(redis_rig.url, "q") == [f"{run}.1"]
    assert (await redis_rig.row(run))["reason"] is None


async def test_a_hold_is_told_on_the_feed(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    await seen(redis_rig, "q", workers=["celery@a", "celery@b"], known=["svc.other"])
    (run,) = await redis_rig.runs("q")
    plane = (redis_rig.database, redis_rig.redis, redis_rig.settings)
    async with api(*plane) as feed, client(feed.url(f"/runs/{run}/feed")) as watcher:
        assert (await watcher.until("run"))["run"]["reason"] is None
        await drain(redis_rig.outbox())
        frame = await watcher.until("run")
    assert (frame["run"]["reason"], frame["run"]["version"]) == (HELD, 2)


async def test_what_was_seen_long_ago_holds_nothing_back(redis_rig: Rig) -> None:
    for name in ("old", "unknown"):
        await redis_rig.ready_queue(name)
    await seen(redis_rig, "old", workers=["celery@a"], known=["svc.other"], age_s=31)
    await seen(redis_rig, "unknown", workers=["celery@a"], known=None, consumers=2)
    ids = [(await redis_rig.runs(name))[0] for name in ("old", "unknown")]
    await drain(redis_rig.outbox())
    assert [(row["reason"], row["dispatches"]) for row in await redis_rig.rows(ids)] == [(None, 1), (None, 1)]


async def test_a_message_that_was_given_up_too_often_goes_only_where_all_register_it(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    await seen(redis_rig, "q", workers=["celery@a", "thief@b"], known=["svc.add", "x"], common=["x"])
    often, seldom = await redis_rig.runs("q", 2)
    reason = "not registered: worker thief@b without svc.add took it"
    for run, times in ((often, NOT_REGISTERED_MOST), (seldom, NOT_REGISTERED_MOST - 1)):
        await redis_rig.execute("UPDATE runs SET not_registered = $2, reason = $3 WHERE id = $1", run, times, reason)
    outbox = redis_rig.outbox()
    await drain(outbox)
    assert await taken(redis_rig.url, "q") == [f"{seldom}.1"]
    row = await redis_rig.row(often)
    assert (row["reason"], row["dispatches"], row["version"]) == (reason, 0, 1)
    await seen(redis_rig, "q", workers=["celery@a"], known=["svc.add", "x"])
    await drain(outbox)
    assert await taken(redis_rig.url, "q") == [f"{often}.1"]


async def test_nothing_is_known_of_the_workers_so_what_was_given_up_may_go(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q")
    (run,) = await redis_rig.runs("q")
    await redis_rig.execute("UPDATE runs SET not_registered = 9")
    await drain(redis_rig.outbox())
    assert await taken(redis_rig.url, "q") == [f"{run}.1"]


@pytest.mark.parametrize("column", ["deadline_time = clock_timestamp()", """cancel = '{"by": "me"}'"""])
async def test_what_is_about_to_end_is_not_sent(redis_rig: Rig, column: str) -> None:
    await redis_rig.ready_queue("q")
    (run,) = await redis_rig.runs("q")
    await redis_rig.execute(f"UPDATE runs SET {column}")
    await drain(redis_rig.outbox())
    assert (await redis_rig.row(run))["dispatches"] == 0


async def test_sent_where_nobody_consumes_and_told_until_somebody_does(rig: Rig) -> None:
    await rig.ready_queue("q")
    await seen(rig, "q", workers=[], known=None)
    (run,) = await rig.runs("q")
    outbox = rig.outbox()
    await drain(outbox)
    row = await rig.row(run)
    assert (row["reason"], row["dispatches"], row["version"]) == (NO_WORKER, 1, 2)
    assert row["dispatch_time"] is not None
    await seen(rig, "q", workers=["celery@a"], known=["svc.add"])
    await reason_of(rig, outbox, run, None)
    assert (await rig.row(run))["version"] == 3
    assert await taken(rig.url, "q") == [f"{run}.1"]


async def test_a_pause_says_more_than_a_hold_and_a_hold_more_than_the_broker(redis_rig: Rig) -> None:
    await redis_rig.ready_queue("q", paused=True)
    await seen(redis_rig, "q", workers=["celery@a", "celery@b"], known=["svc.other"])
    (run,) = await redis_rig.runs("q")
    outbox = redis_rig.outbox()
    await reason_of(redis_rig, outbox, run, "queue paused")
    await redis_rig.execute("UPDATE queues SET paused = false")
    await reason_of(redis_rig, outbox, run, HELD)


async def test_a_held_backlog_hinders_nobody(redis_rig: Rig) -> None:
    """More than a claim looks at, older than what may go out, in the same queue and in others."""
    for name, paused in (("held", True), ("q", False), ("later", False)):
        await redis_rig.ready_queue(name, paused=paused)
    await seen(redis_rig, "q", workers=["celery@a"], known=["svc.ready"])
    await redis_rig.runs("held", 700)
    await redis_rig.runs("q", 700)
    await redis_rig.runs("later", 700)
    await redis_rig.execute("UPDATE runs SET due_time = due_time + interval '1 hour' WHERE queue = 'later'")
    ready = await redis_rig.runs("q", 3, task="svc.ready")
    outboxes = [redis_rig.outbox(name) for name in ("one", "two")]
    await asyncio.gather(*(drain(outbox) for outbox in outboxes))
    assert sorted(await taken(redis_rig.url, "q")) == sorted(f"{run}.1" for run in ready)


def kind(**changes: Any) -> dict[str, Any]:
    return {
        "queue": "q",
        "task": "t",
        "known": True,
        "paused": False,
        "problem": None,
        "declare_time": 1,
        "workers": ["celery@a"],
        "unknown_task": False,
        "uncommon_task": False,
        **changes,
    }


@pytest.mark.parametrize(
    ("row", "away", "reason"),
    [
        (kind(), None, None),
        (kind(uncommon_task=True), None, None),
        (kind(), "broker away", "broker away"),
        (kind(unknown_task=True), "away", "no worker on the queue registers the task (celery@a consumes it)"),
        (kind(declare_time=None, unknown_task=True), "away", "queue not yet found on the broker"),
        (kind(problem="a cold", declare_time=None), "away", "queue in trouble: a cold"),
        (kind(paused=True, problem="a cold"), "away", "queue paused"),
        (kind(known=False, paused=None), "away", "there is no queue q"),
    ],
)
def test_which_reason_says_most(row: dict[str, Any], away: str | None, reason: str | None) -> None:
    hold = hold_of(row, away)
    assert (hold.reason if hold else None) == reason
