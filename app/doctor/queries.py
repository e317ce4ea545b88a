"""What the doctor reads of the database; each statement is bounded, for a plane may hold millions of runs."""

from app.database import Connection, Record

#: Most rows of each kind that are looked at.
MOST_NEEDS = 5000
MOST_QUEUES = 2000
MOST_ENDS = 20_000


async def revision(connection: Connection) -> str | None:
    """The revision that the database was migrated to; None if it never was."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return found


async def living_schedulers(connection: Connection) -> list[Record]:
    """The schedulers that said within ten seconds how their loops fare."""
    rows: list[Record] = await connection.fetch(
        "SELECT id, detail FROM processes"
        " WHERE kind = 'scheduler' AND beat_time > clock_timestamp() - interval '10 s' ORDER BY id"
    )
    return rows


async def connection_figures(connection: Connection) -> Record | None:
    """How many connections there may be for us, how many there are, and who of ours has some.

    A process of ours has a name of its own if it is a scheduler; APIs are told apart by where they come from.
    """
    return await connection.fetchrow(
        """
        SELECT least(
                current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
                (SELECT CASE WHEN datconnlimit < 0 THEN 100000 ELSE datconnlimit END
                    FROM pg_database WHERE datname = current_database()),
                (SELECT CASE WHEN rolconnlimit < 0 THEN 100000 ELSE rolconnlimit END
                    FROM pg_roles WHERE rolname = current_user)
            )::int AS "limit",
            count(*)::int AS open,
            (count(*) FILTER (WHERE ours))::int AS ours,
            count(DISTINCT (application_name, client_addr)) FILTER (WHERE ours) AS processes
        FROM (
            SELECT application_name, client_addr, datname = current_database()
                AND (application_name = 'jobplane api' OR application_name LIKE 'jobplane scheduler %') AS ours
            FROM pg_stat_activity WHERE backend_type = 'client backend'
        ) AS sessions
        """
    )


async def parked_jobs(connection: Connection) -> Record | None:
    """Enabled jobs whose trigger could not be evaluated: how many, and one of them with its problem."""
    return await connection.fetchrow(
        """
        SELECT count(*)::int AS count, min(name || ': ' || problem) AS example
        FROM jobs WHERE problem IS NOT NULL AND enabled AND pause_time IS NULL AND delete_time IS NULL
        """
    )


async def queues(connection: Connection) -> list[Record]:
    """The queues of the plane, those in use first."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT name, consumer_timeout_s, result_db, result_prefix, problem FROM queues
        ORDER BY NOT EXISTS (SELECT FROM jobs WHERE queue = queues.name AND enabled AND delete_time IS NULL), name
        LIMIT $1
        """,
        MOST_QUEUES,
    )
    return rows


async def needed(connection: Connection) -> list[Record]:
    """What enabled jobs and runs that have not ended want run, by queue and task."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT queue, task, sum(jobs)::int AS jobs, sum(runs)::int AS runs, max(time_limit_s) AS time_limit_s,
            bool_or(unlimited) AS unlimited
        FROM (
            SELECT queue, task, count(*) AS jobs, 0 AS runs, max(time_limit_s) AS time_limit_s,
                bool_or(time_limit_s IS NULL) AS unlimited
            FROM jobs WHERE enabled AND pause_time IS NULL AND delete_time IS NULL AND queue IS NOT NULL
            GROUP BY queue, task
            UNION ALL
            SELECT queue, task, 0, count(*), max(time_limit_s), bool_or(time_limit_s IS NULL)
            FROM runs WHERE end_time IS NULL GROUP BY queue, task
        ) AS uses
        GROUP BY queue, task ORDER BY queue, task LIMIT $1
        """,
        MOST_NEEDS,
    )
    return rows


async def durations(connection: Connection) -> list[Record]:
    """By queue, the longest run among those that go on and the newest that ended well, and how many those are."""
    rows: list[Record] = await connection.fetch(
        """
        SELECT queue, max(extract(epoch FROM took))::float8 AS longest_s, count(*)::int AS seen
        FROM (
            (SELECT queue, end_time - start_time AS took FROM runs
            WHERE end_time IS NOT NULL AND state = 'SUCCESS' AND start_time IS NOT NULL
            ORDER BY end_time DESC LIMIT $1)
            UNION ALL
            (SELECT queue, clock_timestamp() - start_time FROM runs
            WHERE end_time IS NULL AND start_time IS NOT NULL AND state <> 'PENDING' LIMIT $1)
        ) AS times
        GROUP BY queue
        """,
        MOST_ENDS,
    )
    return rows
