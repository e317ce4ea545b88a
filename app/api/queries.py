"""What only the API reads of runs: lists that vary with what is asked, the ledger, the figures of the plane."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import select

from app.database import Connection, Record, rows
from app.models import Run
from app.progress.view import RUN_COLUMNS, RUN_MEMBERS
from app.states import TERMINAL

#: Ids carry the clock of the process that made them, `create_time` that of the database: this far they may be apart.
_CLOCKS_APART: Final = timedelta(minutes=10)
#: How many versions of a definition a ledger looks at.
MOST_VERSIONS: Final = 1000


async def run_by_id(connection: Connection, run_id: UUID) -> Record | None:
    """A run's members, for its view."""
    return await connection.fetchrow(f"SELECT {RUN_COLUMNS} FROM runs WHERE id = $1", run_id)  # noqa: S608


async def whole_run(connection: Connection, run_id: UUID) -> Record | None:
    """Every column of a run."""
    return await connection.fetchrow("SELECT * FROM runs WHERE id = $1", run_id)


async def runs_page(
    connection: Connection,
    before: UUID | None,
    limit: int,
    *,
    equal: Mapping[str, Any],
    states: Sequence[str],
    created_after: datetime | None,
    created_before: datetime | None,
) -> list[Record]:
    """Runs before an id, newest first; `equal` are columns and the values that they must have."""
    runs = cast(Any, Run).__table__.c
    statement = (
        select(*(runs[name] for name in RUN_MEMBERS))
        .where(*(runs[name] == value for name, value in equal.items()))
        .order_by(runs.id.desc())
        .limit(limit)
    )
    if before is not None:
        statement = statement.where(runs.id < before)
    if states:
        statement = statement.where(runs.state.in_(states))
        if not TERMINAL.intersection(states):  # says nothing new, but lets the index of live runs serve
            statement = statement.where(runs.end_time.is_(None))
    if created_after is not None:
        statement = statement.where(
            runs.create_time >= created_after, runs.id >= _first_id(created_after - _CLOCKS_APART)
        )
    if created_before is not None:
        statement = statement.where(
            runs.create_time < created_before, runs.id < _first_id(created_before + _CLOCKS_APART)
        )
    return await rows(connection, statement)


def _first_id(instant: datetime) -> UUID:
    """The least UUIDv7 of an instant."""
    milliseconds = max(0, int(instant.timestamp() * 1000)) & (2**48 - 1)
    return UUID(int=milliseconds << 80)


async def events_page(connection: Connection, run_id: UUID, after: int, limit: int) -> list[Record]:
    """The changes of a run's state behind a version, oldest first."""
    return list(
        await connection.fetch(
            """
            SELECT version, state, attempt, reason, worker, time FROM run_events
            WHERE run_id = $1 AND version > $2 ORDER BY version LIMIT $3
            """,
            run_id,
            after,
            limit,
        )
    )


async def ledger_counts(connection: Connection, job_id: UUID, begin: datetime, end: datetime) -> Record:
    """How many scheduled times in [begin, end) ran, and how many rows of skips that lie inside count, and whether
    exactly."""
    return cast(
        Record,
        await connection.fetchrow(
            """
            SELECT (
                SELECT count(*) FROM runs
                WHERE job_id = $1 AND kind = 'schedule' AND scheduled_time >= $2 AND scheduled_time < $3
            ) AS runs, coalesce(sum(count), 0)::bigint AS skipped, coalesce(bool_and(exact), true) AS exact
            FROM skips WHERE job_id = $1 AND last_time >= $2 AND last_time < $3 AND first_time >= $2
            """,
            job_id,
            begin,
            end,
        ),
    )


async def skips_across(connection: Connection, job_id: UUID, begin: datetime, end: datetime) -> list[Record]:
    """Rows of skips that lie in [begin, end) in part only."""
    return list(
        await connection.fetch(
            """
            SELECT first_time, last_time, count, exact FROM skips
            WHERE job_id = $1 AND last_time >= $2 AND first_time < $3 AND (first_time < $2 OR last_time >= $3)
            """,
            job_id,
            begin,
            end,
        )
    )


async def ledger_twice(connection: Connection, job_id: UUID, begin: datetime, end: datetime) -> int:
    """How many runs of scheduled times, and rows of skips, lie at times of another row of skips."""
    twice: int = await connection.fetchval(
        """
        WITH rows AS (
            SELECT first_time, last_time, max(last_time) OVER (
                ORDER BY first_time, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS before
            FROM skips WHERE job_id = $1 AND last_time >= $2 AND first_time < $3
        )
        SELECT (SELECT count(*) FROM rows WHERE before >= first_time) + (
            SELECT count(*) FROM rows JOIN runs ON runs.job_id = $1 AND runs.kind = 'schedule'
                AND runs.scheduled_time BETWEEN rows.first_time AND rows.last_time
        )
        """,
        job_id,
        begin,
        end,
    )
    return twice


async def versions_between(
    connection: Connection, job_id: UUID, begin: datetime, end: datetime, limit: int
) -> list[Record]:
    """The definitions of a job that were valid at times in [begin, end), oldest first; `begin` is the scheduled time
    behind which each began, as far as it is known."""
    return list(
        await connection.fetch(
            """
            WITH versions AS (
                SELECT version, definition, coalesce(cursor_time, date_trunc('second', create_time)) AS begin
                FROM job_versions WHERE job_id = $1
            )
            SELECT * FROM versions
            WHERE begin < $3 AND version >= coalesce((SELECT max(version) FROM versions WHERE begin < $2), 0)
            ORDER BY version LIMIT $4
            """,
            job_id,
            begin,
            end,
            limit,
        )
    )


