"""One pass over due jobs: exactly one run per scheduled time, under any number of schedulers.

The row of a job is locked while its times are dealt with, the run rows are unique by (job, scheduled time), and cursor,
runs and skips are committed together: a crash at any line leaves all of it or nothing. Nothing is published here; the
run rows are the outbox.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import structlog
from redis.asyncio import Redis

from app import faults
from app.database import Connection, Database, Record, clock, new_id
from app.due import queries
from app.due.decide import Decision, SkipReason, deadline, decide, settle, settle_paused, start_deadline
from app.progress.announce import announce
from app.progress.transition import NewRun, create
from app.schedule import triggers

log = structlog.get_logger()

#: Longest sleep between two passes: the doorbell is only a hint.
POLL_S = 1.0
#: When to look again at due jobs that another scheduler has locked: it may die, and then they are free at once.
_LOCKED_S = 0.05

Judge: TypeAlias = Callable[[Record, datetime, UUID | None], Decision]


class Tick:
    """Fires what is due. `run_once` is safe in any number of processes at once."""

    def __init__(self, database: Database, redis: Redis, limit: int) -> None:
        self._database = database
        self._redis = redis
        self._limit = limit
        self._next_look = 0.0

    @property
    def pause_s(self) -> float:
        """Seconds until the earliest job is due, as of the last pass; at most `POLL_S`."""
        return max(self._next_look - time.monotonic(), 0)

    async def run_once(self) -> bool:
        """Deal with up to `limit` due jobs in one transaction; True if there may be more.

        Jobs that fire many late times at once leave others to the next pass: a transaction makes few more than `limit`
        runs, and each job is dealt with whole or not at all.
        """
        async with self._database.transaction() as connection:
            now = await clock(connection)
            read_at = time.monotonic()
            jobs = await queries.claim_due(connection, now, self._limit)
            await faults.at("tick.after_select")
            runs, dealt = await _deal(connection, now, jobs, _decide, self._limit)
            next_time = await queries.next_due(connection)
            await faults.at("tick.before_commit")
        wait_s = POLL_S if next_time is None else min((next_time - now).total_seconds(), POLL_S)
        # Due, and not among ours: somebody else is at it.
        self._next_look = time.monotonic() + _LOCKED_S if wait_s <= 0 and not jobs else read_at + wait_s
        await faults.at("tick.after_commit")
        if runs:
            lateness = max(now - run["scheduled_time"] for run in runs)
            log.debug("fired", jobs=len(jobs), runs=len(runs), lateness_s=lateness.total_seconds())
        await announce(self._redis, runs)
        return len(jobs) == self._limit or dealt < len(jobs)


async def settle_job(connection: Connection, now: datetime, job_id: UUID) -> tuple[Record | None, list[Record]]:
    """Lock a job and deal with all its times up to `now` by the definition that stands: edit, pause, resume and delete
    do this first. Returns the row as it is then (None: no such job) and the runs that were made, to be announced.
    """
    job = await queries.lock_job(connection, job_id)
    if job is None:
        return None, []
    runs, _ = await _deal(connection, now, [job], _settle)
    return await queries.lock_job(connection, job_id), runs


def _decide(job: Record, now: datetime, blocker: UUID | None) -> Decision:
    return decide(
        triggers.load(job["trigger"]),
        job_id=job["id"],
        cursor=job["cursor_time"],
        now=now,
        misfire=job["misfire"],
        overlap=job["overlap"],
        catchup_window_s=job["catchup_window_s"],
        blocker=blocker,
    )


def _settle(job: Record, now: datetime, blocker: UUID | None) -> Decision:
    cursor = job["cursor_time"]
    if not job["enabled"]:
        # Nothing was scheduled while it was off: there is nothing to account for.
        return Decision((), (), max(cursor, now.replace(microsecond=0)), None)
    trigger = triggers.load(job["trigger"])
    if job["pause_time"] is not None or job["problem"] is not None:
        reason: SkipReason = "paused" if job["pause_time"] is not None else "missed"
        return settle_paused(trigger, job_id=job["id"], cursor=cursor, now=now, reason=reason)
    return settle(
        trigger,
        job_id=job["id"],
        cursor=cursor,
        now=now,
        misfire=job["misfire"],
        overlap=job["overlap"],
        catchup_window_s=job["catchup_window_s"],
        blocker=blocker,
    )


async def _deal(
    connection: Connection, now: datetime, jobs: Sequence[Record], judge: Judge, most: int = 1
) -> tuple[list[Record], int]:
    """Write what `judge` decides for locked jobs; a job whose trigger raises is parked, the others go on.

    Returns the runs that were made and how many of the jobs were dealt with: none any more once there are `most` runs.
    """
    if not jobs:
        return [], 0
    blockers = await queries.oldest_live_runs(connection, [job["id"] for job in jobs if job["overlap"] == "skip"])
    new: list[NewRun] = []
    skips: list[queries.SkipRow] = []
    advances: list[tuple[UUID, datetime, datetime | None, bool]] = []
    problems: list[tuple[UUID, str]] = []
    dealt = 0
    for job in jobs:
        if len(new) >= most:
            break
        dealt += 1
        blocker = blockers.get(job["id"])
        try:
            decision = judge(job, now, blocker)
        except Exception as error:
            log.exception("job_parked", job_id=str(job["id"]))
            problems.append((job["id"], f"the trigger cannot be evaluated: {error}"))
            continue
        fired = [_run(job, time) for time in decision.fire]
        new += fired
        names = {"blocker": blocker, "fired": fired[-1].id if fired else None, None: None}
        cursor = job["cursor_time"]
        for skip in decision.skips:
            # A row goes on where the one before ended, unless runs lie between.
            cursor = max([cursor, *(time for time in decision.fire if time < skip.first)])
            skips.append(
                (job["id"], cursor, skip.reason, names[skip.run_of], skip.first, skip.last, skip.count, skip.exact)
            )
            cursor = skip.last
        advances.append((job["id"], decision.cursor, decision.next_time if _ticks(job) else None, bool(fired)))
    runs = await create(connection, now, new)
    if skips:
        await queries.record_skips(connection, skips)
    if advances:
        await queries.advance(connection, now, advances)
    if problems:
        await queries.park(connection, problems)
    return runs, dealt


def _ticks(job: Record) -> bool:
    return job["enabled"] and job["pause_time"] is None and job["problem"] is None


def _run(job: Record, scheduled_time: datetime) -> NewRun:
    return NewRun(
        id=new_id(),
        kind="schedule",
        namespace=job["namespace"],
        task=job["task"],
        args=job["args"],
        kwargs=job["kwargs"],
        queue=job["queue"],
        author=job["author"],
        retry=job["retry"],
        priority=job["priority"],
        time_limit_s=job["time_limit_s"],
        soft_time_limit_s=job["soft_time_limit_s"],
        job_id=job["id"],
        job_version=job["version"],
        job_name=job["name"],
        scheduled_time=scheduled_time,
        start_deadline_time=start_deadline(scheduled_time, job["start_deadline_s"]),
        deadline_time=deadline(scheduled_time, job["deadline_s"]),
    )
