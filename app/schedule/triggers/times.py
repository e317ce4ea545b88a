"""When a trigger fires. Nominal scheduled times: aware UTC, whole seconds, strictly ascending, before jitter.

All bounds are half-open as (after, until]. Work is bounded for any span: nothing here walks from time to time but
`times`, and that lazily.
"""

import hashlib
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from app.schedule.triggers import cron, rules, solar, union, walls
from app.schedule.triggers.models import (
    EPOCH,
    AnyOfTrigger,
    CronTrigger,
    DateRange,
    IntervalTrigger,
    OnceTrigger,
    RruleTrigger,
    SolarTrigger,
    Trigger,
    seconds,
)
from app.schedule.triggers.walls import HORIZON
from app.schedule.triggers.zones import DAY

SECOND: Final = timedelta(seconds=1)


def next_after(trigger: Trigger, after: datetime) -> datetime | None:
    """The first time strictly after `after`; None if the trigger has ended.

    Invalid if an any_of excludes so many times in a row that nobody looks further.
    """
    found = _next(trigger, seconds(after))
    return None if found is None else _instant(found)


def times(trigger: Trigger, after: datetime, until: datetime) -> Iterator[datetime]:
    """The times in (after, until], one by one."""
    if isinstance(trigger, AnyOfTrigger):
        for number in union.walk(trigger, seconds(after), _next):
            if (time := _instant(number)) > until:
                return
            yield time
        return
    found = next_after(trigger, after)
    while found is not None and found <= until:
        yield found
        found = next_after(trigger, found)


def newest(trigger: Trigger, after: datetime, until: datetime) -> datetime | None:
    """The last of the times in (after, until]; None if there are none."""
    found = next_after(trigger, after)
    if found is None or found > until:
        return None
    second = next_after(trigger, found)
    if second is None or second > until:
        return found
    last = _previous(trigger, seconds(until))
    assert last is not None
    return _instant(last)


def count(trigger: Trigger, after: datetime, until: datetime, bound: int = 100_000) -> tuple[int, bool]:
    """How many times there are in (after, until], and whether that is exact; if not, it is the least it can be.

    By arithmetic: cron and rrule look at each day once, at most `bound` days (273 years); solar, which computes, looks
    at a twentieth of that; an any_of of several members walks through `union.MAX_WALKED` times.
    """
    return _count(trigger, seconds(after), seconds(until), bound)


