"""`/schedule`: what all jobs will fire, so that a crowded minute is seen before it comes."""

import asyncio
from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import JsonRoute
from app.api.documents import problems
from app.api.plane import PlaneOf
from app.api.schemas.fields import Instant, Word
from app.api.schemas.schedule import ScheduleOut
from app.api.writes import json_response
from app.database import clock
from app.errors import Invalid
from app.schedule import queries
from app.schedule.forecast import MAX_JOBS, MAX_WINDOW, forecast, per_minute

router = APIRouter(prefix="/schedule", tags=["triggers"], route_class=JsonRoute)

_WINDOW: Final = timedelta(hours=1)


class ScheduleQuery(BaseModel):
    """Which times, and of which jobs."""

    model_config = ConfigDict(extra="forbid")

    begin: Instant | None = Field(None, alias="from", description="from this time on; now if left out")
    end: Instant | None = Field(
        None, alias="to", description="before this time; an hour after `from` if left out, at most a day"
    )
    namespace: Word | None = None
    queue: Word | None = None
    limit: int = Field(100, ge=0, le=1000, description="most of `times`; `minutes` and `total` count all")


@router.get("", response_model=ScheduleOut, responses=problems())
async def get_schedule(plane: PlaneOf, query: Annotated[ScheduleQuery, Query()]) -> Response:
    """What the triggers of all enabled jobs ask for in a window: counted by minute and queue, and the first times.

    Times that are dealt with are in the jobs' ledgers instead; whether a run will be in the way is not foreseen.
    """
    async with plane.database.reading() as connection:
        now = await clock(connection)
        begin = query.begin or now
        end = query.end or begin + _WINDOW
        if begin >= end:
            raise Invalid.field("?to", "must be after `from`")
        if end - begin > MAX_WINDOW:
            raise Invalid.field("?to", "must be within a day after `from`")
        jobs = await queries.jobs_due_before(connection, end, query.namespace, query.queue, MAX_JOBS + 1)
    if len(jobs) > MAX_JOBS:
        raise Invalid.field("?to", f"more than {MAX_JOBS:,} jobs fire in this window; ask for one queue or namespace")
    # Up to seconds of arithmetic; other requests are answered meanwhile.
    found = await asyncio.to_thread(forecast, jobs, begin, end)
    return json_response(
        {
            "from": begin,
            "to": end,
            "total": len(found),
            "minutes": per_minute(found),
            "times": [
                {
                    "time": one.time,
                    "fire_time": one.fire_time,
                    "job_id": one.job["id"],
                    **{name: one.job[name] for name in ("namespace", "name", "task", "queue")},
                }
                for one in found[: query.limit]
            ],
            "more": len(found) > query.limit,
        }
    )
