"""Which runs a pass takes, beside the limits of their queues. The caller owns the transaction."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from app.database import Connection, Record
from app.dispatch.room import Room
from app.logs.place import FOLDER_SQL
from app.progress.moves import NOT_REGISTERED_MOST
from workers.protocol import BUILT_IN_PREFIX

#: A claim that is older than this is free again: its owner died or hangs.
CLAIM_AGE: Final = timedelta(seconds=30)

#: What was seen of a queue longer ago than this counts as not seen: a catalogue that is dead must hold nothing back.
SIGHTING_AGE: Final = timedelta(seconds=30)
#: A claim looks at so many times the runs that it takes: others may hold the oldest ones at this moment.
_SPARE: Final = 4
NO_LIMIT: Final = 2**31 - 1

#: What the index of the outbox holds: not the runs that wait for others of their job.
UNSENT: Final = "runs.state = 'PENDING' AND runs.dispatch_time IS NULL AND runs.waits_for IS NULL"

#: The (queue, task) of all runs that are to be sent, by one step in the index for each: however many there are of it.
KINDS: Final = f"""
    kinds AS (
        (SELECT queue, task FROM runs WHERE {UNSENT} ORDER BY queue, task LIMIT 1)
        UNION ALL
        SELECT next.queue, next.task FROM kinds CROSS JOIN LATERAL (
            SELECT queue, task FROM runs
            WHERE {UNSENT} AND (queue, task) > (kinds.queue, kinds.task)
            ORDER BY queue, task LIMIT 1
        ) AS next
    )
"""  # noqa: S608  (text of our own)

#: No worker tells of Celery's own tasks.
TOLD: Final = f"NOT starts_with(kinds.task, '{BUILT_IN_PREFIX}')"

_UNLIMITED = "queues.max_active IS NULL AND queues.rate_limit IS NULL"

_RIPE = f"""
    runs.queue = open.queue AND runs.task = open.task AND {UNSENT}
        AND runs.due_time <= $1 AND runs.not_registered < open.most
        AND (runs.claim_time IS NULL OR runs.claimed_by = $2 OR runs.claim_time < $3)
        AND (runs.start_deadline_time IS NULL OR runs.start_deadline_time > $1)
        AND (runs.deadline_time IS NULL OR runs.deadline_time > $1)
        AND runs.cancel IS NULL
"""

# Of every kind in a queue without limits.
_OLDEST = f"""
    SELECT run.id FROM open CROSS JOIN LATERAL (
        SELECT runs.id FROM runs WHERE {_RIPE} ORDER BY runs.id LIMIT {_SPARE} * $4::int4
    ) AS run
    WHERE open.messages IS NULL
    ORDER BY run.id LIMIT {_SPARE} * $4::int4
"""  # noqa: S608  (numbers and text of our own)

# Of a queue with limits no more than its room, over all its tasks; what has its place already needs none.
_OLDEST_IN_ROOM = f"""
    SELECT ranked.id FROM (
        SELECT run.id, run.again, open.places, open.messages,
            row_number() OVER (PARTITION BY open.queue ORDER BY run.again DESC, run.id) AS message,
            row_number() OVER (PARTITION BY open.queue, run.again ORDER BY run.id) AS place
        FROM open CROSS JOIN LATERAL (
            (
                SELECT runs.id, false AS again FROM runs WHERE {_RIPE} AND runs.id <> ALL($10::uuid[])
                ORDER BY runs.id LIMIT least(open.places, open.messages, $4::int4)
            )
            UNION ALL
            SELECT runs.id, true FROM runs WHERE {_RIPE} AND runs.id = ANY($10::uuid[])
        ) AS run
        WHERE open.messages IS NOT NULL
    ) AS ranked
    WHERE ranked.message <= ranked.messages AND (ranked.again OR ranked.place <= ranked.places)
