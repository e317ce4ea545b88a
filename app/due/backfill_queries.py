"""The statements of backfills, each named for what it decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from app.database import Connection, Record
from app.due.fill import Account, Latest

ZERO: Final = UUID(int=0)
#: A backfill with something left to account for, as its index has it.
_OPEN: Final = "(b.end_time IS NULL OR b.live <> '{}')"


@dataclass(frozen=True, slots=True)
class NewBackfill:
    """A backfill to be made; `cursor_time` is the second before its first time."""

    id: UUID
    job_id: UUID
    job_version: int
    from_time: datetime
    to_time: datetime
    mode: str
    overlap: str
    max_active: int
    cursor_time: datetime
    total: int
    author: str


async def insert(connection: Connection, now: datetime, new: NewBackfill) -> Record | None:
    """The row of a new backfill, ACTIVE; None if the job has one that has not ended."""
    names = NewBackfill.__slots__
    places = ", ".join(f"${number}" for number in range(2, len(names) + 2))
    return await connection.fetchrow(
        f"""
        INSERT INTO backfills (create_time, update_time, {", ".join(names)}) VALUES ($1, $1, {places})
        ON CONFLICT (job_id) WHERE end_time IS NULL DO NOTHING
        RETURNING *
        """,  # noqa: S608  (names of our own columns)
        now,
        *(getattr(new, name) for name in names),
    )


async def active_of(connection: Connection, job_id: UUID) -> Record | None:
    """The backfill of a job that has not ended."""
    return await connection.fetchrow("SELECT * FROM backfills WHERE job_id = $1 AND end_time IS NULL", job_id)


async def lock(connection: Connection, backfill_id: UUID) -> Record | None:
    """A backfill, locked until the transaction ends: no scheduler goes on with it meanwhile."""
    return await connection.fetchrow("SELECT * FROM backfills WHERE id = $1 FOR NO KEY UPDATE", backfill_id)


async def by_id(connection: Connection, backfill_id: UUID) -> Record | None:
    """A backfill."""
    return await connection.fetchrow("SELECT * FROM backfills WHERE id = $1", backfill_id)


async def page(
    connection: Connection, before: UUID | None, limit: int, *, job_id: UUID | None, states: Sequence[str]
) -> list[Record]:
    """Backfills before an id, newest first."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT * FROM backfills
        WHERE ($1::uuid IS NULL OR id < $1) AND ($3::uuid IS NULL OR job_id = $3)
            AND (cardinality($4::text[]) = 0 OR state = ANY($4))
        ORDER BY id DESC LIMIT $2
        """,
        before,
        limit,
        job_id,
        states,
    )
    return rows


async def wanting(connection: Connection, after: UUID, limit: int) -> list[UUID]:
    """A page, by id, of the backfills of which something is to be done: there is room for a run, a live run of it has
    ended, or its job is gone."""
    rows = await connection.fetch(
        f"""
        SELECT b.id FROM backfills AS b JOIN jobs ON jobs.id = b.job_id
        WHERE {_OPEN} AND b.id > $1 AND (
            (b.end_time IS NULL AND jobs.delete_time IS NOT NULL)
            OR (b.state = 'ACTIVE' AND b.live = '{{}}')
            OR (b.state = 'ACTIVE' AND cardinality(b.live) < b.max_active
                AND b.cursor_time + interval '1 s' < b.to_time)
            OR EXISTS (
                SELECT FROM unnest(b.live) AS one (id) LEFT JOIN runs ON runs.id = one.id
                WHERE runs.id IS NULL OR runs.end_time IS NOT NULL
            )
        )
        ORDER BY b.id LIMIT $2
        """,  # noqa: S608
        after,
        limit,
    )
    return [row["id"] for row in rows]


async def claim(connection: Connection, backfill_id: UUID) -> Record | None:
    """A backfill and its job, both locked, with the definition that it runs; None if somebody has one of them in hand
    or nothing is left to do. `delete_time` and `job_max_active` are the job's."""
    return await connection.fetchrow(
        f"""
        SELECT b.*, jobs.delete_time, jobs.max_active AS job_max_active, job_versions.definition
        FROM backfills AS b JOIN jobs ON jobs.id = b.job_id
            JOIN job_versions ON job_versions.job_id = b.job_id AND job_versions.version = b.job_version
        WHERE b.id = $1 AND {_OPEN} FOR NO KEY UPDATE OF b, jobs SKIP LOCKED
        """,  # noqa: S608
        backfill_id,
    )


async def latest_runs(
    connection: Connection, job_id: UUID, times: Sequence[datetime], backfill_id: UUID | None
) -> dict[datetime, Latest]:
    """By scheduled time, those of these that a run of the job names, with the newest such run."""
    rows = await connection.fetch(
        """
        SELECT scheduled_time, (array_agg(state ORDER BY id DESC))[1] AS state,
            bool_or(backfill_id IS NOT NULL AND backfill_id = $3) AS mine
        FROM (
            SELECT id, scheduled_time, state, backfill_id FROM runs
            WHERE job_id = $1 AND scheduled_time = ANY($2) AND kind = 'schedule'
            UNION ALL
            SELECT id, scheduled_time, state, backfill_id FROM runs
            WHERE job_id = $1 AND scheduled_time = ANY($2) AND kind <> 'schedule' AND scheduled_time IS NOT NULL
        ) AS naming
        GROUP BY scheduled_time
        """,
        job_id,
        times,
        backfill_id,
    )
    return {row["scheduled_time"]: Latest(row["state"], bool(row["mine"])) for row in rows}


async def ends_of(connection: Connection, runs: Sequence[UUID]) -> dict[UUID, str | None]:
    """Those of these runs that have ended, with the state; None for one that is not there any more."""
    if not runs:
        return {}
    rows = await connection.fetch(
        """
        SELECT one.id, runs.state FROM unnest($1::uuid[]) AS one (id) LEFT JOIN runs ON runs.id = one.id
        WHERE runs.id IS NULL OR runs.end_time IS NOT NULL
        """,
        list(runs),
    )
    return {row["id"]: row["state"] for row in rows}


async def queue_is_there(connection: Connection, name: str) -> bool:
    """Whether there is this queue; it is not deleted until the transaction ends."""
    return await connection.fetchval("SELECT true FROM queues WHERE name = $1 FOR KEY SHARE", name) is not None


async def keep(connection: Connection, now: datetime, row: Mapping[str, Any], account: Account) -> Record:
    """A locked backfill as it stands now; its version rises. The end time is set with the end."""
    names = Account.__slots__
    places = ", ".join(f"${number}" for number in range(3, len(names) + 3))
    return cast(
        Record,
        await connection.fetchrow(
            f"""
            UPDATE backfills SET ({", ".join(names)}) = ROW ({places}), version = version + 1, update_time = $2,
                end_time = CASE WHEN $3 IN ('DONE', 'CANCELLED') THEN coalesce(end_time, $2) END
            WHERE id = $1 RETURNING *
            """,  # noqa: S608
            row["id"],
            now,
            *(getattr(account, name) for name in names),
        ),
    )
