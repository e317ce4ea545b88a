"""`/runs/{id}/why` and `/jobs/{id}/why`: why something does not run, out of one read of the database."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Response

from app.api import queries
from app.api.bodies import JsonRoute
from app.api.documents import problems
from app.api.plane import PlaneOf
from app.api.schemas.why import JobWhyOut, RunWhyOut
from app.api.writes import json_response
from app.database import Connection, clock
from app.dispatch import limit_queries
from app.dispatch.rate import Bucket
from app.due import backfill_queries
from app.errors import NotFound
from app.progress.backfill_view import backfill_view
from app.progress.why import MOST_AHEAD, Item, Limits, Surroundings, why_job, why_run
from app.schedule import definitions
from app.states import PENDING

router = APIRouter(route_class=JsonRoute)

#: How many of the runs that take the places of a queue are named.
_HOLDERS: Final = 3


@router.get(
    "/runs/{run_id}/why",
    tags=["runs"],
    response_model=RunWhyOut,
    response_model_exclude_none=True,
    responses=problems(404),
)
async def why_is_the_run_where_it_is(plane: PlaneOf, run_id: UUID) -> Response:
    """Why the run is not running, or who has it: ranked sentences, the most telling first."""
    async with plane.database.transaction(isolation="repeatable_read", readonly=True) as connection:
        now = await clock(connection)
        run = await queries.whole_run(connection, run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        items = await _why_run(connection, now, run)
    return json_response({"run_id": run["id"], "state": run["state"], "items": _views(items), "time": now})


@router.get(
    "/jobs/{job_id}/why",
    tags=["jobs"],
    response_model=JobWhyOut,
    response_model_exclude_none=True,
    responses=problems(404),
)
async def why_is_the_job_not_running(plane: PlaneOf, job_id: UUID) -> Response:
    """Why the job is not running now, and when it will: ranked sentences, the most telling first."""
    async with plane.database.transaction(isolation="repeatable_read", readonly=True) as connection:
        now = await clock(connection)
        job = await definitions.found(connection, job_id)
        live = await queries.live_runs_of(connection, job_id, limit=1)
        backfill = await backfill_queries.active_of(connection, job_id)
        items = why_job(
            now,
            job,
            await _surroundings(connection, job["queue"]),
            live,
            live[0]["live_count"] if live else 0,
            await _why_run(connection, now, live[0]) if live else [],
            await queries.newest_skip(connection, job_id),
            None if backfill is None else backfill_view(backfill),
        )
    return json_response({"job_id": job["id"], "items": _views(items), "time": now})


async def _why_run(connection: Connection, now: datetime, run: Mapping[str, Any]) -> list[Item]:
    around = await _surroundings(connection, run["queue"], run["worker"])
    if run["state"] == PENDING and run["dispatch_time"] is None:
        around = replace(around, limits=await _limits(connection, now, run))
    ahead = 0
    if run["state"] == PENDING and run["dispatch_time"] is not None:
        ahead = await queries.runs_ahead(connection, run["queue"], run["dispatch_time"], MOST_AHEAD)
    before = await queries.whole_run(connection, run["waits_for"]) if run["waits_for"] is not None else None
    return why_run(now, run, around, ahead, before)


async def _limits(connection: Connection, now: datetime, run: Mapping[str, Any]) -> Limits | None:
    queue = await limit_queries.limited_queue(connection, run["queue"])
    if queue is None or await limit_queries.has_place(connection, run["id"]):
        return None
    taken, holders = 0, []
    if queue["max_active"] is not None:
        taken = await limit_queries.places_taken(connection, queue["name"])
        holders = await limit_queries.first_places(connection, queue["name"], _HOLDERS)
    bucket = Bucket.of(queue, now)
    return Limits(
        queue["max_active"], taken, holders, queue["rate_limit"], None if bucket is None else bucket.next_time
    )


async def _surroundings(connection: Connection, queue: str, node: str | None = None) -> Surroundings:
    row, workers = await queries.surroundings_of(connection, queue, node)
    return Surroundings(
        queue=None if row["update_time"] is None else row,
        sighting=None if row["look_time"] is None else row,
        workers=workers,
        schedulers=row["schedulers"],
        catalogue_time=row["catalogue_time"],
    )


def _views(items: list[Item]) -> list[dict[str, Any]]:
    return [item.view() for item in items]
