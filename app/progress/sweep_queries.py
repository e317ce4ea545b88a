"""What retention asks the database, one statement a function."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from app.database import Connection, Record
from app.states import FAILURE


async def runs_to_forget(
    connection: Connection,
    success_before: datetime,
    failure_before: datetime,
    limit: int,
    *,
    without_objects: bool = False,
) -> list[Record]:
    """The oldest ended runs that are past their time, with what they have in the log store; the newest run of a job
    that is there stays.

    `logs`: the attempts that have a log; `result_stored`: whether the result is there too.
    """
    rows: list[Record] = await connection.fetch(
        """
        SELECT old.id, ARRAY(SELECT log.attempt FROM run_logs AS log WHERE log.run_id = old.id) AS logs,
            coalesce(old.result ->> 'jobplane' = 'result stored', false) AS result_stored
        FROM runs AS old
        WHERE old.end_time IS NOT NULL
          AND old.end_time < greatest($1::timestamptz, $2::timestamptz)
          AND old.end_time < CASE WHEN old.state = $3 THEN $2 ELSE $1 END
          AND (
              old.job_id IS NULL
              OR EXISTS (SELECT FROM runs AS newer WHERE newer.job_id = old.job_id AND newer.id > old.id)
              OR EXISTS (SELECT FROM jobs WHERE jobs.id = old.job_id AND jobs.delete_time IS NOT NULL)
          )
          AND NOT ($5 AND (
              old.result ->> 'jobplane' IS NOT DISTINCT FROM 'result stored'
              OR EXISTS (SELECT FROM run_logs AS log WHERE log.run_id = old.id)
          ))
        ORDER BY old.end_time LIMIT $4
        """,
        success_before,
        failure_before,
        FAILURE,
        limit,
        without_objects,
    )
    return rows


async def forget_runs(connection: Connection, ids: Sequence[UUID]) -> int:
    """Delete these runs, except those that another sweep has in hand."""
    answer = await connection.execute(
        """
        DELETE FROM runs WHERE id IN (
            SELECT id FROM runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED
        )
        """,
        ids,
    )
    return _count(answer)


async def forget_idempotency_keys(connection: Connection, before: datetime, limit: int) -> int:
    answer = await connection.execute(
        """
        DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM idempotency_keys WHERE create_time < $1 ORDER BY create_time LIMIT $2
        ))
        """,
        before,
        limit,
    )
    return _count(answer)


async def forget_refused_reports(connection: Connection, keep: int, limit: int) -> int:
    """Delete refused reports, oldest first, as long as there are more than `keep`."""
    answer = await connection.execute(
        """
        DELETE FROM refused_reports WHERE id IN (
            SELECT id FROM refused_reports
            WHERE id <= (SELECT id FROM refused_reports ORDER BY id DESC OFFSET $1 LIMIT 1)
            ORDER BY id LIMIT $2
        )
        """,
        keep,
        limit,
    )
    return _count(answer)


async def forget_silent_processes(connection: Connection, before: datetime) -> int:
    return _count(await connection.execute("DELETE FROM processes WHERE beat_time < $1", before))


async def forget_skips(connection: Connection, before: datetime, limit: int) -> int:
    answer = await connection.execute(
        "DELETE FROM skips WHERE id IN (SELECT id FROM skips WHERE last_time < $1 LIMIT $2)", before, limit
    )
    return _count(answer)


async def forget_backfills(connection: Connection, before: datetime, limit: int) -> int:
    """Delete backfills that ended before then, with all their runs; the runs that are kept keep its id."""
    answer = await connection.execute(
        """
        DELETE FROM backfills WHERE id IN (
            SELECT id FROM backfills WHERE end_time < $1 AND live = '{}' LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        """,
        before,
        limit,
    )
    return _count(answer)


async def forget_deleted_jobs(connection: Connection, before: datetime, limit: int) -> int:
    """Delete jobs that were deleted before then and have no run left, with their versions and skips."""
    answer = await connection.execute(
        """
        DELETE FROM jobs WHERE id IN (
            SELECT id FROM jobs
            WHERE delete_time < $1 AND NOT EXISTS (SELECT FROM runs WHERE runs.job_id = jobs.id)
            LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        """,
        before,
        limit,
    )
    return _count(answer)


def _count(answer: str) -> int:
    """The number of rows in a command's answer, as in `DELETE 3`."""
    return int(answer.rpartition(" ")[2])
