"""`/jobs`: create, read, list, replace, patch, delete. What a job does now stands in `job_actions`."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, ValidationError

from app.api import pages
from app.api.bodies import MERGE_PATCH, JsonRoute, merge
from app.api.caller import CallerOf
from app.api.capable import StrictOf, warnings_of
from app.api.conditions import IfMatch, IfMatchOf
from app.api.documents import body_of, problems, writing
from app.api.idempotency import KeyOf
from app.api.plane import Plane, PlaneOf
from app.api.problems import field_errors
from app.api.schemas.fields import Word
from app.api.schemas.jobs import JobIn, JobOut, JobPage
from app.api.views import job_view
from app.api.writes import Done, json_response, tag, write
from app.catalogue import queries as catalogue
from app.database import Connection, Record
from app.due.tick import settle_job
from app.errors import Invalid, NotFound
from app.schedule import definitions, queries
from app.schedule.definitions import Definition
from app.schedule.sizes import check_arguments

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
    definition = _checked(plane, body)

    async def effect(connection: Connection, now: datetime) -> Done:
        job = await definitions.create(connection, now, plane.settings, definition, caller.name)
        warnings = await warnings_of(connection, now, job, strict=strict)
        return _done(job, warnings, status=201)

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
    definition = _checked(plane, body)

    async def effect(connection: Connection, now: datetime) -> Done:
        job = await _locked(connection, job_id, if_match)
        return await _edit(plane, connection, now, job, definition, caller.name, strict)

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
        job = await _locked(connection, job_id, if_match)
        body = merge(Definition.of(job).document(), patch)
        try:
            definition = _checked(plane, JobIn.model_validate(body))
        except ValidationError as error:
            located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            raise Invalid(*field_errors(located, body)) from None
        return await _edit(plane, connection, now, job, definition, caller.name, strict)

    return await write(plane, effect)


@router.delete("/{job_id}", status_code=204, response_class=Response, responses=problems(404, 412))
async def delete_job(plane: PlaneOf, job_id: UUID, if_match: IfMatchOf) -> Response:
    """The job is gone and its name free; runs that it has started go on, and stay."""

    async def effect(connection: Connection, now: datetime) -> Done:
        await _locked(connection, job_id, if_match)
        job, runs = await settled(connection, now, job_id)
        await definitions.delete(connection, now, job)
        return Done(None, status=204, runs=runs, ring=bool(runs))

    return await write(plane, effect)


async def settled(connection: Connection, now: datetime, job_id: UUID) -> tuple[Record, list[Record]]:
    """The job, locked, with all its times up to now dealt with, and the runs that this made. NotFound."""
    job, runs = await settle_job(connection, now, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job, runs


async def read_patch(request: Request) -> dict[str, Any]:
    """The body of a merge patch. Invalid if it is not an object."""
    patch = await request.json() if await request.body() else None
    if not isinstance(patch, dict):
        raise Invalid.field("", "a JSON object with the members to change is required")
    return patch


async def _locked(connection: Connection, job_id: UUID, if_match: IfMatch) -> Record:
    job = await queries.lock_job(connection, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    if_match.check(job["version"])
    return job


async def _edit(
    plane: Plane, connection: Connection, now: datetime, job: Record, definition: Definition, author: str, strict: bool
) -> Done:
    """The locked job with this definition; the old one is settled first, unless both are equal.

    Work that was there before and fits no more is no reason to refuse another change: it is a warning then.
    """
    same_work = all(getattr(definition, name) == job[name] for name in ("task", "queue", "args", "kwargs"))
    runs: list[Record] = []
    if Definition.of(job) == definition and job["problem"] is None:
        job = await definitions.found(connection, job["id"])
    else:
        job, runs = await settled(connection, now, job["id"])
        job = await definitions.edit(connection, now, plane.settings, job, definition, author)
    warnings = await warnings_of(connection, now, job, strict=strict, refuse=not same_work)
    if job["contract_problem"] is not None and not same_work:
        await catalogue.set_contract_problems(connection, [(job["id"], job["version"], None)])
        job = await definitions.found(connection, job["id"])
    return _done(job, warnings, runs=runs)


def _checked(plane: Plane, body: JobIn) -> Definition:
    check_arguments(body.args, body.kwargs, plane.settings.args_limit_kib)
    return body.definition()


def _done(job: Record, warnings: list[dict[str, str]], *, status: int = 200, runs: list[Record] | None = None) -> Done:
    headers = {"ETag": tag(job["version"])}
    if status == 201:
        headers["Location"] = f"/api/v1/jobs/{job['id']}"
    return Done(job_view(job, warnings), status, headers, runs or (), ring=True)
