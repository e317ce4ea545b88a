"""What an attempt's log holds from an offset on: out of the store what is sealed, out of Redis what is not yet."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.database import Database, Record
from app.errors import NotFound
from app.logs import place, queries, stream
from app.logs.entries import Entry, Piece, cut_at, id_order, in_order
from app.logs.rhythm import is_complete
from app.logs.sealed import MOST_SEGMENTS, end_of, head_of, mark, tail_in
from app.logs.store import Store
from workers.protocol import LOG_HEAD

#: Most bytes of log in one answer.
MOST: Final = LOG_HEAD
#: Marks may stand in an object between what is read of it.
_MARKS: Final = 48 * MOST_SEGMENTS
#: Who follows closely reads the stream from its end.
_CLOSE: Final = 64 * 1024
_TRIES: Final = 4
_LISTEN_S: Final = 0.25
#: So many readers ask Redis at once; the others wait for their turn, for a client has 100 connections and more to do.
AT_ONCE: Final = 32
_ASK_AGAIN_S: Final = 3.0
_ASK_SOON_S: Final = 0.5

_turns: WeakKeyDictionary[Redis, asyncio.Semaphore] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a log. Offsets are those of what was written, in bytes; lines that mark a cut are not counted."""

    attempt: int
    text: str
    #: Where it begins, and where to go on.
    offset: int
    next: int
    #: Nothing comes behind it any more.
    ended: bool


async def read(
    database: Database,
    redis: Redis,
    store: Store,
    run_id: UUID,
    attempt: int | None = None,
    offset: int = 0,
    limit: int = MOST,
    wait_s: float = 0,
    leaving: Callable[[], bool] = lambda: False,
) -> Chunk:
    """What the log holds from `offset` on, at most `limit` bytes; of the newest attempt unless one is named.

    Answers once there is something or the log has ended; at the latest after `wait_s`, or when `leaving`.
    Raises NotFound, StoreAway if the store is needed and away, and what database and Redis raise.
    """
    until = time.monotonic() + wait_s
    while True:
        chunk, newest = await _read(database, redis, store, run_id, attempt, offset, limit)
        left = until - time.monotonic()
        if chunk.text or chunk.ended or left <= 0 or leaving():
            return chunk
        attempt = chunk.attempt
        # A body that has ended is soon a run that has.
        pause_s = _ASK_SOON_S if newest is not None and newest.last else _ASK_AGAIN_S
        await _until_news(redis, run_id, attempt, newest, min(left, pause_s), leaving)


async def _until_news(
    redis: Redis, run_id: UUID, attempt: int, known: Entry | None, most_s: float, leaving: Callable[[], bool]
) -> None:
    """Return once the stream has another newest entry; no session of the database is held meanwhile."""
    until = time.monotonic() + most_s
    while (left := until - time.monotonic()) > 0 and not leaving():
        await asyncio.sleep(min(_LISTEN_S, left))
        async with _turn(redis):
            newest = await stream.newest(redis, run_id, attempt)
        if newest is not None and (known is None or newest.id != known.id):
            return


async def _read(
    database: Database, redis: Redis, store: Store, run_id: UUID, attempt: int | None, offset: int, limit: int
) -> tuple[Chunk, Entry | None]:
    """The chunk, and the newest entry that it was made with."""
    named, row = await _row(database, run_id, attempt)
    for _ in range(_TRIES):
        segments: list[Any] = row["segments"] or []
        sealed_end = end_of(segments)
        entries, newest = await _unsealed(redis, run_id, named, row, offset, sealed_end, limit)
        first = next((entry.piece for entry in entries if entry.piece), None)
        if first is None or first.offset <= max(offset, sealed_end):
            break
        # Sealed and trimmed between our two looks, or really cut: another look tells.
        before, (_, row) = row["sealed_id"], await _row(database, run_id, named)
        if row["sealed_id"] == before:
            break
    pieces: list[Piece] = []
    if offset < sealed_end:
        pieces = await _sealed(store, place.log_of(run_id, named), segments, offset, limit)
        pieces.append(Piece(sealed_end, b""))  # what the store had, and has no more, is cut
    pieces = in_order([*pieces, *(entry.piece for entry in entries if entry.piece)], offset)
    text, position = _shown(pieces, offset, limit)
    at_end = not pieces or position >= pieces[-1].end
    nothing = newest is None
    complete = row["ended"] or is_complete(row["over_s"], nothing or (newest is not None and newest.last))
    chunk = Chunk(named, text.decode(errors="replace"), offset, position, bool(complete and at_end))
    return chunk, newest


