"""`/runs`: list, ad-hoc run, one run and its news, its events, retry and cancel."""

import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from app.api import pages, queries
from app.api.bodies import JsonRoute
from app.api.caller import CallerOf
from app.api.cancel import cancel_run as cancel
from app.api.capable import StrictOf, warnings_of
from app.api.conditions import IfNoneMatchOf
from app.api.documents import problems, writing
from app.api.idempotency import KeyOf
from app.api.job_actions import after, made
from app.api.plane import PlaneOf
from app.api.run_lists import RunQuery, page_of_runs
from app.api.schemas.fields import NothingIn
from app.api.schemas.runs import CancelIn, EventPage, RunIn, RunOut, RunPageWithCursor
from app.api.writes import Done, json_response, tag, write
from app.database import Connection, Record, new_id
from app.due.admit import WORK, admit_one
from app.errors import BadRequest, Conflict, NotFound, ResultGone
from app.feed.queries import where_we_are
from app.logs.place import result_of
from app.logs.store import Store
from app.progress import marks
from app.progress.transition import NewRun, create
from app.progress.view import run_view
from app.schedule.definitions import check_queue
from app.schedule.queries import lock_job
from app.schedule.sizes import check_arguments
from app.states import SUCCESS

#: What a retry takes from the run before it.
_SAME_WORK: Final = (*WORK, "job_id", "job_version", "job_name", "scheduled_time")

#: How much of a large result is read at once, and how much of it is sent at once.
_READ: Final = 4 * 1024 * 1024
_SLICE: Final = 128 * 1024

_RESULT: Final[dict[str, Any]] = {
    "description": "The result as the task returned it",
    "content": {"application/json": {"schema": {}, "example": {"files": 120, "bytes": 7340032}}},
}

router = APIRouter(prefix="/runs", tags=["runs"], route_class=JsonRoute)


@router.get("", response_model=RunPageWithCursor, responses=problems(400))
async def list_runs(plane: PlaneOf, query: Annotated[RunQuery, Query()]) -> Response:
    """Runs, newest first, and a cursor from which the feed tells what changes from now on."""
    async with plane.database.reading() as connection:
        position = await where_we_are(connection)  # before the list: what it misses, the feed then has
        body = await page_of_runs(connection, "runs", query)
    return json_response({**body, "feed_cursor": str(position)})


@router.post("", response_model=RunOut, status_code=201, responses=writing())
async def create_run(plane: PlaneOf, caller: CallerOf, body: RunIn, key: KeyOf, strict: StrictOf = False) -> Response:
    """A task run once, now, without a job."""
    check_arguments(body.args, body.kwargs, plane.settings.args_limit_kib)

    async def effect(connection: Connection, now: datetime) -> Done:
        await check_queue(connection, plane.settings, body.model_dump())
        await warnings_of(connection, now, body.model_dump(), strict=strict)
        run = NewRun(
            id=new_id(),
            kind="adhoc",
            namespace=body.namespace,
            task=body.task,
            args=body.args,
            kwargs=body.kwargs,
            queue=body.queue,
            priority=body.priority,
            author=caller.name,
            retry=body.retry.model_dump(),
            time_limit_s=body.time_limit_s,
            soft_time_limit_s=body.soft_time_limit_s,
            start_deadline_time=after(now, body.start_deadline_s),
            deadline_time=after(now, body.deadline_s),
        )
        return made(await create(connection, now, [run]))

    return await write(plane, effect, key)


@router.get("/{run_id}", response_model=RunOut, responses={304: {"description": "Not modified"}, **problems(404)})
async def get_run(
    plane: PlaneOf,
    run_id: UUID,
    if_none_match: IfNoneMatchOf,
    wait: Annotated[
        float | None, Query(ge=0, le=60, description="seconds to wait for news; the run as it is if none comes")
    ] = None,
    after_version: Annotated[
        int | None, Query(ge=0, le=2**31 - 1, description="news is a greater version than this; than now if left out")
    ] = None,
    until: Annotated[Literal["end"] | None, Query(description="only the end of the run is news")] = None,
) -> Response:
    """A run; with `wait` a long-poll for its news."""
    if wait:
        view = await plane.hub.wait_for(run_id, after_version, until == "end", wait)
        if view is not None:
            return json_response(view, headers={"ETag": tag(view["version"])})
    async with plane.database.reading() as connection:
        row = await queries.run_by_id(connection, run_id)
    if row is None:
        raise _no_run(run_id)
    headers = {"ETag": tag(row["version"])}
    return if_none_match.not_modified(row["version"]) or json_response(run_view(row), headers=headers)


