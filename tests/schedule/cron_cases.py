"""Cron expressions as sets of values, zones with every kind of clock change, and what fires by looking at each instant.

The oracle shares no code with `app.schedule.triggers`: it asks `zoneinfo` for the wall of every instant in question.
"""

import calendar
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

#: Whole hours, half an hour, two hours, at midnight, at a quarter to, in Ramadan, a day left out, never.
ZONES = (
    "UTC",
    "America/New_York",
    "Europe/London",
    "Europe/Dublin",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "America/Santiago",
    "America/Havana",
    "Asia/Beirut",
    "Africa/Cairo",
    "Pacific/Chatham",
    "America/St_Johns",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Asia/Kathmandu",
)
_RANGES = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


@dataclass(frozen=True)
class Field:
    text: str
    values: frozenset[int]

    @property
    def star(self) -> bool:
        return self.text.startswith("*")


@dataclass(frozen=True)
class Case:
    """An expression with the values of its six fields; `text` has five where `seconds` is not drawn."""

    second: Field | None
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    @property
    def text(self) -> str:
        fields = (self.second, self.minute, self.hour, self.day, self.month, self.weekday)
        return " ".join(field.text for field in fields if field is not None)

    @property
    def elapsed(self) -> bool:
        return self.minute.star or self.hour.star

    @property
    def possible(self) -> bool:
        """Whether some month that is named has a day that is named."""
        if not self.day.star and not self.weekday.star:
            return True
        return any(day <= calendar.monthrange(2028, month)[1] for month in self.month.values for day in self.day.values)

    def matches(self, wall: datetime) -> bool:
        day, weekday = wall.day in self.day.values, wall.isoweekday() % 7 in self.weekday.values
        either = not self.day.star and not self.weekday.star
        return (
            wall.second in (frozenset({0}) if self.second is None else self.second.values)
            and wall.minute in self.minute.values
            and wall.hour in self.hour.values
            and wall.month in self.month.values
            and (day or weekday if either else day and weekday)
        )


def draw_field(rng: random.Random, index: int, star: float) -> Field:
    low, high = _RANGES[index]
    everything = range(low, high + 1)
    kind = rng.random()
    if kind < star:
        return Field("*", frozenset(everything))
    if kind < star + 0.1:
        step = rng.randint(2, max(2, (high - low) // 2))
        return Field(f"*/{step}", frozenset(everything[::step]))
    first, last = sorted(rng.sample(everything, 2))
    if kind < star + 0.2:
        return Field(f"{first}-{last}", frozenset(range(first, last + 1)))
    if kind < star + 0.25:
        step = rng.randint(2, 5)
        return Field(f"{first}-{last}/{step}", frozenset(range(first, last + 1, step)))
    values = frozenset(rng.sample(everything, rng.randint(1, 3)))
    return Field(",".join(str(value) for value in sorted(values)), values)


def draw_case(rng: random.Random, *, seconds: bool = False) -> Case:
    """An expression that is likely to fire in the small hours of any day, where clocks change."""
    small_hour = rng.choice([0, 1, 2, 3, 23])
    return Case(
        second=draw_field(rng, 0, 0.3) if seconds else None,
        minute=draw_field(rng, 1, 0.25),
        hour=draw_field(rng, 2, 0.3) if rng.random() < 0.5 else Field(str(small_hour), frozenset({small_hour})),
        day=draw_field(rng, 3, 0.75),
        month=draw_field(rng, 4, 0.85),
        weekday=draw_field(rng, 5, 0.75),
    )


def wall_of(zone: str, instant: datetime) -> datetime:
    return instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)


@cache
def clock_changes(zone: str) -> tuple[datetime, ...]:
    """The first minutes of new offsets from 2024 to 2028, and when Samoa left out a day; at least one instant."""
    spans = [(datetime(2024, 1, 1, tzinfo=UTC), 5 * 366), (datetime(2011, 12, 28, tzinfo=UTC), 5)]
    found = []
    for start, days in spans:
        for number in range(days):
            day = start + timedelta(days=number)
            if _offset(zone, day) != _offset(zone, day + timedelta(days=1)):
                minutes = (day + timedelta(minutes=minute) for minute in range(1, 1441))
                found.append(next(minute for minute in minutes if _offset(zone, minute) != _offset(zone, day)))
    return tuple(found) or (datetime(2026, 3, 29, 1, tzinfo=UTC),)


def _offset(zone: str, instant: datetime) -> timedelta | None:
    return instant.astimezone(ZoneInfo(zone)).utcoffset()


def fires(case: Case, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """What fires in (after, until], by looking at every instant."""
    step = timedelta(minutes=1) if case.second is None else timedelta(seconds=1)
    # Long enough to know which walls were shown before; Samoa needs a day, and is not asked for seconds.
    instant = after.replace(second=0) - timedelta(hours=27 if case.second is None else 3)
    reached = wall_of(zone, instant)
    found = []
    while (instant := instant + step) <= until:
        wall = wall_of(zone, instant)
        if case.elapsed:
            fire = instant > after and case.matches(wall)
        else:
            fire = False
            while reached < wall:  # in an overlap never; after a gap often
                reached += step
                fire = case.matches(reached) or fire
        if fire and instant > after:
            found.append(instant)
    return found
