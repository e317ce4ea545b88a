"""What the schedules of many jobs have in store, by the same functions that the tick uses. Nothing is written.

Times that are dealt with already are not in it, nor what overlap and misfire will make of a time: it is the load that
the triggers ask for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from app.errors import Invalid
from app.schedule import triggers
from app.schedule.triggers import SECOND, Trigger

#: Longest window, and the jobs and times that one answer is made of.
MAX_WINDOW: Final = timedelta(days=1)
MAX_JOBS: Final = 20_000
MAX_TIMES: Final = 50_000


@dataclass(frozen=True, slots=True)
class Firing:
    """A time of a job: nominal, and when it fires (jitter included)."""

    fire_time: datetime
    time: datetime
    job: Mapping[str, Any]


def forecast(jobs: Sequence[Mapping[str, Any]], begin: datetime, end: datetime) -> list[Firing]:
    """What fires in [begin, end), in order. Each job has `id`, `trigger` and `cursor_time`.

    Invalid if that is more than `MAX_TIMES`, seen by arithmetic before any of them is computed.
    """
    spans = []
    expected = 0
    for job in jobs:
        until = end - timedelta(microseconds=1)
        try:
            trigger = triggers.load(job["trigger"])
            after = max(job["cursor_time"], begin - SECOND - timedelta(seconds=trigger.jitter_s))
            with triggers.bounded():
                expected += triggers.count(trigger, after, until)[0] if after < until else 0
        except (Invalid, ValueError):
            continue  # it cannot be evaluated, as the tick will say of the job
        if expected > MAX_TIMES:
            raise Invalid.field(
                "?to",
                f"more than {MAX_TIMES:,} times lie in this window; ask for a shorter one, or one queue or namespace",
            )
        spans.append((job, trigger, after, until))
    found = []
    for job, trigger, after, until in spans:
        for time in _times(trigger, after, until):
            fire_time = triggers.due_time(trigger, job["id"], time)
            if begin <= fire_time < end:
                found.append(Firing(fire_time, time, job))
    return sorted(found, key=lambda one: (one.fire_time, one.job["id"]))


def _times(trigger: Trigger, after: datetime, until: datetime) -> list[datetime]:
    """The times of one job; none of one that the tick will find too much work as well."""
    try:
        with triggers.bounded():
            return list(triggers.times(trigger, after, until))
    except Invalid:
        return []


def per_minute(firings: Sequence[Firing]) -> list[dict[str, Any]]:
    """How many fire in each minute that has any, and on which queues."""
    minutes: dict[datetime, Counter[str]] = {}
    for one in firings:
        minute = one.fire_time.replace(second=0, microsecond=0)
        minutes.setdefault(minute, Counter())[one.job["queue"]] += 1
    return [
        {"time": minute, "count": queues.total(), "queues": dict(sorted(queues.items()))}
        for minute, queues in minutes.items()
    ]
