"""Celery's `beat_schedule` as a file of jobs, and in which ways the two differ in meaning.

Nothing is sent and nothing is asked here: entries go in, a document and sentences come out. `docs/from-beat.md` tells
more.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from celery.schedules import crontab, schedule, solar
from pydantic import ValidationError

from app.schedule import triggers

#: What an entry's options become.
_MEMBERS: Final = {"priority": "priority", "time_limit": "time_limit_s", "soft_time_limit": "soft_time_limit_s"}
_KNOWN: Final = {"queue", "expires", "ignore_result", "exchange", "routing_key", *_MEMBERS}
_FIELDS: Final = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
#: What both sides read alike: stars, numbers and names, ranges, and steps over a star or a range.
_ALIKE: Final = re.compile(r"(?:(?:\*|\w+-\w+)(?:/\d+)?|\w+)(?:,(?:(?:\*|\w+-\w+)(?:/\d+)?|\w+))*")
_WEEKDAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
#: A relative interval of one such unit is a cron expression.
_ROUND: Final = {60: "* * * * *", 3600: "@hourly", 86_400: "@daily"}

OVERLAP: Final = (
    "beat sends again while a run has not ended; here the time is skipped. `overlap: allow` is what beat does"
)
CLOCK: Final = (
    "when the clocks change beat computes on the clock's face, and the plane by the rule of Debian's cron: an entry "
    "whose minute or hour begins with `*` follows the time that passes, any other fires once at what the clock shows, "
    "in a gap at its end"
)
INTERVAL: Final = (
    "beat counts from when it last sent, and that adds up; the interval fires at whole multiples since 1970, for ever "
    "(`start_time` moves that)"
)
RELATIVE: Final = (
    "beat's relative interval goes on from wherever it began; this one fires at whole multiples since 1970: give it a "
    "`start_time`, or say it as a cron expression"
)
EXPIRES: Final = (
    "`expires` counts from the sending, `start_deadline_s` from the scheduled time; a stock worker that has the "
    "message works it off nevertheless"
)
BOTH_DAYS: Final = (
    "day_of_month and day_of_week are both given: beat wants both to match and cron either; write what is meant, such "
    "as `0 9 * * MON#1` for the first Monday"
)
ROUTES: Final = "it names no queue, and the plane knows nothing of `task_routes`: look where those send it"


@dataclass(slots=True)
class Import:
    """The jobs of a schedule, what differs about each, and which entries have no job and why."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    differs: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def document(self, namespace: str | None, owner: str | None) -> dict[str, Any]:
        """A document for `jobplane apply`."""
        given = {"owner": owner, "namespace": namespace}
        return {
            **{name: value for name, value in given.items() if value is not None},
            "queues": [{"name": name} for name in dict.fromkeys(job["queue"] for job in self.jobs)],
            "jobs": self.jobs,
        }


class _NoJob(Exception):
    """The entry can be no job; the text says why."""


def convert(entries: Mapping[str, Mapping[str, Any]], zone: str, queue: str) -> Import:
    """Jobs of a `beat_schedule`, disabled for now. `queue` is for entries that name none."""
    found = Import()
    for name, entry in entries.items():
        told: list[str] = []
        try:
            job = _job(str(name), entry, zone, queue, told)
        except _NoJob as why:
            found.left_out.append((str(name), str(why)))
            continue
        taken = {job["name"] for job in found.jobs}
        job["name"] = next(one for one in _numbered(job["name"]) if one not in taken)
        if job["name"] != str(name):
            told.insert(0, f"its name is {job['name']!r} here")
        found.jobs.append(job)
        found.differs += [(job["name"], text) for text in told]
    return found


def _numbered(name: str) -> Iterable[str]:
    yield name
    for number in range(2, 10_000):
        yield f"{name[:120]}-{number}"


def _job(name: str, entry: Mapping[str, Any], zone: str, queue: str, told: list[str]) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("task"), str):
        raise _NoJob("it names no task")
    options = dict(entry.get("options") or {})
    job: dict[str, Any] = {"name": _name(name), "task": entry["task"]}
    job |= {member: value for member in ("args", "kwargs") if (value := _json(member, entry.get(member)))}
    named = options.get("queue")
    job["queue"] = str(getattr(named, "name", named) or queue)
    if named is None:
        told.append(ROUTES)
    job |= {member: options[option] for option, member in _MEMBERS.items() if options.get(option) is not None}
    trigger = _trigger(entry, zone, told)
    _expire(options.get("expires"), job, trigger, zone, told)
    job["trigger"] = _valid(trigger)
    nothing = sorted(option for option in options if option not in _KNOWN and options[option] is not None)
    if nothing:
        told.append(f"there is nothing for {', '.join(nothing)}: let a task of yours send what needs them")
    if options.get("ignore_result"):
        told.append("`ignore_result` has no effect: the plane asks for every result")
    if named is None and (options.get("exchange") or options.get("routing_key")):
        told.append("its exchange and routing key are those of its queue: make a queue that has them")
    return {**job, "enabled": False}


def _name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.:-]+", "-", re.sub(r"^[^A-Za-z0-9]+", "", name))[:128] or "job"


