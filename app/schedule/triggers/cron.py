"""Cron expressions, with cronsim as the engine. Instants and walls are whole seconds since 1970, as in `zones`.

cronsim finds the walls that an expression names, on a plain calendar without clock changes; `walls` decides which
instants those are. An expression whose minute or hour begins with `*` follows elapsed time, any other is at fixed
times; also with seconds, where cronsim itself has no rule.
"""

import json
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Final

from cronsim import CronSim, CronSimError

from app.schedule.triggers import walls
from app.schedule.triggers.walls import ORIGIN
from app.schedule.triggers.zones import DAY

MAX_LENGTH: Final = 500

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

FIELDS: Final = ("second", "minute", "hour", "day of month", "month", "day of week")
_RANGES: Final = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_NAMES: Final[tuple[tuple[str, ...], ...]] = (
    *((),) * 4,
    ("", "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
    ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),
)
_EXTRAS: Final = ("", "", "", ", L or LW", " or JAN to DEC", ", SUN to SAT, 5L or MON#2")

#: From here cronsim is asked once whether an expression matches at all; it looks 50 years ahead.
_REFERENCE: Final = datetime(2000, 1, 1)  # noqa: DTZ001


class CronError(ValueError):
    """Not a cron expression that can fire; the text is a sentence for the one who wrote it."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression: cronsim's form of it, and its parts for counting."""

    text: str
    elapsed: bool
    calendar: CronSim
    hours: frozenset[int]
    minutes: frozenset[int]
    seconds: frozenset[int]

    def matches_day(self, day: date) -> bool:
        return day.month in self.calendar.months and self.calendar.match_day(day)

    def until(self, second_of_day: int) -> int:
        """How many of a matching day's times are not after this second of the day."""
        hour, rest = divmod(second_of_day, 3600)
        minute, second = divmod(rest, 60)
        per_minute = len(self.seconds)
        per_hour = len(self.minutes) * per_minute
        number = sum(one < hour for one in self.hours) * per_hour
        if hour in self.hours:
            number += sum(one < minute for one in self.minutes) * per_minute
            if minute in self.minutes:
                number += sum(one <= second for one in self.seconds)
        return number

    def next_wall(self, wall: int) -> int | None:
        return self._wall(wall, back=False)

    def previous_wall(self, wall: int) -> int | None:
        return self._wall(wall, back=True)

    def _wall(self, wall: int, *, back: bool) -> int | None:
        found = next(CronSim(self.text, ORIGIN + timedelta(seconds=wall), reverse=back), None)
        return None if found is None else (found - ORIGIN) // timedelta(seconds=1)

    def count_walls(self, after: int, until: int) -> int:
        first, last = after // DAY, until // DAY
        per_day = self.until(DAY - 1)
        number = 0
        day = date(1970, 1, 1) + timedelta(days=first)
        for index in range(first, last + 1):
            if self.matches_day(day):
                number += self.until(until % DAY) if index == last else per_day
                if index == first:
                    number -= self.until(after % DAY)
            day += timedelta(days=1)
        return number


@lru_cache(maxsize=16_384)
def compiled(expression: str) -> Cron:
    """The expression, checked; CronError says what is wrong with which field and value."""
    parts = _split(expression)
    for field, part in zip(FIELDS[-len(parts) :], parts, strict=True):
        try:
            check_field(field, part)
        except CronError as error:
            raise CronError(f"{field}: {error}") from None
    text = " ".join(parts)
    minute, hour = parts[-5:-3]
    try:
        calendar = CronSim(text, _REFERENCE)
        possible = next(CronSim(text, _REFERENCE), None) is not None
    except CronSimError:  # cronsim refuses some of the days that no month has
        possible = False
    if not possible:
        raise CronError("never matches: none of its months has such a day")
    return Cron(
        text=text,
        elapsed=minute.startswith("*") or hour.startswith("*"),
        calendar=calendar,
        hours=frozenset(calendar.hours),
        minutes=frozenset(calendar.minutes),
        seconds=frozenset(calendar.seconds),
    )


