"""One pass over backfills: exactly one run per time that is to be run, under any number of schedulers.

The row of a backfill is locked while its times are dealt with, and the row of its job with it. Runs, cursor and counts
are committed together, and a run is unique by (job, scheduled time, backfill): a crash at any line leaves all of a step
or nothing. Nothing is published here; the run rows are the outbox.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final
from uuid import UUID

import structlog
from redis.asyncio import Redis

from app import faults
from app.database import AWAY, Connection, Database, Record, clock
from app.due import backfill_queries as queries
from app.due.admit import Firing, admit, others_of, run_of
from app.due.fill import MOST_STEPS, Account, choose, span
from app.due.overlap import Others, room
from app.progress import transition
from app.progress.announce import announce
from app.progress.transition import NewRun
from app.schedule import triggers

log = structlog.get_logger()

#: Longest sleep between two passes: the doorbell is only a hint.
POLL_S: Final = 1.0
#: When to look again at a backfill whose row, or whose job's, somebody else had in hand.
_LOCKED_S: Final = 0.05
#: How many backfills a pass looks at.
_PAGE: Final = 100
#: How many scheduled times of a backfill one step looks at, first and at most.
_FIRST_LOOK: Final = 50
_MOST_LOOKED: Final = 1000


class Backfiller:
    """Goes on with backfills. `run_once` is safe in any number of processes at once."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._redis = redis
        self._after = queries.ZERO
        self._passed_over = False

    @property
    def pause_s(self) -> float:
        """Seconds until the next look is worth while, as of the last pass."""
        return _LOCKED_S if self._passed_over else POLL_S

    async def run_once(self) -> bool:
        """One step of each backfill that wants one, each in a transaction of its own; True if there may be more.

        One that fails stops no other; the first failure is raised at the end.
        """
        async with self._database.reading() as connection:
            found = await queries.wanting(connection, self._after, _PAGE)
        more = len(found) == _PAGE
        self._after = found[-1] if more else queries.ZERO
        self._passed_over = False
        failure: Exception | None = None
        for backfill_id in found:
            try:
                more |= await self._step(backfill_id)
            except AWAY:
                raise  # the others would wait for the database one after the other
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return more

    async def _step(self, backfill_id: UUID) -> bool:
        """Whether there is more to do for this backfill at once."""
        async with self._database.transaction() as connection:
            now = await clock(connection)
            row = await queries.claim(connection, backfill_id)
            if row is None:
                self._passed_over = True
                return False
            await faults.at("backfill.after_claim")
            before = Account.of(row)
            step = await _go_on(connection, now, row, before)
            if step.account != before:
                await queries.keep(connection, now, row, step.account)
            await faults.at("backfill.before_commit")
        await faults.at("backfill.after_commit")
        if step.account.ended and not before.ended:
            log.info(
                "backfill_ended",
                backfill_id=str(backfill_id),
                state=step.account.state,
                reason=step.account.reason,
            )
        await announce(self._redis, step.runs)
        return step.more


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step made of a backfill."""

    account: Account
    runs: Sequence[Record] = ()
    #: It stopped at a bound, and not because it has to wait.
    more: bool = False


async def _go_on(connection: Connection, now: datetime, row: Record, account: Account) -> _Step:
    """Count what has ended, make runs of further times, and come to the end where there are none."""
    account = account.counted(await queries.ends_of(connection, account.live))
    if row["delete_time"] is not None:
        return _Step(account.cancelled("the job was deleted"))
    _, until = span(row["from_time"], row["to_time"])
    step = _Step(account)
    if account.state == "ACTIVE" and account.cursor_time < until:
        step = await _make_runs(connection, now, row, account, until)
    return replace(step, account=step.account.done_if(until))


async def _make_runs(connection: Connection, now: datetime, row: Record, account: Account, until: datetime) -> _Step:
    others, free = await _room(connection, row, len(account.live))
    fire: list[datetime] = []
    cursor, skipped, looked, size = account.cursor_time, account.skipped, 0, max(free, _FIRST_LOOK)
    more = False
    while len(fire) < free:
        try:
            times = await asyncio.to_thread(_times, row["definition"]["trigger"], cursor, until, size)
        except Exception as error:
            log.exception("backfill_stopped", backfill_id=str(row["id"]))
            return _Step(account.cancelled(f"the trigger of version {row['job_version']} cannot be evaluated: {error}"))
        latest = await queries.latest_runs(connection, row["job_id"], times, row["id"])
        choice = choose(times, latest, row["mode"], free - len(fire))
        fire += choice.fire
        skipped += sum(choice.left_out.values())
        whole = choice.cursor == (times[-1] if times else None)
        cursor = until if whole and len(times) < size else choice.cursor or cursor
        looked += len(times)
        if cursor == until:
            break
        if looked >= _MOST_LOOKED:
            more = True
            break
        size = min(size * 4, _MOST_LOOKED - looked)
    if not fire:
        return _Step(replace(account, cursor_time=cursor, skipped=skipped), more=more)
    queue = row["definition"]["queue"]
    if not await queries.queue_is_there(connection, queue):
        gone = f"there is no queue {queue!r} any more, which version {row['job_version']} of the job names"
        return _Step(account.cancelled(gone))
    new = [_run(row, time, now) for time in fire]
    if row["overlap"] == "allow":
        made = await transition.create(connection, now, [replace(run, apart=True) for run in new])
    else:
        made = await admit(connection, now, [Firing("buffer_all", row["job_max_active"], others, new)])
    live = (*account.live, *(run.id for run in new))
    return _Step(replace(account, cursor_time=cursor, skipped=skipped, live=live), made, more)


async def _room(connection: Connection, row: Record, live: int) -> tuple[Others, int]:
    """The other runs of the job, as far as they matter, and how many further ones may be made."""
    free: int = row["max_active"] - live
    if row["overlap"] == "allow" or free <= 0:
        return Others(), free
    job = {"id": row["job_id"], "overlap": "buffer_all", "max_active": row["job_max_active"]}
    others = (await others_of(connection, [job])).get(row["job_id"], Others())
    return others, min(free, room("buffer_all", others, row["job_max_active"]).runs)


def _times(trigger: dict[str, Any], after: datetime, until: datetime, most: int) -> list[datetime]:
    """The next times of a window: computed in a thread, for an odd trigger may take long."""
    with triggers.bounded(MOST_STEPS):
        return list(islice(triggers.times(triggers.load(trigger), after, until), most))


def _run(row: Record, scheduled_time: datetime, now: datetime) -> NewRun:
    """A run of the definition that the backfill was made with. No start deadline: it would be long past."""
    definition = row["definition"]
    deadline_s = definition.get("deadline_s")
    return run_of(
        definition,
        "backfill",
        row["job_id"],
        row["job_version"],
        row["author"],
        scheduled_time=scheduled_time,
        deadline_time=None if deadline_s is None else now + timedelta(seconds=deadline_s),
        backfill_id=row["id"],
    )
