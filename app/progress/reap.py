"""Ends what nobody else will: attempts whose lease ended, start deadlines, revocations from outside.

The lease is taken first, then the stored state is read once more, then the row is written: a crash in between leaves a
lease that only refuses, and the next pass writes the row. Any number of reapers may run.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.database import Database, Record, clock
from app.progress import cancel_queries, guards, moves, waiting
from app.progress import reap_queries as queries
from app.progress.announce import tell
from app.progress.calm import Calm
from app.progress.consumers import Backlog, Consumers
from app.progress.guards import Maker
from app.progress.search import LOOK_EVERY_S, Search
from app.progress.verdicts import PAGE, Doubts, Verdicts, key_of
from app.settings import Settings
from app.states import RETRY, is_running
from workers.protocol import CANCELLED, DONE, HEARTBEAT_S, HELD, LEASE_S, REAPED, lease_key

#: How long the last word of a worker may be on its way after its lease said that it was done.
SILENCE_S: Final = 60.0
#: How often the lines of runs that wait for others are looked at.
LINES_EVERY_S: Final = 5.0

_FIRST_ID: Final = UUID(int=0)


class Reaper:
    """Call `run_once` every two seconds.

    `backlog` asks the broker what waits in a queue; without it, dispatched runs that nobody started are not looked
    for.
    """

    def __init__(
        self,
        database: Database,
        redis: Redis,
        settings: Settings,
        backlog: Callable[[str], Awaitable[Backlog]] | None,
        *,
        lease_s: float = LEASE_S,
        silence_s: float = SILENCE_S,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._database = database
        self._redis = redis
        self._verdicts = Verdicts(database, redis)
        self._lease = timedelta(seconds=lease_s)
        self._calm = Calm(lease_s + min(HEARTBEAT_S, lease_s / 2))
        self._lines_at = 0.0
        #: Leases that ended and stand beside a run that did not.
        self._doubts = Doubts(silence_s)
        #: When each lease that we saw held would end by itself.
        self._ends: dict[str, float] = {}
        self._search: Search | None = None
        if backlog is not None:
            self._search = Search(
                database,
                Consumers(redis, settings.broker_url.get_secret_value(), backlog),
                self._verdicts,
                self._calm,
                self._doubts,
                patience_s=settings.dispatch_timeout_s,
                look_every_s=look_every_s,
            )

    async def run_once(self) -> bool:
        """One pass over everything; always False. Raises RedisError after what needs no Redis is done."""
        await self._expire_unsent()
        await self._exceed_unsent()
        await self._end_revoked()
        await self._tell_of_the_gone()
        await self._let_go()
        try:
            await self._calm.look(self._redis)
            await self._expire_sent()
            await self._exceed_sent()
            await self._reap()
            if self._search is not None:
                await self._search.run_once()
        except RedisError:
            self._calm.lost()
            raise
        self._doubts.forget()
        now = time.monotonic()
        self._ends = {key: at for key, at in self._ends.items() if now < at}
        return False

    @property
    def calm(self) -> bool:
        """Whether the absence of a lease is believed now."""
        return self._calm.calm

    @property
    def moved(self) -> int:
        """How many runs were moved since the start."""
        return self._verdicts.moved

    async def _expire_unsent(self) -> None:
        now = await self._verdicts.now()
        async for rows in self._verdicts.pages(
            lambda connection, after: queries.past_start_deadline(connection, now, after, PAGE)
        ):
            await self._verdicts.apply(
                {row["id"]: [guards.if_unsent(moves.expire)] for row in rows if row["untouched"]}
            )

    async def _expire_sent(self) -> None:
        now = await self._verdicts.now()
        async for rows in self._verdicts.pages(
            lambda connection, after: queries.past_start_deadline(connection, now, after, PAGE)
        ):
            late = [row for row in rows if not row["untouched"]]
            late = [row for row in late if row["sent_time"] is None or self._calm.knows_of(row["sent_time"], now)]
            taken = [row for row in late if await self._verdicts.take(row, CANCELLED) is None]
            said = await self._verdicts.truth(taken)
            await self._verdicts.apply(
                {row["id"]: [*said[row["id"]], guards.if_same(row, moves.expire)] for row in taken}
            )

    async def _exceed_unsent(self) -> None:
        now = await self._verdicts.now()
        async for rows in self._verdicts.pages(
            lambda connection, after: queries.past_deadline(connection, now, after, PAGE)
        ):
            await self._verdicts.apply({row["id"]: [guards.never_given(row)] for row in rows if row["untouched"]})

    async def _exceed_sent(self) -> None:
        """Whoever of ours has the run, or comes to take it, is refused first; what is stored as its end counts."""
        now = await self._verdicts.now()
        async for rows in self._verdicts.pages(
            lambda connection, after: queries.past_deadline(connection, now, after, PAGE)
        ):
            late = [row for row in rows if not row["untouched"]]
            async with self._database.reading() as connection:
                audiences = await cancel_queries.audiences(connection, now, [row["queue"] for row in late])
            wanted: dict[UUID, list[Maker]] = {}
            held = await self._verdicts.leases(late)
            said = await self._withdraw(late)
            for row, before in zip(late, held, strict=True):
                if row["id"] not in said:
                    continue
                ours = row["leased"] or (before or "").startswith(HELD)
                ours = ours or (not is_running(row["state"]) and audiences[row["queue"]].only_ours)
                verdict = guards.taken_back if ours else guards.out_of_reach
                wanted[row["id"]] = [*said[row["id"]], (verdict if row["sent"] else guards.never_given)(row)]
            await self._verdicts.apply(wanted)

    async def _withdraw(self, rows: Sequence[Record]) -> dict[UUID, list[Maker]]:
        """Take attempts from whoever has them. What is stored of each; those that are done just now are left out."""
        taken = []
        for row in rows:
            # Between two of Celery's own retries the next one has a key of its own.
            tries = [row] if row["state"] != RETRY else [row, {**row, "retries": row["retries"] + 1}]
            stands = [await self._verdicts.take(each, CANCELLED, held_too=True) for each in tries]
            if DONE not in stands or row["state"] == RETRY or self._doubts.lasts(row, DONE):
                taken.append(row)
        return await self._verdicts.truth(taken)

    async def _let_go(self) -> None:
        """Runs that wait for others: those that were passed over when one of these ended."""
        if time.monotonic() < self._lines_at:
            return
        after, jobs = _FIRST_ID, [_FIRST_ID] * PAGE
        while len(jobs) == PAGE:
            async with self._database.transaction() as connection:
                jobs = await waiting.lines(connection, after, PAGE)
                rows = await waiting.let_go(connection, await clock(connection), jobs)
            await tell(self._redis, rows)
            after = jobs[-1] if jobs else after
        self._lines_at = time.monotonic() + LINES_EVERY_S

    async def _end_revoked(self) -> None:
        before = await self._verdicts.now() - timedelta(seconds=self._doubts.silence_s)
        async with self._database.reading() as connection:
            ids = await queries.silent_with_reason(connection, moves.REVOKED_OUTSIDE, before, PAGE)
        await self._verdicts.apply({run_id: [guards.revoked_outside()] for run_id in ids})

    async def _reap(self) -> None:
        """Attempts that a worker had: learn of leases that we have not heard of, and lose those that ended."""
        now = await self._verdicts.now()
        async for rows in self._verdicts.pages(lambda connection, after: queries.running(connection, after, PAGE)):
            leases = await self._verdicts.lives(rows)
            found: dict[UUID, list[Maker]] = {}
            ended: list[Record] = []
            for row, (value, left_s) in zip(rows, leases, strict=True):
                if not row["leased"]:
                    # Its STARTED never reached us, but a key of ours is there.
                    if value is not None:
                        found[row["id"]] = [guards.if_same(row, guards.leased_with(row["retries"]))]
                elif value is None or value == REAPED:
                    if self._calm.calm and (value is not None or not self._was_given_back(row, now)):
                        ended.append(row)
                elif value.startswith(HELD):
                    self._ends[key_of(row)] = time.monotonic() + left_s
                elif value in {DONE, CANCELLED} and self._doubts.lasts(row, value):
                    ended.append(row)
            await self._verdicts.apply(found)
            if ended:
                await self._lose(ended)

    async def _lose(self, rows: Sequence[Record]) -> None:
        later = await self._later_leases(rows)
        wanted: dict[UUID, list[Maker]] = {}
        taken: dict[UUID, str] = {}
        for row in rows:
            if row["id"] in later:
                # A retry inside the attempt that we have not heard of: it goes on under another key.
                wanted[row["id"]] = [guards.if_same(row, guards.leased_with(later[row["id"]]))]
            elif (stands := await self._taken_or_stands(row)) is not None:
                taken[row["id"]] = stands
        lost = [row for row in rows if row["id"] in taken]
        said = await self._verdicts.truth(lost)
        for row in lost:
            wanted[row["id"]] = [*said[row["id"]], guards.if_running(row, guards.ended_with(row, taken[row["id"]]))]
        await self._verdicts.apply(wanted)

    async def _taken_or_stands(self, row: Record) -> str | None:
        """The value under which this attempt may be ended: REAPED if we took it, or the end that stands; else None."""
        stands = await self._verdicts.take(row, REAPED)
        if stands is None:
            return REAPED
        return None if stands.startswith(HELD) else stands

    async def _later_leases(self, rows: Sequence[Record]) -> dict[UUID, int]:
        """The Celery retry under which each of these attempts is held now, if it is a later one than we know of."""
        tries = [(row["id"], row["attempt"], row["retries"] + more) for row in rows for more in (1, 2, 3)]
        values = await self._verdicts.values([lease_key(*one) for one in tries])
        return {
            run_id: retries
            for (run_id, _, retries), value in zip(tries, values, strict=True)
            if (value or "").startswith(HELD)
        }

    def _was_given_back(self, row: Record, now: datetime) -> bool:
        """Whether this lease went before its time: a worker that stops gave it back, and the next may take it.

        Each word of a worker renews its lease, so that one of which we heard a moment ago cannot have ended by itself.
        """
        return time.monotonic() < self._ends.get(key_of(row), 0) or now < row["update_time"] + self._lease

    async def _tell_of_the_gone(self) -> None:
        """Stock workers that are gone leave runs behind, of which nobody knows more."""
        async with self._database.reading() as connection:
            rows = await queries.gone_from(connection, await clock(connection), PAGE)
        await self._verdicts.apply({row["id"]: [guards.told(row, row["wanted"])] for row in rows})
