"""What reaping and its search ask the database, one statement a function."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from app.database import Connection, Record
from app.states import PENDING, RETRY, SUCCESS


async def running(connection: Connection, after: UUID, limit: int) -> list[Record]:
    """A page of the runs that a worker has: those that hold a lease, or may without our having heard of it."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT runs.id, state, leased, attempt, retries, first_dispatch, dispatches, worker, runs.update_time,
               result_db, result_prefix
        FROM runs LEFT JOIN queues ON queues.name = runs.queue
        WHERE end_time IS NULL AND state <> ALL($3) AND id > $1 ORDER BY id LIMIT $2
        """,
        after,
        limit,
        [PENDING, RETRY],
    )
    return rows


async def past_start_deadline(connection: Connection, now: datetime, after: UUID, limit: int) -> list[Record]:
    """Runs that no worker has started by their start deadline; `untouched` if no message of them can be out.

    A claim that was given back, for the broker's word did not come, leaves no mark but a version.
    """
    rows: list[Record] = await connection.fetch(
        """
        SELECT id, attempt, retries, runs.version,
               claim_time IS NULL AND dispatches = 0 AND (runs.version = 1 OR waits_for IS NOT NULL) AS untouched,
               first_dispatch, dispatches, coalesce(dispatch_time, claim_time) AS sent_time, result_db, result_prefix
        FROM runs LEFT JOIN queues ON queues.name = runs.queue
        WHERE end_time IS NULL AND state = $4 AND attempt = 1 AND start_deadline_time <= $1 AND id > $2
        ORDER BY id LIMIT $3
        """,
        now,
        after,
        limit,
        PENDING,
    )
    return rows


async def past_deadline(connection: Connection, now: datetime, after: UUID, limit: int) -> list[Record]:
    """Runs that have not ended by their deadline; `untouched` if no message of them can be out, `sent` if one is."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT runs.id, queue, state, reason, leased, worker, attempt, retries, deadline_time, runs.update_time,
               claim_time IS NULL AND dispatches = 0 AND (runs.version = 1 OR waits_for IS NOT NULL) AS untouched,
               claim_time IS NOT NULL OR dispatches >= first_dispatch AS sent, first_dispatch, dispatches,
               coalesce(dispatch_time, claim_time) AS sent_time, result_db, result_prefix
        FROM runs LEFT JOIN queues ON queues.name = runs.queue
        WHERE end_time IS NULL AND deadline_time <= $1 AND id > $2
        ORDER BY id LIMIT $3
        """,
        now,
        after,
        limit,
    )
    return rows


async def silent_with_reason(connection: Connection, reason: str, before: datetime, limit: int) -> list[UUID]:
    """Live runs with this reason of which nothing was heard since."""
    rows = await connection.fetch(
        "SELECT id FROM runs WHERE end_time IS NULL AND reason = $1 AND update_time < $2 ORDER BY id LIMIT $3",
        reason,
        before,
        limit,
    )
    return [row["id"] for row in rows]


async def known_strangers(connection: Connection, now: datetime) -> dict[str, dict[str, bool]]:
    """By queue, the stock workers that were seen on it within the hour, and whether they live."""
    rows = await connection.fetch(
        """
        SELECT queue, node, seen_time >= $1::timestamptz - interval '30 s' AS live
        FROM workers CROSS JOIN unnest(queues) AS names (queue)
        WHERE NOT ours AND seen_time >= $1::timestamptz - interval '1 hour'
        """,
        now,
    )
    found: dict[str, dict[str, bool]] = {}
    for row in rows:
        found.setdefault(row["queue"], {})[row["node"]] = row["live"]
    return found


async def told_by_strangers(connection: Connection, kinds: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those (queue, task) of which a stock worker has told a success lately: silence about others means nothing."""
    if not kinds:
        return set()
    rows = await connection.fetch(
        """
        SELECT kinds.queue, kinds.task FROM unnest($1::text[], $2::text[]) AS kinds (queue, task)
        WHERE EXISTS (
            SELECT FROM (SELECT * FROM runs WHERE runs.task = kinds.task ORDER BY id DESC LIMIT 1000) AS newest
            WHERE newest.queue = kinds.queue AND newest.state = $3 AND NOT newest.leased
        )
        """,
        [queue for queue, _ in kinds],
        [task for _, task in kinds],
        SUCCESS,
    )
    return {(row["queue"], row["task"]) for row in rows}


async def gone_from(connection: Connection, now: datetime, limit: int) -> list[Record]:
    """Runs that a worker without a lease has, and what is to be said of it now: `wanted`, null for nothing.

    Only those that say something else. A worker counts as gone if somebody looked lately and has not seen it for a
    minute, or has seen another life of it, and if the run was silent as long.
    """
    rows: list[Record] = await connection.fetch(
        """
        SELECT * FROM (
            SELECT runs.id, runs.attempt, runs.retries, runs.reason, CASE
                WHEN runs.update_time >= $1::timestamptz - interval '60 s' AND runs.reason IS NULL THEN NULL
                WHEN workers.seen_time < $1::timestamptz - interval '60 s' THEN
                    'worker ' || workers.node || ' has not been seen since ' || to_char(
                        workers.seen_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
                WHEN workers.start_time > runs.start_time + interval '5 s' THEN
                    'worker ' || workers.node || ' was started anew and does not say that it has it'
                END AS wanted
            FROM runs JOIN workers ON workers.node = runs.worker
                JOIN queue_sightings AS seen ON seen.queue = runs.queue
            WHERE runs.end_time IS NULL AND runs.start_time IS NOT NULL AND NOT runs.leased AND runs.state <> ALL($3)
                AND runs.cancel IS NULL AND seen.look_time > $1::timestamptz - interval '30 s'
                AND (runs.reason IS NULL OR starts_with(runs.reason, 'worker ' || workers.node || ' '))
        ) AS told
        WHERE wanted IS DISTINCT FROM reason ORDER BY id LIMIT $2
        """,
        now,
        limit,
        [PENDING, RETRY],
    )
    return rows


async def unheard(connection: Connection, before: datetime, after: UUID, limit: int) -> list[Record]:
    """A page of the runs that were dispatched before then on a queue that is not paused, and that no worker started,
    and of those that wait for Celery's own retry since then.
    """
    rows: list[Record] = await connection.fetch(
        """
        SELECT runs.id, runs.queue, runs.task, runs.attempt, runs.retries, runs.state, runs.reason, runs.worker,
               runs.first_dispatch, runs.dispatches, runs.dispatch_time, runs.update_time,
               queues.result_db, queues.result_prefix
        FROM runs LEFT JOIN queues ON queues.name = runs.queue
        WHERE runs.end_time IS NULL AND runs.dispatch_time < $1 AND runs.id > $2 AND runs.cancel IS NULL
          AND (runs.state = $4 OR (runs.state = $5 AND runs.update_time < $1)) AND queues.paused IS NOT TRUE
        ORDER BY runs.id LIMIT $3
        """,
        before,
        after,
        limit,
        PENDING,
        RETRY,
    )
    return rows
