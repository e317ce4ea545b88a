"""What recording asks the database, and how a process says that it is there; one statement a function."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.database import Connection, Record
from app.progress.standing import Standing


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
