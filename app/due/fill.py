"""Which scheduled times of the past a backfill runs, and how it stands. Pure: no clock, no database."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal, Self
from uuid import UUID

from app.schedule.triggers import SECOND
from app.states import FAILURE, SUCCESS, TERMINAL

Mode = Literal["missing", "failed", "all"]
Overlap = Literal["allow", "buffer_all"]
State = Literal["ACTIVE", "PAUSED", "DONE", "CANCELLED"]
#: Why a time gets no run: it has one, the newest of it succeeded, the newest of it has not ended.
LeftOut = Literal["has_run", "succeeded", "live"]

#: Steps through several triggers that a lot of times is worth; it is computed in a thread.
MOST_STEPS: Final = 500_000

ENDED: Final = frozenset({"DONE", "CANCELLED"})
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest run that names a scheduled time of the job; `mine`: this very backfill has made one."""

    state: str
    mine: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of the times up to `cursor` (None: of none of them); `fire` ascends."""

    fire: tuple[datetime, ...]
    left_out: Mapping[LeftOut, int]
    cursor: datetime | None


def span(begin: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The whole seconds in [begin, end) as (after, until]: scheduled times are whole seconds."""
    return _whole(begin) - SECOND, _whole(end) - SECOND


def left_out(mode: Mode, latest: Latest | None) -> LeftOut | None:
    """Why a time with this newest run gets no other; None: it gets one."""
    if latest is None:
        return None
    if latest.state not in TERMINAL:
        return "live"
    if mode == "missing" or latest.mine:
        return "has_run"
    return "succeeded" if mode == "failed" and latest.state == SUCCESS else None


def choose(times: Sequence[datetime], latest: Mapping[datetime, Latest], mode: Mode, room: int) -> Choice:
    """Go through the times in order until `room` of them are to be run. Each one is dealt with once."""
    fire: list[datetime] = []
    reasons: Counter[LeftOut] = Counter()
    cursor: datetime | None = None
    for time in times:
        if len(fire) >= room:
            break
        if (reason := left_out(mode, latest.get(time))) is None:
            fire.append(time)
        else:
            reasons[reason] += 1
        cursor = time
    return Choice(tuple(fire), reasons, cursor)


@dataclass(frozen=True, slots=True)
class Account:
    """How a backfill stands: what of its row changes.

    `live` are its runs that have not ended as of the last look. Times dealt with are `skipped`, or have a run.
    """

    state: str
    reason: str | None
    cursor_time: datetime
    skipped: int
    succeeded: int
    failed: int
    revoked: int
    live: tuple[UUID, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        found = {field.name: row[field.name] for field in fields(cls)}
        return cls(**{**found, "live": tuple(found["live"])})

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def counted(self, ends: Mapping[UUID, str | None]) -> Self:
        """With these of its live runs ended, by state. None: retention took the run before anybody looked, and how it
        ended is not known; it counts as revoked."""
        known = [ends[run] for run in self.live if run in ends]
        return replace(
            self,
            live=tuple(run for run in self.live if run not in ends),
            succeeded=self.succeeded + known.count(SUCCESS),
            failed=self.failed + known.count(FAILURE),
            revoked=self.revoked + sum(state not in {SUCCESS, FAILURE} for state in known),
        )

    def cancelled(self, reason: str) -> Self:
        """At its end for this reason; one that has ended stays as it is."""
        return self if self.ended else replace(self, state="CANCELLED", reason=reason)

    def done_if(self, until: datetime) -> Self:
        """Done, if it goes on, all its times up to `until` are dealt with, and no run of it is live."""
        over = self.state == "ACTIVE" and self.cursor_time >= until and not self.live
        return replace(self, state="DONE") if over else self


def _whole(instant: datetime) -> datetime:
    """The first whole second that is not before it."""
    return (instant + SECOND - _MICROSECOND).replace(microsecond=0)
