"""The statements of the limits of queues, each named for what it decides. The caller owns the transaction.

A run takes a place of its queue from its claim on until it has ended, or waits for another time. One that may be on the
broker although nobody confirmed it keeps its place: a claim whose owner died, and what was on its way as the broker
went away.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from app.database import Connection, Record
from app.dispatch.claim_queries import CLAIM_AGE, UNSENT
from app.dispatch.hold import AWAY

_GATE: Final = "hashtext('jobplane'), hashtext('claim')"

_BACK: Final = "runs.state = 'PENDING' AND runs.dispatch_time IS NULL AND runs.claim_time IS NULL"
_MAY_BE_OUT: Final = f"coalesce(starts_with(runs.reason, '{AWAY}'), false)"
#: Whether a run that has a place still needs it.
_NEEDED: Final = f"runs.end_time IS NULL AND NOT ({_BACK} AND NOT {_MAY_BE_OUT})"

_LIMITED = f"""
    WITH RECURSIVE waiting AS (
        (SELECT queue FROM runs WHERE {UNSENT} ORDER BY queue LIMIT 1)
        UNION ALL
        SELECT next.queue FROM waiting CROSS JOIN LATERAL (
            SELECT queue FROM runs WHERE {UNSENT} AND queue > waiting.queue ORDER BY queue LIMIT 1
        ) AS next
    )
    SELECT name, max_active, rate_limit, rate_tokens, rate_time FROM queues
    WHERE name IN (SELECT queue FROM waiting) AND (max_active IS NOT NULL OR rate_limit IS NOT NULL)
        AND declare_time IS NOT NULL AND NOT paused AND problem IS NULL
    ORDER BY name FOR NO KEY UPDATE SKIP LOCKED
"""  # noqa: S608  (text of our own)

_TIDY = f"""
    WITH placed AS (
        SELECT place.queue, place.run_id, {_NEEDED} AS needed,
            {UNSENT} AND (runs.claim_time IS NULL OR runs.claimed_by = $2 OR runs.claim_time < $3) AS again
        FROM queue_places AS place JOIN runs ON runs.id = place.run_id
        WHERE place.queue = ANY($1::text[])
    ), gone AS (
        SELECT run_id FROM queue_places WHERE run_id IN (SELECT run_id FROM placed WHERE NOT needed)
        FOR UPDATE SKIP LOCKED
    ), tidied AS (
        DELETE FROM queue_places WHERE run_id IN (SELECT run_id FROM gone)
    )
    SELECT queue, count(*) AS taken, coalesce(array_agg(run_id) FILTER (WHERE again), '{{}}') AS again
    FROM placed WHERE needed GROUP BY queue
"""  # noqa: S608


async def pass_the_gate(connection: Connection) -> datetime:
    """The time, once nobody sets a limit; none is set before this transaction ends."""
    row = await connection.fetchrow(f"SELECT pg_advisory_xact_lock_shared({_GATE}), clock_timestamp() AS now")
    assert row is not None
    now: datetime = row["now"]
    return now


async def shut_the_gate(connection: Connection) -> None:
    """Wait until what others are claiming is written, and let nobody claim until the transaction ends."""
    await connection.execute(f"SELECT pg_advisory_xact_lock({_GATE})")


async def any_unbounded(connection: Connection, queues: Sequence[str]) -> bool:
    """Whether one of these queues has no limit of places as yet."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM queues WHERE name = ANY($1::text[]) AND max_active IS NULL)", queues
    )
    return found


async def lock_limited(connection: Connection) -> list[Record]:
    """The queues with limits for which something waits, for this pass alone.

    One that another pass has in hand at this moment is left out.
    """
    rows: list[Record] = await connection.fetch(_LIMITED)
    return rows


async def tidy_places(connection: Connection, now: datetime, claimer: str, queues: Sequence[str]) -> list[Record]:
    """Take back the places that nobody needs any more; by queue how many are `taken`, and which of their runs are to be
    sent again."""
    rows: list[Record] = await connection.fetch(_TIDY, queues, claimer, now - CLAIM_AGE)
    return rows


async def take_places(connection: Connection, runs: Sequence[UUID]) -> None:
    """Give runs a place of their queue; those that have one keep it."""
    await connection.execute(
        """
        INSERT INTO queue_places (run_id, queue) SELECT id, queue FROM runs WHERE id = ANY($1::uuid[])
        ON CONFLICT (run_id) DO NOTHING
        """,
        runs,
    )


async def keep_tokens(connection: Connection, now: datetime, queues: Sequence[str], tokens: Sequence[float]) -> None:
    """Write what is left of the rates of these locked queues."""
    await connection.execute(
        """
        UPDATE queues SET rate_tokens = spent.tokens, rate_time = $1
        FROM unnest($2::text[], $3::float8[]) AS spent (queue, tokens) WHERE queues.name = spent.queue
        """,
        now,
        queues,
        tokens,
    )


async def seed_places(connection: Connection, queue: str) -> None:
    """Give a place to each run that was sent to this queue and has not ended; the gate is shut."""
    await connection.execute(
        f"""
        INSERT INTO queue_places (run_id, queue)
        SELECT id, queue FROM runs WHERE queue = $1 AND end_time IS NULL AND NOT ({_BACK})
        ON CONFLICT (run_id) DO NOTHING
        """,  # noqa: S608
        queue,
    )


async def drop_places(connection: Connection, queue: str) -> None:
    """Forget the places of a locked queue: it has no limit of them any more."""
    await connection.execute("DELETE FROM queue_places WHERE queue = $1", queue)


async def places_taken(connection: Connection, queue: str) -> int:
    """How many places of this queue are taken."""
    taken: int = await connection.fetchval(
        f"""
        SELECT count(*) FROM queue_places AS place JOIN runs ON runs.id = place.run_id
        WHERE place.queue = $1 AND {_NEEDED}
        """,  # noqa: S608
        queue,
    )
    return taken


async def first_places(connection: Connection, queue: str, most: int) -> list[Record]:
    """The oldest runs that have a place of this queue: `id`, `worker`."""
    rows: list[Record] = await connection.fetch(
        f"""
        SELECT runs.id, runs.worker FROM queue_places AS place JOIN runs ON runs.id = place.run_id
        WHERE place.queue = $1 AND {_NEEDED} ORDER BY runs.id LIMIT $2
        """,  # noqa: S608
        queue,
        most,
    )
    return rows


async def has_place(connection: Connection, run_id: UUID) -> bool:
    """Whether this run has a place of its queue."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM queue_places WHERE run_id = $1)", run_id)
    return found


async def limited_queue(connection: Connection, queue: str) -> Record | None:
    """A queue that has limits, with what is left of its rate."""
    return await connection.fetchrow(
        """
        SELECT name, max_active, rate_limit, rate_tokens, rate_time FROM queues
        WHERE name = $1 AND (max_active IS NOT NULL OR rate_limit IS NOT NULL)
        """,
        queue,
    )
