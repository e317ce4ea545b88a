"""`/tasks` and `/workers`: what live workers register and consume. Read from the database; the scheduler looks."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from app.api import pages
from app.api.bodies import JsonRoute
from app.api.documents import problems
from app.api.plane import PlaneOf
from app.api.schemas.catalogue import TaskPage, WorkerPage
from app.api.schemas.fields import Word
from app.api.writes import json_response
from app.catalogue import queries
from app.catalogue.look import LIVE_S

router = APIRouter(tags=["catalogue"], route_class=JsonRoute)


class WorkerQuery(pages.PageQuery):
    """Filters of the list of workers."""

    queue: Word | None = Field(None, description="only those that consume it")


class TaskQuery(pages.PageQuery):
    """Filters of the list of tasks."""

    queue: Word | None = Field(None, description="only those of workers that consume it")
    name: Word | None = None


@router.get("/tasks", response_model=TaskPage, responses=problems(400))
async def list_tasks(plane: PlaneOf, query: Annotated[TaskQuery, Query()]) -> Response:
    """What live workers register, in the order of names: where to send it, and what it takes."""
    where = pages.place("tasks", query)
    async with plane.database.reading() as connection:
        rows = await queries.tasks_page(connection, LIVE_S, where.after or "", where.limit + 1, query.queue, query.name)
    items, more = where.cut(rows)
    return json_response(pages.page(where, [dict(row) for row in items], more, items[-1]["name"] if items else None))


@router.get("/workers", response_model=WorkerPage, responses=problems(400))
async def list_workers(plane: PlaneOf, query: Annotated[WorkerQuery, Query()]) -> Response:
    """The workers on the broker, ours and stock ones, as they were last seen; one that is gone stays for an hour."""
    where = pages.place("workers", query)
    async with plane.database.reading() as connection:
        rows = await queries.workers_page(connection, LIVE_S, where.after or "", where.limit + 1, query.queue)
    items, more = where.cut(rows)
    return json_response(pages.page(where, [dict(row) for row in items], more, items[-1]["node"] if items else None))
