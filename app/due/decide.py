"""Which scheduled times of a job fire, which are skipped and why. Pure: no clock, no database.

Every nominal time in (old cursor, new cursor] is either in `fire` or counted in one of `skips`. The work is bounded
for any gap: nothing walks from time to time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, Literal
from uuid import UUID

from app.due.overlap import Others, Overlap, Room, room
from app.schedule.triggers import SECOND, Trigger, count, due_time, newest, next_after, next_due, times

Misfire = Literal["latest", "earliest", "all", "none"]
SkipReason = Literal["coalesced", "missed", "overlap", "paused", "limit"]
RunOf = Literal["blocker", "fired"]

#: A time is never missed while it is at most this late: ticks are a second apart, and any tick may be slow.
PUNCTUAL: Final = timedelta(seconds=5)
#: How late a time may be that fires under the misfire policy `none`.
NONE_LATE: Final = timedelta(seconds=60)
_NOBODY: Final = Others()
#: How many late times fire at once under the policy `all`; the newer ones are skipped, reason `limit`.
ALL_MOST: Final = 100


@dataclass(frozen=True, slots=True)
class SkipRange:
    """Consecutive scheduled times that one cause kept from running.

    `run_of` says which run the row names: the one in the way (`Room.blocker`), the one that fires (the newest of
    `Decision.fire`), or none. If `exact` is false, counting stopped at a bound and `count` is the least number that it
    can be.
    """

    reason: SkipReason
    run_of: RunOf | None
    first: datetime
    last: datetime
    count: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the times up to `cursor`; `fire` and `skips` ascend.

    `cursor` is nominal and a whole second; `next_time` is when to look at the job next, jitter included, or None if its
    trigger has ended.
    """

    fire: tuple[datetime, ...]
    skips: tuple[SkipRange, ...]
    cursor: datetime
    next_time: datetime | None


def decide(
    trigger: Trigger,
    *,
    job_id: UUID,
    cursor: datetime,
    now: datetime,
    misfire: Misfire = "latest",
    overlap: Overlap = "skip",
    max_active: int | None = None,
    catchup_window_s: int = 86_400,
    others: Others = _NOBODY,
) -> Decision:
    """What a tick does with a job: deals with every time that is due, jitter included.

    `cursor` is the last time dealt with, `others` the runs of the same job that have not ended.
    """
    upto = _newest_due(trigger, job_id, cursor, now)
    if upto is None:
        return Decision((), (), cursor, next_due(trigger, job_id, cursor))
    missed = _newest_due(trigger, job_id, cursor, now - _latest(misfire, catchup_window_s) - timedelta(microseconds=1))
    return _account(trigger, job_id, cursor, missed, upto, misfire, room(overlap, others, max_active))


def settle(
    trigger: Trigger,
    *,
    job_id: UUID,
    cursor: datetime,
    now: datetime,
    misfire: Misfire = "latest",
    overlap: Overlap = "skip",
    max_active: int | None = None,
    catchup_window_s: int = 86_400,
    others: Others = _NOBODY,
) -> Decision:
    """What edit, pause and delete do first: as `decide`, with the old definition.

    Also a time whose jitter has not passed is dealt with, for nobody would look at it again; the cursor becomes `now`.
    `next_time` holds if the trigger stays: an edit takes `next_due` of the new one, pause and delete take null.
    """
    end = max(cursor, _floor(now))
    upto = newest(trigger, cursor, end)
    if upto is None:
        return Decision((), (), end, next_due(trigger, job_id, end))
    missed = _newest_due(trigger, job_id, cursor, now - _latest(misfire, catchup_window_s) - timedelta(microseconds=1))
    decision = _account(trigger, job_id, cursor, missed, upto, misfire, room(overlap, others, max_active))
    return Decision(decision.fire, decision.skips, end, next_due(trigger, job_id, end))


def settle_paused(
    trigger: Trigger, *, job_id: UUID, cursor: datetime, now: datetime, reason: SkipReason = "paused"
) -> Decision:
    """What resume does: the times since the pause were skipped, and the job goes on from `now`.

    Serves edit and delete of a job that is paused too, and with the reason `missed` those of one that is parked.
    """
    end = max(cursor, _floor(now))
    last = newest(trigger, cursor, end)
    skips = () if last is None else (_skip(trigger, reason, None, cursor, last),)
    return Decision((), skips, end, next_due(trigger, job_id, end))


