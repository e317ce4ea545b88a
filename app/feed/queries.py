"""What the feed reads. All of it is short: a long transaction would hold everybody's cursor back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from app.database import Connection, Record
from app.feed.cursor import Position
from app.progress.view import RUN_COLUMNS

ZERO: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs a client wants: any of the named values in each field; an empty one asks nothing."""

    namespaces: tuple[str, ...] = ()
    job_ids: tuple[UUID, ...] = ()
    queues: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    backfill_ids: tuple[UUID, ...] = ()


async def where_we_are(connection: Connection) -> Position:
    """The position of a reader that begins now. Taken before the rows that a reader shows: whatever those rows miss,
    a read since this position tells."""
    found = await connection.fetchrow(
        "SELECT left(epoch::text, 8) AS epoch, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid,"
        " extract(epoch FROM clock_timestamp())::bigint AS time_s FROM plane"
    )
    return Position(found["epoch"], found["xid"], found["time_s"])


async def renew_epoch_after_restore(connection: Connection) -> None:
    """Name this database anew if it has moved to another cluster: transaction ids count from elsewhere there."""
    await connection.execute(
        "UPDATE plane SET epoch = gen_random_uuid(), system_identifier = cluster.system_identifier"
        " FROM pg_control_system() AS cluster WHERE plane.system_identifier <> cluster.system_identifier"
    )


async def renew_epoch(connection: Connection, old: str) -> None:
    """Name this database anew, if nobody has done so since `old`: its transaction ids have gone back."""
    await connection.execute("UPDATE plane SET epoch = gen_random_uuid() WHERE left(epoch::text, 8) = $1", old)


async def ids_have_reached(connection: Connection, xid: int) -> bool:
    """Whether a cursor with this transaction id can be of this life of the database."""
    reached: bool = await connection.fetchval(
        "SELECT $1::bigint <= pg_snapshot_xmax(pg_current_snapshot())::text::bigint", xid
    )
    return reached


async def events_since(connection: Connection, xid: int, after: tuple[int, UUID, int], limit: int) -> list[Record]:
    """The next page of state changes (`xid, run_id, version`) that a reader at `xid` may have missed."""
    return list(
        await connection.fetch(
            "SELECT xid, run_id, version FROM run_events WHERE xid >= $1 AND (xid, run_id, version) > ($2, $3, $4)"
            " ORDER BY xid, run_id, version LIMIT $5",
            xid,
            *after,
            limit,
        )
    )


async def changed_runs_are_few(connection: Connection, xid: int, limit: int) -> bool:
    """Whether at most `limit` runs changed their state since `xid`."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM (SELECT DISTINCT run_id FROM run_events WHERE xid >= $1 LIMIT $2) AS changed",
        xid,
        limit + 1,
    )
    return count <= limit


async def runs_by_id(connection: Connection, ids: Sequence[UUID]) -> list[Record]:
    """The runs as they are now; one that retention has taken is left out."""
    statement = f"SELECT {RUN_COLUMNS} FROM runs WHERE id = ANY($1::uuid[])"  # noqa: S608  names of our own columns
    return list(await connection.fetch(statement, ids))


async def backfills_by_id(connection: Connection, ids: Sequence[UUID]) -> list[Record]:
    """The backfills as they are now; one that retention has taken is left out."""
    return list(await connection.fetch("SELECT * FROM backfills WHERE id = ANY($1::uuid[])", ids))


_MATCHES = (
    "(cardinality($3::text[]) = 0 OR namespace = ANY($3)) AND (cardinality($4::uuid[]) = 0 OR job_id = ANY($4))"
    " AND (cardinality($5::text[]) = 0 OR queue = ANY($5))"
    " AND (cardinality($7::uuid[]) = 0 OR backfill_id = ANY($7))"
)


async def live_runs(connection: Connection, wanted: Filter, after: UUID, limit: int) -> list[Record]:
    """The next page, by id, of runs that have not ended."""
    return list(
        await connection.fetch(
            f"SELECT {RUN_COLUMNS} FROM runs WHERE end_time IS NULL AND id > $1 AND {_MATCHES}"  # noqa: S608  names of our own columns
            " AND (cardinality($6::text[]) = 0 OR state = ANY($6)) ORDER BY id LIMIT $2",
            after,
            limit,
            wanted.namespaces,
            wanted.job_ids,
            wanted.queues,
            wanted.states,
            wanted.backfill_ids,
        )
    )


async def runs_gone_since(connection: Connection, wanted: Filter, xid: int, after: UUID, limit: int) -> list[Record]:
    """The next page, by id, of runs that a client at `xid` may still hold as live: they have ended or, asked for by
    state, left those states."""
    return list(
        await connection.fetch(
            "WITH changed AS MATERIALIZED (SELECT DISTINCT run_id FROM run_events WHERE xid >= $8)"  # noqa: S608  as above
            f" SELECT {RUN_COLUMNS} FROM changed JOIN runs ON runs.id = changed.run_id WHERE id > $1 AND {_MATCHES}"
            " AND (end_time IS NOT NULL OR (cardinality($6::text[]) > 0 AND state <> ALL($6)))"
            " AND (cardinality($6::text[]) = 0 OR state = ANY($6) OR EXISTS ("
            "SELECT FROM run_events WHERE run_events.run_id = runs.id AND run_events.state = ANY($6)))"
            " ORDER BY id LIMIT $2",
            after,
            limit,
            wanted.namespaces,
            wanted.job_ids,
            wanted.queues,
            wanted.states,
            wanted.backfill_ids,
            xid,
        )
    )
