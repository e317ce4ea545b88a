"""The catalogue's statements: live workers, what was seen of queues, and what jobs need of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.database import Connection, Record


async def workers_seen_since(connection: Connection, since: datetime) -> list[Record]:
    """The workers that were seen then or later, without their contracts."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT node, ours, software, queues, tasks, contracts_digest, pid, start_time, first_seen_time, seen_time
        FROM workers WHERE seen_time >= $1 ORDER BY node
        """,
        since,
    )
    return rows


async def all_lives(connection: Connection) -> list[Record]:
    """Which life of each worker is known, and under which digest its contracts are kept."""
    rows: list[Record] = await connection.fetch(
        "SELECT node, ours, software, contracts_digest, pid, start_time, first_seen_time FROM workers"
    )
    return rows


async def keep_workers(connection: Connection, now: datetime, workers: Sequence[Mapping[str, Any]]) -> None:
    """Workers as they were seen now; contracts that are null stay what they are."""
    await connection.execute(
        """
        INSERT INTO workers (node, ours, software, queues, tasks, contracts, contracts_digest, pool, concurrency,
            active, reserved, pid, start_time, first_seen_time, seen_time)
        SELECT node, ours, software, queues, tasks, coalesce(contracts, '{}'), contracts_digest, pool, concurrency,
            active, reserved, pid, start_time, first_seen_time, $1
        FROM jsonb_to_recordset($2) AS seen (node text, ours boolean, software text, queues text[], tasks text[],
            contracts jsonb, contracts_digest text, pool text, concurrency integer, active integer, reserved integer,
            pid integer, start_time timestamptz, first_seen_time timestamptz)
        ORDER BY node
        ON CONFLICT (node) DO UPDATE SET ours = excluded.ours, software = excluded.software,
            queues = excluded.queues, tasks = excluded.tasks,
            contracts = CASE WHEN workers.contracts_digest = excluded.contracts_digest THEN workers.contracts
                ELSE excluded.contracts END,
            contracts_digest = excluded.contracts_digest, pool = excluded.pool, concurrency = excluded.concurrency,
            active = excluded.active, reserved = excluded.reserved, pid = excluded.pid,
            start_time = excluded.start_time, first_seen_time = excluded.first_seen_time,
            seen_time = excluded.seen_time
        """,
        now,
        list(workers),
    )


async def forget_workers(connection: Connection, before: datetime) -> None:
    """Delete the workers that nobody has seen since then."""
    await connection.execute("DELETE FROM workers WHERE seen_time < $1", before)


async def queue_names(connection: Connection, after: str, limit: int) -> list[str]:
    """The next queues behind a name, in the order of names."""
    rows = await connection.fetch("SELECT name FROM queues WHERE name > $1 ORDER BY name LIMIT $2", after, limit)
    return [row["name"] for row in rows]


async def sightings(connection: Connection, queues: Sequence[str]) -> list[Record]:
    """What was last seen of these queues."""
    rows: list[Record] = await connection.fetch("SELECT * FROM queue_sightings WHERE queue = ANY($1)", list(queues))
    return rows


async def keep_sightings(connection: Connection, now: datetime, seen: Sequence[Mapping[str, Any]]) -> None:
    """What is seen of queues now; a queue that was deleted meanwhile is passed over."""
    await connection.execute(
        """
        INSERT INTO queue_sightings (queue, ready, consumers, workers, known_tasks, common_tasks, look_time)
        SELECT seen.queue, seen.ready, seen.consumers, seen.workers, seen.known_tasks, seen.common_tasks, $1
        FROM jsonb_to_recordset($2) AS seen (queue text, ready bigint, consumers integer, workers jsonb,
            known_tasks text[], common_tasks text[])
        JOIN queues ON queues.name = seen.queue
        ORDER BY seen.queue FOR KEY SHARE OF queues
        ON CONFLICT (queue) DO UPDATE SET ready = excluded.ready, consumers = excluded.consumers,
            workers = excluded.workers, known_tasks = excluded.known_tasks, common_tasks = excluded.common_tasks,
            look_time = excluded.look_time
        """,
        now,
        list(seen),
    )


async def tasks_needed(connection: Connection, queues: Sequence[str]) -> dict[str, list[str]]:
    """By queue, the tasks that its jobs and its newest runs name."""
    rows = await connection.fetch(
        """
        SELECT asked.queue, array_agg(DISTINCT needed.task) AS tasks
        FROM unnest($1::text[]) AS asked (queue) CROSS JOIN LATERAL (
            SELECT DISTINCT task FROM jobs WHERE jobs.queue = asked.queue AND delete_time IS NULL
            UNION
            SELECT task FROM (SELECT task FROM runs WHERE runs.queue = asked.queue ORDER BY id DESC LIMIT 200) AS newest
        ) AS needed GROUP BY asked.queue
        """,
        list(queues),
    )
    return {row["queue"]: row["tasks"] for row in rows}
