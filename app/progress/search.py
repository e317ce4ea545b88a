"""Looks for dispatched runs that no worker started, and publishes those again that surely nobody has."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from app.database import Database, Record
from app.progress import guards, moves
from app.progress import reap_queries as queries
from app.progress.calm import Calm
from app.progress.consumers import Consumers, Found, Held, Who
from app.progress.guards import Maker
from app.progress.verdicts import PAGE, Doubts, Verdicts
from app.states import RETRY
from workers.protocol import CANCELLED, DONE, REAPED, TaskId

#: A queue with other workers than ours, or none, is searched this often.
LOOK_EVERY_S: Final = 10.0
#: Each next search for the same run waits twice as long, up to so many times the first.
_MOST_PATIENCE: Final = 64


class Search:
    """Call `run_once` after each look of `calm`; the doubts are the reaper's too."""

    def __init__(
        self,
        database: Database,
        consumers: Consumers,
        verdicts: Verdicts,
        calm: Calm,
        doubts: Doubts,
        *,
        patience_s: float,
        look_every_s: float,
    ) -> None:
        self._database = database
        self._consumers = consumers
        self._verdicts = verdicts
        self._calm = calm
        self._doubts = doubts
        self._patience_s = patience_s
        self._look_every_s = look_every_s
        #: When a queue that strangers consume is looked at next: all its workers are asked for it.
        self._look_at: dict[str, float] = {}

    async def run_once(self) -> None:
        """One pass over what was dispatched longer ago than its patience. Raises RedisError."""
        now = await self._verdicts.now()
        before = now - timedelta(seconds=self._patience_s)
        async with self._database.reading() as connection:
            known = await queries.known_strangers(connection, now)
        looked: set[str] = set()
        async for rows in self._verdicts.pages(
            lambda connection, after: queries.unheard(connection, before, after, PAGE)
        ):
            overdue = [row for row in rows if now - row["dispatch_time"] > self._patience(row)]
            overdue = [row for row in overdue if time.monotonic() >= self._look_at.get(row["queue"], 0)]
            found = await self._consumers.look({row["queue"] for row in overdue}, known)
            seen = [row for row in overdue if row["queue"] in found]
            looked |= {queue for queue, about in found.items() if about.who is not Who.OURS}
            looked |= {row["queue"] for row in seen if row["state"] == RETRY}
            await self._verdicts.apply(await self._judge(seen, found, now))
        again = time.monotonic() + self._look_every_s
        self._look_at = {queue: at for queue, at in self._look_at.items() if at > time.monotonic()}
        self._look_at |= dict.fromkeys(looked, again)

    async def _judge(
        self, rows: Sequence[Record], found: Mapping[str, Found], now: datetime
    ) -> dict[UUID, list[Maker]]:
        asked = _to_be_asked(rows, found)
        held = await self._consumers.held(asked) if asked else Held()
        wanted = await self._verdicts.truth(rows)
        strange = {(row["queue"], row["task"]) for row in rows if found[row["queue"]].who is Who.NAMED}
        async with self._database.reading() as connection:
            tell = await queries.told_by_strangers(connection, sorted(strange))
        for row, value in zip(rows, await self._verdicts.leases(rows), strict=True):
            about = found[row["queue"]]
            knows = value is None and self._calm.knows_of(row["dispatch_time"], now)
            if about.who is Who.NAMED:
                # A stock worker may have done the work, and its word is lost or goes elsewhere.
                told = (row["queue"], row["task"]) in tell
                knows = knows and told and self._calm.saw(row["dispatch_time"], now)
            nowhere = knows and self._is_nowhere(row, about, held)
            if (maker := await self._verdict(row, value, about.who, knows=knows, nowhere=nowhere)) is not None:
                wanted[row["id"]].append(maker)
        return {run_id: makers for run_id, makers in wanted.items() if makers}

    async def _verdict(self, row: Record, value: str | None, who: Who, *, knows: bool, nowhere: bool) -> Maker | None:
        """`knows`: a lease would be seen, were there one. `nowhere`: no queue and no worker has the message."""
        if row["state"] == RETRY:
            # Only Redis says what became of a message that is not due yet.
            lost = who is Who.OURS and self._consumers.on_redis and nowhere
            return guards.lost_between_retries(row) if lost and await self._verdicts.take(row, REAPED) is None else None
        if who is Who.WAITS:
            return guards.told(row, None) if row["reason"] == moves.UNHEARD else None
        if who is Who.NOBODY:
            return guards.nobody
        if value in {CANCELLED, REAPED, DONE}:
            return guards.if_same(row, guards.ended_with(row, value)) if self._doubts.lasts(row, value) else None
        if nowhere or (who is Who.OURS and knows):
            return guards.sent_again(row)
        return guards.unheard if who is not Who.OURS and not self._doubts.holds(row, _nowhere(row)) else None

    def _is_nowhere(self, row: Record, about: Found, held: Held) -> bool:
        """Whether no worker had the message for a while: one may be between the queue and the worker's own list."""
        ids = [str(TaskId(row["id"], n)) for n in range(row["first_dispatch"], row["dispatches"] + 1)]
        if about.who not in {Who.NAMED, Who.OURS} or not held.lacks(about.nodes, ids):
            self._doubts.clear(row, _nowhere(row))
            return False
        return self._doubts.lasts(row, _nowhere(row))

    def _patience(self, row: Record) -> timedelta:
        times = min(2 ** min(max(row["dispatches"] - row["first_dispatch"], 0), 10), _MOST_PATIENCE)
        return timedelta(seconds=self._patience_s * times)


def _to_be_asked(rows: Sequence[Record], found: Mapping[str, Found]) -> set[str]:
    """The workers that must say what they have."""
    asked = {
        row["queue"]
        for row in rows
        if found[row["queue"]].who is Who.NAMED or (row["state"] == RETRY and found[row["queue"]].who is Who.OURS)
    }
    return {node for queue in asked for node in found[queue].nodes}


def _nowhere(row: Mapping[str, Any]) -> str:
    return f"nowhere:{row['dispatches']}"