"""  # noqa: S608


def _claim(rooms: str, oldest: str, among: str) -> str:
    """The claim: `rooms` are the queues with limits that have room, `oldest` what is taken of those `among` queues.

    What is ripe is looked for in each kind that may go out, and nowhere else: a backlog of others costs nothing. Only
    what is taken is locked.
    """
    return f"""
    WITH RECURSIVE {KINDS}, open AS (
        SELECT kinds.queue, kinds.task, queues.exchange, queues.routing_key, queues.max_message_kib, {rooms}
            CASE WHEN kinds.task <> ALL(seen.common_tasks) AND {TOLD} THEN {NOT_REGISTERED_MOST} ELSE {NO_LIMIT}
            END AS most
        FROM kinds JOIN queues ON queues.name = kinds.queue
        LEFT JOIN queue_sightings AS seen ON seen.queue = kinds.queue AND seen.look_time > $5
        {among}
            AND queues.declare_time IS NOT NULL AND NOT queues.paused AND queues.problem IS NULL
            AND NOT coalesce(kinds.task <> ALL(seen.known_tasks) AND {TOLD}, false)
    ), oldest AS (
        {oldest}
    ), ripe AS (
        SELECT runs.id, open.exchange, open.routing_key, open.max_message_kib
        FROM runs JOIN open USING (queue, task)
        WHERE runs.id = ANY(ARRAY(SELECT id FROM oldest)) AND {UNSENT} AND runs.due_time <= $1
            AND (runs.claim_time IS NULL OR runs.claimed_by = $2 OR runs.claim_time < $3)
            AND runs.cancel IS NULL
        ORDER BY runs.id
        LIMIT $4
        FOR NO KEY UPDATE OF runs SKIP LOCKED
    )
    UPDATE runs SET claim_time = $1, claimed_by = $2,
        log_path = $6 || '/' || {FOLDER_SQL.replace("id::text", "runs.id::text")} || '/' || runs.attempt || '.log'
    FROM ripe WHERE runs.id = ripe.id
    RETURNING runs.*, ripe.exchange, ripe.routing_key, ripe.max_message_kib
    """  # noqa: S608


_CLAIM = _claim("NULL::int4 AS messages,", _OLDEST, f"WHERE {_UNLIMITED}")
_CLAIM_IN_ROOMS = _claim(
    "rooms.places, rooms.messages,",
    f"(SELECT * FROM ({_OLDEST}) AS free) UNION ALL {_OLDEST_IN_ROOM}",  # noqa: S608
    "LEFT JOIN unnest($7::text[], $8::int4[], $9::int4[]) AS rooms (queue, places, messages)"
    " ON rooms.queue = kinds.queue"
    f" WHERE (rooms.messages IS NOT NULL OR {_UNLIMITED})",
)


async def claim(
    connection: Connection, now: datetime, claimer: str, limit: int, log_store: str, rooms: Sequence[Room] = ()
) -> list[Record]:
    """Take the oldest runs that may go out, in the order of their ids, for 30 s.

    Rows of `runs` with `exchange`, `routing_key` and `max_message_kib` of their queue. A claim that this claimer holds
    already is taken again: a pass of its own was interrupted. From here on a run tells where in `log_store` the log of
    its attempt will be.
    Nothing goes to workers of which none registers the task; what was given up as not registered too often goes only
    where each of them does. Of a queue with limits that is not among the `rooms` nothing is taken.
    """
    values = [now, claimer, now - CLAIM_AGE, limit, now - SIGHTING_AGE, log_store]
    if rooms:
        columns = [[room.queue, room.places, room.messages] for room in rooms]
        again = [run_id for room in rooms for run_id in room.again]
        rows = await connection.fetch(_CLAIM_IN_ROOMS, *values, *map(list, zip(*columns, strict=True)), again)
    else:
        rows = await connection.fetch(_CLAIM, *values)
    return sorted(rows, key=lambda row: UUID(int=row["id"].int))
