"""Recurrence rules (RFC 5545), on wall time. Walls are whole seconds since 1970, as in `zones`.

python-dateutil says which days of one month, or of one year, a rule names. Which months, weeks, days, hours and minutes
INTERVAL leaves over is arithmetic from the rule's start, so that no question walks through the past, and a rule that
never matches ends after half a century of looking.

HOURLY and MINUTELY follow elapsed time around a clock change, as a cron expression with `*` does; the others are fixed.
"""

import re
from bisect import bisect_left, bisect_right
from calendar import day_name, month_name
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import product
from typing import Final

from dateutil import rrule as library

from app.schedule.triggers.walls import HORIZON, ORIGIN
from app.schedule.triggers.zones import DAY, stretch

MAX_LENGTH: Final = 500
MAX_COUNT: Final = 100_000
#: Months, or years of a YEARLY rule, that are looked at in a row without finding a time: half a century.
_LOOK: Final = {"MONTHLY": 600, "YEARLY": 100}

_FREQS: Final = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY")
_UNITS: Final = ("year", "month", "week", "day", "hour", "minute")
_ELAPSED: Final = frozenset({"HOURLY", "MINUTELY"})
_DAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
#: Parts that are lists of numbers, with their bounds; whether they also count from the end.
_LISTS: Final = {
    "BYMONTH": (1, 12, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True),
    "BYHOUR": (0, 23, False),
    "BYMINUTE": (0, 59, False),
    "BYSECOND": (0, 59, False),
    "BYSETPOS": (1, 366, True),
}
_OTHERS: Final = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY")


class RuleError(ValueError):
    """Not a rule that can fire; the text is a sentence for the one who wrote it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A checked rule with its start: every part that the rule left to its start is filled in. A `walls.Calendar`.

    `start` is the first wall that it may name, `last` the last one (COUNT, or an UNTIL without zone), if any;
    `until` is the instant of an UNTIL in UTC.
    """

    freq: str
    interval: int
    start: int
    last: int | None
    until: int | None
    week_start: int
    days: tuple[tuple[int, int], ...]  # (weekday, which; 0: every)
    lists: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def elapsed(self) -> bool:
        return self.freq in _ELAPSED

    def next_wall(self, wall: int) -> int | None:
        wall = max(wall, self.start - 1)
        look = _LOOK["YEARLY" if self.freq == "YEARLY" else "MONTHLY"]
        for period in self._periods(_period(self.freq, wall + 1), look):
            for day, seconds in _days(self, period):
                if (day + 1) * DAY > wall + 1:
                    place = bisect_right(seconds, wall - day * DAY)
                    if place < len(seconds):
                        found = day * DAY + seconds[place]
                        return None if self.last is not None and found > self.last else found
        return None

    def previous_wall(self, wall: int) -> int | None:
        wall = wall if self.last is None else min(wall, self.last + 1)
        first = _period(self.freq, self.start)
        period = self._aligned(_period(self.freq, wall - 1), back=True)
        looked, look = 0, _LOOK["YEARLY" if self.freq == "YEARLY" else "MONTHLY"]
        while period >= first and looked < look:
            for day, seconds in reversed(_days(self, period)):
                place = bisect_left(seconds, wall - day * DAY)
                if place:
                    found = day * DAY + seconds[place - 1]
                    return found if found >= self.start else None
            period -= self.step
            looked += 1
        return None

    def count_walls(self, after: int, until: int) -> int:
        after = max(after, self.start - 1)
        until = until if self.last is None else min(until, self.last)
        number = 0
        if until > after:
            periods = _period(self.freq, until) - _period(self.freq, after + 1) + 1
            for period in self._periods(_period(self.freq, after + 1), periods, _period(self.freq, until)):
                for day, seconds in _days(self, period):
                    number += bisect_right(seconds, until - day * DAY) - bisect_right(seconds, after - day * DAY)
        return number

    @property
    def step(self) -> int:
        """From one period to the next that INTERVAL leaves; weeks and shorter stretches are looked at by month."""
        return self.interval if self.freq in {"YEARLY", "MONTHLY"} else 1

    def _aligned(self, period: int, *, back: bool = False) -> int:
        beyond = (period - _period(self.freq, self.start)) % self.step
        return period - beyond if back or not beyond else period + self.step - beyond

    def _periods(self, period: int, most: int, last: int | None = None) -> Iterator[int]:
        period = self._aligned(period)
        greatest = _period(self.freq, HORIZON - 1) if last is None else last
        for number in range(most):
            if period + number * self.step > greatest:
                return
            yield period + number * self.step


