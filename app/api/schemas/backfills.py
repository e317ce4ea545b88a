"""Backfills: what may be asked for, and how one is shown."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from app.api.schemas.fields import Count, Flag, In, Instant, Out

State = Literal["ACTIVE", "PAUSED", "DONE", "CANCELLED"]

EXAMPLE_BACKFILL: dict[str, Any] = {
    "id": "019ca1f3-0b42-7c55-9a01-2f4be8d07c11",
    "job_id": "019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f70",
    "job_version": 3,
    "from": "2026-03-01T00:00:00Z",
    "to": "2026-03-02T00:00:00Z",
    "mode": "missing",
    "overlap": "allow",
    "max_active": 2,
    "state": "ACTIVE",
    "reason": None,
    "progress": {"current": 18, "total": 24, "percent": 75.0},
    "counts": {"made": 8, "active": 2, "succeeded": 5, "failed": 1, "revoked": 0, "skipped": 12},
    "author": "anonymous",
    "create_time": "2026-03-02T09:00:00.012000Z",
    "end_time": None,
    "update_time": "2026-03-02T09:04:11.611000Z",
    "version": 14,
}


class BackfillIn(In):
    """Scheduled times of the past that are to be run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z", "max_active": 2}]
        }
    )

    begin: Instant = Field(alias="from", description="times from this one on")
    end: Instant = Field(alias="to", description="times before this one; not in the future")
    mode: Literal["missing", "failed", "all"] = Field(
        "missing",
        description="which times get a run. missing: those without one; failed: also those whose newest run ended "
        "FAILURE or REVOKED; all: all. One whose newest run has not ended never gets another",
    )
    overlap: Literal["allow", "buffer_all"] = Field(
        "allow",
        description="allow: its runs stand apart from the other runs of the job; buffer_all: they wait in one line "
        "with them, so that one run of the job at a time is at work",
    )
    max_active: Annotated[Count, Field(ge=1, le=100)] = Field(
        1, description="how many of its runs may be there at once, at work or waiting"
    )
    dry_run: Flag = Field(False, description="only tell what would run; nothing is written")

    @field_validator("end")
    @classmethod
    def _behind(cls, value: datetime, info: ValidationInfo) -> datetime:
        begin = info.data.get("begin")
        if begin is not None and value <= begin:
            raise ValueError("must be after `from`")
        return value


class CancelBackfillIn(In):
    """What becomes of the runs that have not ended."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"runs": "keep"}]})

    runs: Literal["cancel", "keep"] = Field("cancel", description="cancel: they are cancelled too; keep: they go on")


class CountsOut(Out):
    """The runs of a backfill, and the times without one."""

    made: int
    active: int = Field(description="made and not ended")
    succeeded: int
    failed: int
    revoked: int
    skipped: int = Field(description="scheduled times that were dealt with and got no run of this backfill")


class BackfillProgressOut(Out):
    """How far a backfill is, in scheduled times."""

    current: int = Field(description="times that were skipped, and runs that have ended")
    total: int = Field(description="times in [from, to), counted when it was made")
    percent: float


class BackfillOut(Out):
    """A backfill."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_BACKFILL]})

    id: UUID
    job_id: UUID
    job_version: int = Field(description="the definition that it runs, whatever the job becomes")
    begin: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    mode: Literal["missing", "failed", "all"]
    overlap: Literal["allow", "buffer_all"]
    max_active: int
    state: State
    reason: str | None = Field(description="why it is paused, or was cancelled")
    progress: BackfillProgressOut
    counts: CountsOut
    author: str
    create_time: datetime
    end_time: datetime | None
    update_time: datetime
    version: int = Field(description="raised by each change")


class BackfillPage(Out):
    """One page of backfills, newest first."""

    items: list[BackfillOut]
    next_cursor: str | None


class LeftOutOut(Out):
    """How many times would get no run, and why."""

    has_run: int = Field(description="a run names the time already")
    succeeded: int = Field(description="the newest run of the time succeeded")
    live: int = Field(description="the newest run of the time has not ended")


class DryRunOut(Out):
    """What a backfill would do."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "total": 24,
                    "looked_at": 24,
                    "exact": True,
                    "runs": 2,
                    "skipped": {"has_run": 22, "succeeded": 0, "live": 0},
                    "times": ["2026-03-01T04:00:00Z", "2026-03-01T05:00:00Z"],
                    "more": False,
                }
            ]
        }
    )

    total: int = Field(description="scheduled times in [from, to)")
    looked_at: int = Field(description="how many of them, the first, were looked at: at most 50,000")
    exact: bool = Field(description="whether these are all; else `runs` and `skipped` are those of the first only")
    runs: int = Field(description="how many would get a run")
    skipped: LeftOutOut
    times: list[datetime] = Field(description="the first that would get a run, at most 1,000")
    more: bool = Field(description="whether there are, or may be, further ones")
