"""The statements of the dispatch stage, each named for what it decides. The caller owns the transaction.

Rows are locked in the order of their ids, as everywhere, so that no two passes can wait for each other.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from app.database import Connection, Record

#: A claim that is older than this is free again: its owner died or hangs.
CLAIM_AGE: Final = timedelta(seconds=30)

_CLAIM = """
    WITH ripe AS (
        SELECT runs.id, queues.exchange, queues.routing_key, queues.max_message_kib
        FROM runs JOIN queues ON queues.name = runs.queue
        WHERE runs.state = 'PENDING' AND runs.dispatch_time IS NULL AND runs.due_time <= $1
            AND (runs.claim_time IS NULL OR runs.claimed_by = $2 OR runs.claim_time < $3)
            AND (runs.start_deadline_time IS NULL OR runs.start_deadline_time > $1)
            AND queues.declare_time IS NOT NULL AND NOT queues.paused AND queues.problem IS NULL
        ORDER BY runs.id
        LIMIT $4
        FOR NO KEY UPDATE OF runs SKIP LOCKED
    )
    UPDATE runs SET claim_time = $1, claimed_by = $2
    FROM ripe WHERE runs.id = ripe.id
    RETURNING runs.*, ripe.exchange, ripe.routing_key, ripe.max_message_kib
"""

_MARK = """
    WITH mine AS (
        SELECT runs.id FROM runs JOIN unnest($3::uuid[], $4::int4[]) AS sent (id, n) ON sent.id = runs.id
        WHERE runs.claimed_by = $2 AND runs.state = 'PENDING' AND runs.dispatch_time IS NULL
            AND runs.dispatches + 1 = sent.n
        ORDER BY runs.id
        FOR NO KEY UPDATE OF runs
    )
    UPDATE runs SET dispatches = dispatches + 1, dispatch_time = $1, reason = NULL, claim_time = NULL,
        claimed_by = NULL, version = version + 1, update_time = $1
    FROM mine WHERE runs.id = mine.id
    RETURNING runs.*
"""

_RELEASE = """
    WITH mine AS (
        SELECT runs.id, back.reason, back.due_time, runs.reason IS DISTINCT FROM back.reason AS news
        FROM runs JOIN unnest($3::uuid[], $4::text[], $5::timestamptz[]) AS back (id, reason, due_time)
            ON back.id = runs.id
        WHERE runs.claimed_by = $2 AND runs.state = 'PENDING' AND runs.dispatch_time IS NULL
        ORDER BY runs.id
        FOR NO KEY UPDATE OF runs
    )
    UPDATE runs SET claim_time = NULL, claimed_by = NULL, due_time = greatest(runs.due_time, mine.due_time),
        reason = mine.reason, version = version + news::int,
        update_time = CASE WHEN news THEN $1 ELSE update_time END
    FROM mine WHERE runs.id = mine.id
    RETURNING runs.*, mine.news
"""

_TELL = """
    WITH waiting AS (
        SELECT runs.id, told.reason
        FROM runs LEFT JOIN queues ON queues.name = runs.queue
        CROSS JOIN LATERAL (SELECT CASE
            WHEN queues.name IS NULL THEN 'there is no queue ' || runs.queue
            WHEN queues.paused THEN 'queue paused'
            WHEN queues.problem IS NOT NULL THEN 'queue in trouble: ' || queues.problem
            WHEN queues.declare_time IS NULL THEN 'queue not yet found on the broker'
            ELSE $2
        END AS reason) AS told
        WHERE runs.state = 'PENDING' AND runs.dispatch_time IS NULL AND runs.due_time <= $1
            AND runs.claim_time IS NULL AND told.reason IS NOT NULL AND told.reason IS DISTINCT FROM runs.reason
        ORDER BY runs.id
        LIMIT $3
        FOR NO KEY UPDATE OF runs SKIP LOCKED
    )
    UPDATE runs SET reason = waiting.reason, version = version + 1, update_time = $1
    FROM waiting WHERE runs.id = waiting.id
    RETURNING runs.*
