"""Takes back what the plane put into a queue: messages of ours leave the broker, and their runs end as REVOKED.

Per handful of messages: first the rows say that a cancel was asked for, so that whatever goes wrong after this leaves
them to whoever pursues cancels; then the messages are taken off; then the leases are taken, against a copy that
somebody else may hold; then the rows end. What a worker took before us goes on as if nothing had been.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis

from app.database import Database, clock
from app.dispatch import queries
from app.dispatch.broker import Broker, Waiting
from app.progress import lease
from app.progress.announce import tell
from app.progress.moves import end
from app.progress.standing import Move, Standing
from app.progress.transition import apply
from app.states import PENDING, RETRY, REVOKED, TERMINAL
from workers.protocol import CANCELLED, lease_key

#: Most messages that one purge looks at, and the longest that it goes on looking.
MOST: Final = 10_000
LONGEST_S: Final = 15.0
#: When somebody else may pursue what a purge has begun.
_PATIENCE: Final = timedelta(minutes=1)


class Verdict(Enum):
    """What becomes of a message."""

    #: It stays: it is another plane's, or its run has begun and may need it.
    LEAVE = auto()
    #: It goes alone: its run has ended, or is out under another number.
    DROP = auto()
    #: It goes, and its run ends.
    END = auto()


@dataclass(frozen=True, slots=True)
class Purged:
    """Messages that were taken off, and those that are still there."""

    purged: int
    left: int


def judge(run: Standing | None, dispatch: int) -> Verdict:
    """What becomes of the message of this dispatch, as its run stands."""
    if run is None:
        return Verdict.LEAVE
    if run.state in TERMINAL or dispatch < run.first_dispatch:
        return Verdict.DROP
    if run.state == RETRY:
        return Verdict.END if dispatch >= run.dispatches else Verdict.DROP
    if run.state != PENDING:
        return Verdict.LEAVE
    if run.dispatch_time is not None:
        return Verdict.END if dispatch >= run.dispatches else Verdict.DROP
    # The broker has it, and the row does not say so yet.
    on_its_way = run.claim_time is not None and dispatch > run.dispatches
    return Verdict.END if on_its_way else Verdict.DROP


class Purge:
    """One purge of one queue."""

    def __init__(self, database: Database, redis: Redis, broker: Broker, by: str) -> None:
        self._database = database
        self._redis = redis
        self._broker = broker
        self._by = by
        #: The runs of the messages in hand as they stood, and what this purge wrote into their `cancel`.
        self._seen: dict[UUID, Standing] = {}
        self._asked: dict[UUID, dict[str, Any]] = {}

    async def run(self, queue: str) -> Purged:
        """Purge the queue. Raises QueueTrouble, BrokerAway, RedisError, what the database raises."""
        await self._redis.ping()  # without it no run could be ended
        ends = asyncio.get_running_loop().time() + LONGEST_S
        purged = 0
        async with self._broker.sieve(queue, MOST) as sieve:
            while asyncio.get_running_loop().time() < ends and (found := await sieve.next()) is not None:
                wanted = await self._ask(found)
                if not wanted:
                    continue
                taken = await sieve.take(wanted)
                purged += len(taken)
                ours = [waiting for waiting in found if wanted.get(waiting.number) is Verdict.END]
                await self._finish(ours, taken)
            return Purged(purged, await sieve.left())

    async def _ask(self, found: Sequence[Waiting]) -> dict[int, Verdict]:
        """Say which messages are to go, and write on the runs that are to end that this was asked for."""
        async with self._database.transaction() as connection:
            now = await clock(connection)
            rows = await queries.lock_runs(connection, list({waiting.task_id.run_id for waiting in found}))
            runs = {row["id"]: Standing.of(row) for row in rows}
            verdicts = {w.number: judge(runs.get(w.task_id.run_id), w.task_id.dispatch) for w in found}
            ending = {w.task_id.run_id for w in found if verdicts[w.number] is Verdict.END}
            asked = {"time": _text(now), "by": self._by, "terminate": False, "grace_s": 0}
            await apply(connection, now, {run: [_ask(now, asked)] for run in ending})
        self._seen = runs
        self._asked = {run: asked for run in ending if runs[run].cancel is None}
        return {number: verdict for number, verdict in verdicts.items() if verdict is not Verdict.LEAVE}

    async def _finish(self, ours: Sequence[Waiting], taken: set[int]) -> None:
        """End the runs whose messages we have, and let go of those that a worker took before us."""
        missed = {waiting.task_id.run_id for waiting in ours if waiting.number not in taken}
        freed: set[UUID] = set()
        for waiting in ours:
            run = waiting.task_id.run_id
            if run not in missed and await self._take_lease(self._seen[run], waiting):
                freed.add(run)
        async with self._database.transaction() as connection:
            now = await clock(connection)
            moves: dict[UUID, list[Move]] = {}
            for run in {waiting.task_id.run_id for waiting in ours}:
                ending = [_end(now, self._seen[run], f"purged by {self._by}")] if run in freed else []
                moves[run] = [*ending, _let_go(self._asked.get(run))]
            changed = await apply(connection, now, moves)
        await tell(self._redis, changed)

    async def _take_lease(self, seen: Standing, waiting: Waiting) -> bool:
        """Whether no worker of ours has this attempt, nor comes to have it."""
        key = lease_key(seen.id, seen.attempt, waiting.retries)
        return await lease.take(self._redis, key, CANCELLED, held_too=False) is None


def _ask(now: datetime, asked: dict[str, Any]) -> Move:
    def move(standing: Standing) -> Standing | None:
        return (
            None if standing.cancel is not None else replace(standing, cancel=asked, cancel_next_time=now + _PATIENCE)
        )

    return move


def _end(now: datetime, seen: Standing, reason: str) -> Move:
    """The end, if the run still stands where its message was taken."""

    def move(standing: Standing) -> Standing | None:
        same = (standing.attempt, standing.retries) == (seen.attempt, seen.retries)
        if standing.state not in {PENDING, RETRY} or not same:
            return None
        return end(now, standing, REVOKED, reason=reason, cancel_next_time=None)

    return move


def _let_go(asked: dict[str, Any] | None) -> Move:
    """Forget that a purge wanted the run, unless somebody else asked for a cancel as well."""

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL or asked is None or standing.cancel != asked:
            return None
        return replace(standing, cancel=None, cancel_next_time=None)

    return move


def _text(now: datetime) -> str:
    return now.astimezone(UTC).isoformat().replace("+00:00", "Z")
