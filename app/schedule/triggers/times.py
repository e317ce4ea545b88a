"""When a trigger fires. Nominal scheduled times: aware UTC, whole seconds, strictly ascending, before jitter.

All bounds are half-open as (after, until]. Work is bounded for any span: nothing here walks from time to time but
`times`, and that lazily.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from app.schedule.triggers import cron
from app.schedule.triggers.models import EPOCH, CronTrigger, IntervalTrigger, OnceTrigger, Trigger, seconds
from app.schedule.triggers.walls import HORIZON

SECOND: Final = timedelta(seconds=1)


def next_after(trigger: Trigger, after: datetime) -> datetime | None:
    """The first time strictly after `after`; None if the trigger has ended."""
    first, last = _bounds(trigger)
    found = _following(trigger, max(seconds(after), first - 1))
    return None if found is None or found > last else _instant(found)


def times(trigger: Trigger, after: datetime, until: datetime) -> Iterator[datetime]:
    """The times in (after, until], one by one."""
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
    last = _preceding(trigger, min(seconds(until), _bounds(trigger)[1]))
    assert last is not None
    return _instant(last)


def count(trigger: Trigger, after: datetime, until: datetime, bound: int = 100_000) -> tuple[int, bool]:
    """How many times there are in (after, until], and whether that is exact.

    By arithmetic: cron looks at each day once, at most `bound` days (273 years), and what it has not looked at by then
    is not counted.
    """
    first, last = _bounds(trigger)
    low, high = max(seconds(after), first - 1), min(seconds(until), last)
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
    jitter_s = 0 if isinstance(trigger, OnceTrigger) else trigger.jitter_s
    return time + jitter(job_id, time, jitter_s, next_after(trigger, time)) if jitter_s else time


def next_due(trigger: Trigger, job_id: UUID, cursor: datetime) -> datetime | None:
    """`jobs.next_run_time` of a job whose times up to `cursor` are dealt with: the next time, with jitter."""
    time = next_after(trigger, cursor)
    return None if time is None else due_time(trigger, job_id, time)


def describe(trigger: Trigger) -> str:
    """The trigger in words, such as "At 02:30 every day, Europe/Paris time"."""
    match trigger:
        case OnceTrigger():
            return f"Once, at {_written(trigger.run_time)}"
        case CronTrigger():
            words = [cron.describe(trigger.expression), f"{trigger.timezone} time"]
        case IntervalTrigger():
            words = [f"Every {_duration(trigger.every_s)}"]
    if trigger.start_time is not None:
        words.append(f"from {_written(trigger.start_time)}")
    if trigger.end_time is not None:
        words.append(f"until {_written(trigger.end_time)}")
    if trigger.jitter_s:
        words.append(f"up to {_duration(trigger.jitter_s)} later")
    return ", ".join(words)


def note(trigger: Trigger, time: datetime) -> str | None:
    """What a clock change does to this nominal time of the trigger; None where it does nothing."""
    if not isinstance(trigger, CronTrigger):
        return None
    return cron.note(trigger.expression, trigger.timezone, seconds(time))


def local(trigger: Trigger, time: datetime) -> datetime:
    """The time as a clock shows it where the trigger lives: in its zone, or UTC if it has none."""
    return time.astimezone(ZoneInfo(trigger.timezone)) if isinstance(trigger, CronTrigger) else time


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


def _bounds(trigger: Trigger) -> tuple[int, int]:
    """The first and the last second at which the trigger may fire."""
    if isinstance(trigger, OnceTrigger):
        return seconds(trigger.run_time), seconds(trigger.run_time)
    first = 0 if trigger.start_time is None else seconds(trigger.start_time)
    return first, HORIZON - 1 if trigger.end_time is None else seconds(trigger.end_time)


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
