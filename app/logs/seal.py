"""Writes what attempts log into the log store, as it grows, and lets Redis forget what is there."""

import asyncio
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from redis.asyncio import Redis

from app.database import Database, Record, clock
from app.logs import place, queries, stream
from app.logs.entries import Entry, id_order, in_order
from app.logs.queries import Sealed
from app.logs.rhythm import Unsealed, is_complete, is_due, look_s
from app.logs.sealed import end_of, seal
from app.logs.store import CALL_S, Store, StoreAway
from app.progress.turn import Turn
from workers.protocol import LOGS_KEY

log = structlog.get_logger()

PAUSE_S: Final = 2.0
LEASE: Final = "seal"

#: What one pass takes on at most.
_MEMBERS: Final = 20_000
_LOOKS: Final = 1000
_SEALS: Final = 200
_AT_ONCE: Final = 16
_ENDS_AT_ONCE: Final = 100
#: A log of which nothing new is heard is looked at so often, for the end of its attempt.
_LOOK_AGAIN_S: Final = 10.0
#: Entries stay in Redis for so long after they were sealed: a scheduler that was slow may still put an older object
#: over ours, and what that one lacks is then found there.
_TRIM_AFTER_S: Final = 2 * CALL_S

_MEMBER: Final = re.compile(rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([1-9][0-9]{0,8})")

Log = tuple[UUID, int]
T = TypeVar("T")


@dataclass(slots=True)
class _Memory:
    """What this process remembers of a log; losing it costs a look."""

    score: float
    looked_at: float = 0.0
    look_at: float = 0.0
    written_at: float | None = None
    #: Since when entries up to this id are in the store; the oldest first.
    sealed: deque[tuple[float, str]] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class _Work:
    """A log that is to be written."""

    log: Log
    row: Record
    #: The newest entry of its stream.
    newest: Entry | None
    complete: bool


class Sealer:
    """Call `run_once` every `PAUSE_S`. One scheduler at a time does it; correctness does not hang on that."""

    def __init__(self, database: Database, redis: Redis, store: Store, name: str) -> None:
        self._database = database
        self._redis = redis
        self._store = store
        self._turn = Turn(database, LEASE, name)
        self._known: dict[bytes, _Memory] = {}

    async def run_once(self) -> bool:
        """Look at the logs in Redis, write those that are due; whether there may be more.

        Raises StoreAway after it did what can be done without the store.
        """
        if not await self._turn.hold():
            self._known.clear()
            return False
        asked, more = await self._whom_to_look_at()
        if not asked:
            return False
        async with self._database.reading() as connection:
            rows = await queries.attempts(connection, list(asked))
        await stream.forget(self._redis, [asked[one] for one in asked.keys() - rows.keys()])
        newest: dict[Log, Entry | None] = {}
        for some in _parts(list(rows), _ENDS_AT_ONCE):
            newest |= zip(some, await stream.newest_of(self._redis, some), strict=True)
        work, done = self._judge(asked, rows, newest)
        more = more or len(work) > _SEALS
        troubles: list[StoreAway] = []
        for some_work in _parts(work[:_SEALS], _AT_ONCE):
            if not await self._turn.hold():
                return False
            sealed, again = await self._seal(asked, some_work, troubles)
            more = more or again
            done |= await self._keep(asked, sealed)
            if not sealed:
                break
        await self._finish(asked, done)
        await self._trim(asked)
        if troubles:
            raise troubles[0]
        return more

    async def close(self) -> None:
        """Let another scheduler take over at once."""
        await self._turn.give_back()

    async def _whom_to_look_at(self) -> tuple[dict[Log, bytes], bool]:
        """The logs that have news or are due for a look, with their names; and whether those are not all."""
        found: Any = await self._redis.zrange(LOGS_KEY, 0, _MEMBERS - 1, withscores=True)
        members: dict[bytes, float] = dict(found)
        for gone in self._known.keys() - members.keys():
            del self._known[gone]
        now, wanted, odd = time.monotonic(), [], []
        for member, score in members.items():
            if _MEMBER.fullmatch(member) is None:
                odd.append(member)
                continue
            memory = self._known.setdefault(member, _Memory(score))
            if memory.score != score:
                memory.score, memory.look_at = score, min(memory.look_at, memory.looked_at + look_s(len(members)))
            if memory.look_at <= now:
                wanted.append((memory.look_at, member))
        if odd:
            log.warning("logs_of_nobody", count=len(odd), first=repr(odd[0][:80]))
            await stream.forget(self._redis, odd)
        wanted.sort()
        asked: dict[Log, bytes] = {}
        for _, member in wanted[:_LOOKS]:
            match = _MEMBER.fullmatch(member)
            assert match is not None
            asked[UUID(match[1].decode()), int(match[2])] = member
        return asked, len(wanted) > _LOOKS

    def _judge(
        self, asked: dict[Log, bytes], rows: dict[Log, Record], newest: dict[Log, Entry | None]
    ) -> tuple[list[_Work], set[Log]]:
        """What to write, the longest waiting first, and which logs are complete as they are."""
        now = time.monotonic()
        work, done = [], set()
        for one, row in rows.items():
            memory, last = self._known[asked[one]], newest[one]
            complete = is_complete(row["over_s"], last is not None and last.last)
            memory.looked_at = now
            memory.look_at = now + (look_s(len(self._known)) if last is not None and last.last else _LOOK_AGAIN_S)
            if last is None or row["sealed_id"] == last.id.decode():
                if complete and (row["ended"] or row["sealed_id"] is None):
                    done.add(one)
                    continue
                if not complete or last is None:
                    continue
            unsealed = Unsealed(
                sealed=end_of(row["segments"] or []),
                end=last.piece.end if last.piece else 0,
                size=row["size"] or 0,
                ago_s=None if memory.written_at is None else now - memory.written_at,
                live=len(self._known),
                complete=complete,
            )
            if is_due(unsealed):
                memory.look_at = 0.0  # until it is written
                work.append((memory.written_at or 0.0, _Work(one, row, last, complete)))
            else:
                memory.look_at = now + look_s(len(self._known))
        return [one for _, one in sorted(work, key=lambda pair: pair[0])], done

    async def _seal(
        self, asked: dict[Log, bytes], work: Sequence[_Work], troubles: list[StoreAway]
    ) -> tuple[list[Sealed], bool]:
        """Write these logs at once; what was written, and whether one has more. `troubles` gets what the store says."""
        answers = await asyncio.gather(*(self._write(one) for one in work), return_exceptions=True)
        sealed, more = [], False
        for one, answer in zip(work, answers, strict=True):
            if isinstance(answer, StoreAway):
                troubles.append(answer)
                self._known[asked[one.log]].written_at = time.monotonic()  # behind the others with the next try
            elif isinstance(answer, BaseException):
                raise answer
            else:
                sealed.append(answer[0])
                more = more or answer[1]
        return sealed, more

    async def _write(self, work: _Work) -> tuple[Sealed, bool]:
        """Put the news of a log into its object; what is there then, and whether the stream has more."""
        (run_id, attempt), row = work.log, work.row
        path = place.log_of(run_id, attempt)
        segments: list[Any] = row["segments"] or []
        old = await self._store.get(path) or b"" if row["size"] else b""
        # The row and the object tell of different moments where another one wrote, or a stream that began anew.
        begin: str | None = row["sealed_id"]
        if begin is not None and (
            len(old) != (row["size"] or 0) or (work.newest and id_order(work.newest.id) < id_order(begin))
        ):
            begin = None
        entries, more = await stream.behind(self._redis, run_id, attempt, begin)
        body, kept = seal(segments, old, in_order((entry.piece for entry in entries if entry.piece), 0))
        if body != old:
            await self._store.put(path, body)
        sealed_id = entries[-1].id.decode() if entries else (row["sealed_id"] or "0-0")
        return Sealed(
            run_id, attempt, kept, len(body), sealed_id, row["sealed_id"], ended=work.complete and not more
        ), more

    async def _keep(self, asked: dict[Log, bytes], sealed: list[Sealed]) -> set[Log]:
        """Record what was written; which logs are complete now."""
        if not sealed:
            return set()
        async with self._database.transaction() as connection:
            kept = await queries.keep_sealed(connection, await clock(connection), sealed)
        now = time.monotonic()
        for one in sealed:
            memory = self._known[asked[one.run_id, one.attempt]]
            if (one.run_id, one.attempt) in kept:
                memory.written_at, memory.look_at = now, now + look_s(len(self._known))
                memory.sealed.append((now, one.sealed_id))
        return {(one.run_id, one.attempt) for one in sealed if one.ended} & kept

    async def _finish(self, asked: dict[Log, bytes], done: set[Log]) -> None:
        await stream.finish(self._redis, [(*one, self._known[asked[one]].score) for one in done])

    async def _trim(self, asked: dict[Log, bytes]) -> None:
        """Let go what has been in the store for a while."""
        due: list[tuple[UUID, int, str]] = []
        before = time.monotonic() - _TRIM_AFTER_S
        for one, member in asked.items():
            memory, newest = self._known.get(member), ""
            while memory is not None and memory.sealed and memory.sealed[0][0] <= before:
                newest = memory.sealed.popleft()[1]
            if newest and id_order(newest) > (0, 0):
                due.append((*one, newest))
        for some in _parts(due, _ENDS_AT_ONCE):
            await stream.trim(self._redis, some)


def _parts(items: Sequence[T], most: int) -> Iterator[list[T]]:
    for begin in range(0, len(items), most):
        yield list(items[begin : begin + most])
