"""Every definition that a job ever had."""

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field

from app.api.schemas.fields import Out
from app.api.schemas.jobs import EXAMPLE_JOB, EXAMPLE_JOB_OUT, JobIn

EXAMPLE_VERSION: dict[str, Any] = {
    "version": 3,
    "author": "anonymous",
    "create_time": "2026-02-20T08:00:00Z",
    "definition": {name: EXAMPLE_JOB_OUT[name] for name in JobIn.model_fields if name in EXAMPLE_JOB_OUT},
}


class VersionOut(Out):
    """One definition of a job: what it was, who wrote it, and when."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_VERSION]})

    version: int = Field(description="from 1; a run names the one it was fired from")
    author: str
    create_time: datetime = Field(description="from when on it was the definition")
    definition: dict[str, Any] = Field(
        description="as it was stored, in the shape of the body of `POST /jobs`", examples=[EXAMPLE_JOB]
    )


class VersionPage(Out):
    """One page of a job's versions, newest first."""

    items: list[VersionOut]
    next_cursor: str | None