def _period(freq: str, wall: int) -> int:
    """The number of the year (YEARLY) or month that holds a wall."""
    day = ORIGIN + timedelta(seconds=wall)
    return day.year if freq == "YEARLY" else day.year * 12 + day.month - 1


@lru_cache(maxsize=4096)
def _days(rule: Rule, period: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The days of a period that the rule names, as days since 1970, each with its seconds."""
    year, month = (period, 0) if rule.freq == "YEARLY" else divmod(period, 12)
    lists = dict(rule.lists)
    positions = lists.pop("BYSETPOS", None)
    times = {name: lists.pop(name, None) for name in ("BYHOUR", "BYMINUTE", "BYSECOND")}
    clock = (
        {"byhour": times["BYHOUR"], "byminute": times["BYMINUTE"], "bysecond": times["BYSECOND"]}
        if positions
        else {"byhour": 0, "byminute": 0, "bysecond": 0}
    )
    found = library.rrule(
        library.YEARLY if rule.freq == "YEARLY" else library.MONTHLY,
        dtstart=datetime(year, month + 1, 1),  # noqa: DTZ001
        # The period behind this one is behind the end of all calendars: one period, however little it holds.
        interval=10_000 if rule.freq == "YEARLY" else 120_000,
        wkst=rule.week_start,
        byweekday=[library.weekday(day, which or None) for day, which in rule.days] or None,
        bysetpos=positions,
        **clock,
        **{name.lower(): values for name, values in lists.items()},
    )
    if positions:
        by_day: dict[int, list[int]] = {}
        for one in found:
            wall = (one - ORIGIN) // timedelta(seconds=1)
            by_day.setdefault(wall // DAY, []).append(wall % DAY)
        return tuple((day, tuple(seconds)) for day, seconds in by_day.items())
    days = ((one - ORIGIN).days for one in found)
    kept = ((day, _seconds(rule, _phase(rule, day))) for day in days if _keeps(rule, day))
    return tuple((day, seconds) for day, seconds in kept if seconds)


def _keeps(rule: Rule, day: int) -> bool:
    """Whether INTERVAL leaves this day over."""
    start = rule.start // DAY
    if rule.freq == "DAILY":
        return (day - start) % rule.interval == 0
    if rule.freq == "WEEKLY":
        return (_week(day, rule.week_start) - _week(start, rule.week_start)) % rule.interval == 0
    return True


def _week(day: int, week_start: int) -> int:
    return (day + 3 - week_start) // 7  # 1970 began on a Thursday


def _phase(rule: Rule, day: int) -> int:
    """Which hour or minute of this day is the first that INTERVAL leaves over; 0 where it leaves whole days."""
    unit = {"HOURLY": 3600, "MINUTELY": 60}.get(rule.freq)
    return 0 if unit is None else (rule.start // unit - day * (DAY // unit)) % rule.interval


@lru_cache(maxsize=4096)
def _seconds(rule: Rule, phase: int) -> tuple[int, ...]:
    """The seconds of a day at which the rule fires, ascending."""
    lists = dict(rule.lists)
    hours = lists.get("BYHOUR", tuple(range(24)))
    minutes = lists.get("BYMINUTE", tuple(range(60)))
    if rule.freq == "HOURLY":
        hours = tuple(hour for hour in hours if (hour - phase) % rule.interval == 0 and hour >= phase)
    found = (hour * 60 + minute for hour, minute in product(hours, minutes))
    if rule.freq == "MINUTELY":
        found = (minute for minute in found if minute >= phase and (minute - phase) % rule.interval == 0)
    return tuple(sorted(minute * 60 + second for minute in found for second in lists["BYSECOND"]))


@lru_cache(maxsize=16_384)
def compiled(text: str, zone: str, start: int | None) -> Rule:
    """The rule with its start, an instant (None: the wall 1970-01-01 00:00); RuleError says what is wrong with it."""
    parts = _split(text)
    freq = parts["FREQ"].upper()
    if freq not in _FREQS:
        if freq == "SECONDLY":
            raise RuleError("FREQ: SECONDLY is left to an interval, or to cron with 6 fields")
        raise RuleError(f"FREQ: {parts['FREQ'][:40]!r} is none of {', '.join(_FREQS)}")
    lists = {name: _numbers(name, parts[name]) for name in _LISTS if name in parts}
    days = _weekdays(parts["BYDAY"]) if "BYDAY" in parts else ()
    _check_parts(freq, lists, days)
    interval = _whole("INTERVAL", parts.get("INTERVAL", "1"), 1, 100_000)
    week_start = parts.get("WKST", "MO").upper()
    if week_start not in _DAYS:
        raise RuleError(f"WKST: {week_start[:40]!r} is none of {', '.join(_DAYS)}")
    if start is None:
        _check_startless(freq, parts)
    first = ORIGIN if start is None else ORIGIN + timedelta(seconds=start + stretch(zone, start).offset)
    days, lists = _filled(freq, first, days, lists)
    if lists.keys() >= {"BYHOUR", "BYMINUTE"} and freq not in _ELAPSED:
        per_day = len(lists["BYHOUR"]) * len(lists["BYMINUTE"]) * len(lists["BYSECOND"])
    else:
        per_day = 60 * len(lists["BYSECOND"]) if freq == "MINUTELY" else len(lists["BYMINUTE"]) * len(lists["BYSECOND"])
        per_day *= 24
    if per_day > 1440:
        raise RuleError("names more than 1,440 times a day; that is for an interval, or for cron with 6 fields")
    last, until = _end(parts["UNTIL"]) if "UNTIL" in parts else (None, None)
    wall = (first - ORIGIN) // timedelta(seconds=1)
    ordered = tuple(sorted((name, tuple(sorted(values))) for name, values in lists.items()))
    rule = Rule(freq, interval, wall, None, until, _DAYS.index(week_start), days, ordered)
    if rule.next_wall(wall - 1) is None:
        raise RuleError("never matches: no time within fifty years of its start")
    if "COUNT" in parts:
        if "UNTIL" in parts:
            raise RuleError("gives COUNT and UNTIL; one of them ends it")
        number = _whole("COUNT", parts["COUNT"], 1, MAX_COUNT)
        last = _counted(rule, number)
    return replace(rule, last=last)


def _check_startless(freq: str, parts: dict[str, str]) -> None:
    if "COUNT" in parts or parts.get("INTERVAL", "1") != "1":
        raise RuleError("COUNT and INTERVAL count from the start of the rule: give start_time")
    if freq == "WEEKLY" and "BYDAY" not in parts:
        raise RuleError("FREQ=WEEKLY needs BYDAY, or a start_time whose day of the week it repeats")


def _split(text: str) -> dict[str, str]:
    if len(text) > MAX_LENGTH:
        raise RuleError(f"is longer than {MAX_LENGTH} characters")
    text = text.strip()
    if text.upper().startswith("DTSTART"):
        raise RuleError("DTSTART is the trigger's start_time; give the rule alone")
    if re.search(r"(?im)^(RDATE|EXDATE|EXRULE)", text) or "\n" in text:
        raise RuleError("is one rule on one line; several rules and dates to leave out are an any_of")
    if text.upper().startswith("RRULE:"):
        text = text[6:]
    parts: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        name = name.strip().upper()
        if not equals or not value.strip():
            raise RuleError(f"{part[:40]!r} is not a name, = and a value; a rule begins like FREQ=WEEKLY;BYDAY=MO,FR")
        if name not in _LISTS and name not in _OTHERS:
            raise RuleError(f"{name[:40]} is not known; there are {', '.join((*_OTHERS, *_LISTS))}")
        if name in parts:
            raise RuleError(f"{name} is given twice")
        parts[name] = value.strip()
    if "FREQ" not in parts:
        raise RuleError("FREQ is missing; a rule begins like FREQ=WEEKLY;BYDAY=MO,FR")
    return parts


def _whole(name: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise RuleError(f"{name}: {text[:40]!r} is not a whole number from {low} to {high}")
    return int(text)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    low, high, signed = _LISTS[name]
    found = []
    for one in text.split(","):
        if not re.fullmatch("[+-]?[0-9]{1,4}" if signed else "[0-9]{1,4}", one) or not low <= abs(int(one)) <= high:
            bounds = f"{low} to {high}" + (f" or -{high} to -{low}" if signed else "")
            raise RuleError(f"{name}: {one[:40]!r} is not a number from {bounds}")
        found.append(int(one))
    return tuple(sorted(set(found)))


def _weekdays(text: str) -> tuple[tuple[int, int], ...]:
    found = set()
    for one in text.upper().split(","):
        match = re.fullmatch(r"([+-]?[0-9]{1,2})?(MO|TU|WE|TH|FR|SA|SU)", one)
        if match is None or (match[1] is not None and not 1 <= abs(int(match[1])) <= 53):
            raise RuleError(f"BYDAY: {one[:40]!r} is not a day such as MO, 2MO or -1FR")
        found.add((_DAYS.index(match[2]), int(match[1] or 0)))
    return tuple(sorted(found))


def _check_parts(freq: str, lists: dict[str, tuple[int, ...]], days: tuple[tuple[int, int], ...]) -> None:
    """RuleError for parts that do not go together (RFC 5545, 3.3.10)."""
    wide = freq in {"YEARLY", "MONTHLY"}
    if any(which for _, which in days) and (not wide or "BYWEEKNO" in lists):
        raise RuleError("BYDAY: a day with a number goes with FREQ=MONTHLY or YEARLY, and without BYWEEKNO")
    if freq == "MONTHLY" and any(abs(which) > 5 for _, which in days):
        raise RuleError("BYDAY: no month has more than five of a day")
    if "BYWEEKNO" in lists and freq != "YEARLY":
        raise RuleError("BYWEEKNO goes with FREQ=YEARLY alone")
    if "BYYEARDAY" in lists and freq in {"DAILY", "WEEKLY", "MONTHLY"}:
        raise RuleError(f"BYYEARDAY does not go with FREQ={freq}")
    if "BYMONTHDAY" in lists and freq == "WEEKLY":
        raise RuleError("BYMONTHDAY does not go with FREQ=WEEKLY")
    if "BYSETPOS" in lists and not wide:
        raise RuleError("BYSETPOS goes with FREQ=MONTHLY or YEARLY here")


def _filled(
    freq: str, first: datetime, days: tuple[tuple[int, int], ...], lists: dict[str, tuple[int, ...]]
) -> tuple[tuple[tuple[int, int], ...], dict[str, tuple[int, ...]]]:
    """Days and lists with what the rule leaves to its start."""
    lists = dict(lists)
    if not days and not lists.keys() & {"BYMONTHDAY", "BYYEARDAY", "BYWEEKNO"}:
        if freq == "YEARLY":
            lists.setdefault("BYMONTH", (first.month,))
        if freq in {"YEARLY", "MONTHLY"}:
            lists["BYMONTHDAY"] = (first.day,)
        elif freq == "WEEKLY":
            days = ((first.weekday(), 0),)
        else:
            lists["BYMONTHDAY"] = tuple(range(1, 32))
    elif freq == "YEARLY" and "BYWEEKNO" in lists and not days and not lists.keys() & {"BYMONTHDAY", "BYYEARDAY"}:
        days = ((first.weekday(), 0),)
    lists.setdefault("BYSECOND", (first.second,))
    if freq != "MINUTELY":
        lists.setdefault("BYMINUTE", (first.minute,))
    if freq not in _ELAPSED:
        lists.setdefault("BYHOUR", (first.hour,))
    return days, lists


def _end(text: str) -> tuple[int | None, int | None]:
    """The last wall and the last instant that UNTIL names; a day is meant whole."""
    for pattern, form in ((r"\d{8}T\d{6}Z", "%Y%m%dT%H%M%SZ"), (r"\d{8}T\d{6}", "%Y%m%dT%H%M%S"), (r"\d{8}", "%Y%m%d")):
        if re.fullmatch(pattern, text, re.ASCII):
            try:
                wall = (datetime.strptime(text, form) - ORIGIN) // timedelta(seconds=1)  # noqa: DTZ007
            except ValueError:
                break
            if form.endswith("Z"):
                return None, wall
            return (wall if "T" in form else wall + DAY - 1), None
    raise RuleError(f"UNTIL: {text[:40]!r} is not a time such as 20261224T090000Z, 20261224T090000 or 20261224")


def _counted(rule: Rule, number: int) -> int:
    """The wall of the rule's COUNT-th time."""
    left = number
    first = _period(rule.freq, rule.start)
    for period in range(first, first + 1200 * rule.step, rule.step):
        for day, seconds in _days(rule, period):
            after_start = bisect_left(seconds, rule.start - day * DAY)
            here = len(seconds) - after_start
            if here >= left:
                return day * DAY + seconds[after_start + left - 1]
            left -= here
    raise RuleError(f"COUNT: the rule has no {number} times in the hundred years from its start")


def describe(rule: Rule) -> str:
    """The rule in English, without its zone and its start."""
    unit = _UNITS[_FREQS.index(rule.freq)]
    lists = dict(rule.lists)
    words = [f"Every {unit}" if rule.interval == 1 else f"Every {rule.interval} {unit}s"]
    if "BYMONTH" in lists:
        words.append(f"in {_listed([month_name[month] for month in lists['BYMONTH']])}")
    if "BYWEEKNO" in lists:
        words.append(f"in week {_listed([_place(number) for number in lists['BYWEEKNO']])}")
    if "BYYEARDAY" in lists:
        words.append(f"on day {_listed([_place(number) for number in lists['BYYEARDAY']])} of the year")
    if len(lists.get("BYMONTHDAY", ())) not in {0, 31}:
        words.append(f"on day {_listed([_place(number) for number in lists['BYMONTHDAY']])} of the month")
    if rule.days:
        names = [f"the {_nth(which)} {day_name[day]}" if which else day_name[day] for day, which in rule.days]
        words.append(f"on {_listed(names)}")
    words.append(_clock(lists))
    if "BYSETPOS" in lists:
        words.append(f"but only the {_listed([_nth(number) for number in lists['BYSETPOS']])} of these in each {unit}")
    if rule.last is not None:
        words.append(f"until {ORIGIN + timedelta(seconds=rule.last):%Y-%m-%d %H:%M:%S}")
    if rule.until is not None:
        words.append(f"until {ORIGIN + timedelta(seconds=rule.until):%Y-%m-%dT%H:%M:%SZ}")
    return " ".join(word for word in words if word)


def _clock(lists: dict[str, tuple[int, ...]]) -> str:
    """When in a day, or in an hour."""
    seconds = lists["BYSECOND"]
    if "BYHOUR" in lists and "BYMINUTE" in lists:
        times = list(product(lists["BYHOUR"], lists["BYMINUTE"], seconds))
        if len(times) > 24:
            return f"at {len(times)} times of the day"
        whole = all(second == 0 for second in seconds)
        return f"at {_listed([f'{h:02}:{m:02}' if whole else f'{h:02}:{m:02}:{s:02}' for h, m, s in times])}"
    words = []
    if seconds != (0,):
        words.append(f"at second {_listed([str(second) for second in seconds])}")
    if "BYMINUTE" in lists:
        words.append(f"at minute {_listed([str(minute) for minute in lists['BYMINUTE']])}")
    if "BYHOUR" in lists:
        words.append(f"in hour {_listed([str(hour) for hour in lists['BYHOUR']])}")
    return " ".join(words)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _place(number: int) -> str:
    """15 as "15", -2 as "2 from the end"."""
    return str(number) if number > 0 else f"{-number} from the end"


def _nth(number: int) -> str:
    if number < 0:
        return "last" if number == -1 else f"{_nth(-number)} to last"
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
