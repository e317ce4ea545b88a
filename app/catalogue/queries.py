"""The catalogue's statements: live workers, what was seen of queues, and what jobs need of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.database import Connection, Record
from workers.protocol import BUILT_IN_PREFIX


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


async def workers_of_queue(connection: Connection, since: datetime, queue: str, task: str) -> list[Record]:
    """The live workers of a queue: whether each registers a task, its pool, and its contract if it told one."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT node, ours, pool, $3 = ANY (tasks) OR starts_with($3, $4) AS registers,
               CASE WHEN ours THEN contracts -> $3 END AS contract
        FROM workers WHERE seen_time >= $1 AND $2 = ANY (queues)
          -- Who was seen to be gone is not waited for.
          AND NOT EXISTS (
              SELECT FROM queue_sightings AS seen
              WHERE seen.queue = $2 AND seen.look_time >= workers.seen_time AND NOT seen.workers ? workers.node
          )
        ORDER BY node
        """,
        since,
        queue,
        task,
        BUILT_IN_PREFIX,
    )
    return rows


async def queue_seen(connection: Connection, since: datetime, queue: str) -> Record | None:
    """How long the broker lets a worker have a message of a queue, and its consumers if it was looked at since then."""
    return await connection.fetchrow(
        """
        SELECT consumer_timeout_s, seen.consumers FROM queues
        LEFT JOIN queue_sightings AS seen ON seen.queue = queues.name AND seen.look_time >= $1
        WHERE name = $2
        """,
        since,
        queue,
    )


async def standing_contracts(connection: Connection, since: datetime) -> set[tuple[str, str]]:
    """Which contracts stand on which queue, by their digests."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT queue, contracts_digest FROM workers CROSS JOIN unnest(queues) AS queue
        WHERE seen_time >= $1 AND contracts_digest <> ''
        """,
        since,
    )
    return {(row["queue"], row["contracts_digest"]) for row in rows}


async def live_contracts(connection: Connection, since: datetime) -> list[Record]:
    """The contracts of live workers, once for each digest and set of queues."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT DISTINCT ON (contracts_digest, queues) queues, contracts FROM workers
        WHERE seen_time >= $1 AND contracts_digest <> ''
        """,
        since,
    )
    return rows


async def jobs_with_contract(
    connection: Connection, told: Sequence[tuple[str, str]], after: UUID, limit: int
) -> list[Record]:
    """A page of the jobs on one of these (queue, task)."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT jobs.id, jobs.queue, jobs.task, jobs.args, jobs.kwargs, jobs.version, jobs.contract_problem
        FROM jobs JOIN unnest($1::text[], $2::text[]) AS told (queue, task) USING (queue, task)
        WHERE jobs.delete_time IS NULL AND jobs.id > $3 ORDER BY jobs.id LIMIT $4
        """,
        [queue for queue, _ in told],
        [task for _, task in told],
        after,
        limit,
    )
    return rows


async def set_contract_problems(connection: Connection, found: Sequence[tuple[UUID, int, str | None]]) -> None:
    """What is wrong with jobs of these versions, null for nothing; one that was edited meanwhile is left alone."""
    ids, versions, problems = (list(column) for column in zip(*found, strict=True))
    await connection.execute(
        """
        UPDATE jobs SET contract_problem = found.problem
        FROM unnest($1::uuid[], $2::int[], $3::text[]) AS found (id, version, problem)
        WHERE jobs.id = found.id AND jobs.version = found.version
        """,
        ids,
        versions,
        problems,
    )


async def workers_page(
    connection: Connection, live_s: float, after: str, limit: int, queue: str | None
) -> list[Record]:
    """Workers behind a name in the order of names; `alive` if they were seen lately."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT node, ours, software, queues, tasks, pool, concurrency, active, reserved, start_time, first_seen_time,
               seen_time, seen_time >= clock_timestamp() - make_interval(secs => $1) AS alive
        FROM workers WHERE node > $2 AND ($4::text IS NULL OR $4 = ANY (queues)) ORDER BY node LIMIT $3
        """,
        live_s,
        after,
        limit,
        queue,
    )
    return rows


async def tasks_page(
    connection: Connection, live_s: float, after: str, limit: int, queue: str | None, name: str | None
) -> list[Record]:
    """Tasks that live workers register, in the order of names: where they are consumed, and the newest contract."""
    rows: list[Record] = await connection.fetch(
        """
        WITH live AS (
            SELECT node, ours, queues, tasks, start_time FROM workers
            WHERE seen_time >= clock_timestamp() - make_interval(secs => $1)
              AND ($4::text IS NULL OR $4 = ANY (queues))
        ), page AS (
            SELECT task AS name, array_agg(DISTINCT node) AS workers FROM live CROSS JOIN unnest(tasks) AS task
            WHERE task > $2 AND ($5::text IS NULL OR task = $5) GROUP BY task ORDER BY task LIMIT $3
        )
        SELECT page.name, page.workers, (
            SELECT coalesce(array_agg(DISTINCT queue), '{}') FROM live CROSS JOIN unnest(queues) AS queue
            WHERE live.node = ANY (page.workers)
        ) AS queues, (
            SELECT workers.contracts -> page.name FROM workers WHERE workers.node = (
                SELECT live.node FROM live WHERE live.ours AND live.node = ANY (page.workers)
                ORDER BY live.start_time DESC NULLS LAST LIMIT 1
            )
        ) AS contract
        FROM page ORDER BY page.name
        """,
        live_s,
        after,
        limit,
        queue,
        name,
    )
    return rows
