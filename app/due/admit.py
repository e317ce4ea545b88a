"""Makes runs of jobs beside others that have not ended: at once, behind them, or in their place.

Whoever makes a run has the row of its job locked, so that nobody else makes one meanwhile; the active runs are locked
too, so that none of them ends before the new run that waits for it can be seen, and under a policy that replaces what
waits also that, so that none of it is let go before it is replaced.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.database import Connection, Record, new_id
from app.due import queries
from app.due.overlap import REPLACING, Others, Overlap, line_up, most_active, room
from app.errors import NoRoom
from app.progress import cancelling, moves, transition, waiting
from app.progress.standing import Move
from app.progress.transition import NewRun

#: Who asks for the cancel of a run that is in the way.
BY: Final = "the overlap policy of its job"


#: What a run takes from the definition of its job as it is, and another one of the same work from it.
WORK: Final = (
    "namespace",
    "task",
    "args",
    "kwargs",
    "queue",
    "priority",
    "retry",
    "time_limit_s",
    "soft_time_limit_s",
)


@dataclass(frozen=True, slots=True)
class Firing:
    """Runs of one job that are to be made under a policy, oldest first, and the others of it."""

    overlap: Overlap
    max_active: int | None
    others: Others
    runs: Sequence[NewRun]


def run_of(work: Mapping[str, Any], kind: str, job_id: UUID, job_version: int, author: str, **more: Any) -> NewRun:
    """A run of a job. `work` says what it does: the job's row, or a definition of it; `more` are members of NewRun."""
    return NewRun(
        id=new_id(),
        kind=kind,
        author=author,
        job_id=job_id,
        job_version=job_version,
        job_name=work["name"],
        **{name: work[name] for name in WORK},
        **more,
    )


async def others_of(connection: Connection, jobs: Sequence[Mapping[str, Any]]) -> dict[UUID, Others]:
    """By job, its runs that have not ended. Each has `id`, `overlap` and `max_active`; those of no consequence are left
    out, for a job may have very many. Waits for whoever has one of them in hand.
    """
    found, _ = await _others(connection, jobs, wait=True)
    return found


async def others_at_once(
    connection: Connection, jobs: Sequence[Mapping[str, Any]]
) -> tuple[dict[UUID, Others], set[UUID]]:
    """As `others_of`, but waits for nobody; and the jobs of which somebody has a run in hand: they are to be left
    alone, for one job must not hold up the others."""
    return await _others(connection, jobs, wait=False)


async def _others(
    connection: Connection, jobs: Sequence[Mapping[str, Any]], *, wait: bool
) -> tuple[dict[UUID, Others], set[UUID]]:
    skipping = [job["id"] for job in jobs if job["overlap"] == "skip"]
    ordering = [job["id"] for job in jobs if job["overlap"] != "skip" and _minds_others(job)]
    found: dict[UUID, Others] = {}
    busy: set[UUID] = set()
    if skipping:
        oldest = await queries.oldest_live_runs(connection, skipping)
        found = {job: Others((run,)) for job, run in oldest.items()}
    if ordering:
        replacing = {job["id"] for job in jobs if job["overlap"] in REPLACING}
        locked, busy = await _locked(connection, ordering, replacing, wait=wait)
        found |= locked
    return found, busy


def _minds_others(job: Mapping[str, Any]) -> bool:
    return job["overlap"] in REPLACING or most_active(job["overlap"], job["max_active"]) is not None


async def _locked(
    connection: Connection, jobs: Sequence[UUID], replacing: Collection[UUID], *, wait: bool
) -> tuple[dict[UUID, Others], set[UUID]]:
    """What is read here stays so until the transaction ends: a run may have been let go between lock and look."""
    held: set[UUID] = set()
    while True:
        held |= await queries.lock_live_runs(connection, jobs, list(replacing), wait=wait)
        rows = await queries.live_runs(connection, jobs)
        found = {row["job_id"]: Others(tuple(row["active"]), tuple(row["waiting"])) for row in rows}
        busy = {
            job
            for job, others in found.items()
            if not held.issuperset(others.active) or (job in replacing and not held.issuperset(others.waiting))
        }
        if not busy or not wait:
            return found, busy


async def admit(connection: Connection, now: datetime, firings: Sequence[Firing]) -> list[Record]:
    """Make these runs, each where the policy of its job puts it, after telling what is in their way to end.

    The caller has found that there is room for them (`app.due.overlap.room`). Returns all rows that were made and
    changed; a scheduled time that has its run already makes none.
    """
    changed = await _make_way(connection, now, [one for one in firings if one.overlap in REPLACING and one.runs])
    ended = {row["id"] for row in changed if row["end_time"] is not None}
    new: list[NewRun] = []
    for one in firings:
        others = one.others
        if one.overlap in REPLACING:
            others = Others(tuple(run for run in others.active if run not in ended))
        places = line_up([run.id for run in one.runs], one.overlap, others, one.max_active)
        most = most_active(one.overlap, one.max_active)
        new += [_placed(run, place, most) for run, place in zip(one.runs, places, strict=True)]
    return await transition.create(connection, now, new) + changed


async def admit_one(
    connection: Connection, now: datetime, job: Mapping[str, Any], overlap: Overlap, run: NewRun
) -> list[Record]:
    """As `admit`, for a run that somebody asks for of a locked job; its row comes first. Raises NoRoom."""
    asked = {**job, "overlap": overlap}
    others = (await others_of(connection, [asked])).get(job["id"], Others())
    left = room(overlap, others, job["max_active"])
    if left.runs == 0:
        waits = f"{len(others.waiting):,} runs of the job wait already"
        raise NoRoom(waits if left.reason == "limit" else f"the run {left.blocker} of the job has not ended")
    return await admit(connection, now, [Firing(overlap, job["max_active"], others, [run])])


async def lock_line(connection: Connection, job: UUID) -> None:
    """Before a locked job gets another policy: lock the runs that wait and those that they wait for, in one order."""
    await queries.lock_live_runs(connection, [job], [job], wait=True)


async def line_up_anew(
    connection: Connection, now: datetime, before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[Record]:
    """Let what waits for other runs of a job heed its new policy; the runs that changed. Their rows are locked.

    What waits under the policy of whoever asked for it goes on so, within the job's `max_active`.
    """
    was, most = (most_active(job["overlap"], job["max_active"]) for job in (before, after))
    if (was, before["max_active"]) == (most, after["max_active"]):
        return []
    await queries.bound_line(connection, after["id"], was, most, after["max_active"])
    return await waiting.let_go(connection, now, [after["id"]])


async def _make_way(connection: Connection, now: datetime, firings: Sequence[Firing]) -> list[Record]:
    """Ask for the end of what is active, and end what only waits."""
    wanted: dict[UUID, list[Move]] = {}
    for one in firings:
        terminate = one.overlap == "terminate_other"
        ask = cancelling.ask(now, BY, terminate=terminate, grace_s=0)
        wanted |= {run: [ask] for run in one.others.active}
        wanted |= {run: [moves.replaced(now, one.runs[-1].id)] for run in one.others.waiting}
    return await transition.apply(connection, now, wanted)


def _placed(run: NewRun, waits_for: UUID | None, most: int | None) -> NewRun:
    if waits_for is None:
        return run
    return replace(run, waits_for=waits_for, most_active=most, reason=waiting.reason(waits_for))