def rows_of(decision: Decision, cursor: datetime) -> Iterator[tuple[datetime, SkipRange]]:
    """The skips of a decision, each with the time before which its row begins: a row of the same cause that ends there
    goes on. It ended at the `cursor`, unless runs lie between.
    """
    for skip in decision.skips:
        yield max([cursor, *(time for time in decision.fire if time < skip.first)]), skip
        cursor = skip.last


def paused_for(failures: int, run: UUID) -> str:
    """Why a job was paused whose runs fail: the newest so many, the last of them this one."""
    return f"its run {run} failed" if failures == 1 else f"{failures} runs in a row failed, the last of them {run}"


def start_deadline(due_time: datetime, start_deadline_s: int | None) -> datetime | None:
    """By when a worker must have started the run that was due then, jitter included; None: no matter when."""
    return None if start_deadline_s is None else due_time + timedelta(seconds=start_deadline_s)


def deadline(due_time: datetime, deadline_s: int | None) -> datetime | None:
    """By when the run that was due then, jitter included, must have ended; None: no matter when."""
    return None if deadline_s is None else due_time + timedelta(seconds=deadline_s)


def _newest_due(trigger: Trigger, job_id: UUID, cursor: datetime, now: datetime) -> datetime | None:
    """The newest time after the cursor whose jitter has passed too."""
    time = newest(trigger, cursor, now)
    if time is None or due_time(trigger, job_id, time) <= now:
        return time
    return newest(trigger, cursor, time - SECOND)  # jitter ends before the next time, so this one is due


def _account(
    trigger: Trigger,
    job_id: UUID,
    cursor: datetime,
    missed: datetime | None,
    upto: datetime,
    misfire: Misfire,
    left: Room,
) -> Decision:
    """Deal with the times in (cursor, upto], of which those up to `missed` are too old."""
    fire: tuple[datetime, ...] = ()
    skips: list[SkipRange] = []
    if missed is not None:
        skips.append(_skip(trigger, "missed", None, cursor, missed))
    start = cursor if missed is None else missed
    if start < upto:
        if left.runs == 0:
            skips.append(_skip(trigger, left.reason, "blocker", start, upto))
        else:
            fire, others = _fired(trigger, start, upto, misfire, left)
            skips += others
    return Decision(fire, tuple(skips), upto, next_due(trigger, job_id, upto))


def _fired(
    trigger: Trigger, start: datetime, upto: datetime, misfire: Misfire, left: Room
) -> tuple[tuple[datetime, ...], list[SkipRange]]:
    """Which of the times in (start, upto] fire, and why the others do not; there is room for at least one."""
    if misfire == "latest" or (left.newest and misfire != "earliest"):
        earlier = newest(trigger, start, upto - SECOND)
        reason: SkipReason = "coalesced" if misfire == "latest" else left.reason
        return (upto,), [] if earlier is None else [_skip(trigger, reason, "fired", start, earlier)]
    if misfire == "earliest":
        fire = tuple(islice(times(trigger, start, upto), 1))
        return fire, [] if fire[-1] == upto else [_skip(trigger, "coalesced", "fired", fire[-1], upto)]
    # The first ones fill the room, and are in the way of all behind them.
    fire = tuple(islice(times(trigger, start, upto), min(left.runs, ALL_MOST)))
    if fire[-1] == upto:
        return fire, []
    reason = left.reason if left.runs < ALL_MOST else "limit"
    return fire, [_skip(trigger, reason, "fired" if reason == "overlap" else None, fire[-1], upto)]


def _latest(misfire: Misfire, catchup_window_s: int) -> timedelta:
    """How late a time may be that is not missed."""
    late = max(timedelta(seconds=catchup_window_s), PUNCTUAL)
    return min(late, NONE_LATE) if misfire == "none" else late


def _skip(trigger: Trigger, reason: SkipReason, run_of: RunOf | None, after: datetime, last: datetime) -> SkipRange:
    """The times in (after, last], of which `last` is one."""
    first = next_after(trigger, after)
    assert first is not None
    number, exact = (1, True) if first == last else count(trigger, after, last)
    return SkipRange(reason, run_of, first, last, number, exact)


def _floor(instant: datetime) -> datetime:
    return instant.replace(microsecond=0)
