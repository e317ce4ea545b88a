"""`/queues`: where runs go. The scheduler looks for a new one on the broker, and declares it if it is not there."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ValidationError

from app.api import pages
from app.api.bodies import MERGE_PATCH, JsonRoute, merge
from app.api.caller import CallerOf
from app.api.conditions import IfMatchOf
from app.api.documents import body_of, problems, writing
from app.api.idempotency import KeyOf
from app.api.jobs import read_patch
from app.api.plane import PlaneOf
from app.api.problems import field_errors
from app.api.schemas.fields import Word
from app.api.schemas.queues import QueueIn, QueueOut, QueuePage
from app.api.views import queue_view
from app.api.writes import Done, json_response, tag, write
from app.database import Connection, Record
from app.errors import FieldError, Invalid, NameTaken, NotFound, QueueInUse
from app.schedule import queries

router = APIRouter(prefix="/queues", tags=["queues"], route_class=JsonRoute)

#: What may change of a queue; the rest is what a broker cannot change, and what messages on their way rest on.
_MUTABLE = frozenset({"description", "paused", "shared_with"})


NameInPath = Annotated[Word, Path()]


class QueueQuery(pages.PageQuery):
    """Filters of the list of queues."""

    namespace: Word | None = None
    paused: bool | None = None


@router.get("", response_model=QueuePage, responses=problems(400))
async def list_queues(plane: PlaneOf, query: Annotated[QueueQuery, Query()]) -> Response:
    """Queues in the order of their names."""
    where = pages.place("queues", query)
    equal = query.model_dump(include={"namespace", "paused"}, exclude_none=True)
    async with plane.database.reading() as connection:
        rows = await queries.queues_page(connection, where.after, where.limit + 1, equal=equal)
    items, more = where.cut(rows)
    return json_response(
        pages.page(where, [queue_view(row) for row in items], more, items[-1]["name"] if items else None)
    )


@router.post("", response_model=QueueOut, status_code=201, responses=writing(409))
async def create_queue(plane: PlaneOf, caller: CallerOf, body: QueueIn, key: KeyOf) -> Response:
    """A queue is known to the plane from now on; `declare_time` tells when it was found or made on the broker."""

    async def effect(connection: Connection, now: datetime) -> Done:
        row = await queries.insert_queue(connection, now, body.columns(), caller.name)
        if row is None:
            raise NameTaken(f"there is a queue {body.name!r} already")
        return _done(row, status=201)

    return await write(plane, effect, key)


@router.get("/{name}", response_model=QueueOut, responses=problems(404))
async def get_queue(plane: PlaneOf, name: NameInPath) -> Response:
    """A queue. Its ETag names the definition, for If-Match: being declared does not change it."""
    async with plane.database.reading() as connection:
        row = _there(await queries.queue_by_name(connection, name), name)
    return json_response(queue_view(row), headers={"ETag": tag(row["version"])})


@router.patch(
    "/{name}",
    response_model=QueueOut,
    responses=writing(404, 409, 412),
    openapi_extra=body_of(
        {
            "type": "object",
            "title": "QueuePatch",
            "description": "`description`, `paused`, `shared_with`; null means the default.",
        },
        MERGE_PATCH,
        "application/json",
        example={"paused": True},
    ),
)
async def patch_queue(
    plane: PlaneOf, caller: CallerOf, name: NameInPath, request: Request, if_match: IfMatchOf
) -> Response:
    """A merge patch (RFC 7396) of what may change: `description`, `paused` and `shared_with`."""
    patch = await read_patch(request)

    async def effect(connection: Connection, now: datetime) -> Done:
        row = _there(await queries.lock_queue(connection, name), name)
        if_match.check(row["version"])
        columns = _patched(row, patch)
        if all(columns[field] == row[field] for field in columns):
            return _done(row)
        strangers = await queries.jobs_of_strangers(connection, name, [row["namespace"], *columns["shared_with"]])
        if strangers:
            raise QueueInUse(f"jobs of the namespace {', '.join(strangers)} name the queue {name!r}")
        changed = {field: columns[field] for field in sorted(_MUTABLE)}
        return _done(await queries.change_queue(connection, now, name, caller.name, **changed))

    return await write(plane, effect)


@router.delete("/{name}", status_code=204, response_class=Response, responses=problems(404, 409, 412))
async def delete_queue(plane: PlaneOf, name: NameInPath, if_match: IfMatchOf) -> Response:
    """The plane forgets the queue; on the broker it stays as it is."""

    async def effect(connection: Connection, now: datetime) -> Done:
        row = _there(await queries.lock_queue(connection, name), name)
        if_match.check(row["version"])
        jobs, runs = await queries.queue_users(connection, name)
        if jobs or runs:
            raise QueueInUse(f"the queue {name!r} is named by {_count(jobs, 'job')} and by {_count(runs, 'live run')}")
        await queries.delete_queue(connection, name)
        return Done(None, status=204)

    return await write(plane, effect)


def _count(number: int, noun: str) -> str:
    return f"{number}{' or more' if number == 1000 else ''} {noun}{'' if number == 1 else 's'}"


def _patched(row: Record, patch: dict[str, Any]) -> dict[str, Any]:
    """The columns of the queue with the patch applied. Invalid for what cannot be or cannot change."""
    body = merge({name: row[name] for name in QueueIn.model_fields}, patch)
    try:
        columns = QueueIn.model_validate({"name": row["name"], **body}).columns()
    except ValidationError as error:
        located: list[Mapping[str, Any]] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise Invalid(*field_errors(located, body)) from None
    fixed = [name for name in columns if name not in _MUTABLE and name in patch and patch[name] != row[name]]
    if fixed:
        why = "cannot change once the queue exists; delete the queue and create it anew"
        raise Invalid(*(FieldError(f"/{name}", why) for name in fixed))
    return columns


def _there(row: Record | None, name: str) -> Record:
    if row is None:
        raise NotFound(f"there is no queue {name!r}")
    return row


def _done(row: Record, *, status: int = 200) -> Done:
    headers = {"ETag": tag(row["version"])}
    if status == 201:
        headers["Location"] = f"/api/v1/queues/{row['name']}"
    return Done(queue_view(row), status, headers, ring=True)
