"""When a job fires: pure functions of a trigger and instants; no clock, no database."""

from app.schedule.triggers.models import (
    AnyOfTrigger,
    CronTrigger,
    DateRange,
    IntervalTrigger,
    OnceTrigger,
    RruleTrigger,
    SolarTrigger,
    Trigger,
    load,
    parse,
)
from app.schedule.triggers.times import (
    SECOND,
    count,
    describe,
    due_time,
    jitter,
    local,
    newest,
    next_after,
    next_due,
    note,
    times,
)
from app.schedule.triggers.union import bounded
from app.schedule.triggers.zones import TZDATA_VERSION

__all__ = [
    "SECOND",
    "TZDATA_VERSION",
    "AnyOfTrigger",
    "CronTrigger",
    "DateRange",
    "IntervalTrigger",
    "OnceTrigger",
    "RruleTrigger",
    "SolarTrigger",
    "Trigger",
    "bounded",
    "count",
    "describe",
    "due_time",
    "jitter",
    "load",
    "local",
    "newest",
    "next_after",
    "next_due",
    "note",
    "parse",
    "times",
]
