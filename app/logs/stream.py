"""The stream of an attempt's log in Redis, read in bounded pages."""

from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.logs.entries import Entry, read_entry
from workers.protocol import LOG_PREFIX, LOGS_KEY, log_key

_PAGE: Final = 256
#: Most bytes of text that one read takes: several times what a worker of ours leaves in a stream.
MOST_READ: Final = 4 * 1024 * 1024
#: A stream whose log is sealed to its end stays so long for those who read it now.
KEPT_S: Final = 300

#: Takes a log off the list unless an entry came since; its stream then ends by itself.
_FINISH: Final = """
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) == tonumber(ARGV[2]) then
    redis.call('ZREM', KEYS[1], ARGV[1])
    redis.call('EXPIRE', KEYS[2], ARGV[3])
end
"""


def _entries(answer: Any) -> list[Entry]:
    return [read_entry(entry_id, fields) for entry_id, fields in answer if entry_id is not None and fields]


async def newest(redis: Redis, run_id: UUID, attempt: int) -> Entry | None:
    """The last entry; None if there is no stream."""
    try:
        found = _entries(await redis.xrevrange(log_key(run_id, attempt), count=1))
    except ResponseError:  # a key of another type
        return None
    return found[0] if found else None


async def newest_of(redis: Redis, logs: list[tuple[UUID, int]]) -> list[Entry | None]:
    """The last entry of each of these streams."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id, attempt in logs:
            pipe.xrevrange(log_key(run_id, attempt), count=1)
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, ResponseError):
            raise answer
    found = [[] if isinstance(answer, ResponseError) else _entries(answer) for answer in answers]
    return [one[0] if one else None for one in found]


async def behind(redis: Redis, run_id: UUID, attempt: int, sealed_id: str | None) -> tuple[list[Entry], bool]:
    """The entries behind this one, from the oldest on, and whether there may be more of them."""
    found: list[Entry] = []
    begin, size = f"({sealed_id}" if sealed_id else "-", 0
    while size < MOST_READ:
        try:
            page = _entries(await redis.xrange(log_key(run_id, attempt), min=begin, count=_PAGE))
        except ResponseError:
            return found, False
        found += page
        if len(page) < _PAGE:
            return found, False
        size += sum(len(entry.piece.text) for entry in page if entry.piece)
        size += _PAGE  # entries without text cost as well
        begin = f"({page[-1].id.decode()}"
    return found, True


async def newest_from(redis: Redis, run_id: UUID, attempt: int, offset: int) -> list[Entry]:
    """The newest entries back to one that begins at or before the offset, in order. For who has read the rest."""
    found: list[Entry] = []
    before, size = "+", 0
    while size < MOST_READ:
        count = 8 if not found else _PAGE
        try:
            page = _entries(await redis.xrevrange(log_key(run_id, attempt), max=before, count=count))
        except ResponseError:
            break
        found += page
        if len(page) < count or any(entry.piece and entry.piece.offset <= offset for entry in page):
            break
        size += sum(len(entry.piece.text) for entry in page if entry.piece) + count
        before = f"({page[-1].id.decode()}"
    return found[::-1]


async def trim(redis: Redis, logs: list[tuple[UUID, int, str]]) -> None:
    """Drop what lies before these entries; they stay themselves, so that a stream tells where its log goes on."""
    if not logs:
        return
    async with redis.pipeline(transaction=False) as pipe:
        for run_id, attempt, entry_id in logs:
            pipe.xtrim(log_key(run_id, attempt), minid=entry_id, approximate=False)
        await pipe.execute(raise_on_error=False)


async def finish(redis: Redis, logs: list[tuple[UUID, int, float]]) -> None:
    """Take logs off the list that have had no entry since the given score; their streams end by themselves."""
    if not logs:
        return
    script = redis.register_script(_FINISH)
    for run_id, attempt, score in logs:
        await script(keys=[LOGS_KEY, log_key(run_id, attempt)], args=[f"{run_id}:{attempt}", repr(score), KEPT_S])


async def forget(redis: Redis, members: list[bytes]) -> None:
    """Take names off the list, and their streams with them where they are names of streams."""
    if not members:
        return
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zrem(LOGS_KEY, *members)
        for member in members:
            pipe.unlink(LOG_PREFIX.encode() + member)
        await pipe.execute(raise_on_error=False)
