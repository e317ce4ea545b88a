"""What every write of a definition goes through: the job locked, its old definition settled, the new one stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from app.api.capable import warnings_of
from app.api.conditions import IfMatch
from app.api.plane import Plane
from app.api.problems import field_errors
from app.api.schemas.jobs import JobIn
from app.catalogue import queries as catalogue
from app.database import Connection, Record
from app.due.admit import line_up_anew, lock_line
from app.due.tick import settle_job
from app.errors import Invalid, NotFound
from app.schedule import definitions, queries
from app.schedule.definitions import Definition
from app.schedule.sizes import check_arguments


@dataclass(frozen=True, slots=True)
class Edited:
    """A job as it stands after a write, what may keep its runs from running, and the runs that settling it made."""

    job: Record
    warnings: list[dict[str, str]]
    runs: list[Record]


def parsed(body: Mapping[str, Any]) -> JobIn:
    """A whole definition out of JSON that was put together here. Invalid, with pointers into it."""
    try:
        return JobIn.model_validate(body)
    except ValidationError as error:
        located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise Invalid(*field_errors(located, body)) from None


def checked(plane: Plane, body: JobIn) -> Definition:
    """The definition that a body describes. Invalid if its arguments are too long."""
    check_arguments(body.args, body.kwargs, plane.settings.args_limit_kib)
    return body.definition()


async def settled(connection: Connection, now: datetime, job_id: UUID) -> tuple[Record, list[Record]]:
    """The job, locked, with all its times up to now dealt with, and the runs that this made. NotFound."""
    job, runs = await settle_job(connection, now, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job, runs


async def locked(connection: Connection, job_id: UUID, if_match: IfMatch | None = None) -> Record:
    """The job, locked. NotFound, PreconditionFailed."""
    job = await queries.lock_job(connection, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    if if_match is not None:
        if_match.check(job["version"])
    return job


async def made(
    plane: Plane, connection: Connection, now: datetime, definition: Definition, author: str, *, strict: bool = False
) -> Edited:
    """A new job; its schedule begins now."""
    job = await definitions.create(connection, now, plane.settings, definition, author)
    return Edited(job, await warnings_of(connection, now, job, strict=strict), [])


async def edited(
    plane: Plane,
    connection: Connection,
    now: datetime,
    job: Record,
    definition: Definition,
    author: str,
    *,
    strict: bool = False,
) -> Edited:
    """The locked job with this definition; the old one is settled first, unless both are equal. Runs that wait for
    others of the job heed its new policy.

    Work that was there before and fits no more is no reason to refuse another change: it is a warning then.
    """
    same_work = all(getattr(definition, name) == job[name] for name in ("task", "queue", "args", "kwargs"))
    runs: list[Record] = []
    if unchanged(job, definition):
        job = await definitions.found(connection, job["id"])
    else:
        if other_policy := (definition.overlap, definition.max_active) != (job["overlap"], job["max_active"]):
            await lock_line(connection, job["id"])
        before, runs = await settled(connection, now, job["id"])
        job = await definitions.edit(connection, now, plane.settings, before, definition, author)
        if other_policy:
            runs += await line_up_anew(connection, now, before, job)
    warnings = await warnings_of(connection, now, job, strict=strict, refuse=not same_work)
    if job["contract_problem"] is not None and not same_work:
        await catalogue.set_contract_problems(connection, [(job["id"], job["version"], None)])
        job = await definitions.found(connection, job["id"])
    return Edited(job, warnings, runs)


def unchanged(job: Record, definition: Definition) -> bool:
    """Whether this definition is no news for the job. For a parked one any is: it is tried anew."""
    return Definition.of(job) == definition and job["problem"] is None
