"""From what a wall clock shows to instants. Walls and instants are whole seconds since 1970, as in `zones`.

A `Calendar` names walls and knows nothing of zones; which instant a wall is, is decided here, with the rule of Debian
cron for shifts of any size:

- a calendar that follows elapsed time: every instant whose wall matches (both halves of an overlap, none in a gap);
- one with fixed times: each wall once, at the first instant that shows it, or at the end of the gap that left it out.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, Protocol

from app.schedule.triggers.zones import DAY, Stretch, instant_of, latest_wall, stretch

ORIGIN: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - a wall has no zone
#: Nothing is scheduled from the year 3000 on.
HORIZON: Final = 32_503_680_000


class Calendar(Protocol):
    """Walls, in the plain calendar without clock changes. Each question is answered with bounded work."""

    @property
    def elapsed(self) -> bool:
        """Whether it follows elapsed time."""

    def next_wall(self, wall: int) -> int | None:
        """The first of its walls strictly after this one; None: there is none, or not for half a century."""

    def previous_wall(self, wall: int) -> int | None:
        """The last of its walls strictly before this one."""

    def count_walls(self, after: int, until: int) -> int:
        """How many of its walls lie in (after, until]."""


def following(calendar: Calendar, zone: str, after: int) -> int | None:
    """The first time strictly after an instant."""
    if not calendar.elapsed:
        wall = calendar.next_wall(latest_wall(zone, after))
        return None if wall is None else instant_of(zone, wall)
    instant = after + 1
    while instant < HORIZON:
        here = stretch(zone, instant)
        wall = calendar.next_wall(instant + here.offset - 1)
        if wall is None:
            return None
        if wall - here.offset < here.end:
            return wall - here.offset
        # Walls between here and `wall` do not match; only right after an overlap could older walls come again.
        instant = max(here.end, wall - 2 * DAY) if here.end - instant > 2 * DAY else here.end
    return None


def preceding(calendar: Calendar, zone: str, until: int) -> int | None:
    """The newest time not after an instant; None if there is none since 1970."""
    if not calendar.elapsed:
        wall = calendar.previous_wall(latest_wall(zone, until) + 1)
        return None if wall is None else instant_of(zone, wall)
    instant = until
    while instant >= 0:
        here = stretch(zone, instant)
        wall = calendar.previous_wall(instant + here.offset + 1)
        if wall is None:
            return None
        if wall - here.offset >= here.start:
            return wall - here.offset
        instant = min(here.start - 1, wall + 2 * DAY) if instant - here.start > 2 * DAY else here.start - 1
    return None


def count(calendar: Calendar, zone: str, after: int, until: int) -> int:
    """How many times there are in (after, until], by arithmetic."""
    if until <= after:
        return 0
    if calendar.elapsed:
        number = 0
        for first, here in _stretches(zone, after + 1, until):
            last = min(until, here.end - 1)
            number += calendar.count_walls(first - 1 + here.offset, last + here.offset)
        return number
    number = calendar.count_walls(latest_wall(zone, after), latest_wall(zone, until))
    for first, here in _stretches(zone, after + 1, until):
        if here.gap and first == here.start:
            together = calendar.count_walls(here.start + here.before - 1, here.start + here.offset)
            number -= max(0, together - 1)
    return number


def note(calendar: Calendar, zone: str, instant: int) -> str | None:
    """What a clock change does to this time of the calendar; None on ordinary days."""
    here = stretch(zone, instant)
    wall = instant + here.offset
    day = _clock(wall, "%Y-%m-%d")
    if here.repeats(instant):
        return f"{_clock(wall)} happens twice on {day} in {zone}; this is the second" if calendar.elapsed else None
    later = stretch(zone, here.end)
    if here.end <= wall - later.offset and later.repeats(wall - later.offset):
        which = "this is the first" if calendar.elapsed else "fires at the first only"
        return f"{_clock(wall)} happens twice on {day} in {zone}; {which}"
    if calendar.elapsed or instant != here.start or not here.gap:
        return None
    first = calendar.next_wall(here.start + here.before - 1)
    if first is None or first >= wall:
        return None
    last = calendar.previous_wall(wall)
    missing = _clock(first) if first == last or last is None else f"{_clock(first)} to {_clock(last)}"
    verb = "does" if first == last else "do"
    return f"{missing} {verb} not exist on {_clock(first, '%Y-%m-%d')} in {zone}; fires at {_clock(wall)}"


def _stretches(zone: str, first: int, last: int) -> Iterator[tuple[int, Stretch]]:
    """The stretches that hold the instants from `first` to `last`, each with the first of the instants it holds."""
    while first <= last:
        here = stretch(zone, first)
        yield first, here
        first = here.end


def _clock(wall: int, pattern: str = "") -> str:
    shown = ORIGIN + timedelta(seconds=wall)
    return shown.strftime(pattern or ("%H:%M:%S" if shown.second else "%H:%M"))
