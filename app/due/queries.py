"""The tick's statements, each named for what it decides."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from app.database import Connection, Record

_ANY_NUMBER: Final = 2**31 - 1


async def claim_due(connection: Connection, now: datetime, limit: int) -> list[Record]:
    """Jobs whose time has come, locked; those that another scheduler has locked are passed over."""
    return cast(
        list[Record],
        await connection.fetch(
            """
            SELECT * FROM jobs WHERE next_run_time <= $1
            ORDER BY next_run_time LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
            """,
            now,
            limit,
        ),
    )


async def lock_job(connection: Connection, job_id: UUID) -> Record | None:
    """The row of a job that is not deleted, locked until the transaction ends."""
    return await connection.fetchrow(
        "SELECT * FROM jobs WHERE id = $1 AND delete_time IS NULL FOR NO KEY UPDATE", job_id
    )


async def next_due(connection: Connection) -> datetime | None:
    """When the earliest job is due."""
    return cast(
        datetime | None,
        await connection.fetchval("SELECT min(next_run_time) FROM jobs WHERE next_run_time IS NOT NULL"),
    )


async def oldest_live_runs(connection: Connection, job_ids: Sequence[UUID]) -> dict[UUID, UUID]:
    """By job, the oldest run that has not ended."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT ON (job_id) job_id, id FROM runs
        WHERE job_id = ANY($1) AND end_time IS NULL AND NOT apart ORDER BY job_id, id
        """,
        job_ids,
    )
    return {row["job_id"]: row["id"] for row in rows}


async def lock_live_runs(
    connection: Connection, job_ids: Sequence[UUID], line_too: Sequence[UUID], *, wait: bool
) -> set[UUID]:
    """The runs of these jobs that have not ended and wait for none, and those that wait of the jobs in `line_too`:
    locked, all of them in the order of ids. Without `wait` those that somebody else has in hand are not among them.
    """
    rows = await connection.fetch(
        f"""
        SELECT id FROM runs
        WHERE job_id = ANY($1) AND end_time IS NULL AND (waits_for IS NULL OR job_id = ANY($2)) AND NOT apart
        ORDER BY id FOR NO KEY UPDATE {"" if wait else "SKIP LOCKED"}
        """,  # noqa: S608  (words of our own)
        job_ids,
        line_too,
    )
    return {row["id"] for row in rows}


async def bound_line(
    connection: Connection, job_id: UUID, before: int | None, after: int | None, max_active: int | None
) -> None:
    """Give the waiting runs of a job another number: those under `before` the one `after` (None: any number), those
    that wait under a policy of their own at most `max_active`. Their rows are locked.
    """
    await connection.execute(
        """
        UPDATE runs SET most_active = CASE WHEN most_active = $2 THEN $3 ELSE least(most_active, $4) END
        WHERE job_id = $1 AND waits_for IS NOT NULL
        """,
        job_id,
        before,
        _ANY_NUMBER if after is None else after,
        max_active,
    )


async def live_runs(connection: Connection, job_ids: Sequence[UUID]) -> list[Record]:
    """By job, its runs that have not ended: `active` and `waiting`, oldest first."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT job_id,
            coalesce(array_agg(id ORDER BY id) FILTER (WHERE waits_for IS NULL), '{}') AS active,
            coalesce(array_agg(id ORDER BY id) FILTER (WHERE waits_for IS NOT NULL), '{}') AS waiting
        FROM runs WHERE job_id = ANY($1) AND end_time IS NULL AND NOT apart GROUP BY job_id
        """,
        job_ids,
    )
    return rows


async def advance(
    connection: Connection, now: datetime, jobs: Sequence[tuple[UUID, datetime, datetime | None, bool]]
) -> None:
    """Set cursor and next run time of jobs; the last member says whether the job fired."""
    ids, cursors, nexts, fired = zip(*jobs, strict=True)
    await connection.execute(
        """
        UPDATE jobs SET cursor_time = m.cursor_time, next_run_time = m.next_run_time,
            last_run_time = CASE WHEN m.fired THEN $1 ELSE jobs.last_run_time END
        FROM unnest($2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bool[])
            AS m (id, cursor_time, next_run_time, fired)
        WHERE jobs.id = m.id
        """,
        now,
        ids,
        cursors,
        nexts,
        fired,
    )


async def park(connection: Connection, problems: Sequence[tuple[UUID, str]]) -> None:
    """Take jobs whose trigger cannot be evaluated out of the schedule, with the reason."""
    ids, texts = zip(*problems, strict=True)
    await connection.execute(
        """
        UPDATE jobs SET next_run_time = NULL, problem = m.problem
        FROM unnest($1::uuid[], $2::text[]) AS m (id, problem) WHERE jobs.id = m.id
        """,
        ids,
        texts,
    )


# The newest failed runs of a job, as many as it takes to pause it; backfills are another matter. A job may have very
# many runs that came to no end of their own, or of before a resume: nothing here walks over those.
_NEWEST = """
    CROSS JOIN LATERAL (
        SELECT count(*) AS number, (array_agg(id ORDER BY id))[1] AS first_id,
            (array_agg(id ORDER BY id DESC))[1] AS run_id,
            bool_and(create_time > coalesce(jobs.failures_from_time, '-infinity')) AS unforgiven
        FROM (
            SELECT id, create_time FROM runs
            WHERE job_id = jobs.id AND state = 'FAILURE' AND kind <> 'backfill'
                AND (start_time IS NOT NULL OR jsonb_array_length(attempts) > 0)
            ORDER BY id DESC LIMIT jobs.pause_after_failures
        ) AS failed
    ) AS newest
