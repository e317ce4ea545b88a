"""What a job is told to do, and what it did and will do: pause, resume, trigger, next, runs."""

from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response

from app.api.bodies import JsonRoute
from app.api.caller import CallerOf
from app.api.capable import warnings_of
from app.api.documents import problems, writing
from app.api.edits import locked, settled
from app.api.idempotency import KeyOf
from app.api.plane import PlaneOf
from app.api.run_lists import RunFilter, page_of_runs
from app.api.schemas.jobs import JobOut, PauseIn, PreviewIn, ResumeIn, TimesOut, TriggerNowIn
from app.api.schemas.runs import RunOut, RunPage
from app.api.views import job_view
from app.api.writes import Done, json_response, tag, write
from app.database import Connection, clock
from app.due.admit import admit_one, run_of
from app.errors import Invalid
from app.progress.view import run_view
from app.schedule import definitions, triggers
from app.schedule.previews import preview
from app.schedule.sizes import check_arguments

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], route_class=JsonRoute)
previews = APIRouter(prefix="/triggers", tags=["triggers"], route_class=JsonRoute)


@router.post("/pause", response_model=JobOut, responses=writing(404))
async def pause_job(plane: PlaneOf, caller: CallerOf, job_id: UUID, body: PauseIn | None = None) -> Response:
    """No scheduled time fires until the job is resumed. One that is paused already stays as it is."""

    async def effect(connection: Connection, now: datetime) -> Done:
        job, runs = await settled(connection, now, job_id)
        job = await definitions.pause(connection, now, job, body.reason if body else None, caller.name)
        return Done(job_view(job), headers={"ETag": tag(job["version"])}, runs=runs, ring=bool(runs))

    return await write(plane, effect)


@router.post("/resume", response_model=JobOut, responses=writing(404))
async def resume_job(plane: PlaneOf, job_id: UUID, body: ResumeIn | None = None) -> Response:
    """The schedule goes on from now; the times since the pause are accounted for as skipped.

    With `from` it goes on from then: the times since are late, and `misfire` and `catchup_window_s` say which of them
    fire. What was accounted for already, before the pause or by an edit since, stays as it is. One that is not paused
    stays as it is.
    """
    begin = body.begin if body else None

    async def effect(connection: Connection, now: datetime) -> Done:
        if begin is not None and begin > now:
            raise Invalid.field("/from", "must not be in the future")
        until = now if begin is None else await _before(connection, now, job_id, begin)
        job, runs = await settled(connection, until, job_id)
        job = await definitions.resume(connection, now, job)
        return Done(job_view(job), headers={"ETag": tag(job["version"])}, runs=runs, ring=True)

    return await write(plane, effect)


async def _before(connection: Connection, now: datetime, job_id: UUID, begin: datetime) -> datetime:
    """Up to when a paused job is settled so that it goes on with `begin`. NotFound."""
    job = await locked(connection, job_id)
    if job["pause_time"] is None:
        return now
    last = (begin - timedelta(microseconds=1)).replace(microsecond=0)  # scheduled times are whole seconds
    cursor: datetime = job["cursor_time"]
    return max(last, cursor)


@router.post("/trigger", response_model=RunOut, status_code=201, responses=writing(404, 409))
async def trigger_job(
    plane: PlaneOf, caller: CallerOf, job_id: UUID, key: KeyOf, body: TriggerNowIn | None = None
) -> Response:
    """A run of the job now, whatever its schedule says; also of a job that is disabled or paused.

    It begins beside other runs of the job, unless `overlap` says otherwise.
    """
    asked = body or TriggerNowIn()

    async def effect(connection: Connection, now: datetime) -> Done:
        job = await locked(connection, job_id)
        chosen = {name: value for name in TriggerNowIn.model_fields if (value := getattr(asked, name)) is not None}
        work = {name: chosen.get(name, job[name]) for name in ("args", "kwargs", "queue", "priority")}
        check_arguments(work["args"], work["kwargs"], plane.settings.args_limit_kib)
        await definitions.check_queue(connection, plane.settings, {**job, **work})
        if chosen.keys() & {"args", "kwargs", "queue"}:  # what the job names itself fires by its schedule, too
            await warnings_of(connection, now, {**job, **work}, strict=False)
        run = run_of(
            {**job, **work},
            "manual",
            job["id"],
            job["version"],
            caller.name,
            start_deadline_time=after(now, job["start_deadline_s"]),
            deadline_time=after(now, job["deadline_s"]),
        )
        return made(await admit_one(connection, now, job, asked.overlap, run))

    return await write(plane, effect, key)


def after(now: datetime, seconds: int | None) -> datetime | None:
    """That long after now; None: never."""
    return None if seconds is None else now + timedelta(seconds=seconds)


def made(runs: list[Any]) -> Done:
    """The answer to a request that made one run: the first of these; the others changed by it."""
    headers = {"Location": f"/api/v1/runs/{runs[0]['id']}", "ETag": tag(runs[0]["version"])}
    return Done(run_view(runs[0]), 201, headers, runs, ring=True)


@router.get("/next", response_model=TimesOut, responses=problems(404))
async def next_times(plane: PlaneOf, job_id: UUID, count: Annotated[int, Query(ge=1, le=1000)] = 10) -> Response:
    """The next scheduled times by the job's trigger, whether or not it is enabled; nominal, before jitter."""
    async with plane.database.reading() as connection:
        job = await definitions.found(connection, job_id)
        after = max(job["cursor_time"], (await clock(connection)).replace(microsecond=0))
    return json_response(preview(triggers.load(job["trigger"]), count, after))


@previews.post("/preview", response_model=TimesOut, responses=writing())
async def preview_trigger(plane: PlaneOf, body: PreviewIn) -> Response:
    """What a trigger means and when it would fire; nothing is stored."""
    after = body.after
    if after is None:
        async with plane.database.reading() as connection:
            after = await clock(connection)
    return json_response(preview(body.trigger, body.count, after))


@router.get("/runs", response_model=RunPage, responses=problems(400, 404))
async def list_job_runs(plane: PlaneOf, job_id: UUID, query: Annotated[RunFilter, Query()]) -> Response:
    """Runs of the job, newest first."""
    async with plane.database.reading() as connection:
        await definitions.found(connection, job_id)
        return json_response(await page_of_runs(connection, "job runs", query, job_id=job_id))
