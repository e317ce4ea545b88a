"""The schedule's statements: jobs, their versions, and the queues that they name."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import select, true

from app.database import Connection, Record, rows
from app.models import DEFINITION, Job, Queue, Run
from app.schedule.plan import OWNER

_LAST_RUN: Final = """
    LEFT JOIN LATERAL (
        SELECT id AS last_run_id, state AS last_run_state, result AS last_run_result,
            log_path AS last_run_log_path, end_time AS last_run_end_time
        FROM runs WHERE runs.job_id = jobs.id ORDER BY runs.id DESC LIMIT 1
    ) AS last ON true
"""


def _places(first: int) -> str:
    return ", ".join(f"${number}" for number in range(first, first + len(DEFINITION)))


def _values(definition: Mapping[str, Any]) -> list[Any]:
    return [definition[name] for name in DEFINITION]


async def insert_job(
    connection: Connection,
    now: datetime,
    job_id: UUID,
    definition: Mapping[str, Any],
    author: str,
    cursor: datetime,
    next_time: datetime | None,
) -> None:
    """A job, version 1. UniqueViolationError on `jobs_name_key` if the name is taken."""
    await connection.execute(
        f"""
        INSERT INTO jobs (id, author, cursor_time, next_run_time, create_time, update_time, {", ".join(DEFINITION)})
        VALUES ($1, $2, $3, $4, $5, $5, {_places(6)})
        """,  # noqa: S608  (names of our own columns)
        job_id,
        author,
        cursor,
        next_time,
        now,
        *_values(definition),
    )


async def keep_version(
    connection: Connection, now: datetime, job_id: UUID, version: int, definition: Mapping[str, Any], author: str
) -> None:
    """Every definition that a job ever had is kept, and behind which scheduled time it begins: the job's cursor now."""
    await connection.execute(
        """
        INSERT INTO job_versions (job_id, version, definition, author, create_time, cursor_time)
        VALUES ($1, $2, $3, $4, $5, (SELECT cursor_time FROM jobs WHERE id = $1))
        """,
        job_id,
        version,
        definition,
        author,
        now,
    )


async def versions_page(connection: Connection, job_id: UUID, before: int | None, limit: int) -> list[Record]:
    """The definitions of a job before a version, newest first."""
    found: list[Record] = await connection.fetch(
        """
        SELECT version, definition, author, create_time FROM job_versions
        WHERE job_id = $1 AND ($2::int IS NULL OR version < $2) ORDER BY version DESC LIMIT $3
        """,
        job_id,
        before,
        limit,
    )
    return found


async def version(connection: Connection, job_id: UUID, number: int) -> Record | None:
    """One definition that a job had."""
    return await connection.fetchrow(
        "SELECT version, definition, author, create_time FROM job_versions WHERE job_id = $1 AND version = $2",
        job_id,
        number,
    )


async def replace_definition(
    connection: Connection,
    now: datetime,
    job_id: UUID,
    version: int,
    definition: Mapping[str, Any],
    author: str,
    cursor: datetime,
    next_time: datetime | None,
) -> None:
    """Another definition, schedule and version for a locked job; it is parked no more."""
    await connection.execute(
        f"""
        UPDATE jobs SET version = $2, author = $3, cursor_time = $4, next_run_time = $5, update_time = $6,
            problem = NULL, ({", ".join(DEFINITION)}) = ROW ({_places(7)})
        WHERE id = $1
        """,  # noqa: S608
        job_id,
        version,
        author,
        cursor,
        next_time,
        now,
        *_values(definition),
    )


async def set_pause(connection: Connection, now: datetime, job_id: UUID, reason: str | None, author: str) -> None:
    """Take a locked job out of the schedule."""
    await connection.execute(
        """
        UPDATE jobs SET pause_time = $2, pause_reason = $3, pause_by = $4, next_run_time = NULL, update_time = $2
        WHERE id = $1
        """,
        job_id,
        now,
        reason,
        author,
    )


async def clear_pause(connection: Connection, now: datetime, job_id: UUID, next_time: datetime | None) -> None:
    """Put a locked job back into the schedule; failures of before are forgiven."""
    await connection.execute(
        """
        UPDATE jobs SET pause_time = NULL, pause_reason = NULL, pause_by = NULL, next_run_time = $3, update_time = $2,
            failures_from_time = $2
        WHERE id = $1
        """,
        job_id,
        now,
        next_time,
    )


async def mark_deleted(connection: Connection, now: datetime, job_id: UUID) -> None:
    """Free the name of a locked job and take it out of the schedule; its runs keep it."""
    await connection.execute(
        "UPDATE jobs SET delete_time = $2, next_run_time = NULL, update_time = $2 WHERE id = $1", job_id, now
    )


async def lock_job(connection: Connection, job_id: UUID) -> Record | None:
    """The row of a job that is not deleted, locked until the transaction ends."""
    return await connection.fetchrow(
        "SELECT * FROM jobs WHERE id = $1 AND delete_time IS NULL FOR NO KEY UPDATE", job_id
    )


