"""The statements of the logs stage, each named for what it decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.database import Connection, Record, to_json
from app.logs.sealed import Segment


@dataclass(frozen=True, slots=True)
class Sealed:
    """What is in the store of an attempt's log; `before` is the `sealed_id` that it goes on from (None: the first)."""

    run_id: UUID
    attempt: int
    segments: list[Segment]
    size: int
    sealed_id: str
    before: str | None
    ended: bool


async def attempts(connection: Connection, asked: Sequence[tuple[UUID, int]]) -> dict[tuple[UUID, int], Record]:
    """What is known of these attempts; those of no run, or that have not begun, are left out.

    `over_s`: since how many seconds the attempt is over, null while it is not; `segments`, `size`, `sealed_id` and
    `ended` are null where nothing was sealed.
    """
    rows = await connection.fetch(
        """
        SELECT asked.run_id, asked.attempt, log.segments, log.size, log.sealed_id, log.ended,
            extract(epoch FROM clock_timestamp() - CASE WHEN runs.attempt = asked.attempt THEN runs.end_time ELSE (
                SELECT coalesce(max((past ->> 'end_time')::timestamptz), runs.create_time)
                FROM jsonb_array_elements(runs.attempts) AS past WHERE past -> 'attempt' = to_jsonb(asked.attempt)
            ) END)::float8 AS over_s
        FROM unnest($1::uuid[], $2::int4[]) AS asked (run_id, attempt)
        JOIN runs ON runs.id = asked.run_id AND runs.attempt >= asked.attempt
        LEFT JOIN run_logs AS log ON log.run_id = asked.run_id AND log.attempt = asked.attempt
        """,
        [run_id for run_id, _ in asked],
        [attempt for _, attempt in asked],
    )
    return {(UUID(int=row["run_id"].int), row["attempt"]): row for row in rows}


async def newest_attempt(connection: Connection, run_id: UUID) -> int | None:
    """The number of the try that is under way, or was the last; None if there is no such run."""
    attempt: int | None = await connection.fetchval("SELECT attempt FROM runs WHERE id = $1", run_id)
    return attempt


async def keep_sealed(connection: Connection, now: datetime, sealed: Sequence[Sealed]) -> set[tuple[UUID, int]]:
    """Record what is in the store; of which attempts. Not of runs that are gone, nor where another one was faster."""
    rows = await connection.fetch(
        """
        WITH news AS (
            SELECT * FROM unnest($2::uuid[], $3::int4[], $4::text[], $5::int8[], $6::text[], $7::text[], $8::bool[])
                AS news (run_id, attempt, segments, size, sealed_id, before, ended)
        )
        INSERT INTO run_logs AS log (run_id, attempt, segments, size, sealed_id, ended, update_time)
        SELECT news.run_id, news.attempt, news.segments::jsonb, news.size, news.sealed_id, news.ended, $1
        FROM news JOIN runs ON runs.id = news.run_id
        ORDER BY news.run_id, news.attempt FOR KEY SHARE OF runs
        ON CONFLICT (run_id, attempt) DO UPDATE SET segments = excluded.segments, size = excluded.size,
            sealed_id = excluded.sealed_id, ended = excluded.ended, update_time = excluded.update_time
            WHERE EXISTS (
                SELECT FROM news
                WHERE news.run_id = log.run_id AND news.attempt = log.attempt AND news.before = log.sealed_id
            )
        RETURNING log.run_id, log.attempt
        """,
        now,
        [one.run_id for one in sealed],
        [one.attempt for one in sealed],
        [to_json(one.segments) for one in sealed],  # a list in an array would be taken for another dimension
        [one.size for one in sealed],
        [one.sealed_id for one in sealed],
        [one.before for one in sealed],
        [one.ended for one in sealed],
    )
    return {(UUID(int=row["run_id"].int), row["attempt"]) for row in rows}