def _split(expression: str) -> list[str]:
    if len(expression) > MAX_LENGTH:
        raise CronError(f"is longer than {MAX_LENGTH} characters")
    parts = expression.split()
    if len(parts) == 1 and parts[0].startswith("@"):
        alias = ALIASES.get(parts[0].lower())
        if alias is None:
            raise CronError(f"{json.dumps(parts[0])} is not known; there are {', '.join(sorted(ALIASES))}")
        return alias.split()
    if len(parts) == 7:
        raise CronError(
            "has 7 fields, but takes 5 (minute first) or 6 (seconds first); a year belongs in start_time and end_time"
        )
    if len(parts) not in {5, 6}:
        raise CronError(
            f"has {len(parts)} field{'' if len(parts) == 1 else 's'}, but takes 5 "
            "(minute, hour, day of month, month, day of week) or 6 (seconds first)"
        )
    return parts


def check_field(field: str, text: str) -> None:
    """CronError with a sentence if `text` cannot be the field of this name (see `FIELDS`)."""
    index = FIELDS.index(field)
    for term in text.split(","):
        fields = ["0", "0", "0", "*", "*", "*"]
        fields[index] = term or "?"
        try:
            CronSim(" ".join(fields), _REFERENCE)
        except CronSimError:
            raise CronError(_reason(index, term)) from None


def _reason(index: int, term: str) -> str:
    """Why a term was refused, for a person."""
    if not term:
        return "a value is empty"
    quoted = json.dumps(term)
    low, high = _RANGES[index]
    base, slash, step = term.upper().partition("/")
    if slash and (not re.fullmatch("[0-9]+", step) or int(step) == 0):
        return f"the step of {quoted} is not a whole number from 1 on"
    if index == 5 and "#" in base:
        return f"{quoted} is not a day and # and 1 to 5, such as MON#2"
    if index == 3 and re.fullmatch("[0-9]+W", base):
        return f"{quoted}: the weekday nearest to a day is not supported, only LW, the last weekday of the month"
    first, dash, last = base.partition("-")
    for value in (first, last) if dash else (base,):
        if re.fullmatch("[0-9]+", value) and not low <= int(value) <= high:
            culprit = quoted if value == term else f"{value} in {quoted}"
            return f"{culprit} is not between {low} and {high}"
    if (
        dash
        and (start := _value(index, first)) is not None
        and (end := _value(index, last)) is not None
        and end < start
    ):
        return f"{quoted} runs backwards; write it as two ranges with a comma"
    return f"{quoted} is not understood; it takes *, {low} to {high}{_EXTRAS[index]}, ranges, steps and lists of them"


def _value(index: int, text: str) -> int | None:
    if re.fullmatch("[0-9]+", text):
        return int(text)
    return _NAMES[index].index(text) if text and text in _NAMES[index] else None


@lru_cache(maxsize=65_536)
def following(expression: str, zone: str, after: int) -> int | None:
    """The first time strictly after an instant; None if there is none within 50 years."""
    return walls.following(compiled(expression), zone, after)


@lru_cache(maxsize=16_384)
def preceding(expression: str, zone: str, until: int) -> int | None:
    """The newest time not after an instant; None if there is none since 1970."""
    return walls.preceding(compiled(expression), zone, until)


@lru_cache(maxsize=16_384)
def count(expression: str, zone: str, after: int, until: int, bound: int) -> tuple[int, bool]:
    """How many times there are in (after, until], by arithmetic over days; at most `bound` days are looked at."""
    exact = until - after <= bound * DAY
    return walls.count(compiled(expression), zone, after, min(until, after + bound * DAY)), exact


def describe(expression: str) -> str:
    """The expression in English, without its zone."""
    cron = compiled(expression)
    either = "" if cron.calendar.day_and else ", whichever matches"
    return f"{cron.calendar.explain()}{either}"


def note(expression: str, zone: str, instant: int) -> str | None:
    """What a clock change does to this time of the expression; None on ordinary days."""
    return walls.note(compiled(expression), zone, instant)
