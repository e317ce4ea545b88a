"""What became of a job's scheduled times, and whether that is all of them. Pure: no clock, no database.

Which times there were follows from the triggers: each version of a definition is judged by its own, for as long as it
was valid. What was done with them is read from runs and rows of skips; only both together can show a hole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Self

from app.schedule import triggers
from app.schedule.triggers import SECOND, Trigger

#: How many scheduled times one ledger may span.
MOST_TIMES: Final = 1_000_000

Waiting = Literal["due", "paused", "parked"]


@dataclass(frozen=True, slots=True)
class Period:
    """The times in (after, until] belong to this trigger; None: a version that was disabled. `until` None: for ever."""

    after: datetime
    until: datetime | None
    trigger: Trigger | None
    #: Why its times cannot be told: what it says of its trigger is no trigger.
    problem: str | None = None

    @classmethod
    def of(cls, definition: dict[str, Any], after: datetime, until: datetime | None) -> Self:
        """The period of a stored definition."""
        try:
            trigger = triggers.load(definition["trigger"])
        except Exception as error:
            return cls(after, until, None, f"{type(error).__name__}: its trigger cannot be evaluated")
        return cls(after, until, trigger if definition.get("enabled", True) else None)


@dataclass(frozen=True, slots=True)
class Times:
    """The scheduled times of a span: how many, the first and the last. Not `known`: `count` is the least there are."""

    count: int
    known: bool
    first: datetime | None = None
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class SkipRow:
    """A row of `skips` that reaches over a bound of the ledger."""

    first: datetime
    last: datetime
    count: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Balance:
    """The ledger in figures and in one line. `scheduled`: the times dealt with; `pending`: those behind them.

    `balanced` is whether each of them is accounted for once; None where that cannot be known.
    """

    scheduled: int | None
    runs: int
    skipped: int
    pending: int
    exact: bool
    balanced: bool | None
    summary: str


def times_in(periods: Sequence[Period], after: datetime, until: datetime) -> Times:
    """The scheduled times in (after, until], by arithmetic. Before the first period there are none."""
    number, known = 0, True
    first: datetime | None = None
    last: datetime | None = None
    for trigger, low, high in _pieces(periods, after, until):
        if trigger is None:
            known = False
            continue
        many, exact = triggers.count(trigger, low, high)
        number, known = number + many, known and exact
        if many:
            first = first or triggers.next_after(trigger, low)
            last = triggers.newest(trigger, low, high)
    return Times(number, known, first, last)


def clipped(periods: Sequence[Period], row: SkipRow, after: datetime, until: datetime) -> Times:
    """What of a row lies in (after, until]. Known only if the row counts what the triggers say of the whole of it."""
    whole = times_in(periods, row.first - SECOND, row.last)
    inside = times_in(periods, max(row.first - SECOND, after), min(row.last, until))
    known = row.exact and whole.known and inside.known and whole.count == row.count
    return Times(min(inside.count, row.count), known, inside.first, inside.last)


def balance(
    scheduled: Times, *, runs: int, skipped: int, exact: bool, twice: int, pending: int, kept_from: datetime | None
) -> Balance:
    """The sum of a ledger. `twice` counts what meets: a run, or a row of skips, at times of another row.

    `exact` says whether `skipped` is; `kept_from` is given where runs of the span may have been deleted, being old.
    """
    known = scheduled.known and exact
    holes = scheduled.count - runs - skipped
    figures = f"{_many(scheduled.count, 'scheduled time')}, {_many(runs, 'run')} + {skipped:,} skipped"
    balanced: bool | None
    if twice:
        balanced, verdict = False, f"{_many(twice, 'run or row', 'runs or rows')} of skips at times of another row"
    elif not known:
        balanced, verdict = None, "not all could be counted: whether these are all is not known"
    elif not holes:
        balanced, verdict = True, "each is accounted for once"
    elif holes > 0 and kept_from is not None:
        kept = kept_from.isoformat(timespec="seconds").replace("+00:00", "Z")
        balanced, verdict = None, f"runs of before {kept} may have been deleted: whether {holes:,} lack is not known"
    elif holes > 0:
        balanced, verdict = False, f"{_many(holes, 'time is', 'times are')} not accounted for"
    else:
        balanced, verdict = False, f"{-holes:,} more than there were times"
    waiting = f"; {pending:,} not yet dealt with" if pending else ""
    number = scheduled.count if scheduled.known else None
    return Balance(number, runs, skipped, pending, known, balanced, f"{figures}: {verdict}{waiting}")


def _pieces(
    periods: Sequence[Period], after: datetime, until: datetime
) -> Iterator[tuple[Trigger | None, datetime, datetime]]:
    """The periods' parts of (after, until] that have times; without a trigger where they cannot be told."""
    for period in periods:
        low, high = max(period.after, after), until if period.until is None else min(period.until, until)
        if low < high and (period.trigger is not None or period.problem is not None):
            yield period.trigger, low, high


def _many(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
