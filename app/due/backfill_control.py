"""What somebody tells a backfill to do: begin, pause, go on, stop; and what it would do.

Whoever begins one has the row of its job locked. Nothing here commits.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Final
from uuid import UUID

from app.database import Connection, Database, Record, new_id
from app.due import backfill_queries as queries
from app.due.backfill_queries import NewBackfill
from app.due.fill import MOST_STEPS, Account, LeftOut, Mode, Overlap, choose, span
from app.errors import BackfillActive, Conflict, Invalid, NotFound
from app.progress import cancelling, transition
from app.schedule import triggers
from app.schedule.triggers import Trigger

#: How many scheduled times a backfill may have.
MOST_TIMES: Final = 1_000_000
#: How many of them a dry run looks at, and how many it names.
MOST_LOOKED: Final = 50_000
MOST_NAMED: Final = 1_000
_CHUNK: Final = 5_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of a job: its times in [begin, end) run, as the mode says."""

    begin: datetime
    end: datetime
    mode: Mode
    overlap: Overlap
    max_active: int


@dataclass(slots=True)
class DryRun:
    """What a backfill would do with the first `looked_at` of its `total` times; `times` name the first to be run."""

    total: int
    looked_at: int = 0
    runs: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    times: list[datetime] = field(default_factory=list)


async def counted(job: Record, now: datetime, wish: Wish) -> int:
    """How many scheduled times of the job lie in the window. Invalid where that is too many, or in the future;
    Conflict if its trigger cannot be evaluated."""
    if wish.end > now:
        raise Invalid.field("/to", "must not be in the future: times that have not come are the schedule's")
    with _evaluating():
        # A thread, for an odd trigger takes a second.
        number, exact = await asyncio.to_thread(triggers.count, _trigger(job), *span(wish.begin, wish.end))
    if number > MOST_TIMES:
        many = f"{number:,} scheduled times lie in it, and at most {MOST_TIMES:,} can"
    elif not exact:
        many = f"only {number:,} scheduled times of this trigger can be counted"
    else:
        return number
    raise Invalid.field("/from", f"{many}; ask for a shorter window")


def undealt(job: Record, wish: Wish) -> bool:
    """Whether the schedule has not dealt with all times of the window: then it is to do so first."""
    _, until = span(wish.begin, wish.end)
    with _evaluating():
        return triggers.newest(_trigger(job), job["cursor_time"], until) is not None


def _trigger(job: Record) -> Trigger:
    return triggers.load(job["trigger"])


@contextlib.contextmanager
def _evaluating() -> Iterator[None]:
    """Whatever a trigger raises, the job is parked, or is about to be."""
    try:
        yield
    except Exception as error:
        raise Conflict(f"the trigger of the job cannot be evaluated: {error}") from error


async def begin(connection: Connection, now: datetime, job: Record, wish: Wish, total: int, author: str) -> Record:
    """A backfill of the locked job as it is defined now. Raises BackfillActive; Invalid if there are no times."""
    if total == 0:
        raise Invalid.field("/to", "no scheduled time of the job lies in [from, to)")
    after, _ = span(wish.begin, wish.end)
    new = NewBackfill(
        id=new_id(),
        job_id=job["id"],
        job_version=job["version"],
        from_time=wish.begin,
        to_time=wish.end,
        mode=wish.mode,
        overlap=wish.overlap,
        max_active=wish.max_active,
        cursor_time=after,
        total=total,
        author=author,
    )
    row = await queries.insert(connection, now, new)
    if row is None:
        active = await queries.active_of(connection, job["id"])
        which = "another backfill" if active is None else f"the backfill {active['id']}"
        raise BackfillActive(f"{which} of the job has not ended; cancel it, or wait for its end")
    return row


async def dry_run(database: Database, job: Record, wish: Wish, total: int) -> DryRun:
    """What would run. Bounded work, in short reads: no session is held while times are computed."""
    found = DryRun(total)
    with _evaluating():
        times = triggers.times(_trigger(job), *span(wish.begin, wish.end))
    while found.looked_at < MOST_LOOKED:
        with _evaluating():
            chunk = await asyncio.to_thread(_next, times)
        if not chunk:
            break
        async with database.reading() as connection:
            latest = await queries.latest_runs(connection, job["id"], chunk, None)
        choice = choose(chunk, latest, wish.mode, len(chunk))
        found.looked_at += len(chunk)
        found.runs += len(choice.fire)
        found.left_out.update(choice.left_out)
        found.times += choice.fire[: MOST_NAMED - len(found.times)]
    return found


def _next(times: Iterator[datetime]) -> list[datetime]:
    with triggers.bounded(MOST_STEPS):
        return list(islice(times, _CHUNK))


async def pause(connection: Connection, now: datetime, backfill_id: UUID, reason: str | None) -> Record:
    """No further runs until it is resumed; live ones go on. One that is paused stays as it is."""
    row, account = await _going_on(connection, backfill_id)
    if account.state == "PAUSED":
        return row
    return await queries.keep(connection, now, row, replace(account, state="PAUSED", reason=reason))


async def resume(connection: Connection, now: datetime, backfill_id: UUID) -> Record:
    """It goes on where it was paused. One that is not paused stays as it is."""
    row, account = await _going_on(connection, backfill_id)
    if account.state == "ACTIVE":
        return row
    return await queries.keep(connection, now, row, replace(account, state="ACTIVE", reason=None))


async def cancel(
    connection: Connection, now: datetime, backfill_id: UUID, by: str, *, keep_runs: bool
) -> tuple[Record, Sequence[Record]]:
    """The end: no further runs, and unless they are kept a cancel is asked for of its live ones.

    Returns its row and the runs that changed. One that was cancelled stays so; its live runs are asked all the same.
    """
    row = await _locked(connection, backfill_id)
    before = Account.of(row)
    if before.state == "DONE":
        raise Conflict(f"the backfill {backfill_id} is DONE; there is nothing to cancel")
    account, runs = before.cancelled(f"cancelled by {by}"), list[Record]()
    if not keep_runs:
        ask = cancelling.ask(now, by, terminate=False, grace_s=0)
        runs = await transition.apply(connection, now, {run: [ask] for run in account.live})
    account = account.counted(await queries.ends_of(connection, account.live))
    return row if account == before else await queries.keep(connection, now, row, account), runs


async def _locked(connection: Connection, backfill_id: UUID) -> Record:
    row = await queries.lock(connection, backfill_id)
    if row is None:
        raise NotFound(f"there is no backfill {backfill_id}")
    return row


async def _going_on(connection: Connection, backfill_id: UUID) -> tuple[Record, Account]:
    row = await _locked(connection, backfill_id)
    account = Account.of(row)
    if account.ended:
        raise Conflict(f"the backfill {backfill_id} has ended: it is {account.state}")
    return row, account
