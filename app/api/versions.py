"""`/jobs/{job_id}/versions`: every definition that a job ever had, and the way back to one of them."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response

from app.api import pages
from app.api.bodies import JsonRoute
from app.api.caller import CallerOf
from app.api.capable import StrictOf
from app.api.conditions import IfMatchOf
from app.api.documents import problems, writing
from app.api.edits import checked, edited, locked, parsed
from app.api.jobs import edit_done
from app.api.plane import PlaneOf
from app.api.schemas.fields import NothingIn
from app.api.schemas.jobs import JobOut
from app.api.schemas.versions import VersionOut, VersionPage
from app.api.views import version_view
from app.api.writes import Done, json_response, write
from app.database import Connection, Record
from app.errors import BadRequest, NotFound
from app.schedule import definitions, queries

router = APIRouter(prefix="/jobs/{job_id}/versions", tags=["jobs"], route_class=JsonRoute)

NumberInPath = Annotated[int, Path(ge=1, le=2**31 - 1, description="a version of the job")]


@router.get("", response_model=VersionPage, responses=problems(400, 404))
async def list_versions(plane: PlaneOf, job_id: UUID, query: Annotated[pages.PageQuery, Query()]) -> Response:
    """The definitions of the job, newest first: who wrote each, and when."""
    where = pages.place("versions", query, job_id=job_id)
    async with plane.database.reading() as connection:
        await definitions.found(connection, job_id)
        rows = await queries.versions_page(connection, job_id, _number(where.after), where.limit + 1)
    items, more = where.cut(rows)
    key = str(items[-1]["version"]) if items else None
    return json_response(pages.page(where, [version_view(row) for row in items], more, key))


@router.get("/{number}", response_model=VersionOut, responses=problems(404))
async def get_version(plane: PlaneOf, job_id: UUID, number: NumberInPath) -> Response:
    """One definition of the job."""
    async with plane.database.reading() as connection:
        await definitions.found(connection, job_id)
        return json_response(version_view(_there(await queries.version(connection, job_id, number), number)))


@router.post("/{number}/restore", response_model=JobOut, responses=writing(404, 409, 412))
async def restore_version(
    plane: PlaneOf,
    caller: CallerOf,
    job_id: UUID,
    number: NumberInPath,
    if_match: IfMatchOf,
    strict: StrictOf = False,
    body: NothingIn | None = None,
) -> Response:
    """The old definition again, as a new version, from now on: nothing fires for the past.

    A pause stays. It is checked as any write is: a queue that is gone meanwhile is a 422, a name that another job has
    taken a 409. One that is equal to the newest changes nothing.
    """

    async def effect(connection: Connection, now: datetime) -> Done:
        job = await locked(connection, job_id, if_match)
        old = _there(await queries.version(connection, job_id, number), number)
        definition = checked(plane, parsed(old["definition"]))
        return edit_done(await edited(plane, connection, now, job, definition, caller.name, strict=strict))

    return await write(plane, effect)


def _there(row: Record | None, number: int) -> Record:
    if row is None:
        raise NotFound(f"the job has no version {number}")
    return row


def _number(after: str | None) -> int | None:
    if after is None or (after.isascii() and after.isdigit() and len(after) < 10):
        return None if after is None else int(after)
    raise BadRequest("?cursor is not a cursor of this API")