async def lock_namespaces(connection: Connection, namespaces: Sequence[str]) -> None:
    """Let nobody else make jobs by name in these namespaces until the transaction ends."""
    await connection.execute(
        """
        SELECT pg_advisory_xact_lock(hashtext('jobplane namespace'), key)
        FROM (SELECT DISTINCT hashtext(name) AS key FROM unnest($1::text[]) AS name ORDER BY key) AS keys
        """,
        namespaces,
    )


async def lock_jobs_by_name(
    connection: Connection,
    namespaces: Sequence[str],
    names: Sequence[str],
    owned_in: Sequence[str] = (),
    owner: str | None = None,
) -> list[Record]:
    """The jobs of these names (two lists of one length), and all of `owner` in the namespaces `owned_in`: locked."""
    found: list[Record] = await connection.fetch(
        """
        SELECT * FROM jobs
        WHERE delete_time IS NULL AND id IN (
            SELECT named.id FROM unnest($1::text[], $2::text[]) AS wanted (namespace, name)
            JOIN jobs AS named USING (namespace, name) WHERE named.delete_time IS NULL
            UNION
            SELECT id FROM jobs WHERE delete_time IS NULL AND namespace = ANY ($3) AND labels @> $4
        )
        ORDER BY id FOR NO KEY UPDATE
        """,
        namespaces,
        names,
        owned_in,
        {OWNER: owner},
    )
    return found


async def jobs_to_export(connection: Connection, namespace: str | None, owner: str | None, limit: int) -> list[Record]:
    """Jobs of a namespace and an owner (None: of all) in the order of their names."""
    found: list[Record] = await connection.fetch(
        """
        SELECT * FROM jobs
        WHERE delete_time IS NULL AND ($1::text IS NULL OR namespace = $1) AND labels @> $2
        ORDER BY namespace, name LIMIT $3
        """,
        namespace,
        {} if owner is None else {OWNER: owner},
        limit,
    )
    return found


async def queues_to_export(
    connection: Connection, namespace: str | None, names: Sequence[str] | None, limit: int
) -> list[Record]:
    """Queues of a namespace, out of these names (None: of all), in the order of their names."""
    found: list[Record] = await connection.fetch(
        """
        SELECT * FROM queues
        WHERE ($1::text IS NULL OR namespace = $1) AND ($2::text[] IS NULL OR name = ANY ($2)) ORDER BY name LIMIT $3
        """,
        namespace,
        names,
        limit,
    )
    return found


async def job_with_last_run(connection: Connection, job_id: UUID) -> Record | None:
    """A job that is not deleted, with its newest run in short."""
    return await connection.fetchrow(
        f"SELECT jobs.*, last.* FROM jobs {_LAST_RUN} WHERE jobs.id = $1 AND jobs.delete_time IS NULL",  # noqa: S608
        job_id,
    )


