"""What recording, reaping and retention ask the database, one statement a function."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.database import Connection, Record
from app.progress.standing import Standing
from app.states import FAILURE, PENDING, RETRY, SUCCESS


async def hold_lease(connection: Connection, name: str, holder: str, lease_s: float) -> bool:
    """Take or renew a lease by the database's clock; whether `holder` has it now."""
    found = await connection.fetchval(
        """
        INSERT INTO leases (name, holder, until_time)
        VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_time = excluded.until_time
            WHERE leases.holder = excluded.holder OR leases.until_time < clock_timestamp()
        RETURNING holder
        """,
        name,
        holder,
        lease_s,
    )
    return found is not None


async def give_lease_back(connection: Connection, name: str, holder: str) -> None:
    await connection.execute("DELETE FROM leases WHERE name = $1 AND holder = $2", name, holder)


async def dispatched_runs(connection: Connection, after: UUID, limit: int) -> list[Record]:
    """A page of the live runs of which a worker may have heard, and the dispatches whose reports would count.

    `last` is the next dispatch where one is claimed: its message may be out although nobody has marked it. Of many
    dispatches of one attempt only the newest three are named. `result_db`, `result_prefix`: where to look for them.
    """
    rows: list[Record] = await connection.fetch(
        """
        SELECT id, greatest(first_dispatch, last - 2) AS first, last, result_db, result_prefix FROM (
            SELECT id, queue, first_dispatch,
                   dispatches + (claim_time IS NOT NULL AND dispatch_time IS NULL)::int AS last
            FROM runs WHERE end_time IS NULL AND id > $1
        ) AS live LEFT JOIN queues ON queues.name = live.queue
        WHERE last >= first_dispatch ORDER BY id LIMIT $2
        """,
        after,
        limit,
    )
    return rows


async def odd_results(connection: Connection) -> list[Record]:
    """The queues whose workers keep results in another database of Redis or behind a prefix."""
    rows: list[Record] = await connection.fetch(
        "SELECT name, result_db, result_prefix FROM queues WHERE result_db IS NOT NULL OR result_prefix <> ''"
    )
    return rows


async def place_of_results(connection: Connection, run_id: UUID) -> Record | None:
    """When a run ended, and where the workers of its queue keep results; None if there is no such run."""
    return await connection.fetchrow(
        """
        SELECT end_time, result_db, result_prefix
        FROM runs LEFT JOIN queues ON queues.name = runs.queue WHERE runs.id = $1
        """,
        run_id,
    )


async def standings(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, Standing]:
    """Where these runs stand, those that there are; not locked."""
    rows = await connection.fetch("SELECT * FROM runs WHERE id = ANY($1)", list(ids))
    return {row["id"]: Standing.of(row) for row in rows}


