"""Definitions of jobs: create, edit, pause, resume, delete. All of them mean "from now".

Whoever edits, pauses, resumes or deletes has settled the job first (`app.due.tick.settle_job`), so its cursor is now
and its row is locked; that is why these take the row. Nothing here commits.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import asyncpg

from app.database import Connection, Record, new_id
from app.errors import Invalid, NameTaken, NotFound
from app.schedule import queries, triggers
from app.schedule.sizes import check_message
from app.settings import Settings

#: What a retry policy says that was stored before it could say so.
RETRY_DEFAULTS: Final = {"jitter": "none", "retry_on": None}


@dataclass(frozen=True, slots=True)
class Definition:
    """What a caller writes of a job, as `job_versions.definition` keeps it; values are plain JSON."""

    namespace: str
    name: str
    description: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    priority: int | None
    trigger: dict[str, Any]
    enabled: bool
    overlap: str
    misfire: str
    catchup_window_s: int
    start_deadline_s: int | None
    deadline_s: int | None
    max_active: int | None
    pause_after_failures: int | None
    retry: dict[str, Any]
    time_limit_s: float | None
    soft_time_limit_s: float | None
    labels: dict[str, str]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        found = {field.name: row[field.name] for field in fields(cls)}
        return cls(**{**found, "retry": {**RETRY_DEFAULTS, **found["retry"]}})

    def document(self) -> dict[str, Any]:
        return asdict(self)


async def check_queue(connection: Connection, settings: Settings, work: Mapping[str, Any]) -> None:
    """Invalid if this work cannot go to its queue. Keeps the queue from being deleted meanwhile.

    `work` has `namespace`, `queue`, `priority`, `time_limit_s`, `args` and `kwargs`: a definition, or a run.
    """
    name, namespace = work["queue"], work["namespace"]
    queue = await queries.queue_to_use(connection, name)
    if queue is None:
        raise Invalid.field("/queue", f"there is no queue {name!r}")
    if namespace != queue["namespace"] and namespace not in queue["shared_with"]:
        raise Invalid.field(
            "/queue",
            f"the queue {name!r} belongs to the namespace {queue['namespace']!r} and is not shared with {namespace!r}",
        )
    if work["priority"] is not None:
        _check_priority(work["priority"], queue, settings)
    limit_s, timeout_s = work["time_limit_s"], queue["consumer_timeout_s"]
    if limit_s is not None and timeout_s is not None and limit_s >= timeout_s:
        raise Invalid.field(
            "/time_limit_s",
            f"must be less than {timeout_s} s: the broker takes a message of the queue {name!r} away from a worker "
            "that has had it for so long",
        )
    if queue["max_message_kib"] is not None:
        check_message(work["args"], work["kwargs"], queue["max_message_kib"], name)


def _check_priority(priority: int, queue: Record, settings: Settings) -> None:
    greatest = queue["max_priority"]
    if greatest is not None and priority > greatest:
        raise Invalid.field("/priority", f"the queue {queue['name']!r} knows priorities up to {greatest}")
    # On Redis a priority picks one of four lists, whatever the type of the queue.
    if queue["type"] == "quorum" and settings.on_rabbitmq:
        raise Invalid.field("/priority", f"the queue {queue['name']!r} is a quorum queue, which knows no priorities")


async def create(
    connection: Connection, now: datetime, settings: Settings, definition: Definition, author: str
) -> Record:
    """A new job whose schedule begins now. Raises NameTaken, Invalid."""
    await check_queue(connection, settings, definition.document())
    job_id = new_id()
    cursor = now.replace(microsecond=0)
    try:
        await queries.insert_job(
            connection, now, job_id, definition.document(), author, cursor, _next(definition, job_id, cursor)
        )
    except asyncpg.UniqueViolationError as error:
        raise _taken(definition, error) from None
    await queries.keep_version(connection, now, job_id, 1, definition.document(), author)
    return await found(connection, job_id)


async def edit(
    connection: Connection, now: datetime, settings: Settings, job: Record, definition: Definition, author: str
) -> Record:
    """The settled job with another definition, as its next version. Clears the problem that a job was parked for.

    Raises NameTaken, Invalid. Runs that exist are left alone.
    """
    await check_queue(connection, settings, definition.document())
    cursor = max(job["cursor_time"], now.replace(microsecond=0))
    next_time = None if job["pause_time"] is not None else _next(definition, job["id"], cursor)
    version = job["version"] + 1
    try:
        await queries.replace_definition(
            connection, now, job["id"], version, definition.document(), author, cursor, next_time
        )
    except asyncpg.UniqueViolationError as error:
        raise _taken(definition, error) from None
    await queries.keep_version(connection, now, job["id"], version, definition.document(), author)
    return await found(connection, job["id"])


async def pause(connection: Connection, now: datetime, job: Record, reason: str | None, author: str) -> Record:
    """The settled job, taken out of the schedule until it is resumed. One that is paused already stays as it is."""
    if job["pause_time"] is None:
        await queries.set_pause(connection, now, job["id"], reason, author)
    return await found(connection, job["id"])


async def resume(connection: Connection, now: datetime, job: Record) -> Record:
    """The job, back in the schedule from where it is settled up to: now, or where the caller wants it to begin."""
    if job["pause_time"] is not None:
        next_time = _next(Definition.of(job), job["id"], job["cursor_time"]) if job["problem"] is None else None
        await queries.clear_pause(connection, now, job["id"], next_time)
    return await found(connection, job["id"])


async def delete(connection: Connection, now: datetime, job: Record) -> None:
    """The settled job, gone for everybody but its runs."""
    await queries.mark_deleted(connection, now, job["id"])


async def found(connection: Connection, job_id: UUID) -> Record:
    """The job with its last run; NotFound if there is none or it was deleted."""
    job = await queries.job_with_last_run(connection, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def _next(definition: Definition, job_id: UUID, cursor: datetime) -> datetime | None:
    if not definition.enabled:
        return None
    with triggers.bounded():
        return triggers.next_due(triggers.load(definition.trigger), job_id, cursor)


def _taken(definition: Definition, error: Exception) -> Exception:
    if getattr(error, "constraint_name", None) != "jobs_name_key":
        return error
    return NameTaken(f"the namespace {definition.namespace!r} has a job {definition.name!r} already")
