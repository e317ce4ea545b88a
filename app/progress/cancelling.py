"""What a cancel makes of a run, step by step. Pure.

A cancel is asked for first and pursued until the run has ended. What its end leaves behind is pursued as well: a
message that a stock worker may still take, and a body of ours that does not heed `Cancelled`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from app.progress.moves import cancelled_by, end
from app.progress.standing import Move, Standing
from app.states import PENDING, RETRY, REVOKED, TERMINAL
from workers.protocol import TaskId

#: What a cancel may wait for.
WAITS_FOR_REDIS: Final = "waits for Redis"
WAITS_FOR_BROKER: Final = "waits for the broker, to tell its worker"

#: How long a message of a cancelled run is looked after, at most: as long as kombu's Redis hides what a worker took.
AFTER: Final = timedelta(hours=1)
#: Pauses between two looks at what a cancelled run left behind.
AFTER_PAUSE: Final = timedelta(seconds=30)
#: A stock worker may have been cut off when it was told: it is told at least until then.
_TOLD_FOR: Final = timedelta(seconds=60)
#: Of so many dispatches of an attempt, the newest, are stock workers told.
_MOST_IDS: Final = 20
#: Pools that run bodies in threads of their own process, which nobody can end.
_CANNOT_TERMINATE: Final = frozenset({"solo", "threads"})


@dataclass(frozen=True, slots=True)
class Audience:
    """Who consumes a queue, as the catalogue saw it last; `ready` None: not known."""

    ready: int | None = None
    look_time: datetime | None = None
    only_ours: bool = False


def ask(now: datetime, by: str, *, terminate: bool, grace_s: float) -> Move:
    """Write down that the run is to be cancelled; the end at once where no message of it can exist.

    A second one may add `terminate` to the first and takes nothing back, also after the run was ended by the first:
    its body may go on.
    """

    def move(standing: Standing) -> Standing | None:
        asked = _together(standing.cancel, now, by, terminate, grace_s)
        if asked == standing.cancel:
            return None
        if standing.state in TERMINAL:
            if standing.state != REVOKED or standing.cancel is None:
                return None
            return replace(standing, cancel=asked, cancel_next_time=_after(now, standing, asked))
        wanted = replace(standing, cancel=asked, cancel_next_time=now)
        return end(now, wanted, REVOKED, reason=cancelled_by(wanted)) if untouched(standing) else wanted

    return move


def _together(
    before: Mapping[str, Any] | None, now: datetime, by: str, terminate: bool, grace_s: float
) -> dict[str, Any]:
    if before is None:
        time = now.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return {"time": time, "by": by, "terminate": terminate, "grace_s": grace_s}
    if terminate and not before["terminate"]:
        return {**before, "terminate": True, "grace_s": grace_s}
    return dict(before)


def withdraw(now: datetime, seen: Standing) -> Move:
    """End the run whose leases were taken as it stood then; None where it went on meanwhile."""

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL or standing.cancel is None or started_by_stranger(standing):
            return None
        if (standing.attempt, standing.retries) != (seen.attempt, seen.retries):
            return None
        next_time = _after(now, standing, standing.cancel)
        return end(now, standing, REVOKED, reason=cancelled_by(standing), cancel_next_time=next_time)

    return move


def _after(now: datetime, standing: Standing, asked: Mapping[str, Any]) -> datetime | None:
    """When to look at what this end leaves behind; None if that is nothing."""
    if not standing.leased:
        return now
    return now + timedelta(seconds=asked["grace_s"]) if asked["terminate"] else None


def explain(what: str) -> Move:
    """Say what a cancel waits for."""

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL or standing.cancel is None:
            return None
        reason = f"cancel asked by {standing.cancel['by']}: {what}"
        return None if standing.reason == reason else replace(standing, reason=reason)

    return move


def untouched(standing: Standing) -> bool:
    """Whether no message of this run can exist: a claim that was given back has left its reason, and so a version.

    What waits for another run was never claimed, whatever its version.
    """
    never_claimed = standing.version == 1 or standing.waits_for is not None
    return never_claimed and standing.dispatches == 0 and standing.claim_time is None


def started_by_stranger(standing: Standing) -> bool:
    """Whether a worker without a lease of the plane has the run, as far as we have heard."""
    return standing.state not in {PENDING, RETRY} and not standing.leased


def told_to(worker: str | None, pool: str | None, *, terminate: bool) -> str:
    """Why a run goes on that a stock worker has begun."""
    if not terminate:
        return "a stock worker ends what it has begun only by terminate"
    if pool in _CANNOT_TERMINATE:
        return f"{worker} runs its tasks in threads, which nobody can terminate"
    return f"terminate was sent to {worker or 'its worker'}"


def can_terminate(pool: str | None) -> bool:
    """Whether a worker with this pool can end a body from outside; where the pool is not known, it may."""
    return pool not in _CANNOT_TERMINATE


def asked_for(now: datetime, row: Mapping[str, Any]) -> timedelta:
    """How long ago the cancel was asked for."""
    return now - datetime.fromisoformat(row["cancel"]["time"])


def growing(elapsed: timedelta, least_s: float, most_s: float) -> timedelta:
    """A pause that grows with the time that a cancel takes."""
    return timedelta(seconds=min(max(elapsed.total_seconds() / 2, least_s), most_s))


def ids_of(row: Mapping[str, Any]) -> list[str]:
    """The task ids of the attempt, newest last; the next one too, for its message may be out and nobody has marked it.

    A report of a run that has ended says nothing more, so that a stock worker may be told of an id that never was.
    """
    run_id: UUID = row["id"]
    last = row["dispatches"] + 1
    first = max(row["first_dispatch"], last - _MOST_IDS + 1)
    return [str(TaskId(run_id, n)) for n in range(first, last + 1)]


def aftermath(now: datetime, end_time: datetime, audience: Audience) -> tuple[bool, datetime | None]:
    """Whether to tell the workers again of a run that was ended before they had it, and when to look next (None: done).

    A revoke is volatile: workers that were down do not know of it. It is repeated while its message may still wait in
    the queue. Workers of ours need no telling, for the lease refuses it.
    """
    tell = not audience.only_ours
    if now - end_time > AFTER:
        return False, None
    since = end_time + (_TOLD_FOR if tell else timedelta())
    if audience.ready == 0 and audience.look_time is not None and audience.look_time > since:
        return tell, None
    return tell, now + AFTER_PAUSE
