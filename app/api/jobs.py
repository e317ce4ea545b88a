"""`/jobs`: create, read, list, replace, patch, delete. What a job does now stands in `job_actions`."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from app.api import pages
from app.api.bodies import MERGE_PATCH, JsonRoute, merge
from app.api.caller import CallerOf
from app.api.capable import StrictOf
from app.api.conditions import IfMatchOf
from app.api.documents import body_of, problems, writing
from app.api.edits import Edited, checked, edited, locked, made, parsed, settled
from app.api.idempotency import KeyOf
from app.api.plane import PlaneOf
from app.api.schemas.fields import Word
from app.api.schemas.jobs import JobIn, JobOut, JobPage
from app.api.views import job_view
from app.api.writes import Done, json_response, tag, write
from app.database import Connection
from app.errors import Invalid
from app.schedule import definitions, queries
from app.schedule.definitions import Definition

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)


#: The column behind each kind of trouble.
_PROBLEMS: Final = {"contract": "contract_problem", "parked": "problem"}


class JobQuery(pages.PageQuery):
    """Filters of the list of jobs."""

    namespace: Word | None = None
    name: Word | None = None
    queue: Word | None = None
    task: Word | None = None
    enabled: bool | None = None
    problem: Literal["contract", "parked"] | None = Field(
        None,
        description="only jobs in trouble: `contract`, whose arguments do not fit the task that live workers "
        "register; `parked`, whose trigger cannot be evaluated",
    )
    label: list[Word] = Field(
        default_factory=list, max_length=20, description="`name:value`, or `name` for any value; all must match"
    )


@router.get("", response_model=JobPage, responses=problems(400))
async def list_jobs(plane: PlaneOf, query: Annotated[JobQuery, Query()]) -> Response:
    """Jobs in the order of their creation."""
    where = pages.place("jobs", query)
    equal = query.model_dump(include={"namespace", "name", "queue", "task", "enabled"}, exclude_none=True)
    async with plane.database.reading() as connection:
        rows = await queries.jobs_page(
            connection,
            pages.as_id(where.after),
            where.limit + 1,
            equal=equal,
            labels=dict(label.split(":", 1) for label in query.label if ":" in label),
            label_names=[label for label in query.label if ":" not in label],
            problem=None if query.problem is None else _PROBLEMS[query.problem],
        )
    items, more = where.cut(rows)
    return json_response(pages.page(where, [job_view(row) for row in items], more, items[-1]["id"] if items else None))


@router.post("", response_model=JobOut, status_code=201, responses=writing(409))
async def create_job(plane: PlaneOf, caller: CallerOf, body: JobIn, key: KeyOf, strict: StrictOf = False) -> Response:
    """A new job; its schedule begins now. What may keep its runs from running is told in `warnings`."""
    definition = checked(plane, body)

    async def effect(connection: Connection, now: datetime) -> Done:
        return edit_done(await made(plane, connection, now, definition, caller.name, strict=strict), status=201)

    return await write(plane, effect, key)


@router.get("/{job_id}", response_model=JobOut, responses=problems(404))
async def get_job(plane: PlaneOf, job_id: UUID) -> Response:
    """A job. Its ETag names the definition, for If-Match: pausing and firing do not change it."""
    async with plane.database.reading() as connection:
        job = await definitions.found(connection, job_id)
    return json_response(job_view(job), headers={"ETag": tag(job["version"])})


@router.put("/{job_id}", response_model=JobOut, responses=writing(404, 409, 412))
async def replace_job(
    plane: PlaneOf, caller: CallerOf, job_id: UUID, body: JobIn, if_match: IfMatchOf, strict: StrictOf = False
) -> Response:
    """Another definition, from now on; what the body leaves out gets its default. An equal one changes nothing."""
    definition = checked(plane, body)

    async def effect(connection: Connection, now: datetime) -> Done:
        job = await locked(connection, job_id, if_match)
        return edit_done(await edited(plane, connection, now, job, definition, caller.name, strict=strict))

    return await write(plane, effect)


@router.patch(
    "/{job_id}",
    response_model=JobOut,
    responses=writing(404, 409, 412),
    openapi_extra=body_of(
        {"type": "object", "title": "JobPatch", "description": "Members of a JobIn; null means the default."},
        MERGE_PATCH,
        "application/json",
        example={"enabled": False, "kwargs": {"since": None}},
    ),
)
async def patch_job(
    plane: PlaneOf, caller: CallerOf, job_id: UUID, request: Request, if_match: IfMatchOf, strict: StrictOf = False
) -> Response:
    """A merge patch (RFC 7396) of the definition, from now on."""
    patch = await read_patch(request)

    async def effect(connection: Connection, now: datetime) -> Done:
        job = await locked(connection, job_id, if_match)
        definition = checked(plane, parsed(merge(Definition.of(job).document(), patch)))
        return edit_done(await edited(plane, connection, now, job, definition, caller.name, strict=strict))

    return await write(plane, effect)


@router.delete("/{job_id}", status_code=204, response_class=Response, responses=problems(404, 412))
async def delete_job(plane: PlaneOf, job_id: UUID, if_match: IfMatchOf) -> Response:
    """The job is gone and its name free; runs that it has started go on, and stay."""

    async def effect(connection: Connection, now: datetime) -> Done:
        await locked(connection, job_id, if_match)
        job, runs = await settled(connection, now, job_id)
        await definitions.delete(connection, now, job)
        return Done(None, status=204, runs=runs, ring=bool(runs))

    return await write(plane, effect)


async def read_patch(request: Request) -> dict[str, Any]:
    """The body of a merge patch. Invalid if it is not an object."""
    patch = await request.json() if await request.body() else None
    if not isinstance(patch, dict):
        raise Invalid.field("", "a JSON object with the members to change is required")
    return patch


def edit_done(done: Edited, *, status: int = 200) -> Done:
    """The answer to a write of a definition."""
    job = done.job
    headers = {"ETag": tag(job["version"])}
    if status == 201:
        headers["Location"] = f"/api/v1/jobs/{job['id']}"
    return Done(job_view(job, done.warnings), status, headers, done.runs, ring=True)