async def jobs_page(
    connection: Connection,
    after: UUID | None,
    limit: int,
    *,
    equal: Mapping[str, Any],
    labels: Mapping[str, str],
    label_names: Sequence[str],
    problem: str | None = None,
) -> list[Record]:
    """Jobs behind an id in the order of ids, with their newest runs; `equal` are columns and their values, and
    `problem` is a column that must say something."""
    jobs = cast(Any, Job).__table__.c
    runs = cast(Any, Run).__table__.c
    last = (
        select(
            runs.id.label("last_run_id"),
            runs.state.label("last_run_state"),
            runs.result.label("last_run_result"),
            runs.log_path.label("last_run_log_path"),
            runs.end_time.label("last_run_end_time"),
        )
        .where(runs.job_id == jobs.id)
        .order_by(runs.id.desc())
        .limit(1)
        .lateral("last")
    )
    statement = (
        select(cast(Any, Job).__table__, *last.c)
        .select_from(cast(Any, Job).__table__.outerjoin(last, true()))
        .where(jobs.delete_time.is_(None), *(jobs[name] == value for name, value in equal.items()))
        .order_by(jobs.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(jobs.id > after)
    if labels:
        statement = statement.where(jobs.labels.contains(dict(labels)))
    for name in label_names:
        statement = statement.where(jobs.labels.has_key(name))
    if problem is not None:
        statement = statement.where(jobs[problem].is_not(None))
    return await rows(connection, statement)


async def jobs_due_before(
    connection: Connection, end: datetime, namespace: str | None, queue: str | None, limit: int
) -> list[Record]:
    """Jobs whose schedule goes on before an instant: what a forecast needs of them."""
    found: list[Record] = await connection.fetch(
        """
        SELECT id, namespace, name, task, queue, trigger, cursor_time FROM jobs
        WHERE next_run_time < $1 AND ($2::text IS NULL OR namespace = $2) AND ($3::text IS NULL OR queue = $3)
        ORDER BY next_run_time LIMIT $4
        """,
        end,
        namespace,
        queue,
        limit,
    )
    return found


async def queue_to_use(connection: Connection, name: str) -> Record | None:
    """A queue that something is about to name; it cannot be deleted until the transaction ends."""
    return await connection.fetchrow("SELECT * FROM queues WHERE name = $1 FOR KEY SHARE", name)


async def queue_by_name(connection: Connection, name: str) -> Record | None:
    """A queue as it stands."""
    return await connection.fetchrow("SELECT * FROM queues WHERE name = $1", name)


async def lock_queue(connection: Connection, name: str) -> Record | None:
    """A queue, locked against every other change of it and against new users."""
    return await connection.fetchrow("SELECT * FROM queues WHERE name = $1 FOR UPDATE", name)


async def queues_page(
    connection: Connection, after: str | None, limit: int, *, equal: Mapping[str, Any]
) -> list[Record]:
    """Queues behind a name in the order of names."""
    queues = cast(Any, Queue).__table__.c
    statement = (
        select(cast(Any, Queue).__table__)
        .where(*(queues[name] == value for name, value in equal.items()))
        .order_by(queues.name)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(queues.name > after)
    return await rows(connection, statement)


async def lock_exchange(connection: Connection, exchange: str) -> None:
    """Let nobody else add a queue to this exchange until the transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('jobplane exchange'), hashtext($1))", exchange)


async def queues_of_exchange(connection: Connection, exchange: str) -> list[Record]:
    """The routes that an exchange has, in the order of the queues' names."""
    found: list[Record] = await connection.fetch(
        "SELECT name, exchange, exchange_type, routing_key FROM queues WHERE exchange = $1 ORDER BY name", exchange
    )
    return found


async def insert_queue(connection: Connection, now: datetime, columns: Mapping[str, Any], author: str) -> Record | None:
    """A queue, version 1, not yet looked for on the broker; None if the name is taken."""
    names = list(columns)
    return await connection.fetchrow(
        f"""
        INSERT INTO queues (author, create_time, update_time, {", ".join(names)})
        VALUES ($1, $2, $2, {", ".join(f"${number}" for number in range(3, 3 + len(names)))})
        ON CONFLICT (name) DO NOTHING RETURNING *
        """,  # noqa: S608
        author,
        now,
        *columns.values(),
    )


async def change_queue(
    connection: Connection, now: datetime, name: str, author: str, changes: Mapping[str, Any]
) -> Record:
    """A queue with these columns changed, as its next version."""
    sets = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, 4))
    return cast(
        Record,
        await connection.fetchrow(
            f"""
            UPDATE queues SET {sets}, author = $3, update_time = $2, version = version + 1
            WHERE name = $1 RETURNING *
            """,  # noqa: S608  (names of our own columns)
            name,
            now,
            author,
            *changes.values(),
        ),
    )


async def jobs_of_strangers(connection: Connection, name: str, allowed: Sequence[str]) -> list[str]:
    """The namespaces, at most five, that have jobs on this queue and are not allowed."""
    found = await connection.fetch(
        """
        SELECT DISTINCT namespace FROM jobs WHERE queue = $1 AND delete_time IS NULL AND namespace <> ALL($2)
        ORDER BY namespace LIMIT 5
        """,
        name,
        allowed,
    )
    return [row["namespace"] for row in found]


async def queue_waiting(connection: Connection, name: str) -> tuple[int, Record | None]:
    """How many runs of this queue no worker has begun, counted up to 100,000, and the oldest of them in short."""
    waiting = await connection.fetchval(
        """
        SELECT count(*) FROM (
            SELECT FROM runs WHERE queue = $1 AND state = 'PENDING' AND end_time IS NULL LIMIT 100000
        ) AS waiting
        """,
        name,
    )
    oldest = await connection.fetchrow(
        """
        SELECT id, create_time, reason FROM runs
        WHERE queue = $1 AND state = 'PENDING' AND end_time IS NULL ORDER BY id LIMIT 1
        """,
        name,
    )
    return waiting, oldest


async def live_consumers(connection: Connection, name: str) -> int:
    """How many known workers consume this queue now."""
    consumers: int = await connection.fetchval(
        """
        SELECT count(*) FROM workers
        WHERE $1 = ANY (queues) AND seen_time > clock_timestamp() - interval '30 seconds'
        """,
        name,
    )
    return consumers


async def queue_users(connection: Connection, name: str) -> tuple[int, int]:
    """How many jobs name this queue, and how many runs that have not ended; each counted up to 1,000."""
    row = await connection.fetchrow(
        """
        SELECT
            (SELECT count(*) FROM (SELECT FROM jobs WHERE queue = $1 AND delete_time IS NULL LIMIT 1000) AS j) AS jobs,
            (SELECT count(*) FROM (SELECT FROM runs WHERE queue = $1 AND end_time IS NULL LIMIT 1000) AS r) AS runs
        """,
        name,
    )
    assert row is not None
    return row["jobs"], row["runs"]


async def delete_queue(connection: Connection, name: str) -> None:
    """Forget a queue; on the broker it stays."""
    await connection.execute("DELETE FROM queues WHERE name = $1", name)