"""
# The oldest success behind them is looked for in the order of ids (OFFSET 0), whatever the planner thinks of the table.
_FAILING = """
    newest.number = jobs.pause_after_failures AND newest.unforgiven AND (
        SELECT id FROM (
            SELECT id, state, kind FROM runs WHERE job_id = jobs.id AND id > newest.first_id ORDER BY id OFFSET 0
        ) AS later
        WHERE state = 'SUCCESS' AND kind <> 'backfill' LIMIT 1
    ) IS NULL
"""


async def failed_in_a_row(connection: Connection, job_ids: Sequence[UUID]) -> list[Record]:
    """Those of these jobs whose newest ended runs have all failed: `id`, how many, and `run_id`, the last of them."""
    rows: list[Record] = await connection.fetch(
        f"""
        SELECT jobs.id, jobs.pause_after_failures AS failures, newest.run_id
        FROM jobs {_NEWEST} WHERE jobs.id = ANY($1) AND {_FAILING}
        """,  # noqa: S608  (text of our own)
        job_ids,
    )
    return rows


async def claim_failing(connection: Connection, since: datetime, limit: int) -> list[Record]:
    """Jobs that go on and are to be paused, for runs of them that failed since then were once too many: locked."""
    rows: list[Record] = await connection.fetch(
        f"""
        SELECT jobs.* FROM jobs {_NEWEST}
        WHERE jobs.id = ANY(ARRAY(
                SELECT DISTINCT job_id FROM runs WHERE state = 'FAILURE' AND job_id IS NOT NULL AND end_time > $1
            ))
            AND jobs.pause_after_failures IS NOT NULL AND jobs.enabled AND jobs.pause_time IS NULL
            AND jobs.problem IS NULL AND jobs.delete_time IS NULL AND {_FAILING}
        ORDER BY jobs.id LIMIT $2 FOR NO KEY UPDATE OF jobs SKIP LOCKED
        """,  # noqa: S608
        since,
        limit,
    )
    return rows


async def pause(connection: Connection, now: datetime, reasons: Mapping[UUID, str]) -> None:
    """Take jobs out of the schedule until somebody resumes them, each with its reason."""
    await connection.execute(
        """
        UPDATE jobs SET pause_time = $1, pause_reason = m.reason, pause_by = 'jobplane', next_run_time = NULL,
            update_time = $1
        FROM unnest($2::uuid[], $3::text[]) AS m (id, reason) WHERE jobs.id = m.id
        """,
        now,
        list(reasons),
        list(reasons.values()),
    )


#: job, the job's cursor before, reason, run, first, last, count, exact
SkipRow = tuple[UUID, datetime, str, UUID | None, datetime, datetime, int, bool]


async def record_skips(connection: Connection, skips: Sequence[SkipRow]) -> None:
    """Account for scheduled times without a run: the row of the same cause that ends at the cursor is extended."""
    columns: list[Any] = [list(column) for column in zip(*skips, strict=True)]
    await connection.execute(
        """
        WITH m AS (
            SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::timestamptz[],
                $6::timestamptz[], $7::bigint[], $8::bool[])
                AS m (job_id, cursor_time, reason, run_id, first_time, last_time, count, exact)
        ), extended AS (
            UPDATE skips SET last_time = m.last_time, count = skips.count + m.count, exact = skips.exact AND m.exact
            FROM m WHERE skips.job_id = m.job_id AND skips.last_time = m.cursor_time
                AND skips.reason = m.reason AND skips.run_id IS NOT DISTINCT FROM m.run_id
            RETURNING m.job_id, m.first_time
        )
        INSERT INTO skips (job_id, reason, run_id, first_time, last_time, count, exact)
        SELECT job_id, reason, run_id, first_time, last_time, count, exact FROM m
        WHERE NOT EXISTS (SELECT FROM extended e WHERE e.job_id = m.job_id AND e.first_time = m.first_time)
        """,
        *columns,
    )
