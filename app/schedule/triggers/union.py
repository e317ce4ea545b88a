"""Several triggers as one, without what is excluded. Instants are seconds since 1970.

`following` and `preceding` are those of a member, its own start and end included; `times` hands them in.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from functools import lru_cache
from typing import Final

from app.errors import Invalid
from app.schedule.triggers.models import AnyOfTrigger, DateRange, Trigger
from app.schedule.triggers.zones import DAY, instant_of

Ask = Callable[[Trigger, int], int | None]

#: Times in a row that may be excluded by triggers before nobody looks further; excluded dates are leapt over.
MAX_EXCLUDED: Final = 10_000
#: Fewer are enough, from 500 on, if they take up more than two years.
MAX_SPAN: Final = 2 * 366 * DAY
#: Times, excluded ones too, that `count` walks through where arithmetic cannot know which of them fall together.
MAX_WALKED: Final = 20_000

#: Steps, those of members within members too, that one answer is worth; a second or so.
MAX_STEPS: Final = 50_000

_EPOCH: Final = date(1970, 1, 1)
#: The steps that are left of `bounded`; it is one list for everybody inside.
_left: ContextVar[list[int] | None] = ContextVar("steps left", default=None)


@contextmanager
def bounded(steps: int = MAX_STEPS) -> Iterator[None]:
    """Inside, all any_of together take at most so many steps; then Invalid. Each alone is bounded by `MAX_EXCLUDED`,
    but an answer may ask many times, and members may be any_of themselves."""
    token = _left.set([steps])
    try:
        yield
    finally:
        _left.reset(token)


def _step() -> None:
    left = _left.get()
    if left is None:
        return
    left[0] -= 1
    if left[0] < 0:
        raise Invalid.field("/trigger/exclude", "takes away so much that finding what is left takes too long")


def walk(trigger: AnyOfTrigger, after: int, following: Ask) -> Iterator[int]:
    """The times strictly after an instant, ascending, each once.

    Raises Invalid if the members fire, and triggers exclude `MAX_EXCLUDED` times in a row.
    """
    return (time for time, kept in _steps(trigger, after, following) if kept)


def _steps(trigger: AnyOfTrigger, after: int, following: Ask) -> Iterator[tuple[int, bool]]:
    """As `walk`, with the times that triggers exclude; whether one is kept."""
    days, others = _exclusions(trigger)
    heads = [following(member, after) for member in trigger.of]
    excluded = _Excluded()
    while True:
        _step()
        time = min((head for head in heads if head is not None), default=None)
        if time is None:
            return
        here = _day_of(days, time)
        if here is not None:
            passed = here[1] - 1
        elif any(following(other, time - 1) == time for other in others):
            excluded.one_more(time)
            yield time, False
            passed = time
        else:
            yield time, True
            passed, excluded = time, _Excluded()
        heads = [
            following(member, passed) if head is not None and head <= passed else head
            for member, head in zip(trigger.of, heads, strict=True)
        ]


def newest(trigger: AnyOfTrigger, until: int, following: Ask, preceding: Ask) -> int | None:
    """The newest time not after an instant. Raises Invalid as `walk` does."""
    days, others = _exclusions(trigger)
    excluded = _Excluded()
    while True:
        _step()
        time = max((found for member in trigger.of if (found := preceding(member, until)) is not None), default=None)
        if time is None:
            return None
        here = _day_of(days, time)
        if here is not None:
            until = here[0] - 1
        elif any(following(other, time - 1) == time for other in others):
            excluded.one_more(time)
            until = time - 1
        else:
            return time


def count(
    trigger: AnyOfTrigger,
    after: int,
    until: int,
    following: Ask,
    number_of: Callable[[Trigger, int, int], tuple[int, bool]],
) -> tuple[int, bool]:
    """How many times there are in (after, until], and whether that is exact.

    By arithmetic for one member that only dates are taken from; else by walking through at most `MAX_WALKED`.
    """
    days, others = _exclusions(trigger)
    if len(trigger.of) == 1 and not others:
        number, exact = number_of(trigger.of[0], after, until)
        for begin, end in days:
            if begin <= until and end > after + 1:
                fewer, known = number_of(trigger.of[0], max(after, begin - 1), min(until, end - 1))
                number, exact = number - fewer, exact and known
        return (number, True) if exact else (max(number, 0), False)
    number = 0
    for walked, (time, kept) in enumerate(_steps(trigger, after, following)):
        if time > until:
            if kept:
                break
        elif walked == MAX_WALKED:
            return number, False
        else:
            number += kept
    return number, True


class _Excluded:
    """Counts times in a row that triggers exclude, and refuses to go on for ever."""

    def __init__(self) -> None:
        self._number = 0
        self._first: int | None = None

    def one_more(self, time: int) -> None:
        self._first = time if self._first is None else self._first
        self._number += 1
        sparse = self._number >= 500 and abs(time - self._first) > MAX_SPAN
        if sparse or self._number >= MAX_EXCLUDED:
            raise Invalid.field(
                "/trigger/exclude", f"leaves nothing over: {self._number:,} times in a row are excluded"
            )


def _day_of(days: Sequence[tuple[int, int]], time: int) -> tuple[int, int] | None:
    place = bisect_right(days, (time, 2**62)) - 1
    return days[place] if place >= 0 and time < days[place][1] else None


@lru_cache(maxsize=4096)
def _exclusions(trigger: AnyOfTrigger) -> tuple[tuple[tuple[int, int], ...], tuple[Trigger, ...]]:
    """What is excluded: spans of instants [begin, end), ascending and apart, and triggers."""
    zone = trigger.timezone or "UTC"
    ranges: list[tuple[date, date]] = []
    others: list[Trigger] = []
    for one in trigger.exclude:
        if isinstance(one, date):
            ranges.append((one, one))
        elif isinstance(one, DateRange):
            ranges.append((one.first, one.last))
        else:
            others.append(one)
    spans: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        begin = instant_of(zone, (first - _EPOCH).days * DAY)
        end = instant_of(zone, ((last - _EPOCH).days + 1) * DAY)
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((begin, end))
    return tuple(spans), tuple(others)
