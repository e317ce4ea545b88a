"""`/backfills`: scheduled times of the past that somebody wants run, as a resource of its own."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, get_args
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from app.api import pages
from app.api.bodies import JsonRoute
from app.api.caller import CallerOf
from app.api.conditions import IfNoneMatchOf
from app.api.documents import problems, writing
from app.api.edits import locked, settled
from app.api.idempotency import KeyOf
from app.api.plane import PlaneOf
from app.api.schemas.backfills import BackfillIn, BackfillOut, BackfillPage, CancelBackfillIn, DryRunOut, State
from app.api.schemas.fields import NothingIn
from app.api.schemas.jobs import PauseIn
from app.api.writes import Done, json_response, tag, write
from app.database import Connection, Record, clock
from app.due import backfill_control, backfill_queries
from app.due.backfill_control import DryRun, Wish
from app.due.fill import LeftOut, span
from app.errors import NotFound
from app.progress.backfill_view import backfill_view
from app.schedule import definitions

router = APIRouter(prefix="/backfills", tags=["backfills"], route_class=JsonRoute)
of_jobs = APIRouter(prefix="/jobs/{job_id}", tags=["backfills"], route_class=JsonRoute)


@of_jobs.post(
    "/backfill",
    response_model=BackfillOut,
    status_code=201,
    responses={200: {"model": DryRunOut, "description": "With `dry_run`: what would run"}, **writing(404, 409)},
)
async def backfill_job(plane: PlaneOf, caller: CallerOf, job_id: UUID, body: BackfillIn, key: KeyOf) -> Response:
    """Run scheduled times of the past, oldest first, by the definition of now; also of a disabled or paused job.

    What of the window is due by the schedule and was not dealt with yet is dealt with first, as an edit does. With
    `dry_run` nothing is written.
    """
    wish = Wish(body.begin, body.end, body.mode, body.overlap, body.max_active)
    if body.dry_run:
        async with plane.database.reading() as connection:
            job, now = await definitions.found(connection, job_id), await clock(connection)
        total = await backfill_control.counted(job, now, wish)
        found = await backfill_control.dry_run(plane.database, job, wish, total)
        return json_response(_told(found))

    async def effect(connection: Connection, now: datetime) -> Done:
        job = await locked(connection, job_id)
        total = await backfill_control.counted(job, now, wish)
        runs: list[Record] = []
        if backfill_control.undealt(job, wish):
            _, runs = await settled(connection, _until(job, now, wish), job_id)
        row = await backfill_control.begin(connection, now, job, wish, total, caller.name)
        headers = {"Location": f"/api/v1/backfills/{row['id']}", "ETag": tag(row["version"])}
        return Done(backfill_view(row), 201, headers, runs, ring=True)

    return await write(plane, effect, key)


def _told(found: DryRun) -> dict[str, Any]:
    exact = found.looked_at >= found.total
    return {
        "total": found.total,
        "looked_at": found.looked_at,
        "exact": exact,
        "runs": found.runs,
        "skipped": {name: found.left_out[name] for name in get_args(LeftOut)},
        "times": found.times,
        "more": not exact or found.runs > len(found.times),
    }


def _until(job: Record, now: datetime, wish: Wish) -> datetime:
    """Up to when the schedule deals with its times first. Those that a halted job might still be resumed for stay."""
    halted = not job["enabled"] or job["pause_time"] is not None or job["problem"] is not None
    return span(wish.begin, wish.end)[1] if halted else now


class BackfillFilter(pages.PageQuery):
    """Filters of the backfills of a job."""

    state: list[State] = Field(default_factory=list, max_length=4, description="any of these; repeatable")


class BackfillQuery(BackfillFilter):
    """Filters of the list of all backfills."""

    job_id: UUID | None = None


@router.get("", response_model=BackfillPage, responses=problems(400))
async def list_backfills(plane: PlaneOf, query: Annotated[BackfillQuery, Query()]) -> Response:
    """Backfills, newest first."""
    async with plane.database.reading() as connection:
        return await _page(connection, pages.place("backfills", query), query, query.job_id)


@of_jobs.get("/backfills", response_model=BackfillPage, responses=problems(400, 404))
async def list_job_backfills(plane: PlaneOf, job_id: UUID, query: Annotated[BackfillFilter, Query()]) -> Response:
    """Backfills of the job, newest first."""
    async with plane.database.reading() as connection:
        await definitions.found(connection, job_id)
        return await _page(connection, pages.place("job backfills", query, job_id=job_id), query, job_id)


async def _page(connection: Connection, where: pages.Place, query: BackfillFilter, job_id: UUID | None) -> Response:
    after = pages.as_id(where.after)
    rows = await backfill_queries.page(connection, after, where.limit + 1, job_id=job_id, states=query.state)
    items, more = where.cut(rows)
    return json_response(
        pages.page(where, [backfill_view(row) for row in items], more, items[-1]["id"] if items else None)
    )


@router.get(
    "/{backfill_id}", response_model=BackfillOut, responses={304: {"description": "Not modified"}, **problems(404)}
)
async def get_backfill(
    plane: PlaneOf,
    backfill_id: UUID,
    if_none_match: IfNoneMatchOf,
    wait: Annotated[
        float | None, Query(ge=0, le=60, description="seconds to wait for news; the backfill as it is if none comes")
    ] = None,
    after_version: Annotated[
        int | None, Query(ge=0, le=2**31 - 1, description="news is a greater version than this; than now if left out")
    ] = None,
) -> Response:
    """A backfill; with `wait` a long-poll for its news. One that has ended with all its runs is answered at once."""
    if wait:
        view = await plane.hub.backfills.wait_for(backfill_id, after_version, wait)
        if view is not None:
            return json_response(view, headers={"ETag": tag(view["version"])})
    async with plane.database.reading() as connection:
        row = await backfill_queries.by_id(connection, backfill_id)
    if row is None:
        raise NotFound(f"there is no backfill {backfill_id}")
    headers = {"ETag": tag(row["version"])}
    return if_none_match.not_modified(row["version"]) or json_response(backfill_view(row), headers=headers)


@router.post("/{backfill_id}/pause", response_model=BackfillOut, responses=writing(404, 409))
async def pause_backfill(plane: PlaneOf, backfill_id: UUID, body: PauseIn | None = None) -> Response:
    """No further runs until it is resumed; those that it has go on. One that is paused stays as it is."""

    async def effect(connection: Connection, now: datetime) -> Done:
        reason = body.reason if body else None
        return _done(await backfill_control.pause(connection, now, backfill_id, reason))

    return await write(plane, effect)


@router.post("/{backfill_id}/resume", response_model=BackfillOut, responses=writing(404, 409))
async def resume_backfill(plane: PlaneOf, backfill_id: UUID, body: NothingIn | None = None) -> Response:
    """It goes on where it was paused. One that is not paused stays as it is."""

    async def effect(connection: Connection, now: datetime) -> Done:
        return _done(await backfill_control.resume(connection, now, backfill_id))

    return await write(plane, effect)


@router.post("/{backfill_id}/cancel", response_model=BackfillOut, responses=writing(404, 409))
async def cancel_backfill(
    plane: PlaneOf, caller: CallerOf, backfill_id: UUID, body: CancelBackfillIn | None = None
) -> Response:
    """Its end, at once: no further runs. A cancel is asked for of those that have not ended, unless `runs` is `keep`.

    `counts` go on until the last of these has ended. One that was cancelled before stays as it is.
    """
    keep_runs = body is not None and body.runs == "keep"

    async def effect(connection: Connection, now: datetime) -> Done:
        row, runs = await backfill_control.cancel(connection, now, backfill_id, caller.name, keep_runs=keep_runs)
        return _done(row, runs)

    return await write(plane, effect)


def _done(row: Record, runs: Sequence[Record] = ()) -> Done:
    return Done(backfill_view(row), headers={"ETag": tag(row["version"])}, runs=runs, ring=True)
