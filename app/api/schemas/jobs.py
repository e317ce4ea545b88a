"""Jobs: what a definition may be, and how a job is shown."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from app.api.schemas.fields import (
    DAY_S,
    Args,
    Count,
    Flag,
    In,
    Instant,
    Kwargs,
    Labels,
    Name,
    Out,
    Priority,
    QueueName,
    RetryPolicy,
    TaskName,
    Text,
    TimeLimit,
    refuse_swapped_deadlines,
    refuse_swapped_limits,
)
from app.due.overlap import Overlap
from app.schedule.definitions import Definition
from app.schedule.triggers import Trigger

EXAMPLE_JOB: dict[str, Any] = {
    "namespace": "default",
    "name": "calc_post_score",
    "description": "refresh article heat",
    "task": "apps.tasks.scheduled_job.calc_post_score",
    "queue": "game_community_default",
    "trigger": {"type": "cron", "expression": "0 1,7,13,19 * * *", "timezone": "Asia/Shanghai"},
}
EXAMPLE_JOB_OUT: dict[str, Any] = {
    "id": "019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f70",
    **EXAMPLE_JOB,
    "args": [],
    "kwargs": {},
    "priority": None,
    "trigger": {
        "type": "cron",
        "expression": "0 1,7,13,19 * * *",
        "timezone": "Asia/Shanghai",
        "start_time": None,
        "end_time": None,
        "jitter_s": 0,
    },
    "enabled": True,
    "overlap": "skip",
    "misfire": "latest",
    "catchup_window_s": DAY_S,
    "start_deadline_s": None,
    "deadline_s": None,
    "max_active": None,
    "pause_after_failures": None,
    "retry": {
        "max_attempts": 1,
        "max_lost": 2,
        "backoff_s": 10,
        "backoff_factor": 2,
        "max_backoff_s": 600,
        "jitter": "none",
        "retry_on": None,
    },
    "time_limit_s": None,
    "soft_time_limit_s": None,
    "labels": {},
    "pause": None,
    "problem": None,
    "contract_problem": None,
    "warnings": None,
    "schedule": "At 01:00, 07:00, 13:00, and 19:00 every day, Asia/Shanghai time",
    "finished": False,
    "next_run_time": "2026-03-02T05:00:00Z",
    "last_run_time": "2026-03-01T23:00:00.012000Z",
    "last_run": {
        "id": "019ca1f3-0b42-7c55-9a01-2f4be8d07c11",
        "state": "SUCCESS",
        "result": 42,
        "log_path": None,
        "end_time": "2026-03-01T23:00:07.318000Z",
    },
    "author": "anonymous",
    "version": 3,
    "create_time": "2026-02-01T08:00:00Z",
    "update_time": "2026-02-20T08:00:00Z",
}


class JobIn(In):
    """A whole definition, for create and replace; what is left out gets its default."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_JOB]})

    namespace: Name = Field("default", description="the team or service that owns the job")
    name: Name = Field(description="unique in its namespace")
    description: Text = ""
    task: TaskName = Field(description="the Celery task, by its registered name")
    args: Args = Field(default_factory=list, description="positional arguments")
    kwargs: Kwargs = Field(default_factory=dict, description="keyword arguments")
    queue: QueueName = Field(description="where its runs go: a queue of this namespace, or one shared with it")
    priority: Priority | None = Field(None, description="of its messages; greater is sooner on RabbitMQ")
    trigger: Trigger = Field(description="when it fires")
    enabled: Flag = Field(True, description="part of the definition: a disabled job has no schedule")
    overlap: Overlap = Field(
        "skip",
        description="what happens at a scheduled time while a run of the job has not ended: the time is skipped; one "
        "run waits, or all do, up to 1,000; a cancel is asked and the new run waits; the other is terminated and the "
        "new one begins; both run",
    )
    misfire: Literal["latest", "earliest", "all", "none"] = Field(
        "latest",
        description="which of several late scheduled times in the window fire: the newest, the oldest, each (at most "
        "100, oldest first), or only what is at most 60 s late",
    )
    catchup_window_s: Annotated[Count, Field(ge=0, le=366 * DAY_S)] = Field(
        DAY_S, description="a scheduled time that is older than this when first looked at is missed"
    )
    start_deadline_s: Annotated[Count, Field(ge=1, le=366 * DAY_S)] | None = Field(
        None, description="a run that no worker has started this long after its scheduled time and jitter is REVOKED"
    )
    deadline_s: Annotated[Count, Field(ge=1, le=366 * DAY_S)] | None = Field(
        None,
        description="a run that has not ended this long after its scheduled time and jitter is FAILURE, all attempts "
        "together",
    )
    max_active: Annotated[Count, Field(ge=1, le=1000)] | None = Field(
        None,
        description="most runs of the job that are active at once, whoever asked for them; further ones wait in line, "
        "up to 1,000",
    )
    pause_after_failures: Annotated[Count, Field(ge=1, le=1000)] | None = Field(
        None,
        description="the job is paused once so many of its runs in a row have ended in FAILURE",
    )
    retry: RetryPolicy = RetryPolicy()
    time_limit_s: TimeLimit | None = Field(None, description="the worker ends the task after this")
    soft_time_limit_s: TimeLimit | None = Field(None, description="the task gets SoftTimeLimitExceeded after this")
    labels: Labels = Field(default_factory=dict, description="free marks to filter by")

    @field_validator("deadline_s")
    @classmethod
    def _start_before_end(cls, value: int | None, info: ValidationInfo) -> int | None:
        refuse_swapped_deadlines(info.data.get("start_deadline_s"), value)
        return value

    @field_validator("soft_time_limit_s")
    @classmethod
    def _soft_before_hard(cls, value: float | None, info: ValidationInfo) -> float | None:
        refuse_swapped_limits(info.data.get("time_limit_s"), value)
        return value

    def definition(self) -> Definition:
        """The same for the schedule stage; the trigger in its canonical JSON."""
        return Definition(
            **{name: getattr(self, name) for name in Definition.__slots__ if name not in {"trigger", "retry"}},
            trigger=self.trigger.model_dump(mode="json"),
            retry={name: getattr(self.retry, name) for name in RetryPolicy.model_fields},
        )


