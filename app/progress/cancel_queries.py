"""What the canceller asks the database, one statement a function."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from app.database import Connection, Record
from app.progress.cancelling import Audience

#: A worker that was seen this long ago lives.
_LIVES: Final = timedelta(seconds=30)


async def time_of_next_look(connection: Connection) -> tuple[datetime, datetime | None]:
    """The clock, and when the first cancel is to be looked at; one cheap question, for it is asked at every ring."""
    row = await connection.fetchrow(
        "SELECT clock_timestamp() AS now, (SELECT min(cancel_next_time) FROM runs) AS next_time"
    )
    return row["now"], row["next_time"]


async def take_due(connection: Connection, now: datetime, until: datetime, limit: int) -> list[Record]:
    """Runs whose cancel is to be looked at now, put off until then so that no other pass looks at the same time.

    Rows of `runs` with `result_db` and `result_prefix` of their queue, and `pool` of their worker.
    """
    rows: list[Record] = await connection.fetch(
        """
        WITH due AS (
            SELECT id FROM runs WHERE cancel_next_time <= $1 ORDER BY cancel_next_time LIMIT $3
            FOR NO KEY UPDATE SKIP LOCKED
        ), taken AS (
            UPDATE runs SET cancel_next_time = $2 FROM due WHERE runs.id = due.id RETURNING runs.*
        )
        SELECT taken.*, queues.result_db, coalesce(queues.result_prefix, '') AS result_prefix, workers.pool
        FROM taken
        LEFT JOIN queues ON queues.name = taken.queue
        LEFT JOIN workers ON workers.node = taken.worker AND workers.seen_time > $4
        """,
        now,
        until,
        limit,
        now - _LIVES,
    )
    return rows


async def put_off(connection: Connection, until: datetime, looks: Sequence[tuple[UUID, datetime | None]]) -> None:
    """When to look again (None: no more) at runs that `take_due` put off until then; not where one asked meanwhile.

    No news of the run: neither its version nor its time of change moves.
    """
    ids, times = [run_id for run_id, _ in looks], [time for _, time in looks]
    await connection.execute(
        """
        WITH mine AS (
            SELECT runs.id, look.next_time
            FROM runs JOIN unnest($2::uuid[], $3::timestamptz[]) AS look (id, next_time) ON look.id = runs.id
            WHERE runs.cancel_next_time = $1
            ORDER BY runs.id
            FOR NO KEY UPDATE OF runs
        )
        UPDATE runs SET cancel_next_time = mine.next_time FROM mine WHERE runs.id = mine.id
        """,
        until,
        ids,
        times,
    )


async def audiences(connection: Connection, now: datetime, queues: Sequence[str]) -> dict[str, Audience]:
    """What is known of the consumers of these queues.

    A queue is ours alone if some worker of ours consumes it, no other known one does, and the broker counts no more.
    """
    rows = await connection.fetch(
        """
        SELECT names.name, seen.ready, seen.look_time,
               count(workers.node) > 0 AND coalesce(bool_and(workers.ours), false)
               AND count(workers.node) >= coalesce(seen.consumers, 0) AS only_ours
        FROM unnest($2::text[]) AS names (name)
        LEFT JOIN queue_sightings AS seen ON seen.queue = names.name
        LEFT JOIN workers
            ON names.name = ANY (workers.queues) AND workers.seen_time > $1
        GROUP BY names.name, seen.ready, seen.look_time, seen.consumers
        """,
        now - _LIVES,
        list(set(queues)),
    )
    return {row["name"]: Audience(row["ready"], row["look_time"], row["only_ours"]) for row in rows}


async def results_of(connection: Connection, queue: str) -> Record | None:
    """`result_db` and `result_prefix` of a queue: where its stock workers keep results."""
    return await connection.fetchrow("SELECT result_db, result_prefix FROM queues WHERE name = $1", queue)
