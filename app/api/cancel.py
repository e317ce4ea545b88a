"""Cancelling a run: the lease first, the row second.

A run that dispatch never looked at just ends. Otherwise a worker may have it, also when the broker never confirmed it:
whoever holds its lease or comes to take it must find `cancelled` there before the row says REVOKED, or a body would go
on behind an ended run. A stock worker knows no lease; what it has started cannot be taken from it.
"""

from datetime import datetime
from uuid import UUID

from app import faults
from app.api import queries
from app.api.caller import Caller
from app.api.plane import Plane
from app.database import Record, clock
from app.errors import Conflict, NotFound, RunEnded, RunStarted
from app.progress import lease, moves
from app.progress.announce import announce
from app.progress.standing import Move, Standing
from app.progress.transition import apply
from app.states import PENDING, RETRY, REVOKED, TERMINAL
from workers.protocol import CANCELLED, DONE, lease_key

#: A run may go on to its next attempt or Celery retry between our read and our word; then it is read again.
_TRIES = 5


async def cancel_run(plane: Plane, run_id: UUID, caller: Caller) -> tuple[Record, bool]:
    """End a run as REVOKED. Returns its row, and whether this call did it (False: it was REVOKED already).

    Raises NotFound, RunEnded (it ended otherwise), RunStarted (a worker without a lease has it), RedisError.
    """
    reason = f"cancelled by {caller.name}"
    for _ in range(_TRIES):
        async with plane.database.reading() as connection:
            row = await queries.whole_run(connection, run_id)
        if row is None:
            raise NotFound(f"there is no run {run_id}")
        if row["state"] == REVOKED:
            return row, False
        if row["state"] in TERMINAL:
            raise RunEnded(f"the run {run_id} has ended in {row['state']}")
        seen = Standing.of(row)
        if not _untouched(seen):
            await _take_leases(plane, seen)
        changed = await _revoke(plane, seen, reason)
        if changed is not None:
            return changed, True
    raise Conflict(f"the run {run_id} changes faster than it can be cancelled; try again")


def _untouched(standing: Standing) -> bool:
    """Whether no message of this run can exist: a claim that was given back has left its reason, and so a version."""
    return standing.version == 1 and standing.claim_time is None


async def _take_leases(plane: Plane, seen: Standing) -> None:
    """Make sure that no worker starts or goes on with this attempt. RunStarted if that cannot be."""
    if seen.state not in {PENDING, RETRY} and not seen.leased:
        raise RunStarted(
            f"the run {seen.id} was started by {seen.worker or 'a worker'} without a lease of the plane; "
            "only that worker can end it"
        )
    # Between two of Celery's own retries the next one has a key of its own.
    retries = {seen.retries, seen.retries + 1} if seen.state == RETRY else {seen.retries}
    stands = [
        await lease.take(plane.redis, lease_key(seen.id, seen.attempt, number), CANCELLED, held_too=True)
        for number in sorted(retries)
    ]
    if seen.state != RETRY and DONE in stands:
        raise RunEnded(f"the work of the run {seen.id} is done; its end is about to be recorded")


async def _revoke(plane: Plane, seen: Standing, reason: str) -> Record | None:
    """Write the end if the run still stands where its lease was taken."""
    async with plane.database.transaction() as connection:
        now = await clock(connection)
        rows = await apply(connection, now, {seen.id: [_if_still(seen, now, reason)]})
        await faults.at("api.before_commit")
    await faults.at("api.after_commit")
    await announce(plane.redis, rows)
    return rows[0] if rows else None


def _if_still(seen: Standing, now: datetime, reason: str) -> Move:
    cancel = moves.cancel(now, reason)

    def move(standing: Standing) -> Standing | None:
        same_lease = (standing.attempt, standing.retries) == (seen.attempt, seen.retries)
        if not same_lease or (_untouched(seen) and not _untouched(standing)):
            return None
        started_by_stranger = standing.state not in {PENDING, RETRY} and not standing.leased
        return None if started_by_stranger else cancel(standing)

    return move
