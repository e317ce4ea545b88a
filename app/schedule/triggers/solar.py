"""When the sun rises, passes and sets, with ephem and Celery's own horizons. Instants are seconds since 1970.

Each event belongs to one day of mean solar time at the place, and is computed from that day's beginning: whoever asks,
from whatever instant, gets the same second. On polar days and nights without the event there is nothing.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, get_args

import ephem

from app.schedule.triggers.zones import DAY

Event = Literal[
    "dawn_astronomical",
    "dawn_nautical",
    "dawn_civil",
    "sunrise",
    "solar_noon",
    "sunset",
    "dusk_civil",
    "dusk_nautical",
    "dusk_astronomical",
]
EVENTS: Final[tuple[str, ...]] = get_args(Event)

#: How far below the horizon the sun stands, as Celery has it.
_HORIZONS: Final = {"astronomical": "-18", "nautical": "-12", "civil": "-6"}
#: Days that are looked at in a row; an event that does not happen for longer never does.
_LOOK: Final = 400


def following(event: str, latitude: float, longitude: float, after: int) -> int | None:
    """The first event strictly after an instant; None: not for more than a year."""
    first = _day(longitude, after)
    for day in range(first, first + _LOOK):
        for instant in _events(event, latitude, longitude, day):
            if instant > after:
                return instant
    return None


def preceding(event: str, latitude: float, longitude: float, until: int) -> int | None:
    """The newest event not after an instant; None: not for more than a year."""
    last = _day(longitude, until)
    for day in range(last, last - _LOOK, -1):
        for instant in reversed(_events(event, latitude, longitude, day)):
            if instant <= until:
                return instant
    return None


def count(event: str, latitude: float, longitude: float, after: int, until: int, bound: int) -> tuple[int, bool]:
    """How many events there are in (after, until], of which at most `bound` days are looked at, and if that is all."""
    if until <= after:
        return 0, True
    first, last = _day(longitude, after), _day(longitude, until)
    days = range(first, min(last, first + bound) + 1)
    number = sum(after < instant <= until for day in days for instant in _events(event, latitude, longitude, day))
    return number, last - first <= bound


def describe(event: str, latitude: float, longitude: float) -> str:
    """The event in English."""
    kind, _, which = event.partition("_")
    words = {"sunrise": "sunrise", "sunset": "sunset", "solar_noon": "solar noon"}.get(event, f"{which} {kind}")
    return f"At {words} at {_degrees(latitude, 'NS')} {_degrees(longitude, 'EW')}"


def _degrees(value: float, names: str) -> str:
    return f"{abs(value):g}\u00b0{names[value < 0]}"


def _day(longitude: float, instant: int) -> int:
    """The number of the day of mean solar time that holds an instant."""
    return (instant + _shift(longitude)) // DAY


def _shift(longitude: float) -> int:
    return round(longitude * 240)


@lru_cache(maxsize=65_536)
def _events(event: str, latitude: float, longitude: float, day: int) -> tuple[int, ...]:
    """The events of a day of mean solar time: one, or none; in white nights, when it moves over midnight, two."""
    begin = day * DAY - _shift(longitude)
    observer, sun = ephem.Observer(), ephem.Sun()
    observer.lat, observer.lon = str(latitude), str(longitude)
    observer.elevation = 0
    observer.pressure = 0
    kind, _, which = event.partition("_")
    if event == "solar_noon":
        found = _second(observer.next_transit(sun, start=_date(begin)))
        return (found,) if found < begin + DAY else ()
    twilight = kind in {"dawn", "dusk"}
    observer.horizon = _HORIZONS[which] if twilight else "-0:34"
    ask = observer.next_rising if kind in {"dawn", "sunrise"} else observer.next_setting
    events: list[int] = []
    start = begin
    while start < begin + DAY:
        try:
            found = _second(ask(sun, start=_date(start), use_center=twilight))
        except ephem.CircumpolarError:
            start += DAY // 2  # ephem judges by the midnight around `start`; the other one may lie beside a polar day
            continue
        if not begin <= found < begin + DAY or (events and found <= events[-1]):
            break
        events.append(found)
        start = found + 3600
    return tuple(events)


def _date(instant: int) -> ephem.Date:
    return ephem.Date(datetime.fromtimestamp(instant, UTC).replace(tzinfo=None))


def _second(date: ephem.Date) -> int:
    return int(date.datetime().replace(tzinfo=UTC).timestamp())
