"""What becomes of a run that would begin while others of its job have not ended. Pure: no clock, no database."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from app.progress.waiting import WAITING_MOST

Overlap = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow"]

#: These end what is in their way.
REPLACING: Final = frozenset({"cancel_other", "terminate_other"})
#: Under these, runs of a job are at work one after the other.
_ONE_BY_ONE: Final = frozenset({"skip", "buffer_one", "buffer_all", "cancel_other"})


@dataclass(frozen=True, slots=True)
class Others:
    """The runs of a job that have not ended, oldest first: those that are active, and those that wait for them.

    Runs of a backfill that stand apart are not among them.
    """

    active: Sequence[UUID] = ()
    waiting: Sequence[UUID] = ()

    def __bool__(self) -> bool:
        return bool(self.active or self.waiting)


@dataclass(frozen=True, slots=True)
class Room:
    """How many further runs a job may get now, at most; which of several times these are; why the others get none.

    `blocker` is the run that is in the way where there is no room at all.
    """

    runs: int
    newest: bool = False
    reason: Literal["overlap", "limit"] = "overlap"
    blocker: UUID | None = None


def room(overlap: Overlap, others: Others, max_active: int | None = None) -> Room:
    """What the policy leaves for further runs of a job."""
    free = _free(overlap, others, max_active)
    match overlap:
        case "skip":
            return Room(0, blocker=_oldest(others)) if others else Room(1)
        case "buffer_one":
            return Room(0, blocker=others.waiting[0]) if others.waiting else Room(1 + min(free, 1))
        case "cancel_other" | "terminate_other":
            return Room(1, newest=True)
        case "buffer_all" | "allow":
            if max_active is None and overlap == "allow":
                return Room(WAITING_MOST)  # they do not wait, so it is no bound of theirs
            left = WAITING_MOST - len(others.waiting) + free
            return Room(left, reason="limit") if left > 0 else Room(0, reason="limit", blocker=_oldest(others))


def most_active(overlap: Overlap, max_active: int | None = None) -> int | None:
    """How many runs of the job may be active once this one is; None: any number."""
    if overlap not in _ONE_BY_ONE:
        return max_active
    return 1 if max_active is None else min(1, max_active)


def line_up(new: Sequence[UUID], overlap: Overlap, others: Others, max_active: int | None = None) -> list[UUID | None]:
    """Whom each of these runs waits for, in the order in which they are made; None: it may begin at once.

    They wait in one line, each for the one before it.
    """
    most = most_active(overlap, max_active)
    if most is None:
        return [None] * len(new)
    active, last = len(others.active), others.waiting[-1] if others.waiting else None
    found: list[UUID | None] = []
    oldest = others.active[0] if others.active else None
    for run in new:
        if last is None and active < most:
            active += 1
            oldest = oldest or run
            found.append(None)
        else:
            found.append(last or oldest)
            last = run
    return found


def _free(overlap: Overlap, others: Others, max_active: int | None) -> int:
    """How many runs may begin at once."""
    most = most_active(overlap, max_active)
    if most is None:
        return WAITING_MOST
    return 0 if others.waiting else max(most - len(others.active), 0)


def _oldest(others: Others) -> UUID | None:
    return next(iter((*others.active, *others.waiting)), None)