async def ledger_page(
    connection: Connection, job_id: UUID, begin: datetime, end: datetime, after: datetime | None, limit: int
) -> list[Record]:
    """Runs and rows of skips in [begin, end), by the (first) scheduled time, behind `after`."""
    return list(
        await connection.fetch(
            """
            (SELECT scheduled_time AS at, 'run' AS outcome, id AS run_id, state, NULL AS reason, NULL AS last_time,
                NULL AS count
            FROM runs WHERE job_id = $1 AND kind = 'schedule' AND scheduled_time >= $2 AND scheduled_time < $3
                AND ($4::timestamptz IS NULL OR scheduled_time > $4)
            ORDER BY scheduled_time LIMIT $5)
            UNION ALL
            (SELECT first_time, 'skip', run_id, NULL, reason, last_time, count
            FROM skips WHERE job_id = $1 AND last_time >= $2 AND first_time < $3
                AND ($4::timestamptz IS NULL OR first_time > $4)
            ORDER BY first_time LIMIT $5)
            ORDER BY at LIMIT $5
            """,
            job_id,
            begin,
            end,
            after,
            limit,
        )
    )


async def live_runs_by_state(connection: Connection) -> dict[str, int]:
    """How many runs have not ended, by state."""
    found = await connection.fetch("SELECT state, count(*) AS count FROM runs WHERE end_time IS NULL GROUP BY state")
    return {row["state"]: row["count"] for row in found}


async def plane_figures(connection: Connection) -> Record:
    """The backlog of the outbox, the lateness of the schedule, and the schedulers that live."""
    return cast(
        Record,
        await connection.fetchrow(
            """
            SELECT outbox.*, due.*, (
                SELECT count(*) FROM processes WHERE kind = 'scheduler' AND beat_time > now() - interval '10 s'
            ) AS schedulers
            FROM (
                SELECT count(*) AS waiting,
                    coalesce(extract(epoch FROM now() - min(due_time)), 0)::float8 AS waiting_age_s
                FROM runs WHERE state = 'PENDING' AND dispatch_time IS NULL AND waits_for IS NULL AND due_time <= now()
            ) AS outbox, (
                SELECT count(*) AS due_jobs,
                    coalesce(extract(epoch FROM now() - min(next_run_time)), 0)::float8 AS due_lateness_s
                FROM jobs WHERE next_run_time <= now()
            ) AS due
            """
        ),
    )


async def surroundings_of(connection: Connection, queue: str, node: str | None) -> tuple[Record, list[Record]]:
    """What `why` asks of a queue: its row with what was last seen of it and the schedulers that live, and its workers.

    Members of a queue or a sighting that is not there are null. `node` is a worker that is wanted in any case.
    """
    row = await connection.fetchrow(
        """
        SELECT queues.name, queues.paused, queues.problem, queues.declare_time, queues.author, queues.update_time,
            seen.ready, seen.consumers, seen.workers, seen.known_tasks, seen.common_tasks, seen.look_time,
            (SELECT count(*) FROM processes WHERE kind = 'scheduler' AND beat_time > now() - interval '10 s')
                AS schedulers,
            greatest((SELECT max(look_time) FROM queue_sightings), (SELECT max(seen_time) FROM workers))
                AS catalogue_time
        FROM (SELECT $1::text AS name) AS asked
        LEFT JOIN queues USING (name) LEFT JOIN queue_sightings AS seen ON seen.queue = queues.name
        """,
        queue,
    )
    workers = await connection.fetch(
        """
        SELECT node, tasks, pool, concurrency, active, seen_time, $1 = ANY(queues) AS consumes
        FROM workers WHERE $1 = ANY(queues) OR node = $2 ORDER BY node
        """,
        queue,
        node,
    )
    return cast(Record, row), list(workers)


async def runs_ahead(connection: Connection, queue: str, sent: datetime, most: int) -> int:
    """How many runs were sent to the queue before then and not yet begun, counted up to `most`."""
    count: int = await connection.fetchval(
        """
        SELECT count(*) FROM (
            SELECT FROM runs
            WHERE end_time IS NULL AND state = 'PENDING' AND queue = $1 AND dispatch_time < $2 LIMIT $3
        ) AS ahead
        """,
        queue,
        sent,
        most,
    )
    return count


async def live_runs_of(connection: Connection, job_id: UUID, limit: int) -> list[Record]:
    """The runs of a job that have not ended, oldest first; `live_count` counts all of them. Those of a backfill that
    stand apart are in nobody's way."""
    return list(
        await connection.fetch(
            """
            SELECT *, count(*) OVER () AS live_count FROM runs
            WHERE job_id = $1 AND end_time IS NULL AND NOT apart ORDER BY id LIMIT $2
            """,
            job_id,
            limit,
        )
    )


async def newest_skip(connection: Connection, job_id: UUID) -> Record | None:
    """The newest row of scheduled times of a job that did not run."""
    return await connection.fetchrow("SELECT * FROM skips WHERE job_id = $1 ORDER BY last_time DESC LIMIT 1", job_id)
