"""Runs: what an ad-hoc run may be, and how a run is shown."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from app.api.schemas.fields import (
    DAY_S,
    Args,
    Count,
    In,
    Kwargs,
    Name,
    Out,
    Priority,
    QueueName,
    RetryPolicy,
    TaskName,
    TimeLimit,
    refuse_swapped_deadlines,
    refuse_swapped_limits,
)

EXAMPLE_RUN: dict[str, Any] = {
    "id": "019ca1f3-0b42-7c55-9a01-2f4be8d07c11",
    "job_id": "019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f70",
    "job_name": "calc_post_score",
    "namespace": "default",
    "job_version": 3,
    "kind": "schedule",
    "backfill_id": None,
    "scheduled_time": "2026-03-01T23:00:00Z",
    "task": "apps.tasks.scheduled_job.calc_post_score",
    "args": [],
    "kwargs": {},
    "queue": "game_community_default",
    "priority": None,
    "deadline_time": None,
    "state": "PROGRESS",
    "reason": None,
    "waits_for": None,
    "attempt": 1,
    "attempts": [],
    "late": [],
    "cancel": None,
    "progress": {
        "current": 3,
        "total": 10,
        "percent": 30.0,
        "rate": 1.25,
        "left_s": 5.6,
        "message": None,
        "meta": {"current": 3, "total": 10},
    },
    "result": None,
    "error": None,
    "worker": "celery@host",
    "log_path": None,
    "author": "anonymous",
    "create_time": "2026-03-01T23:00:00.012000Z",
    "dispatch_time": "2026-03-01T23:00:00.031000Z",
    "start_time": "2026-03-01T23:00:00.052000Z",
    "end_time": None,
    "update_time": "2026-03-01T23:00:02.611000Z",
    "version": 7,
}

EXAMPLE_EVENT: dict[str, Any] = {
    "version": 3,
    "state": "STARTED",
    "attempt": 1,
    "reason": None,
    "worker": "celery@host",
    "time": "2026-03-01T23:00:00.052000Z",
}


class RunIn(In):
    """A task to be run once, now, without a job."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"task": "files.digest", "args": ["/srv/data"], "queue": "default"}]}
    )

    namespace: Name = "default"
    task: TaskName = Field(description="the Celery task, by its registered name")
    args: Args = Field(default_factory=list)
    kwargs: Kwargs = Field(default_factory=dict)
    queue: QueueName = Field("default", description="a queue of this namespace, or one shared with it")
    priority: Priority | None = None
    start_deadline_s: Annotated[Count, Field(ge=1, le=366 * DAY_S)] | None = Field(
        None, description="REVOKED if no worker has started it this long after now"
    )
    deadline_s: Annotated[Count, Field(ge=1, le=366 * DAY_S)] | None = Field(
        None, description="FAILURE if it has not ended this long after now, all attempts together"
    )
    retry: RetryPolicy = RetryPolicy()
    time_limit_s: TimeLimit | None = None
    soft_time_limit_s: TimeLimit | None = None

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


class CancelIn(In):
    """How to cancel."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"terminate": False}, {"terminate": True, "grace_s": 30}]}
    )

    terminate: bool = Field(
        default=False,
        description="also end the process of a body that goes on: of a stock worker at once, of ours after `grace_s`. "
        "May be added to an earlier cancel, also once that has ended the run; workers with threads cannot",
    )
    grace_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=10, description="how long a body of our workers may take to end by itself before its process is ended"
    )


class ProgressOut(Out):
    """The newest news of a run."""

    current: float | None
    total: float | None
    percent: float | None
    rate: float | None = Field(description="how much of `total` is done in a second; null where that is not known yet")
    left_s: float | None = Field(description="seconds until `current` is `total` at that rate, null where unknown")
    message: str | None
    meta: Any = Field(description="as the task gave it")


class ErrorOut(Out):
    """Why a run failed."""

    type: str
    message: str | None
    traceback: str | None


class AttemptOut(Out):
    """An attempt that has ended."""

    attempt: int
    dispatch: int | None = Field(None, description="the number of its last message: `<run id>.<dispatch>`")
    state: str
    reason: str | None = Field(None, description="why another attempt followed")
    worker: str | None
    retries: int = Field(0, description="how often the task retried itself inside the attempt, by Celery's own retry")
    start_time: datetime | None
    end_time: datetime | None
    error: ErrorOut | None


class LateOut(Out):
    """An end that came after the one that counts, or of an attempt that was over: kept and shown, nothing more."""

    state: str
    attempt: int
    dispatch: int = Field(description="the number of the message that it ends: `<run id>.<dispatch>`")
    worker: str | None
    time: datetime
    error: ErrorOut | None


class CancelOut(Out):
    """A cancel that was asked for."""

    time: datetime
    by: str
    terminate: bool
    grace_s: float


class RunOut(Out):
    """One firing of a job, or an ad-hoc dispatch."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_RUN]})

    id: UUID
    job_id: UUID | None
    job_name: str | None
    namespace: str
    job_version: int | None = Field(description="the definition that it was fired from")
    kind: Literal["schedule", "manual", "adhoc", "backfill"]
    backfill_id: UUID | None = Field(description="the backfill that made it")
    scheduled_time: datetime | None = Field(description="the time that the trigger names, before jitter")
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    priority: int | None
    deadline_time: datetime | None = Field(description="FAILURE if it has not ended by then")
    state: str = Field(
        description="PENDING, STARTED, PROGRESS or a custom word, RETRY; SUCCESS, FAILURE and REVOKED are final",
        examples=["PROGRESS"],
    )
    reason: str | None = Field(description="why it waits, or why it was revoked")
    waits_for: UUID | None = Field(description="a run of its job that must end before this one is sent")
    attempt: int
    attempts: list[AttemptOut] = Field(description="the attempts that have ended")
    late: list[LateOut] = Field(description="ends that came too late to count; the newest few")
    cancel: CancelOut | None = Field(description="a cancel that was asked for, also while it is still pursued")
    progress: ProgressOut | None
    result: Any = Field(
        description="of a SUCCESS, as the task gave it; if it is kept elsewhere, `GET .../result` has it"
    )
    error: ErrorOut | None
    worker: str | None
    log_path: str | None
    author: str
    create_time: datetime
    dispatch_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    update_time: datetime
    version: int = Field(description="raised by each change and each news; also the ETag")


class RunPage(Out):
    """One page of runs, newest first."""

    items: list[RunOut]
    next_cursor: str | None


class RunPageWithCursor(RunPage):
    """One page of runs, newest first, and where to follow them from."""

    feed_cursor: str = Field(description="`since` of the feed: what changed after this list was read")


class EventOut(Out):
    """One recorded change of a run's state."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_EVENT]})

    version: int
    state: str
    attempt: int
    reason: str | None
    worker: str | None
    time: datetime


class EventPage(Out):
    """The changes of a run's state, oldest first."""

    items: list[EventOut]
    next_cursor: str | None
