"""`/queues`: where runs go. The scheduler looks for a new one on the broker, and declares it if it is not there."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ValidationError

from app.api import pages
from app.api.backlogs import backlog_of
from app.api.bodies import MERGE_PATCH, JsonRoute, merge
from app.api.caller import Caller, CallerOf
from app.api.conditions import IfMatch, IfMatchOf
from app.api.documents import body_of, problems, writing
from app.api.idempotency import KeyOf
from app.api.jobs import read_patch
from app.api.plane import Plane, PlaneOf
from app.api.problems import field_errors
from app.api.schemas.fields import NothingIn, Word
from app.api.schemas.queues import PurgeOut, QueueIn, QueueOut, QueuePage
from app.api.views import queue_view
from app.api.writes import Done, json_response, tag, write
from app.database import Connection, Record
from app.dispatch import limit_queries
from app.dispatch.broker import BrokerAway, QueueTrouble, connect
from app.dispatch.purge import Purge
from app.errors import Conflict, FieldError, Invalid, NameTaken, NotFound, QueueInUse, Unavailable
from app.schedule import queries
from app.schedule.plan import Change, changes
from app.schedule.routes import Binding, check_route

router = APIRouter(prefix="/queues", tags=["queues"], route_class=JsonRoute)

#: What may change of a queue; the rest is what a broker cannot change, and what messages on their way rest on.
_MUTABLE: Final = frozenset(
    {
        "description",
        "paused",
        "shared_with",
        "max_message_kib",
        "result_db",
        "result_prefix",
        "max_active",
        "rate_limit",
    }
)

_CHANGEABLE: Final = ", ".join(f"`{name}`" for name in sorted(_MUTABLE)) + ", of an adopted queue `consumer_timeout_s`"

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
        return _done(await made_queue(plane, connection, now, body, caller.name), status=201)

    return await write(plane, effect, key)


@router.get("/{name}", response_model=QueueOut, responses=problems(404))
async def get_queue(plane: PlaneOf, name: NameInPath) -> Response:
    """A queue and what waits for it. Its ETag names the definition, for If-Match: being declared does not change it."""
    async with plane.database.reading() as connection:
        row = _there(await queries.queue_by_name(connection, name), name)
    return json_response(queue_view(row, await backlog_of(plane, row)), headers={"ETag": tag(row["version"])})


@router.patch(
    "/{name}",
    response_model=QueueOut,
    responses=writing(404, 409, 412),
    openapi_extra=body_of(
        {
            "type": "object",
            "title": "QueuePatch",
            "description": f"{_CHANGEABLE}; null means the default.",
        },
        MERGE_PATCH,
        "application/json",
        example={"paused": True},
    ),
)
async def patch_queue(
    plane: PlaneOf, caller: CallerOf, name: NameInPath, request: Request, if_match: IfMatchOf
) -> Response:
    """A merge patch (RFC 7396) of what may change; the arguments of a queue cannot, once it is on the broker."""
    patch = await read_patch(request)

    async def effect(connection: Connection, now: datetime) -> Done:
        return _done(await changed_queue(plane, connection, now, name, patch, caller.name, if_match))

    return await write(plane, effect)


@router.post("/{name}/pause", response_model=QueueOut, responses=writing(404))
async def pause_queue(plane: PlaneOf, caller: CallerOf, name: NameInPath, body: NothingIn | None = None) -> Response:
    """Runs for the queue wait, with the reason. One that is paused already stays as it is."""
    return await _set_paused(plane, caller, name, paused=True)


@router.post("/{name}/resume", response_model=QueueOut, responses=writing(404))
async def resume_queue(plane: PlaneOf, caller: CallerOf, name: NameInPath, body: NothingIn | None = None) -> Response:
    """Runs for the queue go out again, oldest first."""
    return await _set_paused(plane, caller, name, paused=False)


@router.post("/{name}/purge", response_model=PurgeOut, responses=writing(404, 409))
async def purge_queue(plane: PlaneOf, caller: CallerOf, name: NameInPath, body: NothingIn | None = None) -> Response:
    """Take what the plane put there off the queue: those runs end as REVOKED. Messages of others stay.

    Looks at 10,000 messages at most, for 15 s at most; `left` tells whether to ask again. A run that a worker has
    begun, and one that is not yet on the broker, are left alone.
    """
    async with plane.database.reading() as connection:
        _there(await queries.queue_by_name(connection, name), name)
    # A connection of its own: what was looked at comes back when it ends, whatever happens here.
    broker = connect(plane.settings.broker_url.get_secret_value(), timeout_s=5)
    try:
        done = await Purge(plane.database, plane.redis, broker, caller.name).run(name)
    except BrokerAway as away:
        raise Unavailable(f"the broker is away: {away}") from away
    except QueueTrouble as trouble:
        raise Conflict(f"the broker refuses the queue {name!r}: {trouble}") from trouble
    finally:
        await broker.close()
    return json_response({"purged": done.purged, "left": done.left})


async def _set_paused(plane: Plane, caller: Caller, name: str, *, paused: bool) -> Response:
    async def effect(connection: Connection, now: datetime) -> Done:
        row = _there(await queries.lock_queue(connection, name), name)
        if row["paused"] == paused:
            return _done(row)
        return _done(await queries.change_queue(connection, now, name, caller.name, {"paused": paused}))

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


async def made_queue(plane: Plane, connection: Connection, now: datetime, body: QueueIn, author: str) -> Record:
    """A new queue. NameTaken, Invalid."""
    settings = plane.settings
    if body.name in {settings.dead_letter_queue, settings.reply_queue}:
        raise Invalid.field("/name", "is a queue of the plane itself")
    columns = body.columns()
    await queries.lock_exchange(connection, columns["exchange"])
    known = await queries.queues_of_exchange(connection, columns["exchange"])
    check_route(Binding.of(columns), map(Binding.of, known))
    row = await queries.insert_queue(connection, now, columns, author)
    if row is None:
        raise NameTaken(f"there is a queue {body.name!r} already")
    return row


async def changed_queue(
    plane: Plane,
    connection: Connection,
    now: datetime,
    name: str,
    patch: dict[str, Any],
    author: str,
    if_match: IfMatch | None = None,
) -> Record:
    """A queue with a merge patch applied. NotFound, PreconditionFailed, QueueInUse, Invalid.

    Where it gets its first `max_active`, the runs that were sent to it and have not ended count from now on.
    """
    if patch.get("max_active") is not None:
        await shut_the_gate_for(connection, [name])
    row = _there(await queries.lock_queue(connection, name), name)
    if if_match is not None:
        if_match.check(row["version"])
    mutable = _mutable(plane, row)
    columns = _patched(row, patch, mutable)
    if all(columns[field] == row[field] for field in columns):
        return row
    strangers = await queries.jobs_of_strangers(connection, name, [row["namespace"], *columns["shared_with"]])
    if strangers:
        raise QueueInUse(f"jobs of the namespace {', '.join(strangers)} name the queue {name!r}")
    if row["max_active"] is None and columns["max_active"] is not None:
        await limit_queries.shut_the_gate(connection)  # it is shut but where a limit was taken away just now
        await limit_queries.seed_places(connection, name)
    elif columns["max_active"] is None:
        await limit_queries.drop_places(connection, name)
    changed = {field: columns[field] for field in sorted(mutable)}
    return await queries.change_queue(connection, now, name, author, changed)


async def shut_the_gate_for(connection: Connection, names: Sequence[str]) -> None:
    """Before queues are locked: let nobody claim if one of these gets its first `max_active`.

    A claim that is under way knows of no limit yet, and its runs are to count. The gate comes before the rows, whoever
    takes both, and however many rows.
    """
    if await limit_queries.any_unbounded(connection, names):
        await limit_queries.shut_the_gate(connection)


def queue_changes(plane: Plane, row: Record, patch: dict[str, Any]) -> list[Change]:
    """What a merge patch would change of a queue. Invalid for what cannot be or cannot change."""
    columns = _patched(row, patch, _mutable(plane, row))
    return changes({name: row[name] for name in columns}, columns)


def _count(number: int, noun: str) -> str:
    return f"{number}{' or more' if number == 1000 else ''} {noun}{'' if number == 1 else 's'}"


def _mutable(plane: Plane, row: Record) -> frozenset[str]:
    """What may change of this queue: of one that is no work of ours, also what its broker is known to do there."""
    ours = plane.settings.on_rabbitmq and not row["adopted"]
    return _MUTABLE if ours else _MUTABLE | {"consumer_timeout_s"}


def _patched(row: Record, patch: dict[str, Any], mutable: frozenset[str]) -> dict[str, Any]:
    """The columns of the queue with the patch applied. Invalid for what cannot be or cannot change."""
    body = merge({name: row[name] for name in QueueIn.model_fields}, patch)
    try:
        columns = QueueIn.model_validate({"name": row["name"], **body}).columns()
    except ValidationError as error:
        located: list[Mapping[str, Any]] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise Invalid(*field_errors(located, body)) from None
    fixed = [name for name in columns if name not in mutable and name in patch and columns[name] != row[name]]
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