@router.get("/{run_id}/result", response_class=Response, responses={200: _RESULT, **problems(404, 410)})
async def get_run_result(plane: PlaneOf, run_id: UUID) -> Response:
    """The whole result of a run that has succeeded, as JSON, wherever it is kept."""
    async with plane.database.reading() as connection:
        row = await queries.run_by_id(connection, run_id)
    if row is None:
        raise _no_run(run_id)
    if row["state"] != SUCCESS:
        has_none = "has no result" if row["end_time"] else "has no result yet"
        raise NotFound(f"the run {run_id} {has_none}: it is {row['state']}")
    result = row["result"]
    path = marks.path_of(result)
    if path is None:
        if (absence := marks.absence_of(result)) is not None:
            raise ResultGone(absence)
        return json_response(marks.as_given(result))
    begin = await plane.store.get(result_of(run_id), 0, _READ)
    if begin is None:
        raise ResultGone(f"the result is not in the log store any more; it was kept as {path}")
    return StreamingResponse(_whole(plane.store, result_of(run_id), begin), media_type="application/json")


async def _whole(store: Store, path: str, begin: bytes) -> AsyncIterator[bytes]:
    """An object in slices that can be compressed without holding up others."""
    part: bytes | None = begin
    place = 0
    while part:
        for start in range(0, len(part), _SLICE):
            yield part[start : start + _SLICE]
        place += len(part)
        part = await store.get(path, place, place + _READ) if len(part) == _READ else None


class EventQuery(pages.PageQuery):
    """The list of a run's events has no filters."""


@router.get("/{run_id}/events", response_model=EventPage, responses=problems(400, 404))
async def list_run_events(plane: PlaneOf, run_id: UUID, query: Annotated[EventQuery, Query()]) -> Response:
    """Every change of the run's state, oldest first."""
    where = pages.place("events", query, run_id=run_id)
    if where.after is not None and not re.fullmatch("[0-9]{1,9}", where.after):
        raise BadRequest("?cursor is not a cursor of this API")
    async with plane.database.reading() as connection:
        if await queries.run_by_id(connection, run_id) is None:
            raise _no_run(run_id)
        rows = await queries.events_page(connection, run_id, int(where.after or 0), where.limit + 1)
    items, more = where.cut(rows)
    return json_response(pages.page(where, [dict(row) for row in items], more, items[-1]["version"] if items else None))


@router.post("/{run_id}/retry", response_model=RunOut, status_code=201, responses=writing(404, 409))
async def retry_run(
    plane: PlaneOf, caller: CallerOf, run_id: UUID, key: KeyOf, body: NothingIn | None = None
) -> Response:
    """A new run of the same work, once this one has ended; it begins beside other runs of its job."""

    async def effect(connection: Connection, now: datetime) -> Done:
        old = await queries.whole_run(connection, run_id)
        if old is None:
            raise _no_run(run_id)
        if old["end_time"] is None:
            raise Conflict(f"the run {run_id} is {old['state']}; it can be retried once it has ended")
        await check_queue(connection, plane.settings, old)
        run = NewRun(
            id=new_id(),
            kind="adhoc" if old["job_id"] is None else "manual",
            author=caller.name,
            deadline_time=_deadline_again(old, now),
            **{name: old[name] for name in _SAME_WORK},
        )
        job = None if run.job_id is None else await lock_job(connection, run.job_id)
        if job is None:
            return made(await create(connection, now, [run]))
        return made(await admit_one(connection, now, job, "allow", run))

    return await write(plane, effect, key)


@router.post(
    "/{run_id}/cancel",
    response_model=RunOut,
    status_code=202,
    responses={200: {"model": RunOut, "description": "It was REVOKED already"}, **writing(404, 409)},
)
async def cancel_run(plane: PlaneOf, caller: CallerOf, run_id: UUID, body: CancelIn | None = None) -> Response:
    """End a run that has not ended: REVOKED in the answer where that can be at once, else as soon as it can.

    A worker of ours that is at it notices at its next sign of life. `cancel` shows what was asked, `reason` what it
    waits for.
    """
    asked = body or CancelIn()
    row, was_revoked = await cancel(plane, run_id, caller, terminate=asked.terminate, grace_s=asked.grace_s)
    return json_response(run_view(row), 200 if was_revoked else 202, {"ETag": tag(row["version"])})


def _deadline_again(old: Record, now: datetime) -> datetime | None:
    """The same time from now on as the old run had from its beginning."""
    begin = old["scheduled_time"] if old["kind"] == "schedule" else old["create_time"]
    return None if old["deadline_time"] is None else now + (old["deadline_time"] - begin)


def _no_run(run_id: UUID) -> NotFound:
    return NotFound(f"there is no run {run_id}")