def _json(member: str, value: Any) -> Any:
    try:
        found = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise _NoJob(
            f"its {member} are no JSON; what beat computes when it sends (BeatLazyFunc), let the task compute"
        ) from None
    kind = list if member == "args" else dict
    if found is not None and not isinstance(found, kind):
        raise _NoJob(f"its {member} are not a {kind.__name__}")
    return found


def _trigger(entry: Mapping[str, Any], zone: str, told: list[str]) -> dict[str, Any]:
    when: Any = entry.get("schedule")
    if isinstance(when, crontab):
        trigger = {"type": "cron", "expression": _expression(when, told), "timezone": zone}
        if _changes_clocks(zone):
            told.append(CLOCK)
        return trigger
    if isinstance(when, solar):
        return {"type": "solar", "event": when.event, "latitude": when.lat, "longitude": when.lon}
    relative = bool(entry.get("relative"))
    if type(when) is schedule:
        when, relative = when.run_every, relative or bool(when.relative)
    if isinstance(when, int | float) and not isinstance(when, bool):
        when = timedelta(seconds=when)
    if not isinstance(when, timedelta):
        raise _NoJob(f"its schedule is a {type(when).__name__}, which is no trigger here")
    every_s = when.total_seconds()
    if every_s < 1 or every_s % 1:
        raise _NoJob(f"there is no interval of {every_s:g} s here: whole seconds, from 1 on")
    if relative and every_s in _ROUND:
        return {"type": "cron", "expression": _ROUND[int(every_s)], "timezone": zone}
    told.append(RELATIVE if relative else INTERVAL)
    return {"type": "interval", "every_s": int(every_s)}


def _expression(when: crontab, told: list[str]) -> str:
    """Beat's five fields as an expression that means the same on a day without a clock change."""
    texts = {name: _field(name, when, told) for name in _FIELDS}
    days, week = texts["day_of_month"], texts["day_of_week"]
    if not days.startswith("*") and not week.startswith("*"):
        nth = _nth_weekday(when)
        if nth is None:
            raise _NoJob(BOTH_DAYS)
        told.append(f"day_of_month and day_of_week, which beat wants both to match, are `{nth}` here")
        texts |= {"day_of_month": "*", "day_of_week": nth}
    return " ".join(texts.values())


def _field(name: str, when: crontab, told: list[str]) -> str:
    given = getattr(when, f"_orig_{name}")
    text = str(given) if isinstance(given, int | str) else ",".join(map(str, given))
    text = re.sub(r"\s+", "", text)
    if "#" in text:
        told.append(f"beat takes `{text}` for every such day of the week, and so does this; `#` means the n-th here")
    elif name == "day_of_week" and re.search(r"\d", text.partition("/")[0]):
        told.append(f"the days of the week in `{text}`: 0 is Sunday in both, and 7 too here")
    if _ALIKE.fullmatch(text):
        try:
            parsed = triggers.parse({"type": "cron", name: text})
            return str(getattr(parsed, "expression")).split()[_FIELDS.index(name)]  # noqa: B009  a union of types
        except ValidationError:
            pass
    written = _ranges(getattr(when, name))
    if "#" not in text:
        told.append(f"`{text}` is written {written}: ranges do not go over the end here")
    return written


def _ranges(numbers: Iterable[int]) -> str:
    """{22, 23, 0, 1} as "0-1,22-23"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _nth_weekday(when: crontab) -> str | None:
    """`MON#1` for a Monday within the first seven days of a month, and so on."""
    for number in range(1, 5):
        if set(when.day_of_month) == set(range(7 * number - 6, 7 * number + 1)) and len(when.day_of_week) == 1:
            return f"{_WEEKDAYS[next(iter(when.day_of_week))]}#{number}"
    return None


def _expire(expires: Any, job: dict[str, Any], trigger: dict[str, Any], zone: str, told: list[str]) -> None:
    if isinstance(expires, datetime):
        instant = expires if expires.tzinfo else expires.replace(tzinfo=ZoneInfo(zone))
        trigger["end_time"] = instant.replace(microsecond=0).isoformat()
        told.append("`expires` is a fixed date, and the trigger's `end_time` here")
        return
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if isinstance(expires, int | float) and not isinstance(expires, bool) and expires > 0:
        job["start_deadline_s"] = math.ceil(expires)
        told.append(EXPIRES)
    elif expires is not None:
        told.append(f"`expires` {expires!r} is left out: neither seconds nor a date")


def _valid(trigger: dict[str, Any]) -> dict[str, Any]:
    try:
        triggers.parse(trigger)
    except ValidationError as error:
        raise _NoJob("; ".join(str(one["msg"]) for one in error.errors())) from None
    return trigger


def _changes_clocks(zone: str) -> bool:
    """Whether clocks there are put forward and back these years."""
    place: tzinfo = ZoneInfo(zone)
    noons = [datetime(2026 + month // 12, 1 + month % 12, 1, 12, tzinfo=place) for month in range(24)]
    return len({noon.utcoffset() for noon in noons}) > 1
