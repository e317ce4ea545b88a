"""Ends what nobody else will: attempts whose lease ended, start deadlines, revocations from outside.

The lease is taken first, then the stored state is read once more, then the row is written: a crash in between leaves a
lease that only refuses, and the next pass writes the row. Any number of reapers may run.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import faults
from app.database import Connection, Database, Record, clock
from app.progress import cancel_queries, guards, lease, moves, queries, reports, transition, waiting
from app.progress.announce import tell
from app.progress.calm import Calm
from app.progress.consumers import Backlog, Consumers, Found, Held, Who
from app.progress.fold import Report, fold
from app.progress.guards import Maker
from app.progress.listen import stored_of
from app.progress.sources import Source
from app.settings import Settings
from app.states import RETRY, is_running
from workers.protocol import CANCELLED, DONE, HEARTBEAT_S, HELD, LEASE_S, REAPED, TaskId, lease_key

log = structlog.get_logger()

PAGE: Final = 500
#: How long the last word of a worker may be on its way after its lease said that it was done.
SILENCE_S: Final = 60.0
#: A queue with other workers than ours, or none, is searched this often.
LOOK_EVERY_S: Final = 10.0
#: How often the lines of runs that wait for others are looked at.
LINES_EVERY_S: Final = 5.0
#: Each next search for the same run waits twice as long, up to so many times the first.
_MOST_PATIENCE: Final = 64

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
        self._dispatch_timeout_s = settings.dispatch_timeout_s
        self._consumers = Consumers(redis, settings.broker_url.get_secret_value(), backlog) if backlog else None
        self._silence_s = silence_s
        self._look_every_s = look_every_s
        #: When a queue that strangers consume is looked at next: all its workers are asked for it.
        self._look_at: dict[str, float] = {}
        self._lease = timedelta(seconds=lease_s)
        self._calm = Calm(lease_s + min(HEARTBEAT_S, lease_s / 2))
        self._lines_at = 0.0
        #: Since when a lease that ended stands beside a run that did not.
        self._doubts: dict[tuple[UUID, int, int, str], float] = {}
        #: When each lease that we saw held would end by itself.
        self._ends: dict[str, float] = {}
        #: How many runs were moved since the start.
        self.moved = 0

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
            if self._consumers is not None:
                await self._search(self._consumers)
        except RedisError:
            self._calm.lost()
            raise
        now = time.monotonic()
        self._doubts = {key: at for key, at in self._doubts.items() if now - at < 2 * self._silence_s}
        self._ends = {key: at for key, at in self._ends.items() if now < at}
        return False

    @property
    def calm(self) -> bool:
        """Whether the absence of a lease is believed now."""
        return self._calm.calm

    async def _now(self) -> datetime:
        async with self._database.reading() as connection:
            return await clock(connection)

    async def _pages(self, query: Callable[[Connection, UUID], Awaitable[list[Record]]]) -> AsyncIterator[list[Record]]:
        after = _FIRST_ID
        while True:
            async with self._database.reading() as connection:
                rows = await query(connection, after)
            if rows:
                yield rows
            if len(rows) < PAGE:
                return
            after = rows[-1]["id"]

    async def _apply(self, wanted: Mapping[UUID, Sequence[Maker]]) -> None:
        """Commit moves, made of the database's time, and tell of them."""
        if not wanted:
            return
        async with self._database.transaction() as connection:
            now = await clock(connection)
            rows = await transition.apply(
                connection, now, {run_id: [make(now) for make in makers] for run_id, makers in wanted.items()}
            )
        await faults.at("reap.after_commit")
        self.moved += len(rows)
        for row in rows:
            log.info(
                "run_reaped",
                run_id=str(row["id"]),
                state=row["state"],
                attempt=row["attempt"],
                reason=row["reason"],
                error=(row["error"] or {}).get("type"),
            )
        await tell(self._redis, rows)

    async def _expire_unsent(self) -> None:
        now = await self._now()
        async for rows in self._pages(
            lambda connection, after: queries.past_start_deadline(connection, now, after, PAGE)
        ):
            await self._apply({row["id"]: [guards.if_unsent(moves.expire)] for row in rows if row["untouched"]})

    async def _expire_sent(self) -> None:
        now = await self._now()
        async for rows in self._pages(
            lambda connection, after: queries.past_start_deadline(connection, now, after, PAGE)
        ):
            late = [row for row in rows if not row["untouched"]]
            late = [row for row in late if row["sent_time"] is None or self._calm.knows_of(row["sent_time"], now)]
            taken = [row for row in late if await self._take(row, CANCELLED)]
            said = await self._truth(taken)
            await self._apply({row["id"]: [*said[row["id"]], guards.if_same(row, moves.expire)] for row in taken})

    async def _exceed_unsent(self) -> None:
        now = await self._now()
        async for rows in self._pages(lambda connection, after: queries.past_deadline(connection, now, after, PAGE)):
            await self._apply({row["id"]: [guards.never_given(row)] for row in rows if row["untouched"]})

    async def _exceed_sent(self) -> None:
        """Whoever of ours has the run, or comes to take it, is refused first; what is stored as its end counts."""
        now = await self._now()
        async for rows in self._pages(lambda connection, after: queries.past_deadline(connection, now, after, PAGE)):
            late = [row for row in rows if not row["untouched"]]
            async with self._database.reading() as connection:
                audiences = await cancel_queries.audiences(connection, now, [row["queue"] for row in late])
            wanted: dict[UUID, list[Maker]] = {}
            held = await self._leases(late)
            said = await self._withdraw(late)
            for row, before in zip(late, held, strict=True):
                if row["id"] not in said:
                    continue
                ours = row["leased"] or (before or "").startswith(HELD)
                ours = ours or (not is_running(row["state"]) and audiences[row["queue"]].only_ours)
                verdict = guards.taken_back if ours else guards.out_of_reach
                wanted[row["id"]] = [*said[row["id"]], (verdict if row["sent"] else guards.never_given)(row)]
            await self._apply(wanted)

    async def _withdraw(self, rows: Sequence[Record]) -> dict[UUID, list[Maker]]:
        """Take attempts from whoever has them. What is stored of each; those that are done just now are left out."""
        taken = []
        for row in rows:
            # Between two of Celery's own retries the next one has a key of its own.
            keys = [_key(row)] if row["state"] != RETRY else [_key(row), _key({**row, "retries": row["retries"] + 1})]
            await faults.at("reap.before_take")
            stands = [await lease.take(self._redis, key, CANCELLED, held_too=True) for key in keys]
            await faults.at("reap.after_take")
            if DONE not in stands or row["state"] == RETRY or self._doubted_long(row, DONE):
                taken.append(row)
        return await self._truth(taken)

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
        before = await self._now() - timedelta(seconds=self._silence_s)
        async with self._database.reading() as connection:
            ids = await queries.silent_with_reason(connection, moves.REVOKED_OUTSIDE, before, PAGE)
        await self._apply({run_id: [guards.revoked_outside()] for run_id in ids})

    async def _reap(self) -> None:
        """Attempts that a worker had: learn of leases that we have not heard of, and lose those that ended."""
        now = await self._now()
        async for rows in self._pages(lambda connection, after: queries.running(connection, after, PAGE)):
            leases = await self._lives(rows)
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
                    self._ends[_key(row)] = time.monotonic() + left_s
                elif value in {DONE, CANCELLED} and self._doubted_long(row, value):
                    ended.append(row)
            await self._apply(found)
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
        said = await self._truth(lost)
        for row in lost:
            wanted[row["id"]] = [*said[row["id"]], guards.if_running(row, guards.ended_with(row, taken[row["id"]]))]
        await self._apply(wanted)

    async def _taken_or_stands(self, row: Record) -> str | None:
        """The value under which this attempt may be ended: REAPED if we took it, or the end that stands; else None."""
        await faults.at("reap.before_take")
        stands = await lease.take(self._redis, _key(row), REAPED, held_too=False)
        await faults.at("reap.after_take")
        if stands is None:
            return REAPED
        return None if stands.startswith(HELD) else stands

    async def _take(self, row: Record, value: str) -> bool:
        await faults.at("reap.before_take")
        stands = await lease.take(self._redis, _key(row), value, held_too=False)
        await faults.at("reap.after_take")
        return stands is None

    async def _leases(self, rows: Sequence[Record]) -> list[str | None]:
        """The value of each attempt's lease."""
        values: list[Any] = await self._redis.mget([_key(row) for row in rows]) if rows else []
        return [_text(value) for value in values]

    async def _lives(self, rows: Sequence[Record]) -> list[tuple[str | None, float]]:
        """The value of each attempt's lease and how many seconds it has left."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.mget([_key(row) for row in rows])
            for row in rows:
                pipe.pttl(_key(row))
            values, *left = await pipe.execute()
        return [(_text(value), max(ms, 0) / 1000) for value, ms in zip(values, left, strict=True)]

    async def _later_leases(self, rows: Sequence[Record]) -> dict[UUID, int]:
        """The Celery retry under which each of these attempts is held now, if it is a later one than we know of."""
        tries = [(row["id"], row["attempt"], row["retries"] + more) for row in rows for more in (1, 2, 3)]
        values: list[Any] = await self._redis.mget([lease_key(*one) for one in tries])
        return {
            run_id: retries
            for (run_id, _, retries), value in zip(tries, values, strict=True)
            if (_text(value) or "").startswith(HELD)
        }

    async def _truth(self, rows: Sequence[Record]) -> dict[UUID, list[Maker]]:
        """What the result backend says of these runs, to be folded before they are ended."""
        said: dict[UUID, list[Maker]] = {row["id"]: [] for row in rows}
        tasks = [
            (TaskId(row["id"], n), Source.of(row))
            for row in rows
            for n in range(max(row["first_dispatch"], row["dispatches"] - 2), row["dispatches"] + 2)
        ]
        for heard in await stored_of(self._redis, tasks):
            report = reports.read(heard.task_id, heard.body, heard.size)
            if isinstance(report, Report):
                said[heard.task_id.run_id].append(partial(fold, report))
        return said

    def _was_given_back(self, row: Record, now: datetime) -> bool:
        """Whether this lease went before its time: a worker that stops gave it back, and the next may take it.

        Each word of a worker renews its lease, so that one of which we heard a moment ago cannot have ended by itself.
        """
        return time.monotonic() < self._ends.get(_key(row), 0) or now < row["update_time"] + self._lease

    def _doubted_long(self, row: Record, value: str) -> bool:
        """Whether this lease has stood so beside this run for longer than a last word may take."""
        key = (row["id"], row["attempt"], row["retries"], value)
        return time.monotonic() - self._doubts.setdefault(key, time.monotonic()) >= self._silence_s

    async def _tell_of_the_gone(self) -> None:
        """Stock workers that are gone leave runs behind, of which nobody knows more."""
        async with self._database.reading() as connection:
            rows = await queries.gone_from(connection, await clock(connection), PAGE)
        await self._apply({row["id"]: [guards.told(row, row["wanted"])] for row in rows})

    async def _search(self, consumers: Consumers) -> None:
        """Dispatched runs that no worker started: publish those again that surely nobody has."""
        now = await self._now()
        before = now - timedelta(seconds=self._dispatch_timeout_s)
        async with self._database.reading() as connection:
            known = await queries.known_strangers(connection, now)
        looked: set[str] = set()
        async for rows in self._pages(lambda connection, after: queries.unheard(connection, before, after, PAGE)):
            overdue = [row for row in rows if now - row["dispatch_time"] > self._patience(row)]
            overdue = [row for row in overdue if time.monotonic() >= self._look_at.get(row["queue"], 0)]
            found = await consumers.look({row["queue"] for row in overdue}, known)
            seen = [row for row in overdue if row["queue"] in found]
            looked |= {queue for queue, about in found.items() if about.who is not Who.OURS}
            looked |= {row["queue"] for row in seen if row["state"] == RETRY}
            held = await consumers.held(_to_be_asked(seen, found)) if _to_be_asked(seen, found) else Held()
            wanted = await self._truth(seen)
            strange = {(row["queue"], row["task"]) for row in seen if found[row["queue"]].who is Who.NAMED}
            async with self._database.reading() as connection:
                tell = await queries.told_by_strangers(connection, sorted(strange))
            for row, value in zip(seen, await self._leases(seen), strict=True):
                about = found[row["queue"]]
                knows = value is None and self._calm.knows_of(row["dispatch_time"], now)
                if about.who is Who.NAMED:
                    # A stock worker may have done the work, and its word is lost or goes elsewhere.
                    told = (row["queue"], row["task"]) in tell
                    knows = knows and told and self._calm.saw(row["dispatch_time"], now)
                nowhere = knows and self._is_nowhere(row, about, held)
                if row["state"] == RETRY:
                    # Only Redis says what became of a message that is not due yet.
                    if about.who is Who.OURS and consumers.on_redis and nowhere and await self._take(row, REAPED):
                        wanted[row["id"]].append(guards.lost_between_retries(row))
                elif about.who is Who.WAITS:
                    if row["reason"] == moves.UNHEARD:
                        wanted[row["id"]].append(guards.told(row, None))
                elif about.who is Who.NOBODY:
                    wanted[row["id"]].append(guards.nobody)
                elif value in {CANCELLED, REAPED, DONE}:
                    if self._doubted_long(row, value):
                        wanted[row["id"]].append(guards.if_same(row, guards.ended_with(row, value)))
                elif nowhere or (about.who is Who.OURS and knows):
                    wanted[row["id"]].append(guards.sent_again(row))
                elif about.who is not Who.OURS and not self._is_doubted(row):
                    wanted[row["id"]].append(guards.unheard)
            await self._apply({run_id: makers for run_id, makers in wanted.items() if makers})
        again = time.monotonic() + self._look_every_s
        self._look_at = {queue: at for queue, at in self._look_at.items() if at > time.monotonic()}
        self._look_at |= dict.fromkeys(looked, again)

    def _is_nowhere(self, row: Record, about: Found, held: Held) -> bool:
        """Whether no worker had the message for a while: one may be between the queue and the worker's own list."""
        ids = [str(TaskId(row["id"], n)) for n in range(row["first_dispatch"], row["dispatches"] + 1)]
        if about.who not in {Who.NAMED, Who.OURS} or not held.lacks(about.nodes, ids):
            self._doubts.pop(_nowhere(row), None)
            return False
        return time.monotonic() - self._doubts.setdefault(_nowhere(row), time.monotonic()) >= self._silence_s

    def _is_doubted(self, row: Record) -> bool:
        """Whether it is looked for, and was not found so far."""
        return _nowhere(row) in self._doubts

    def _patience(self, row: Record) -> timedelta:
        times = min(2 ** min(max(row["dispatches"] - row["first_dispatch"], 0), 10), _MOST_PATIENCE)
        return timedelta(seconds=self._dispatch_timeout_s * times)


def _to_be_asked(rows: Sequence[Record], found: Mapping[str, Found]) -> set[str]:
    """The workers that must say what they have."""
    asked = {
        row["queue"]
        for row in rows
        if found[row["queue"]].who is Who.NAMED or (row["state"] == RETRY and found[row["queue"]].who is Who.OURS)
    }
    return {node for queue in asked for node in found[queue].nodes}


def _nowhere(row: Mapping[str, Any]) -> tuple[UUID, int, int, str]:
    return row["id"], row["attempt"], row["retries"], f"nowhere:{row['dispatches']}"


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _key(row: Mapping[str, Any]) -> str:
    return lease_key(row["id"], row["attempt"], row["retries"])
