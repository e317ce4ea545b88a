"""Jobs as files: the document that is applied, the plan that comes back, and the document that is exported."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, StringConstraints

from app.api.schemas.fields import Flag, In, Name, Out
from app.api.schemas.jobs import EXAMPLE_JOB, JobIn, WarningOut
from app.api.schemas.queues import EXAMPLE_QUEUE, QueueIn

#: Most jobs of one document, and most that one apply takes away.
MOST_JOBS: Final = 1000
MOST_QUEUES: Final = 200

Owner = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=256)]

EXAMPLE_FILE: dict[str, Any] = {
    "owner": "game-community/deploy",
    "namespace": "game_community",
    "queues": [{name: EXAMPLE_QUEUE[name] for name in ("name", "exchange")}],
    "jobs": [{name: value for name, value in EXAMPLE_JOB.items() if name != "namespace"}],
}


class ApplyIn(In):
    """What there should be."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**EXAMPLE_FILE, "prune": True, "dry_run": False}]})

    owner: Owner | None = Field(
        None, description="whose jobs these are; kept as their label `jobplane/owner`, and what `prune` goes by"
    )
    namespace: Name | None = Field(None, description="of the jobs and queues that name none; `default` if left out")
    queues: Annotated[list[QueueIn], Field(max_length=MOST_QUEUES)] | None = Field(
        None, description="queues that there should be; of one that is there, the members that are given"
    )
    jobs: Annotated[list[JobIn], Field(max_length=MOST_JOBS)] | None = Field(
        None, description="whole definitions; `enabled` that is left out stays as it is. An empty list says: none"
    )
    prune: Flag = Field(
        False, description="take away the owner's jobs in these namespaces that the document does not have"
    )
    dry_run: Flag = Field(False, description="only the plan: nothing is written")


class ChangeOut(Out):
    """A member that gets another value."""

    pointer: str = Field(description="into the job or queue, as `/trigger/expression`")
    old: Any
    new: Any


class PlannedQueueOut(Out):
    """What is done about a queue."""

    action: Literal["create", "update", "unchanged"]
    namespace: str
    name: str
    changes: list[ChangeOut]


class PlannedJobOut(Out):
    """What is done about a job."""

    action: Literal["create", "update", "unchanged", "prune", "conflict"] = Field(
        description="conflict: it belongs to another owner; then nothing at all is applied"
    )
    namespace: str
    name: str
    pointer: str | None = Field(description="where it stands in the document; null: it does not, and is pruned")
    id: UUID | None = Field(description="null for one that a dry run would create")
    version: int | None
    next_run_time: datetime | None
    changes: list[ChangeOut]
    warnings: list[WarningOut] = Field(description="what may keep the runs of a created or updated job from running")
    reason: str | None = Field(description="of a conflict, in a sentence")


EXAMPLE_PLAN: dict[str, Any] = {
    "owner": "game-community/deploy",
    "dry_run": False,
    "changed": True,
    "summary": "1 updated, 1 unchanged",
    "queues": [{"action": "unchanged", "namespace": "game_community", "name": "game_community_default", "changes": []}],
    "jobs": [
        {
            "action": "update",
            "namespace": "game_community",
            "name": "calc_post_score",
            "pointer": "/jobs/0",
            "id": "019a8b7e-6c5d-7a10-8f3e-5b6d1c2e4f70",
            "version": 4,
            "next_run_time": "2026-03-02T05:00:00Z",
            "changes": [{"pointer": "/trigger/expression", "old": "0 * * * *", "new": "0 1,7,13,19 * * *"}],
            "warnings": [],
            "reason": None,
        }
    ],
}


class PlanOut(Out):
    """What was done, or what a dry run would do; jobs in the order of the document, then what is pruned."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_PLAN]})

    owner: str | None
    dry_run: bool
    changed: bool = Field(description="false: everything was so already, and nothing was written")
    summary: str
    queues: list[PlannedQueueOut]
    jobs: list[PlannedJobOut]


class FileOut(Out):
    """A document for `POST /jobs/apply` that changes nothing; what has its default is left out."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_FILE]})

    owner: str | None = None
    namespace: str | None = None
    queues: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
