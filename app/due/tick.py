"""One pass over due jobs: exactly one run per scheduled time, under any number of schedulers.

The row of a job is locked while its times are dealt with, the run rows are unique by (job, scheduled time), and cursor,
runs and skips are committed together: a crash at any line leaves all of it or nothing. Nothing is published here; the
run rows are the outbox.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

import structlog
from redis.asyncio import Redis

from app import faults
from app.database import Connection, Database, Record, clock
from app.due import queries
from app.due.admit import Firing, admit, others_at_once, others_of, run_of
from app.due.decide import (
    Decision,
    SkipReason,
    deadline,
    decide,
    paused_for,
    rows_of,
    settle,
    settle_paused,
    start_deadline,
)
from app.due.overlap import Others, room
from app.progress.announce import announce, ring
from app.progress.transition import NewRun
from app.schedule import triggers

log = structlog.get_logger()

#: Longest sleep between two passes: the doorbell is only a hint.
POLL_S = 1.0
#: When to look again at due jobs that another scheduler has locked: it may die, and then they are free at once.
_LOCKED_S = 0.05
#: How far the first look for failures goes back, and how late one may be committed.
_FIRST_LOOK = timedelta(hours=1)
_LATE = timedelta(seconds=10)

Judge: TypeAlias = Callable[[Record, datetime, Others], Decision]


class Tick:
    """Fires what is due. `run_once` is safe in any number of processes at once."""

    def __init__(self, database: Database, redis: Redis, limit: int) -> None:
        self._database = database
        self._redis = redis
        self._limit = limit
        self._next_look = 0.0
        #: When failed runs were looked for last.
        self._failures_time: datetime | None = None

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
            failing = await self._claim_failing(connection, now)
            seen = {job["id"] for job in failing}
            due = await queries.claim_due(connection, now, self._limit)
            jobs = [*failing, *(job for job in due if job["id"] not in seen)]
            await faults.at("tick.after_select")
            others, busy = await others_at_once(connection, jobs)
            jobs = [job for job in jobs if job["id"] not in busy]
            runs, dealt = await _deal(connection, now, jobs, others, _decide, self._limit)
            next_time = await queries.next_due(connection)
            await faults.at("tick.before_commit")
        wait_s = POLL_S if next_time is None else min((next_time - now).total_seconds(), POLL_S)
        # Due, and not among ours: somebody else is at it, or at a run of it.
        elsewhere = busy or (wait_s <= 0 and not due)
        self._next_look = time.monotonic() + _LOCKED_S if elsewhere else read_at + wait_s
        await faults.at("tick.after_commit")
        made = [run for run in runs if run["version"] == 1]
        if made:
            lateness = max(now - run["scheduled_time"] for run in made)
            log.debug("fired", jobs=len(jobs), runs=len(made), lateness_s=lateness.total_seconds())
        await announce(self._redis, runs)
        if any(run["cancel_next_time"] is not None for run in runs):
            await ring(self._redis)
        return len(due) == self._limit or dealt < len(jobs)

    async def _claim_failing(self, connection: Connection, now: datetime) -> list[Record]:
        """Jobs to be paused for their failures, locked; looked for once a second, from before the last look on."""
        last = self._failures_time
        if last is not None and now - last < timedelta(seconds=POLL_S):
            return []
        self._failures_time = now
        return await queries.claim_failing(connection, now - _FIRST_LOOK if last is None else last - _LATE, self._limit)


async def settle_job(connection: Connection, now: datetime, job_id: UUID) -> tuple[Record | None, list[Record]]:
    """Lock a job and deal with all its times up to `now` by the definition that stands: edit, pause, resume and delete
    do this first. Returns the row as it is then (None: no such job) and the runs that were made, to be announced.
    """
    job = await queries.lock_job(connection, job_id)
    if job is None:
        return None, []
    runs, _ = await _deal(connection, now, [job], await others_of(connection, [job]), _settle)
    return await queries.lock_job(connection, job_id), runs


def _decide(job: Record, now: datetime, others: Others) -> Decision:
    return decide(
        triggers.load(job["trigger"]),
        job_id=job["id"],
        cursor=job["cursor_time"],
        now=now,
        misfire=job["misfire"],
        overlap=job["overlap"],
        max_active=job["max_active"],
        catchup_window_s=job["catchup_window_s"],
        others=others,
    )


def _settle(job: Record, now: datetime, others: Others) -> Decision:
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
        max_active=job["max_active"],
        catchup_window_s=job["catchup_window_s"],
        others=others,
    )


def _pause(job: Record, now: datetime, others: Others) -> Decision:
    """What becomes of a job's times that are due when it is paused: they were due in the pause."""
    return settle_paused(triggers.load(job["trigger"]), job_id=job["id"], cursor=job["cursor_time"], now=now)


