"""`GET /jobs/export`: what is there, as a document that `POST /jobs/apply` takes back and finds unchanged."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.bodies import JsonRoute
from app.api.documents import problems
from app.api.plane import PlaneOf
from app.api.schemas.fields import Word
from app.api.schemas.files import MOST_JOBS, MOST_QUEUES, FileOut
from app.api.schemas.jobs import JobIn
from app.api.schemas.queues import QueueIn
from app.api.writes import json_response
from app.errors import Invalid
from app.schedule import queries
from app.schedule.definitions import Definition
from app.schedule.plan import OWNER

router = APIRouter(prefix="/jobs", tags=["jobs as files"], route_class=JsonRoute)


class ExportQuery(BaseModel):
    """Which jobs the document has."""

    model_config = ConfigDict(extra="forbid")

    namespace: Word | None = Field(None, description="only its jobs and queues")
    owner: Word | None = Field(None, description="only the jobs of this owner, and the queues that they name")


@router.get("/export", response_model=FileOut, responses=problems())
async def export_jobs(plane: PlaneOf, query: Annotated[ExportQuery, Query()]) -> Response:
    """Jobs and queues as a document; what has its default, and what is operational (pauses), is left out.

    At most 1,000 jobs and 200 queues: ask for one namespace or owner if there are more.
    """
    async with plane.database.transaction(isolation="repeatable_read", readonly=True) as connection:
        jobs = await queries.jobs_to_export(connection, query.namespace, query.owner, MOST_JOBS + 1)
        named = None if query.owner is None else sorted({job["queue"] for job in jobs})
        queues = await queries.queues_to_export(connection, query.namespace, named, MOST_QUEUES + 1)
    if len(jobs) > MOST_JOBS or len(queues) > MOST_QUEUES:
        raise Invalid.field("?namespace", f"there are more than {MOST_JOBS} jobs or {MOST_QUEUES} queues; ask for one")
    given = query.model_dump(exclude_none=True)
    body: dict[str, Any] = {
        **{name: given[name] for name in ("owner", "namespace") if name in given},
        "queues": [_queue(row, query.namespace) for row in queues],
        "jobs": [_job(row, query) for row in jobs],
    }
    return json_response(body)


def _job(row: Mapping[str, Any], query: ExportQuery) -> dict[str, Any]:
    definition = Definition.of(row).document()
    try:
        body = JobIn.model_validate(definition).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:  # parked: it is shown as it stands
        body = definition
    if query.owner is not None:
        body["labels"] = {name: value for name, value in body["labels"].items() if name != OWNER}
    if query.namespace is not None:
        body.pop("namespace", None)
    return {name: value for name, value in body.items() if value not in ({}, [])}


def _queue(row: Mapping[str, Any], namespace: str | None) -> dict[str, Any]:
    body = QueueIn.model_validate({name: row[name] for name in QueueIn.model_fields})
    found = body.model_dump(mode="json", exclude_defaults=True, exclude={"paused"})
    by_default = {"exchange": body.name, "routing_key": body.name}
    if namespace is not None:
        found.pop("namespace", None)
    return {name: value for name, value in found.items() if by_default.get(name) != value and value != []}