def _count(trigger: Trigger, after: int, until: int, bound: int) -> tuple[int, bool]:
    first, last = _bounds(trigger)
    low, high = max(after, first - 1), min(until, last)
    if high <= low:
        return 0, True
    match trigger:
        case CronTrigger():
            return cron.count(trigger.expression, trigger.timezone, low, high, bound)
        case IntervalTrigger():
            anchor = _anchor(trigger)
            return (high - anchor) // trigger.every_s - (low - anchor) // trigger.every_s, True
        case OnceTrigger():
            return 1, True
        case RruleTrigger():
            most = low + bound * DAY
            return walls.count(trigger.rule, trigger.timezone, low, min(high, most)), high <= most
        case SolarTrigger():
            return solar.count(trigger.event, trigger.latitude, trigger.longitude, low, high, bound // 20)
        case AnyOfTrigger():
            return union.count(trigger, low, high, _next, lambda one, begin, end: _count(one, begin, end, bound))


def jitter(job_id: UUID, time: datetime, jitter_s: int, next_time: datetime | None) -> timedelta:
    """How long after its nominal time a job fires: in [0, jitter_s), and before `next_time`.

    A function of its arguments alone, so that schedulers and previews agree.
    """
    span = timedelta(seconds=jitter_s)
    if next_time is not None:
        span = min(span, next_time - time)
    if not span:
        return span
    digest = hashlib.blake2b(job_id.bytes + seconds(time).to_bytes(8, "big"), digest_size=8).digest()
    return timedelta(microseconds=(int.from_bytes(digest, "big") * (span // timedelta(microseconds=1))) >> 64)


def due_time(trigger: Trigger, job_id: UUID, time: datetime) -> datetime:
    """When the job with this trigger is to fire for the nominal `time`."""
    jitter_s = trigger.jitter_s
    return time + jitter(job_id, time, jitter_s, next_after(trigger, time)) if jitter_s else time


def next_due(trigger: Trigger, job_id: UUID, cursor: datetime) -> datetime | None:
    """`jobs.next_run_time` of a job whose times up to `cursor` are dealt with: the next time, with jitter."""
    time = next_after(trigger, cursor)
    return None if time is None else due_time(trigger, job_id, time)


@lru_cache(maxsize=4096)
def describe(trigger: Trigger) -> str:
    """The trigger in words, such as "At 02:30 every day, Europe/Paris time"."""
    words = [_meaning(trigger)]
    if not isinstance(trigger, OnceTrigger | AnyOfTrigger):
        if trigger.start_time is not None:
            words.append(f"from {_written(trigger.start_time)}")
        if trigger.end_time is not None:
            words.append(f"until {_written(trigger.end_time)}")
    if trigger.jitter_s:
        words.append(f"up to {_duration(trigger.jitter_s)} later")
    return ", ".join(words)


def _meaning(trigger: Trigger) -> str:
    match trigger:
        case OnceTrigger():
            return f"Once, at {_written(trigger.run_time)}"
        case CronTrigger():
            return f"{cron.describe(trigger.expression)}, {trigger.timezone} time"
        case IntervalTrigger():
            return f"Every {_duration(trigger.every_s)}"
        case RruleTrigger():
            return f"{rules.describe(trigger.rule)}, {trigger.timezone} time"
        case SolarTrigger():
            return solar.describe(trigger.event, trigger.latitude, trigger.longitude)
        case AnyOfTrigger():
            return _together(trigger)


def _together(trigger: AnyOfTrigger) -> str:
    left_out = []
    for one in trigger.exclude:
        if isinstance(one, date):
            left_out.append(f"on {one}")
        elif isinstance(one, DateRange):
            left_out.append(f"from {one.first} to {one.last}")
        else:
            left_out.append(f"when this fires: {_lowered(describe(one))}")
    members = "; or ".join([describe(trigger.of[0]), *(_lowered(describe(one)) for one in trigger.of[1:])])
    return f"{members}; but not {'; nor '.join(left_out)}" if left_out else members


def _lowered(words: str) -> str:
    return words[0].lower() + words[1:]


def note(trigger: Trigger, time: datetime) -> str | None:
    """What a clock change does to this nominal time of the trigger; None where it does nothing."""
    match trigger:
        case CronTrigger():
            return cron.note(trigger.expression, trigger.timezone, seconds(time))
        case RruleTrigger():
            return walls.note(trigger.rule, trigger.timezone, seconds(time))
        case AnyOfTrigger():
            firing = (one for one in trigger.of if next_after(one, time - SECOND) == time)
            return "; ".join(dict.fromkeys(told for one in firing if (told := note(one, time)))) or None
        case _:
            return None


def local(trigger: Trigger, time: datetime) -> datetime:
    """The time as a clock shows it where the trigger lives: in its zone, or UTC if it has none."""
    return time.astimezone(ZoneInfo(getattr(trigger, "timezone", None) or "UTC"))


def _next(trigger: Trigger, after: int) -> int | None:
    """The first time strictly after an instant, within the trigger's own bounds."""
    first, last = _bounds(trigger)
    found = _following(trigger, max(after, first - 1))
    return None if found is None or found > last else found


def _previous(trigger: Trigger, until: int) -> int | None:
    """The newest time not after an instant, within the trigger's own bounds."""
    first, last = _bounds(trigger)
    found = _preceding(trigger, min(until, last))
    return None if found is None or found < first else found


def _following(trigger: Trigger, after: int) -> int | None:
    match trigger:
        case CronTrigger():
            return cron.following(trigger.expression, trigger.timezone, after)
        case IntervalTrigger():
            anchor = _anchor(trigger)
            return anchor + ((after - anchor) // trigger.every_s + 1) * trigger.every_s
        case OnceTrigger():
            run = seconds(trigger.run_time)
            return run if run > after else None
        case RruleTrigger():
            return walls.following(trigger.rule, trigger.timezone, after)
        case SolarTrigger():
            return solar.following(trigger.event, trigger.latitude, trigger.longitude, after)
        case AnyOfTrigger():
            return next(union.walk(trigger, after, _next), None)


def _preceding(trigger: Trigger, until: int) -> int | None:
    match trigger:
        case CronTrigger():
            return cron.preceding(trigger.expression, trigger.timezone, until)
        case IntervalTrigger():
            anchor = _anchor(trigger)
            return anchor + (until - anchor) // trigger.every_s * trigger.every_s
        case OnceTrigger():
            run = seconds(trigger.run_time)
            return run if run <= until else None
        case RruleTrigger():
            return walls.preceding(trigger.rule, trigger.timezone, until)
        case SolarTrigger():
            return solar.preceding(trigger.event, trigger.latitude, trigger.longitude, until)
        case AnyOfTrigger():
            return union.newest(trigger, until, _next, _previous)


def _bounds(trigger: Trigger) -> tuple[int, int]:
    """The first and the last second at which the trigger may fire."""
    match trigger:
        case OnceTrigger():
            return seconds(trigger.run_time), seconds(trigger.run_time)
        case AnyOfTrigger():
            return 0, HORIZON - 1
        case _:
            first = 0 if trigger.start_time is None else seconds(trigger.start_time)
            last = HORIZON - 1 if trigger.end_time is None else seconds(trigger.end_time)
            if isinstance(trigger, RruleTrigger) and trigger.rule.until is not None:
                last = min(last, trigger.rule.until)
            return first, last


def _anchor(trigger: IntervalTrigger) -> int:
    return 0 if trigger.start_time is None else seconds(trigger.start_time)


def _instant(number: int) -> datetime:
    return EPOCH + timedelta(seconds=number)


def _written(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration(number: int) -> str:
    """90 as "1 minute 30 seconds"; 1 as "second"."""
    parts = []
    for name, size in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        many, number = divmod(number, size)
        if many:
            parts.append(f"{many} {name}{'s' if many > 1 else ''}")
    return " ".join(parts)