async def existing(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Which of these runs there are."""
    if not ids:
        return set()
    return {row["id"] for row in await connection.fetch("SELECT id FROM runs WHERE id = ANY($1)", list(ids))}


async def keep_refused(connection: Connection, source: str, refused: Sequence[tuple[str, str, bytes]]) -> None:
    """Set reports aside: (task id, problem, first bytes)."""
    if not refused:
        return
    task_ids, problems, bodies = (list(column) for column in zip(*refused, strict=True))
    await connection.execute(
        """
        INSERT INTO refused_reports (source, task_id, problem, body)
        SELECT $1, r.task_id, r.problem, r.body
        FROM unnest($2::text[], $3::text[], $4::bytea[]) AS r (task_id, problem, body)
        """,
        source,
        task_ids,
        problems,
        bodies,
    )


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


async def runs_to_forget(
    connection: Connection,
    success_before: datetime,
    failure_before: datetime,
    limit: int,
    *,
    without_objects: bool = False,
) -> list[Record]:
    """The oldest ended runs that are past their time, with what they have in the log store; the newest run of a job
    that is there stays.

    `logs`: the attempts that have a log; `result_stored`: whether the result is there too.
    """
    rows: list[Record] = await connection.fetch(
        """
        SELECT old.id, ARRAY(SELECT log.attempt FROM run_logs AS log WHERE log.run_id = old.id) AS logs,
            coalesce(old.result ->> 'jobplane' = 'result stored', false) AS result_stored
        FROM runs AS old
        WHERE old.end_time IS NOT NULL
          AND old.end_time < greatest($1::timestamptz, $2::timestamptz)
          AND old.end_time < CASE WHEN old.state = $3 THEN $2 ELSE $1 END
          AND (
              old.job_id IS NULL
              OR EXISTS (SELECT FROM runs AS newer WHERE newer.job_id = old.job_id AND newer.id > old.id)
              OR EXISTS (SELECT FROM jobs WHERE jobs.id = old.job_id AND jobs.delete_time IS NOT NULL)
          )
          AND NOT ($5 AND (
              old.result ->> 'jobplane' IS NOT DISTINCT FROM 'result stored'
              OR EXISTS (SELECT FROM run_logs AS log WHERE log.run_id = old.id)
          ))
        ORDER BY old.end_time LIMIT $4
        """,
        success_before,
        failure_before,
        FAILURE,
        limit,
        without_objects,
    )
    return rows


async def forget_runs(connection: Connection, ids: Sequence[UUID]) -> int:
    """Delete these runs, except those that another sweep has in hand."""
    answer = await connection.execute(
        """
        DELETE FROM runs WHERE id IN (
            SELECT id FROM runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED
        )
        """,
        ids,
    )
    return _count(answer)


async def forget_idempotency_keys(connection: Connection, before: datetime, limit: int) -> int:
    answer = await connection.execute(
        """
        DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM idempotency_keys WHERE create_time < $1 ORDER BY create_time LIMIT $2
        ))
        """,
        before,
        limit,
    )
    return _count(answer)


async def forget_refused_reports(connection: Connection, keep: int, limit: int) -> int:
    """Delete refused reports, oldest first, as long as there are more than `keep`."""
    answer = await connection.execute(
        """
        DELETE FROM refused_reports WHERE id IN (
            SELECT id FROM refused_reports
            WHERE id <= (SELECT id FROM refused_reports ORDER BY id DESC OFFSET $1 LIMIT 1)
            ORDER BY id LIMIT $2
        )
        """,
        keep,
        limit,
    )
    return _count(answer)


async def say_alive(connection: Connection, now: datetime, name: str, detail: dict[str, Any]) -> None:
    """A scheduler lives, and so fare its loops: what `/readyz` and `/metrics` know of it."""
    await connection.execute(
        """
        INSERT INTO processes (id, kind, detail, start_time, beat_time) VALUES ($1, 'scheduler', $2, $3, $3)
        ON CONFLICT (id) DO UPDATE SET detail = excluded.detail, beat_time = excluded.beat_time
        """,
        name,
        detail,
        now,
    )


async def say_goodbye(connection: Connection, name: str) -> None:
    """A scheduler ends in order."""
    await connection.execute("DELETE FROM processes WHERE id = $1", name)


async def forget_silent_processes(connection: Connection, before: datetime) -> int:
    return _count(await connection.execute("DELETE FROM processes WHERE beat_time < $1", before))


async def forget_skips(connection: Connection, before: datetime, limit: int) -> int:
    answer = await connection.execute(
        "DELETE FROM skips WHERE id IN (SELECT id FROM skips WHERE last_time < $1 LIMIT $2)", before, limit
    )
    return _count(answer)


async def forget_backfills(connection: Connection, before: datetime, limit: int) -> int:
    """Delete backfills that ended before then, with all their runs; the runs that are kept keep its id."""
    answer = await connection.execute(
        """
        DELETE FROM backfills WHERE id IN (
            SELECT id FROM backfills WHERE end_time < $1 AND live = '{}' LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        """,
        before,
        limit,
    )
    return _count(answer)


async def forget_deleted_jobs(connection: Connection, before: datetime, limit: int) -> int:
    """Delete jobs that were deleted before then and have no run left, with their versions and skips."""
    answer = await connection.execute(
        """
        DELETE FROM jobs WHERE id IN (
            SELECT id FROM jobs
            WHERE delete_time < $1 AND NOT EXISTS (SELECT FROM runs WHERE runs.job_id = jobs.id)
            LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        """,
        before,
        limit,
    )
    return _count(answer)


def _count(answer: str) -> int:
    """The number of rows in a command's answer, as in `DELETE 3`."""
    return int(answer.rpartition(" ")[2])