"""


async def claim(connection: Connection, now: datetime, claimer: str, limit: int) -> list[Record]:
    """Take the oldest runs that may go out, in the order of their ids, for 30 s.

    Rows of `runs` with `exchange`, `routing_key` and `max_message_kib` of their queue. A claim that this claimer holds
    already is taken again: a pass of its own was interrupted.
    """
    rows = await connection.fetch(_CLAIM, now, claimer, now - CLAIM_AGE, limit)
    return sorted(rows, key=lambda row: UUID(int=row["id"].int))


async def mark_dispatched(
    connection: Connection, now: datetime, claimer: str, sent: Sequence[tuple[UUID, int]]
) -> list[Record]:
    """Record which dispatches the broker confirmed: (run, n). The rows that changed.

    A run that a report has moved on meanwhile, or that somebody else claimed, is left alone.
    """
    rows: list[Record] = await connection.fetch(_MARK, now, claimer, [run for run, _ in sent], [n for _, n in sent])
    return rows


async def release(
    connection: Connection, now: datetime, claimer: str, back: Sequence[tuple[UUID, str | None, datetime]]
) -> list[Record]:
    """Give back claimed runs that were not confirmed: (run, reason, not before). The rows whose reason is news."""
    columns: list[list[Any]] = [list(column) for column in zip(*back, strict=True)]
    rows = await connection.fetch(_RELEASE, now, claimer, *columns)
    return [row for row in rows if row["news"]]


async def tell_why_waiting(connection: Connection, now: datetime, away: str | None, limit: int) -> list[Record]:
    """Write the reason on due runs that nobody may claim: their queue is closed, or `away` holds for all others.

    Touches only rows that say something else now; the rows that changed, at most `limit`.
    """
    rows: list[Record] = await connection.fetch(_TELL, now, away, limit)
    return rows


async def insert_default_queues(connection: Connection, names: Sequence[str], kind: str, *, dead_letter: bool) -> None:
    """Make queue rows with the given names where there are none."""
    await connection.execute(
        """
        INSERT INTO queues (name, namespace, exchange, routing_key, type, dead_letter, author)
        SELECT name, 'default', name, name, $2, $3, 'jobplane' FROM unnest($1::text[]) AS names (name)
        ON CONFLICT (name) DO NOTHING
        """,
        names,
        kind,
        dead_letter,
    )


async def queues_to_look_at(
    connection: Connection, *, troubled: bool, everything: bool, after: str, limit: int
) -> list[Record]:
    """Queues whose objects on the broker need a look, by name from `after` on: new ones, those in trouble, all."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT name, exchange, exchange_type, routing_key, type, max_priority, delivery_limit, consumer_timeout_s,
            dead_letter, adopted, version
        FROM queues
        WHERE name > $1 AND ($3 OR (problem IS NULL AND declare_time IS NULL) OR ($2 AND problem IS NOT NULL))
        ORDER BY name LIMIT $4
        """,
        after,
        troubled,
        everything,
        limit,
    )
    return rows


async def queue_stands(connection: Connection, now: datetime, name: str, version: int, *, adopted: bool) -> bool:
    """Record that a queue is on the broker, and whether it was there before us; whether that is news."""
    return (
        await connection.fetchval(
            """
            UPDATE queues SET declare_time = coalesce(declare_time, $1), adopted = coalesce(adopted, $4), problem = NULL
            WHERE name = $2 AND version = $3 AND (declare_time IS NULL OR adopted IS NULL OR problem IS NOT NULL)
            RETURNING true
            """,
            now,
            name,
            version,
            adopted,
        )
        is not None
    )


async def queue_in_trouble(connection: Connection, name: str, version: int, problem: str) -> bool:
    """Record what the broker refuses about a queue; whether that is news."""
    return (
        await connection.fetchval(
            """
            UPDATE queues SET problem = $3 WHERE name = $1 AND version = $2 AND problem IS DISTINCT FROM $3
            RETURNING true
            """,
            name,
            version,
            problem,
        )
        is not None
    )


async def only_looker(connection: Connection) -> bool:
    """Become the one session that looks after queues, until `let_others_look` or the end of the connection."""
    alone: bool = await connection.fetchval("SELECT pg_try_advisory_lock(hashtext('jobplane'), hashtext('queues'))")
    return alone


async def let_others_look(connection: Connection) -> None:
    """Another session may look after queues now."""
    await connection.execute("SELECT pg_advisory_unlock(hashtext('jobplane'), hashtext('queues'))")
