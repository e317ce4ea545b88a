"""Why something does not run."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ConfigDict, Field

from app.api.schemas.fields import Out

EXAMPLE_RUN_WHY: dict[str, Any] = {
    "run_id": "019ca1f3-0b42-7c55-9a01-2f4be8d07c11",
    "state": "PENDING",
    "items": [
        {
            "code": "task_not_registered",
            "detail": "No worker on the queue game_community_default registers the task "
            "apps.tasks.scheduled_job.calc_post_score (celery@a, celery@b consume it).",
            "time": "2026-03-01T23:00:04Z",
            "queue": "game_community_default",
            "task": "apps.tasks.scheduled_job.calc_post_score",
            "workers": ["celery@a", "celery@b"],
        }
    ],
    "time": "2026-03-01T23:00:05.120000Z",
}

EXAMPLE_JOB_WHY: dict[str, Any] = {
    "job_id": "019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f70",
    "items": [
        {
            "code": "overlap",
            "detail": "The run 019ca1f3-0b42-7c55-9a01-2f4be8d07c11 has not ended (PROGRESS on the worker celery@host "
            "for 8 minutes), and the times until then are skipped.",
            "time": "2026-03-01T23:00:00.012000Z",
            "worker": "celery@host",
            "run_id": "019ca1f3-0b42-7c55-9a01-2f4be8d07c11",
            "count": 1,
            "items": [
                {
                    "code": "running",
                    "detail": "The worker celery@host has had it for 8 minutes and is at 30%; "
                    "its last news came 3 seconds ago.",
                    "time": "2026-03-01T23:00:00.052000Z",
                    "worker": "celery@host",
                }
            ],
        },
        {
            "code": "next_time",
            "detail": "It is due next at 2026-03-01T23:10:00Z, in 118 seconds.",
            "time": "2026-03-01T23:10:00Z",
        },
    ],
    "time": "2026-03-01T23:08:01.500000Z",
}


class WhyItem(Out):
    """One reason: a stable code, a sentence, and the facts in it; members without a value are left out."""

    code: str = Field(description="stable; docs/operations.md has the table", examples=["queue_paused"])
    detail: str = Field(description="one plain sentence")
    time: datetime | None = Field(None, description="since when, or until when, as the sentence says")
    queue: str | None = None
    task: str | None = None
    worker: str | None = None
    workers: list[str] | None = None
    run_id: UUID | None = None
    backfill_id: UUID | None = None
    by: str | None = Field(None, description="who did it")
    count: int | None = None
    items: "list[WhyItem] | None" = Field(None, description="why the run that this names is where it is")


class RunWhyOut(Out):
    """Why a run is where it is, the most telling reason first; there is always one."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_RUN_WHY]})

    run_id: UUID
    state: str
    items: list[WhyItem]
    time: datetime = Field(description="of this answer, by the database's clock")


class JobWhyOut(Out):
    """Why a job is not running now and when it will, the most telling reason first; there is always one."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_JOB_WHY]})

    job_id: UUID
    items: list[WhyItem]
    time: datetime = Field(description="of this answer, by the database's clock")
