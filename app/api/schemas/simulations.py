"""Simulations: what a schedule is tried with, and what would have happened."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.api.schemas.fields import DAY_S, Count, In, Instant, Number, Out
from app.due.overlap import Overlap
from app.due.simulated import Outcome
from app.schedule.triggers import Trigger

Length = Annotated[Number, Field(ge=0, le=366 * DAY_S)]

_SPAN: dict[str, Any] = {"from": "2026-11-22T10:00:00Z", "to": "2026-11-22T11:00:00Z"}
EXAMPLE: dict[str, Any] = {
    "trigger": {"type": "cron", "expression": "*/10 * * * *"},
    "overlap": "buffer_one",
    **_SPAN,
    "run_s": [1500, 300],
    "outages": [{"from": "2026-11-22T10:25:00Z", "to": "2026-11-22T10:45:00Z"}],
}
EXAMPLE_OUT: dict[str, Any] = {
    **_SPAN,
    "scheduled": 6,
    "runs": 4,
    "skipped": 2,
    "pending": 0,
    "most_at_work": 1,
    "events": [
        {
            "event": "run",
            "number": 1,
            "scheduled_time": "2026-11-22T10:00:00Z",
            "fire_time": "2026-11-22T10:00:00Z",
            "begin_time": "2026-11-22T10:00:00Z",
            "end_time": "2026-11-22T10:25:00Z",
            "outcome": "success",
            "waits_for": None,
            "by": None,
        },
        {
            "event": "run",
            "number": 2,
            "scheduled_time": "2026-11-22T10:10:00Z",
            "fire_time": "2026-11-22T10:10:00Z",
            "begin_time": "2026-11-22T10:25:00Z",
            "end_time": "2026-11-22T10:30:00Z",
            "outcome": "success",
            "waits_for": 1,
            "by": None,
        },
        {
            "event": "skip",
            "reason": "overlap",
            "first_time": "2026-11-22T10:20:00Z",
            "last_time": "2026-11-22T10:20:00Z",
            "count": 1,
            "run": 2,
        },
        {
            "event": "skip",
            "reason": "coalesced",
            "first_time": "2026-11-22T10:30:00Z",
            "last_time": "2026-11-22T10:30:00Z",
            "count": 1,
            "run": 3,
        },
        {
            "event": "run",
            "number": 3,
            "scheduled_time": "2026-11-22T10:40:00Z",
            "fire_time": "2026-11-22T10:45:00Z",
            "begin_time": "2026-11-22T10:45:00Z",
            "end_time": "2026-11-22T11:10:00Z",
            "outcome": "success",
            "waits_for": None,
            "by": None,
        },
        {
            "event": "run",
            "number": 4,
            "scheduled_time": "2026-11-22T10:50:00Z",
            "fire_time": "2026-11-22T10:50:00Z",
            "begin_time": "2026-11-22T11:10:00Z",
            "end_time": "2026-11-22T11:15:00Z",
            "outcome": "success",
            "waits_for": 3,
            "by": None,
        },
    ],
}


class SpanIn(In):
    """From an instant up to, but not at, another."""

    begin: Instant = Field(alias="from")
    end: Instant = Field(alias="to")


class SimulationIn(In):
    """A schedule with its policies, and a world to try it in; policies that are left out are those of a job."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    trigger: Trigger
    overlap: Overlap = "skip"
    misfire: Literal["latest", "earliest", "all", "none"] = "latest"
    catchup_window_s: Annotated[Count, Field(ge=0, le=366 * DAY_S)] = DAY_S
    start_deadline_s: Annotated[Count, Field(ge=1, le=366 * DAY_S)] | None = None
    max_active: Annotated[Count, Field(ge=1, le=1000)] | None = None
    pause_after_failures: Annotated[Count, Field(ge=1, le=1000)] | None = None
    begin: Instant = Field(alias="from", description="the scheduled times from this one on")
    end: Instant = Field(alias="to", description="those before this one; at most 366 days later")
    run_s: Length | Annotated[list[Length], Field(min_length=1, max_length=1000)] = Field(
        description="how long a run is at work; of several, each run takes the next, over and over"
    )
    outages: Annotated[list[SpanIn], Field(max_length=100)] = Field(
        default_factory=list, description="when no scheduler looks; workers go on"
    )
    failing: Annotated[list[Annotated[Count, Field(ge=1)]], Field(max_length=1000)] = Field(
        default_factory=list, description="the runs that fail: 1 is the first that is made"
    )
    cancel_s: Length | None = Field(
        0, description="how long a run goes on after `cancel_other` asked it to end; null: it does not heed that"
    )


class SimulatedRunOut(Out):
    """A run that would have been made."""

    event: Literal["run"]
    number: int = Field(description="in the order in which they are made, from 1 on")
    scheduled_time: datetime
    fire_time: datetime = Field(description="when a scheduler made it: later than its time by jitter, or an outage")
    begin_time: datetime | None = Field(description="later than `fire_time` if it waited; null: it never began")
    end_time: datetime
    outcome: Outcome
    waits_for: int | None = Field(description="the number of the run that it was put behind")
    by: int | None = Field(description="the number of the run for which it was cancelled, terminated or replaced")


class SimulatedSkipOut(Out):
    """Scheduled times in a row that would not have run, for one reason."""

    event: Literal["skip"]
    reason: Literal["coalesced", "missed", "overlap", "paused", "limit"]
    first_time: datetime
    last_time: datetime
    count: int
    run: int | None = Field(description="the number of the run that they were coalesced into, or that was in the way")


class SimulatedPauseOut(Out):
    """From here on the job would have been paused, for `pause_after_failures`."""

    event: Literal["pause"]
    time: datetime
    failures: int
    run: int = Field(description="the number of the last that failed")


class SimulationOut(Out):
    """What would have become of each scheduled time in [from, to): runs + skipped + pending = scheduled."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_OUT]})

    begin: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    scheduled: int
    runs: int
    skipped: int
    pending: int = Field(description="times that are not due before `to`, or before a scheduler is back")
    most_at_work: int = Field(description="how many runs were at work at once, at most")
    events: list[Annotated[SimulatedRunOut | SimulatedSkipOut | SimulatedPauseOut, Field(discriminator="event")]] = (
        Field(description="in the order of scheduled times")
    )