async def _deal(
    connection: Connection,
    now: datetime,
    jobs: Sequence[Record],
    others: Mapping[UUID, Others],
    judge: Judge,
    most: int = 1,
) -> tuple[list[Record], int]:
    """Write what `judge` decides for locked jobs; a job whose trigger raises is parked, and one whose runs fail again
    and again is paused; the others go on.

    Returns the runs that were made or changed and how many of the jobs were dealt with: none any more once there are
    `most` new runs.
    """
    if not jobs:
        return [], 0
    failing = await _failing(connection, jobs)
    new = 0
    firings: list[Firing] = []
    skips: list[queries.SkipRow] = []
    advances: list[tuple[UUID, datetime, datetime | None, bool]] = []
    problems: list[tuple[UUID, str]] = []
    dealt = 0
    for job in jobs:
        if new >= most:
            break
        dealt += 1
        beside = others.get(job["id"], Others())
        try:
            with triggers.bounded():
                decision = (_pause if job["id"] in failing else judge)(job, now, beside)
                fired = [_run(job, time) for time in decision.fire]
        except Exception as error:
            log.exception("job_parked", job_id=str(job["id"]))
            problems.append((job["id"], f"the trigger cannot be evaluated: {error}"))
            continue
        new += len(fired)
        firings.append(Firing(job["overlap"], job["max_active"], beside, fired))
        blocker = room(job["overlap"], beside, job["max_active"]).blocker
        names = {"blocker": blocker, "fired": fired[-1].id if fired else None, None: None}
        skips += [
            (job["id"], before, skip.reason, names[skip.run_of], skip.first, skip.last, skip.count, skip.exact)
            for before, skip in rows_of(decision, job["cursor_time"])
        ]
        ticks = _ticks(job) and job["id"] not in failing
        advances.append((job["id"], decision.cursor, decision.next_time if ticks else None, bool(fired)))
    runs = await admit(connection, now, firings)
    if skips:
        await queries.record_skips(connection, skips)
    if advances:
        await queries.advance(connection, now, advances)
    if problems:
        await queries.park(connection, problems)
    if failing:
        await queries.pause(connection, now, failing)
    return runs, dealt


async def _failing(connection: Connection, jobs: Sequence[Record]) -> dict[UUID, str]:
    """Those of these jobs that are to be paused, with the reason: their newest runs failed, as many as it takes."""
    watched = [job["id"] for job in jobs if job["pause_after_failures"] is not None and _ticks(job)]
    rows = await queries.failed_in_a_row(connection, watched) if watched else []
    for row in rows:
        log.warning("job_paused", job_id=str(row["id"]), failures=row["failures"], run_id=str(row["run_id"]))
    return {row["id"]: paused_for(row["failures"], row["run_id"]) for row in rows}


def _ticks(job: Record) -> bool:
    return job["enabled"] and job["pause_time"] is None and job["problem"] is None


def _run(job: Record, scheduled_time: datetime) -> NewRun:
    # Jitter takes nothing of the time in which a worker is to start the run, or to end it.
    due_time = triggers.due_time(triggers.load(job["trigger"]), job["id"], scheduled_time)
    return run_of(
        job,
        "schedule",
        job["id"],
        job["version"],
        job["author"],
        scheduled_time=scheduled_time,
        start_deadline_time=start_deadline(due_time, job["start_deadline_s"]),
        deadline_time=deadline(due_time, job["deadline_s"]),
    )
