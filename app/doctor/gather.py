"""Asks every part what it holds, all at once and each bounded in time; what does not answer is told in `Facts.away`."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import asyncpg
from alembic.script import ScriptDirectory
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.catalogue.ask import Asker, Heard, Question
from app.catalogue.look import LIVE_S
from app.catalogue.present import presences
from app.catalogue.queries import workers_seen_since
from app.catalogue.seen import Seen
from app.database import Connection, Database, Record, clock
from app.dispatch import broker as brokers
from app.dispatch.broker import Broker, QueueTrouble
from app.doctor import answers, queries
from app.doctor.facts import Facts, Need, Queue, RedisServer, Scheduler, Store, Worker
from app.logs.store import Store as LogStore
from app.migrate import config
from app.settings import Settings

T = TypeVar("T")

#: Longest that the database, or a Redis, may take for all of its answers.
_PART_S: Final = 8.0
#: How long workers have to answer; long enough for two of their heartbeats.
_LISTEN_S: Final = 5.0
#: Longest that the broker may take for what it says of queues, and how many are asked about.
_BACKLOGS_S: Final = 6.0
_MOST_BACKLOGS: Final = 500
_AT_ONCE: Final = 10
_LOG_STORE_S: Final = 6.0

_QUESTIONS: Final = (
    Question("active_queues"),
    Question("registered", {"taskinfoitems": list(answers.OPTIONS)}),
    # Twice, next to each other: two workers of one name take turns where they share a mailbox.
    Question("stats"),
    Question("stats"),
    Question("conf", {"with_defaults": True}),
    Question("report"),
)


@dataclass(slots=True)
class _Read:
    """What the database said."""

    store: Store
    queues: list[Record]
    durations: Mapping[str, Record]
    needs: tuple[Need, ...]
    workers: Mapping[str, Record]
    ahead_s: float


@dataclass(slots=True)
class _Told:
    """What a Redis said of itself."""

    info: Mapping[str, Any]
    save: str | None
    ahead_s: float
    presences: dict[str, Seen] = field(default_factory=dict)


async def gather(settings: Settings) -> Facts:
    """Everything that can be found out within about fifteen seconds. Never raises for a part that is away."""
    away: dict[str, str] = {}
    broker_url, redis_url = settings.broker_url.get_secret_value(), settings.redis_url.get_secret_value()
    broker = brokers.connect(broker_url, 3.0)
    asker = Asker(broker_url)
    try:
        read, results, broker_redis, log_store, broker_away, heard = await asyncio.gather(
            _part("database", away, _PART_S, lambda: _read(settings)),
            _part("redis", away, _PART_S, lambda: _tell(redis_url, ours=True)),
            _part("broker_redis", {}, _PART_S, lambda: _tell(broker_url))
            if not settings.on_rabbitmq and not _same_server(broker_url, redis_url)
            else _nothing(),
            _log_store(settings.log_store),
            _check(broker),
            asker.put(_QUESTIONS, _LISTEN_S),
        )
        if broker_away is not None:
            away["broker"] = broker_away
        elif heard is None:
            away["workers"] = "the broker answers, but not to Celery's remote control"
        queues = _queues(read)
        counted = await _counted(broker, settings, queues, read.needs if read else ()) if broker_away is None else {}
    finally:
        asker.close()
        await broker.close()
    here = await _addresses(redis_url)
    found = answers.workers(
        heard or Heard(), results.presences if results else {}, read.workers if read else {}, datetime.now(UTC)
    )
    return Facts(
        on_rabbitmq=settings.on_rabbitmq,
        away=away,
        store=read.store if read else None,
        queues={name: replace(queue, consumers=counted.get(name)) for name, queue in queues.items()},
        needs=read.needs if read else (),
        redis=_servers(settings, results, broker_redis),
        workers=tuple([await _settled(worker, here) for worker in found]),
        clocks={
            name: part.ahead_s
            for name, part in (("the database", read), ("Redis", results), ("the broker's Redis", broker_redis))
            if part is not None
        },
        log_store=settings.log_store,
        log_store_problem=log_store,
        pool_size=settings.pool_size,
        redis_where=where(redis_url),
        redis_db=place.db if (place := answers.place(redis_url)) is not None else 0,
    )


async def _part(name: str, away: dict[str, str], limit_s: float, ask: Callable[[], Awaitable[T]]) -> T | None:
    """What a part answers; if it does not, why stands in `away`."""
    try:
        async with asyncio.timeout(limit_s):
            return await ask()
    except TimeoutError:
        away[name] = "no answer in time"
    except Exception as error:  # whatever it is, the others are still looked at
        away[name] = _line(error)
    return None


async def _nothing() -> None:
    return None


async def _read(settings: Settings) -> _Read:
    """What the database holds. A database that was never migrated holds nothing."""
    database = await Database.connect(settings, "doctor")
    try:
        async with database.reading() as connection:
            ahead_s = await _ahead(lambda: _seconds(connection))
            scripts = ScriptDirectory.from_config(config(""))
            store = Store(
                await queries.revision(connection),
                scripts.get_current_head() or "",
                frozenset(script.revision for script in scripts.walk_revisions()),
            )
            try:
                return await _read_rows(connection, store, ahead_s)
            except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
                if store.revision == store.head:
                    raise
                return _Read(store, [], {}, (), {}, ahead_s)
    finally:
        await database.close(1.0)


async def _read_rows(connection: Connection, store: Store, ahead_s: float) -> _Read:
    figures, parked = await queries.connection_figures(connection), await queries.parked_jobs(connection)
    assert figures is not None
    assert parked is not None
    store = replace(
        store,
        schedulers=tuple([_scheduler(row) for row in await queries.living_schedulers(connection)]),
        connections_limit=figures["limit"],
        connections=figures["open"],
        connections_ours=figures["ours"],
        processes=figures["processes"],
        parked=parked["count"],
        parked_example=parked["example"] or "",
    )
    since = await clock(connection) - timedelta(seconds=LIVE_S)
    return _Read(
        store,
        await queries.queues(connection),
        {row["queue"]: row for row in await queries.durations(connection)},
        tuple([Need(**row) for row in await queries.needed(connection)]),
        {row["node"]: row for row in await workers_seen_since(connection, since)},
        ahead_s,
    )


def _scheduler(row: Record) -> Scheduler:
    loops = {name: said for name, said in row["detail"].items() if isinstance(said, dict)}
    return Scheduler(
        row["id"], frozenset(loops), {name: str(said["problem"]) for name, said in loops.items() if said.get("problem")}
    )


def _queues(read: _Read | None) -> dict[str, Queue]:
    found = {}
    for row in read.queues if read else ():
        seen = read.durations.get(row["name"]) if read else None
        longest_s, count = (seen["longest_s"], seen["seen"]) if seen else (0.0, 0)
        found[row["name"]] = Queue(**row, longest_s=longest_s or 0.0, seen=count)
    return found


async def _tell(url: str, *, ours: bool = False) -> _Told:
    """What a Redis says of itself; with `ours` also the workers of ours that it keeps. Raises RedisError."""
    async with Redis.from_url(url, socket_timeout=4, socket_connect_timeout=4, retry=Retry(NoBackoff(), 0)) as redis:

        async def now() -> float:
            seconds, micros = await redis.time()
            return float(seconds) + micros / 1e6

        ahead_s = await _ahead(now)
        try:
            save = (await redis.config_get("save")).get("save")
        except RedisError:  # a Redis that others run for us may keep that to itself
            save = None
        return _Told(await redis.info("all"), save, ahead_s, await presences(redis) if ours else {})


def _servers(settings: Settings, results: _Told | None, broker: _Told | None) -> tuple[RedisServer, ...]:
    """The servers, each once: broker and results are often the same under two URLs."""
    redis_url, broker_url = settings.redis_url.get_secret_value(), settings.broker_url.get_secret_value()
    one = not settings.on_rabbitmq and (
        _same_server(redis_url, broker_url)
        or (results is not None and broker is not None and results.info.get("run_id") == broker.info.get("run_id"))
    )
    found = []
    if results is not None:
        uses = frozenset({"results", "broker"} if one else {"results"})
        found.append(RedisServer(where(redis_url), uses, results.info, results.save))
    if broker is not None and not one:
        found.append(RedisServer(where(broker_url), frozenset({"broker"}), broker.info, broker.save))
    return tuple(found)


async def _check(broker: Broker) -> str | None:
    """Why the broker is away; None if it answers."""
    try:
        await broker.check()
    except ConnectionError as error:
        return _line(error)
    return None


async def _counted(
    broker: Broker, settings: Settings, queues: Mapping[str, Queue], needs: Iterable[Need]
) -> dict[str, int | None]:
    """By queue, how many consumers RabbitMQ counts: 0 also for a queue that is not there. Redis counts none."""
    if not settings.on_rabbitmq:
        return {}
    wanted = list(dict.fromkeys(need.queue for need in needs if need.queue in queues))[:_MOST_BACKLOGS]
    found: dict[str, int | None] = {}
    places = asyncio.Semaphore(_AT_ONCE)

    async def count(name: str) -> None:
        async with places:
            try:
                found[name] = (await broker.backlog(name)).consumers
            except QueueTrouble:
                found[name] = 0

    try:
        async with asyncio.timeout(_BACKLOGS_S):
            await asyncio.gather(*(count(name) for name in wanted))
    except (TimeoutError, ConnectionError):
        pass  # what is not in `found` is not known
    return found


async def _log_store(url: str) -> str | None:
    """Why nothing can be written into the log store from here; None if it can."""
    try:
        async with asyncio.timeout(_LOG_STORE_S):
            await LogStore(url).check()
    except TimeoutError:
        return f"no answer within {_LOG_STORE_S:g} s"
    except Exception as error:  # a wrong setting of the store itself is told like one that is away
        return _line(error)
    return None


async def _settled(worker: Worker, here: frozenset[tuple[str, int]]) -> Worker:
    """The worker with the answer whether its results are on the plane's server."""
    results = worker.results
    if results is None or not results.address:
        return worker
    found = await _addresses(f"redis://{results.address}")
    return replace(worker, results=replace(results, same=bool(found & here) if found and here else None))


async def _addresses(url: str) -> frozenset[tuple[str, int]]:
    """The addresses of a server as seen from here; empty if its name says nothing here."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 6379
        async with asyncio.timeout(2):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, TimeoutError):
        return frozenset()
    loopback = {"::1": "127.0.0.1"}
    return frozenset((loopback.get(str(address[4][0]), str(address[4][0])), port) for address in found)


async def _ahead(now: Callable[[], Awaitable[float]]) -> float:
    """By how much a clock is ahead of ours for certain: what the way there and back may explain is left out."""
    before = time.time()
    there = await now()
    after = time.time()
    if there > after:
        return there - after
    return min(there - before, 0.0)


async def _seconds(connection: Connection) -> float:
    return (await clock(connection)).timestamp()


def _same_server(one: str, other: str) -> bool:
    a, b = urlsplit(one), urlsplit(other)
    return (a.hostname, a.port or 6379) == (b.hostname, b.port or 6379)


def where(url: str) -> str:
    """A server's address, without what is secret in its URL."""
    parts = urlsplit(url)
    default = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}.get(parts.scheme, 5432)
    return f"{parts.hostname or 'localhost'}:{parts.port or default}"


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:300]
