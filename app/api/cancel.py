"""Cancelling a run: the row first, then one try to take it back at once.

What the row says lasts: where the try does not come to the run's end (Redis is away, a stock worker has it), the
scheduler goes on until it has.
"""

import asyncio
from typing import Final
from uuid import UUID

from redis.exceptions import RedisError

from app import faults
from app.api import queries
from app.api.caller import Caller
from app.api.plane import Plane
from app.database import Record, clock
from app.errors import NotFound, RunEnded
from app.progress import cancel_queries, cancelling, withdraw
from app.progress.announce import tell
from app.progress.sources import Source
from app.progress.standing import Move, Standing
from app.progress.transition import apply
from app.states import REVOKED

#: How long the caller waits for Redis; then the scheduler goes on alone.
_TRY_S: Final = 1.0
#: Where the results of a queue that is no more stand.
_NOWHERE: Final = {"result_db": None, "result_prefix": None}


async def cancel_run(
    plane: Plane, run_id: UUID, caller: Caller, *, terminate: bool, grace_s: float
) -> tuple[Record, bool]:
    """Ask for a run's end as REVOKED, and try to end it. Returns its row, and whether it was REVOKED before.

    Raises NotFound, RunEnded (it ended otherwise).
    """
    async with plane.database.transaction() as connection:
        now = await clock(connection)
        ask = cancelling.ask(now, caller.name, terminate=terminate, grace_s=grace_s)
        was_revoked = False

        def move(standing: Standing) -> Standing | None:
            nonlocal was_revoked
            was_revoked = standing.state == REVOKED
            return ask(standing)

        rows = await apply(connection, now, {run_id: [move]})
        row = rows[0] if rows else await queries.whole_run(connection, run_id)
        if row is None:
            raise NotFound(f"there is no run {run_id}")
        live = row["end_time"] is None
        source = Source.of(await cancel_queries.results_of(connection, row["queue"]) or _NOWHERE) if live else None
        await faults.at("api.before_commit")
    await faults.at("api.after_commit")
    if source is not None:
        row = await _try(plane, row, source)
    else:
        await _hint(plane, rows)
    if row["end_time"] is not None and row["state"] != REVOKED:
        raise RunEnded(f"the run {run_id} has ended in {row['state']}")
    return row, was_revoked


async def _try(plane: Plane, row: Record, source: Source) -> Record:
    """One try to take a live run back; its row afterwards."""
    try:
        async with asyncio.timeout(_TRY_S):
            taken = await withdraw.take(plane.redis, Standing.of(row), source)
    except (RedisError, OSError):  # a time-out is an OSError
        return await _explain(plane, row)
    changed = await withdraw.write(plane.database, taken)
    if not changed:  # a stock worker has it, or somebody else moved it on
        async with plane.database.reading() as connection:
            changed = [await queries.whole_run(connection, row["id"]) or row]
    await _hint(plane, changed)
    return changed[0]


async def _explain(plane: Plane, row: Record) -> Record:
    """Say that the cancel waits for Redis, so that the answer says it too."""
    explain: Move = cancelling.explain(cancelling.WAITS_FOR_REDIS)
    async with plane.database.transaction() as connection:
        rows = await apply(connection, await clock(connection), {row["id"]: [explain]})
    return rows[0] if rows else row


async def _hint(plane: Plane, rows: list[Record]) -> None:
    """Tell watchers, and wake the schedulers where something is left to do."""
    try:
        async with asyncio.timeout(_TRY_S):
            await tell(plane.redis, rows)
    except TimeoutError:
        pass
