"""The statements of the dispatch stage, each named for what it decides. The caller owns the transaction.

Rows are locked in the order of their ids, as everywhere, so that no two passes can wait for each other.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.database import Connection, Record
from app.dispatch.claim_queries import KINDS, NO_LIMIT, SIGHTING_AGE, TOLD, UNSENT
from app.dispatch.hold import AWAY, Hold
from app.progress.moves import NO_WORKER, NOT_REGISTERED_MOST

_MARK = """
    WITH mine AS (
        SELECT runs.id, CASE WHEN seen.consumers = 0 THEN $6 END AS reason
        FROM runs JOIN unnest($3::uuid[], $4::int4[]) AS sent (id, n) ON sent.id = runs.id
        LEFT JOIN queue_sightings AS seen ON seen.queue = runs.queue AND seen.look_time > $5
        WHERE runs.claimed_by = $2 AND runs.state = 'PENDING' AND runs.dispatch_time IS NULL
            AND runs.dispatches + 1 = sent.n
        ORDER BY runs.id
        FOR NO KEY UPDATE OF runs
    )
    UPDATE runs SET dispatches = dispatches + 1, dispatch_time = $1, reason = mine.reason, claim_time = NULL,
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

_WAITING_KINDS = f"""
    WITH RECURSIVE {KINDS}
    SELECT kinds.queue, kinds.task, queues.name IS NOT NULL AS known, queues.paused, queues.problem,
        queues.declare_time, queues.max_active, queues.rate_limit, queues.rate_tokens, queues.rate_time,
        coalesce(places.taken, 0) AS places, seen.workers,
        coalesce(kinds.task <> ALL(seen.known_tasks) AND {TOLD}, false) AS unknown_task,
        coalesce(kinds.task <> ALL(seen.common_tasks) AND {TOLD}, false) AS uncommon_task
    FROM kinds LEFT JOIN queues ON queues.name = kinds.queue
    LEFT JOIN (SELECT queue, count(*) AS taken FROM queue_places GROUP BY queue) AS places
        ON places.queue = kinds.queue
    LEFT JOIN queue_sightings AS seen ON seen.queue = kinds.queue AND seen.look_time > $1
"""  # noqa: S608

# By its reason a run that may be out without a confirm keeps its place: it goes on to say that, whatever holds it now.
_TELL = f"""
    WITH told AS MATERIALIZED (
        SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::int4[], $7::bool[])
            AS told (queue, task, reason, most, for_place)
    ), untold AS (
        SELECT run.id FROM told CROSS JOIN LATERAL (
            SELECT runs.id FROM runs
            WHERE runs.queue = told.queue AND runs.task = told.task AND {UNSENT}
                AND runs.due_time <= $1 AND runs.not_registered < told.most
                AND runs.claim_time IS NULL AND runs.cancel IS NULL AND runs.reason IS DISTINCT FROM told.reason
                AND NOT (
                    (told.for_place OR starts_with(coalesce(runs.reason, ''), '{AWAY}'))
                    AND EXISTS (SELECT FROM queue_places WHERE run_id = runs.id)
                )
            ORDER BY runs.id LIMIT $6
        ) AS run
        LIMIT $6
    ), waiting AS (
        SELECT runs.id, told.reason FROM runs JOIN told USING (queue, task)
        WHERE runs.id = ANY(ARRAY(SELECT id FROM untold)) AND {UNSENT} AND runs.claim_time IS NULL
            AND runs.cancel IS NULL AND runs.reason IS DISTINCT FROM told.reason
        ORDER BY runs.id
        FOR NO KEY UPDATE OF runs SKIP LOCKED
    )
    UPDATE runs SET reason = waiting.reason, version = version + 1, update_time = $1
    FROM waiting WHERE runs.id = waiting.id
    RETURNING runs.*
"""  # noqa: S608

_TELL_CONSUMED = """
    WITH taken AS (
        SELECT runs.id FROM runs JOIN queue_sightings AS seen ON seen.queue = runs.queue
        WHERE runs.end_time IS NULL AND runs.state = 'PENDING' AND runs.dispatch_time IS NOT NULL
            AND runs.reason = $3 AND seen.consumers > 0 AND seen.look_time > $2
        ORDER BY runs.id
        LIMIT $4
        FOR NO KEY UPDATE OF runs SKIP LOCKED
    )
    UPDATE runs SET reason = NULL, version = version + 1, update_time = $1
    FROM taken WHERE runs.id = taken.id
    RETURNING runs.*
"""


async def mark_dispatched(
    connection: Connection, now: datetime, claimer: str, sent: Sequence[tuple[UUID, int]]
) -> list[Record]:
    """Record which dispatches the broker confirmed: (run, n). The rows that changed.

    A run that a report has moved on meanwhile, or that somebody else claimed, is left alone. One that lies now where
    nobody consumes says so.
    """
    rows: list[Record] = await connection.fetch(
        _MARK, now, claimer, [run for run, _ in sent], [n for _, n in sent], now - SIGHTING_AGE, NO_WORKER
    )
    return rows


async def release(
    connection: Connection, now: datetime, claimer: str, back: Sequence[tuple[UUID, str | None, datetime]]
) -> list[Record]:
    """Give back claimed runs that were not confirmed: (run, reason, not before). The rows whose reason is news."""
    columns: list[list[Any]] = [list(column) for column in zip(*back, strict=True)]
    rows = await connection.fetch(_RELEASE, now, claimer, *columns)
    return [row for row in rows if row["news"]]


async def waiting_kinds(connection: Connection, now: datetime) -> list[Record]:
    """The (queue, task) of all runs that were not sent, with what their queue says and which workers consume it."""
    rows: list[Record] = await connection.fetch(_WAITING_KINDS, now - SIGHTING_AGE)
    return rows


async def tell_why_waiting(connection: Connection, now: datetime, holds: Sequence[Hold], limit: int) -> list[Record]:
    """Write the reason of a hold on its runs that are due.

    Touches only rows that say something else now, and none whose cancel says why; the rows that changed, at most
    `limit`.
    """
    columns: list[list[Any]] = [
        [hold.queue for hold in holds],
        [hold.task for hold in holds],
        [hold.reason for hold in holds],
        [NOT_REGISTERED_MOST if hold.spares_not_registered else NO_LIMIT for hold in holds],
    ]
    for_place = [hold.spares_placed for hold in holds]
    rows: list[Record] = await connection.fetch(_TELL, now, *columns, limit, for_place)
    return rows


async def tell_consumed(connection: Connection, now: datetime, limit: int) -> list[Record]:
    """Take `NO_WORKER` back from sent runs whose queue has consumers again; the rows that changed, at most `limit`."""
    rows: list[Record] = await connection.fetch(_TELL_CONSUMED, now, now - SIGHTING_AGE, NO_WORKER, limit)
    return rows


async def count_waiting(connection: Connection, queue: str, task: str, most: int) -> int:
    """How many runs of a kind wait to be sent, counted up to `most`."""
    count: int = await connection.fetchval(
        f"""
        SELECT count(*) FROM (SELECT FROM runs WHERE queue = $1 AND task = $2 AND {UNSENT} LIMIT $3) AS waiting
        """,  # noqa: S608
        queue,
        task,
        most,
    )
    return count


async def lock_runs(connection: Connection, ids: Sequence[UUID]) -> list[Record]:
    """These runs, as they stand until the transaction ends."""
    rows: list[Record] = await connection.fetch(
        "SELECT * FROM runs WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE", ids
    )
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