class PauseIn(In):
    """Why a job is paused."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "the upstream feed is being rebuilt"}]})

    reason: Text | None = None


class ResumeIn(In):
    """Where the schedule goes on; from now if left out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"from": "2026-03-01T22:00:00Z"}]})

    begin: Instant | None = Field(
        None, alias="from", description="the times from this one on are late instead of skipped; not in the future"
    )


class TriggerNowIn(In):
    """What this one run does otherwise than the job says."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kwargs": {"since": "2026-03-01"}}]})

    args: Args | None = None
    kwargs: Kwargs | None = None
    queue: QueueName | None = None
    priority: Priority | None = None
    overlap: Overlap = Field(
        default="allow", description="what happens if a run of the job has not ended; where that leaves no room: 409"
    )


class PauseOut(Out):
    """Since when, why and by whom a job is paused."""

    time: datetime
    reason: str | None
    by: str


class LastRunOut(Out):
    """The newest run of a job, in short."""

    id: UUID
    state: str
    result: Any
    log_path: str | None
    end_time: datetime | None


class WarningOut(Out):
    """Something that may keep a job's runs from running."""

    code: Literal[
        "no_worker", "task_not_registered", "some_lack_task", "consumer_timeout", "time_limit", "contract", "finished"
    ]
    detail: str


class JobOut(Out):
    """A job: its definition, and where its schedule stands."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_JOB_OUT]})

    id: UUID
    namespace: str
    name: str
    description: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    priority: int | None
    trigger: Trigger
    enabled: bool
    overlap: str
    misfire: str
    catchup_window_s: int
    start_deadline_s: int | None
    deadline_s: int | None
    max_active: int | None
    pause_after_failures: int | None
    retry: RetryPolicy
    time_limit_s: float | None
    soft_time_limit_s: float | None
    labels: dict[str, str]
    pause: PauseOut | None = Field(description="operational: a deploy never touches it")
    problem: str | None = Field(description="why the job is parked, if its trigger could not be evaluated")
    contract_problem: str | None = Field(description="why its arguments do not fit the task that live workers register")
    warnings: list[WarningOut] | None = Field(
        description="in the answer to a create or edit: what may keep its runs from running; else null"
    )
    schedule: str | None = Field(description="the trigger in words; null while the job is parked")
    finished: bool = Field(description="enabled, neither paused nor parked, and its trigger has no time any more")
    next_run_time: datetime | None = Field(description="when it fires next, jitter included; null: never")
    last_run_time: datetime | None = Field(description="when it last fired")
    last_run: LastRunOut | None
    author: str = Field(description="who wrote this version")
    version: int = Field(description="raised by each change of the definition; also the ETag")
    create_time: datetime
    update_time: datetime


class JobPage(Out):
    """One page of jobs, in the order of their creation."""

    items: list[JobOut]
    next_cursor: str | None


class TimeOut(Out):
    """A scheduled time."""

    time: datetime
    local: str = Field(description="the same as a clock in the trigger's zone shows it, with its offset")
    note: str | None = Field(description="what a change of the clock does to it")


class TimesOut(Out):
    """A trigger in words, and when it fires."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "description": "At 02:30 every day, America/New_York time",
                    "times": [
                        {
                            "time": "2026-03-08T07:00:00Z",
                            "local": "2026-03-08T03:00:00-04:00",
                            "note": "02:30 does not exist on 2026-03-08 in America/New_York; fires at 03:00",
                        }
                    ],
                }
            ]
        }
    )

    description: str
    times: list[TimeOut]


class PreviewIn(In):
    """A trigger to be tried."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "trigger": {"type": "cron", "expression": "30 2 * * *", "timezone": "America/New_York"},
                    "count": 3,
                    "after": "2026-03-07T12:00:00Z",
                }
            ]
        }
    )

    trigger: Trigger
    count: Annotated[Count, Field(ge=1, le=1000)] = Field(10, description="how many times, at most")
    after: Instant | None = Field(None, description="times after this instant; now if left out")

    @field_validator("after", mode="before")
    @classmethod
    def _written(cls, value: object) -> object:
        if value is not None and not isinstance(value, str | datetime):
            raise ValueError("must be an RFC 3339 time with its zone, such as 2026-03-08T02:30:00Z")
        return value