async def _row(database: Database, run_id: UUID, attempt: int | None) -> tuple[int, Record]:
    async with database.reading() as connection:
        if attempt is None:
            attempt = await queries.newest_attempt(connection, run_id)
            if attempt is None:
                raise NotFound(f"there is no run {run_id}")
        found = await queries.attempts(connection, [(run_id, attempt)])
        if not found:
            there = await queries.newest_attempt(connection, run_id)
            raise NotFound(f"there is no run {run_id}" if there is None else f"the run has no attempt {attempt}")
    return attempt, found[run_id, attempt]


async def _unsealed(
    redis: Redis, run_id: UUID, attempt: int, row: Record, offset: int, sealed_end: int, limit: int
) -> tuple[list[Entry], Entry | None]:
    """The entries of the stream that matter here, and its newest one."""
    try:
        async with _turn(redis):
            newest = await stream.newest(redis, run_id, attempt)
            if newest is None or (row["sealed_id"] and id_order(newest.id) <= id_order(row["sealed_id"])):
                return [], newest
            if newest.piece is not None and newest.piece.end <= offset:
                return [], newest
            if offset >= sealed_end + _CLOSE:
                return await stream.newest_from(redis, run_id, attempt, offset), newest
            entries, _ = await stream.behind(redis, run_id, attempt, row["sealed_id"])
    except RedisError:
        if row["ended"]:  # all of it is in the store
            return [], None
        raise
    return entries, newest


def _turn(redis: Redis) -> asyncio.Semaphore:
    return _turns.setdefault(redis, asyncio.Semaphore(AT_ONCE))


async def _sealed(store: Store, path: str, segments: list[Any], offset: int, limit: int) -> list[Piece]:
    """What the object holds from an offset on, so much that `limit` bytes are among it or all that there is.

    The object may be newer than the segments: its head has only grown, and its tail says itself where it stands.
    """
    head = head_of(segments)
    wanted = [one for one in head.segments if one[0] + one[1] > offset]
    begin = wanted[0][2] + max(0, offset - wanted[0][0]) if wanted else head.place
    in_head = head.place - begin > limit + _MARKS
    found = await store.get(path, begin, begin + limit + _MARKS if in_head else None)
    if found is None:
        return []
    pieces = []
    for one_offset, size, at in wanted:
        skipped = max(0, offset - one_offset)
        place_in = at + skipped - begin
        text = found[place_in : place_in + size - skipped]
        if text:
            pieces.append(Piece(one_offset + skipped, text))
    if not in_head and (tail := tail_in(found[head.place - begin :], head)):
        pieces.append(tail)
    return pieces


def _shown(pieces: list[Piece], offset: int, limit: int) -> tuple[bytes, int]:
    """The text with a mark where offsets jump, and the offset behind it."""
    text, position, left = bytearray(), offset, limit
    for piece in pieces:
        if left <= 0:
            break
        part = piece.text[: cut_at(piece.text, left)]
        if piece.offset > position:
            if text and not text.endswith(b"\n"):
                text += b"\n"
            text += mark(piece.offset - position)
        text += part
        position, left = piece.offset + len(part), left - len(part)
        if len(part) < len(piece.text):
            break
    return bytes(text), position
