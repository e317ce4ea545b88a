"""Hears what workers report through a Redis result backend: pushes for speed, the stored values as the truth.

Celery publishes every stored state on a channel named like the key that keeps the last one. Pushes are lost while
nobody listens, so the truth is read after each (re)connect and every few seconds.

Services may keep their results in another database of this Redis, or behind a prefix (`queues.result_db`,
`result_prefix`): a `Source`. Channels know no databases, so only prefixes matter for pushes.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import structlog
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from app.loop import end
from app.progress.fold import Report
from app.progress.reports import HEAD, MESSAGE_LIMIT, Refusal, state_at_head, task_of
from app.progress.sources import OWN, Source, behind, pattern_of
from app.states import RETRY, STARTED, TERMINAL
from workers.protocol import TaskId

log = structlog.get_logger()

#: A silent connection is asked for a pong this often, and given up after three times that.
_PING_S: Final = 2.0
_FIRST_RETRY_S: Final = 0.1
_LAST_RETRY_S: Final = 2.0
#: Most bytes that one answer with stored values may have.
_ANSWER_BYTES: Final = 16 * 1024 * 1024
#: Most tasks whose last value is remembered to save writing it again.
_REMEMBERED: Final = 200_000
#: What newer news never replaces: STARTED names the lease, RETRY is counted, an end is an end.
_KEPT: Final = TERMINAL | {STARTED, RETRY}


@dataclass(frozen=True, slots=True)
class Heard:
    """One message: the task, its bytes (only the head of what is too long) and its whole length.

    `report` is what it says, where somebody has read it already.
    """

    task_id: TaskId
    body: bytes
    size: int
    report: Report | Refusal | None = None

    @classmethod
    def of(cls, task_id: TaskId, body: bytes) -> Self:
        return cls(task_id, body if len(body) <= MESSAGE_LIMIT else body[:HEAD], len(body))


class Waiting:
    """Messages that wait to be recorded, by task, in order within a task; bounded in number and bytes.

    Over the mark, news of a task replaces the news before it; a start, a retry and an end are never replaced. At the
    bound nothing more is taken in: then the truth has to be read later.
    """

    def __init__(self, *, mark: int = 2_000, most: int = 20_000, most_bytes: int = 64 * 1024 * 1024) -> None:
        self._mark, self._most, self._most_bytes = mark, most, most_bytes
        self._by_task: dict[TaskId, deque[Heard]] = {}
        self.count = self.bytes = 0
        self.arrived = asyncio.Event()

    @property
    def over_mark(self) -> bool:
        return self.count >= self._mark or self.bytes >= self._most_bytes // 4

    def put(self, heard: Heard) -> bool:
        """Take a message in; False if there is no room for it."""
        mine = self._by_task.get(heard.task_id)
        if self.over_mark and mine and _is_news(mine[-1]) and _is_news(heard):
            self.bytes += len(heard.body) - len(mine[-1].body)
            mine[-1] = heard
            return True
        if self.count >= self._most or self.bytes + len(heard.body) > self._most_bytes:
            return False
        if mine is None:
            mine = self._by_task[heard.task_id] = deque()
        mine.append(heard)
        self.count += 1
        self.bytes += len(heard.body)
        self.arrived.set()
        return True

    def take(self, most: int, most_bytes: int) -> list[Heard]:
        """The messages of the tasks that have waited longest, and at least one if there is any."""
        taken: list[Heard] = []
        size = 0
        while self._by_task and len(taken) < most and (not taken or size < most_bytes):
            task_id, mine = next(iter(self._by_task.items()))
            while mine and len(taken) < most and (not taken or size < most_bytes):
                heard = mine.popleft()
                taken.append(heard)
                size += len(heard.body)
            if not mine:
                del self._by_task[task_id]
        self.count -= len(taken)
        self.bytes -= size
        if not self._by_task:
            self.arrived.clear()
        return taken


def _is_news(heard: Heard) -> bool:
    state = state_at_head(heard.body)
    return state is not None and state not in _KEPT


class Listener:
    """One subscription, read by a task that does nothing else. Use as an async context manager, or `start` and `close`.

    `resync` is set after each (re)connect, for each new prefix, and whenever a message found no room: then the truth
    is to be read.
    """

    def __init__(self, redis_url: str, waiting: Waiting | None = None) -> None:
        self._url = redis_url
        self.waiting = waiting or Waiting()
        #: By pattern, the prefix that is listened behind.
        self._wanted = {pattern_of(OWN.prefix): OWN.prefix}
        self.resync = asyncio.Event()
        self.connected = asyncio.Event()
        #: Messages that found no room, and connections that were made: for logs and tests.
        self.turned_away = self.connects = 0
        self._task: asyncio.Task[None] | None = None
        #: Tasks whose stored value has been asked for and of which no push has come since.
        self._reading: set[TaskId] = set()
        self._last: dict[TaskId, int] = {}
        self._seen: set[TaskId] = set()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_listening(), name="listen")

    async def close(self) -> None:
        """Stop listening. What waits may still be taken."""
        if self._task is not None:
            await end(self._task)
            self._task = None

    def listen_behind(self, prefixes: Collection[str]) -> None:
        """Hear what is published behind these prefixes, besides what has none; takes effect within two seconds."""
        self._wanted = {pattern_of(prefix): prefix for prefix in (OWN.prefix, *prefixes)}

    async def gather(self, most: int, most_bytes: int, *, wait_s: float, gather_s: float) -> list[Heard]:
        """Up to `most` messages: waits `wait_s` for the first, then `gather_s` for company."""
        if not self.waiting.count:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.waiting.arrived.wait(), wait_s)
        if 0 < self.waiting.count < most:
            await asyncio.sleep(gather_s)
        return self.waiting.take(most, most_bytes)

    async def read_truth(self, redis: Redis, wanted: Sequence[tuple[TaskId, Source]]) -> int:
        """Put the stored values of these tasks among the waiting ones; returns how many brought something new.

        A value is dropped if a push of that task has come since the read was sent. Raises RedisError.
        """
        tasks = {task_id for task_id, _ in wanted}
        self._reading = set(tasks)
        new = 0
        try:
            for heard in await stored_of(redis, wanted):
                if heard.task_id in self._reading:
                    new += self._offer(heard)
        finally:
            self._reading = set()
        self._seen.update(tasks)
        return new

    def truth_was_read(self) -> None:
        """All live tasks have been read: forget the others."""
        self._last = {task: value for task, value in self._last.items() if task in self._seen}
        self._seen = set()

    def _offer(self, heard: Heard, *, pushed: bool = False) -> bool:
        value = hash(heard.body)
        if not pushed and self._last.get(heard.task_id) == value:
            return False
        if not self.waiting.put(heard):
            self.turned_away += 1
            self.resync.set()
            return False
        if len(self._last) > _REMEMBERED:
            self._last.clear()
        self._last[heard.task_id] = value
        return True

    async def _keep_listening(self) -> None:
        pause_s = _FIRST_RETRY_S
        while True:
            # Our own loop is the retry: the library's would subscribe again without a word.
            client = Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=3)
            try:
                async with client.pubsub() as pubsub:
                    await self._listen(pubsub)
            except (RedisError, OSError) as error:
                if self.connected.is_set():
                    log.warning("listener_lost_redis", error=str(error))
                    pause_s = _FIRST_RETRY_S
            except Exception:
                log.exception("listener_failed")
            finally:
                self.connected.clear()
                with suppress(RedisError, OSError):
                    await client.aclose()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LAST_RETRY_S)

    async def _listen(self, pubsub: PubSub) -> None:
        subscribed: set[str] = set()
        silent = 0
        while True:
            wanted = self._wanted
            if added := wanted.keys() - subscribed:
                await pubsub.psubscribe(*added)
            if gone := subscribed - wanted.keys():
                await pubsub.punsubscribe(*gone)
            subscribed = set(wanted)
            message: dict[str, Any] | None = await pubsub.get_message(timeout=_PING_S)
            if message is None:
                silent += 1
                if silent > 3:
                    raise ConnectionError("no pong")
                await pubsub.ping()
                continue
            silent = 0
            if message["type"] == "pmessage":
                prefix = wanted.get(message["pattern"].decode())
                task_id = task_of(behind(prefix, message["channel"])) if prefix is not None else None
                if task_id is not None:
                    self._reading.discard(task_id)
                    self._offer(Heard.of(task_id, message["data"]), pushed=True)
            elif message["type"] == "psubscribe":
                self.resync.set()
                if not self.connected.is_set():
                    self.connects += 1
                    self.connected.set()
                    log.info("listening", patterns=sorted(wanted), connects=self.connects)


async def stored_of(redis: Redis, wanted: Sequence[tuple[TaskId, Source]]) -> list[Heard]:
    """The stored values of these tasks where their queues keep results, and in the plane's own place, in any order.

    `wanted` pairs each task with `Source.of(row)`, for a row with `result_db` and `result_prefix` of the run's queue
    (`LEFT JOIN queues ON queues.name = runs.queue`). Another database that cannot be read (there is none of that
    number, or not for us) is told in the log and left out. Raises RedisError if Redis is away.
    """
    by_source: defaultdict[Source, list[TaskId]] = defaultdict(list)
    for task_id, source in wanted:
        # Also a queue with results elsewhere may have workers of ours, which keep them here.
        for place in {OWN, source}:
            by_source[place].append(task_id)
    found: list[Heard] = []
    for source, tasks in by_source.items():
        try:
            async with at(redis, source) as client:
                found += await stored(client, tasks, source)
        except ResponseError as error:
            if source.db is None:
                raise
            log.warning("results_not_readable", db=source.db, prefix=source.prefix, error=str(error))
    return found


@asynccontextmanager
async def at(redis: Redis, source: Source) -> AsyncIterator[Redis]:
    """A client for the database of this source: the given one, or one that ends with the block."""
    if source.db is None:
        yield redis
        return
    pool = redis.connection_pool
    # No retries: the given client's have been tried a moment ago, and whoever calls does it again soon.
    options = {**pool.connection_kwargs, "db": source.db, "retry": Retry(NoBackoff(), 0)}
    other = Redis.from_pool(ConnectionPool(connection_class=pool.connection_class, **options))
    try:
        yield other
    finally:
        with suppress(RedisError, OSError):
            await other.aclose()


async def whole_of(redis: Redis, task_id: TaskId, source: Source) -> bytes | None:
    """The whole stored value of one task, from our own place or where its queue keeps results. Raises RedisError."""
    for place in dict.fromkeys((OWN, source)):
        async with at(redis, place) as client:
            body: bytes | None = await client.get(place.key_of(task_id))  # type: ignore[assignment]
        if body:
            return body
    return None


async def stored(redis: Redis, tasks: Sequence[TaskId], source: Source = OWN) -> list[Heard]:
    """The stored values of these tasks in the client's database, in order; of what is too long only the head.

    Raises RedisError.
    """
    if not tasks:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for task_id in tasks:
            pipe.strlen(source.key_of(task_id))
        lengths = await pipe.execute(raise_on_error=False)
    found: list[Heard] = []
    page: list[tuple[TaskId, int]] = []
    room = _ANSWER_BYTES
    for task_id, length in zip(tasks, lengths, strict=True):
        if not isinstance(length, int):
            _raise_unless_wrong_type(length)
            continue
        if length == 0:
            continue
        part = min(length, MESSAGE_LIMIT)
        if part > room:
            found += await _page(redis, page, source)
            page, room = [], _ANSWER_BYTES
        page.append((task_id, length))
        room -= part
    return found + await _page(redis, page, source)


async def _page(redis: Redis, page: Sequence[tuple[TaskId, int]], source: Source) -> list[Heard]:
    if not page:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for task_id, length in page:
            last = HEAD - 1 if length > MESSAGE_LIMIT else MESSAGE_LIMIT - 1
            pipe.getrange(source.key_of(task_id), 0, last)
        bodies = await pipe.execute(raise_on_error=False)
    found = []
    for (task_id, length), body in zip(page, bodies, strict=True):
        if not isinstance(body, bytes):
            _raise_unless_wrong_type(body)
        elif body:
            found.append(Heard(task_id, body, length if length > MESSAGE_LIMIT else len(body)))
    return found


def _raise_unless_wrong_type(answer: Any) -> None:
    """Somebody may have put a list under a key of ours; that is no reason to read nothing."""
    if not (isinstance(answer, RedisError) and "WRONGTYPE" in str(answer)):
        raise answer if isinstance(answer, BaseException) else RedisError(f"not an answer: {answer!r}")
