"""Runs that wait for others of their job: who is in the way, and who may go when one of those ends.

The waiting runs of a job stand in one line, oldest first. Each names the one before it, the first of them one that is
active, so that the end of one run is news for its next alone.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from app.database import Connection, Record

#: How many runs of a job may wait.
WAITING_MOST: Final = 1000

# A row that somebody else has in hand is passed over: waiting for it here could be waiting for each other. The reaper
# comes by all lines from time to time.
_LET_GO = """
    WITH line AS MATERIALIZED (
        SELECT id, job_id, waits_for, most_active, row_number() OVER job AS place, lag(id) OVER job AS before
        FROM runs WHERE job_id = ANY($2) AND waits_for IS NOT NULL
        WINDOW job AS (PARTITION BY job_id ORDER BY id)
    ), active AS MATERIALIZED (
        SELECT job_id, count(*) AS number, (array_agg(id ORDER BY id))[1] AS oldest FROM runs
        WHERE job_id = ANY(ARRAY(SELECT job_id FROM line)) AND end_time IS NULL AND waits_for IS NULL AND NOT apart
        GROUP BY job_id
    ), verdicts AS (
        SELECT line.id, line.waits_for, coalesce(line.before, active.oldest) AS next,
            bool_and(line.place + coalesce(active.number, 0) <= line.most_active) OVER job AS free
        FROM line LEFT JOIN active USING (job_id)
        WINDOW job AS (PARTITION BY line.job_id ORDER BY line.place)
    ), moved AS (
        SELECT runs.id, CASE WHEN NOT verdicts.free THEN verdicts.next END AS waits_for
        FROM runs JOIN verdicts ON verdicts.id = runs.id
        WHERE runs.waits_for = verdicts.waits_for AND (
            verdicts.free OR NOT EXISTS (
                SELECT FROM runs AS other WHERE other.id = verdicts.waits_for AND other.end_time IS NULL
            )
        )
        ORDER BY runs.id
        FOR NO KEY UPDATE OF runs SKIP LOCKED
    )
    UPDATE runs SET waits_for = moved.waits_for,
        most_active = CASE WHEN moved.waits_for IS NOT NULL THEN runs.most_active END,
        reason = 'waits for run ' || moved.waits_for,
        due_time = CASE WHEN moved.waits_for IS NULL THEN $1 ELSE runs.due_time END,
        version = version + 1, update_time = $1
    FROM moved WHERE runs.id = moved.id
    RETURNING runs.*
"""

# The jobs that have waiting runs, by one step in the index for each.
_LINES = """
    WITH RECURSIVE lines AS (
        (SELECT job_id FROM runs WHERE waits_for IS NOT NULL AND job_id > $1 ORDER BY job_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT runs.job_id FROM runs
            WHERE runs.waits_for IS NOT NULL AND runs.job_id > lines.job_id ORDER BY runs.job_id LIMIT 1
        ) FROM lines WHERE lines.job_id IS NOT NULL
    )
    SELECT job_id FROM lines WHERE job_id IS NOT NULL LIMIT $2
"""


async def let_go(connection: Connection, now: datetime, jobs: Sequence[UUID]) -> list[Record]:
    """Free the waiting runs of these jobs that nobody is in the way of, and tell the others what they wait for now.

    Returns the rows that changed; those with `waits_for` null may be sent.
    """
    rows: list[Record] = await connection.fetch(_LET_GO, now, jobs) if jobs else []
    return rows


async def lines(connection: Connection, after: UUID, limit: int) -> list[UUID]:
    """A page of the jobs that have waiting runs, in the order of ids."""
    return [row["job_id"] for row in await connection.fetch(_LINES, after, limit)]


def reason(run: UUID) -> str:
    """What a run says that waits for this one."""
    return f"waits for run {run}"
