"""The control process: from tick to sweep, each stage's passes in loops of their own, until stopped.

Any number of these may run; none leads. What one of them does, its own stage says.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import structlog
import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import faults, log
from app.catalogue.look import EVERY_S as LOOK_AT_WORKERS_S
from app.catalogue.look import Catalogue
from app.database import AWAY, Database, clock
from app.dispatch import broker as brokers
from app.dispatch.outbox import Outbox
from app.dispatch.topology import Topology, ensure_default_queues
from app.due.backfill import Backfiller
from app.due.tick import Tick
from app.logs import seal
from app.logs.seal import Sealer
from app.logs.store import Store
from app.loop import Loop, end
from app.progress import queries
from app.progress.announce import channel_of
from app.progress.cancel import Canceller
from app.progress.reap import Reaper
from app.progress.record import Recorder
from app.progress.replies import Replies
from app.progress.sweep import Sweeper
from app.settings import Settings
from workers.protocol import DOORBELL_CHANNEL

logger = structlog.get_logger()

POLL_S: Final = 1.0
BEAT_S: Final = 2.0
#: How long passes in hand may take when we are stopped, how long goodbyes, and how long the database's.
_STOP_S: Final = 6.0
_GOODBYE_S: Final = 1.5
_CLOSE_S: Final = 1.0
_RETRY_S: Final = 1.0


class Scheduler:
    """One control process; `run` returns once it is stopped and every pass in hand has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def stop(self) -> None:
        """End after the passes in hand. May be called more than once."""
        self._stop.set()

    async def run(self) -> None:
        settings = self._settings
        database = await self._connect()
        if database is None:
            return
        redis = Redis.from_url(
            settings.redis_url.get_secret_value(), socket_timeout=5, socket_connect_timeout=5, health_check_interval=15
        )
        url = settings.broker_url.get_secret_value()
        # Two connections: a question about one queue in trouble must not cost the publisher its own.
        publisher, asker = (brokers.connect(url, settings.publish_timeout_s) for _ in range(2))
        backfiller = Backfiller(database, redis)
        tick = Tick(database, redis, settings.tick_batch)
        outbox = Outbox(settings, database, redis, publisher, self.name)
        topology = Topology(settings, database, redis, asker)
        recorder = Recorder(database, redis, settings, self.name)
        replies = Replies(database, redis, settings, self.name) if settings.on_rabbitmq else None
        reaper = Reaper(database, redis, settings, asker.backlog)
        canceller = Canceller(database, redis, settings)
        store = Store(settings.log_store)
        sealer = Sealer(database, redis, store, self.name)
        sweeper = Sweeper(database, settings, store)
        catalogue = Catalogue(database, redis, url, asker.backlog, self.name)
        await ensure_default_queues(database, settings)
        dispatch = Loop("dispatch", outbox.run_once, lambda: outbox.pause_s)

        async def tick_and_wake() -> bool:
            more = await tick.run_once()
            dispatch.wake.set()
            return more

        async def fill_and_wake() -> bool:
            more = await backfiller.run_once()
            dispatch.wake.set()
            return more

        loops = [
            Loop("tick", tick_and_wake, lambda: tick.pause_s),
            dispatch,
            Loop("backfill", fill_and_wake, lambda: backfiller.pause_s),
            Loop("topology", topology.run_once, lambda: POLL_S),
            Loop("record", recorder.run_once, lambda: POLL_S),
            Loop("cancel", canceller.run_once, lambda: POLL_S),
            Loop("reap", reaper.run_once, lambda: 2.0),
            Loop("seal", sealer.run_once, lambda: seal.PAUSE_S),
            Loop("sweep", sweeper.run_once, lambda: 60.0),
            Loop("catalogue", catalogue.run_once, lambda: LOOK_AT_WORKERS_S),
        ]
        if replies is not None:
            loops.append(Loop("replies", replies.run_once, lambda: POLL_S))
        woken = [loop.wake for loop in loops if loop.name in {"tick", "dispatch", "backfill", "topology", "cancel"}]
        loops.append(Loop("beat", _beat(database, self.name, loops), lambda: BEAT_S))
        doorbell = asyncio.create_task(_answer_the_door(redis, woken))
        logger.info("scheduler_up", name=self.name)
        try:
            await self._run(loops)
        finally:
            goodbyes = [
                end(doorbell),
                recorder.close(),
                catalogue.close(),
                sealer.close(),
                _say_goodbye(database, self.name),
            ]
            if replies is not None:
                goodbyes.append(replies.close())
            await _within(_GOODBYE_S, *goodbyes)
            await _within(_GOODBYE_S, publisher.close(), asker.close(), redis.aclose(), database.close(_CLOSE_S))
            logger.info("scheduler_down", name=self.name)

    async def _run(self, loops: list[Loop]) -> None:
        tasks = [asyncio.create_task(loop.run(self._stop), name=loop.name) for loop in loops]
        await self._stop.wait()
        _, slow = await asyncio.wait(tasks, timeout=_STOP_S)
        for task in slow:
            logger.warning("pass_cut_off", loop=task.get_name())
        await end(*slow)

    async def _connect(self) -> Database | None:
        """The database, once it answers and is migrated; None if we are stopped before that."""
        ready = asyncio.create_task(Database.when_ready(self._settings, f"scheduler {self.name}"))
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        if self._stop.is_set() and not ready.done():
            await end(ready)
            return None
        await end(stopped)
        return ready.result()


def _beat(database: Database, name: str, loops: list[Loop]) -> Callable[[], Awaitable[bool]]:
    """A pass that tells `/readyz` and `/metrics` how each loop fares."""

    async def run_once() -> bool:
        at = time.monotonic()
        detail: dict[str, Any] = {
            loop.name: {
                "good_s_ago": None if loop.good_at is None else round(at - loop.good_at, 3),
                "problem": loop.problem,
            }
            for loop in loops
        }
        async with database.transaction() as connection:
            await queries.say_alive(connection, await clock(connection), name, detail)
        return False

    return run_once


async def _within(seconds: float, *closings: Coroutine[Any, Any, None]) -> None:
    """Close all of these at once; who does not answer in time is left. Never raises."""
    tasks = [asyncio.create_task(closing) for closing in closings]
    _, slow = await asyncio.wait(tasks, timeout=seconds)
    await end(*slow)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("not_closed", problem=f"{type(error).__name__}: {error}")


async def _say_goodbye(database: Database, name: str) -> None:
    with suppress(*AWAY):
        async with database.transaction() as connection:
            await queries.say_goodbye(connection, name)


async def _answer_the_door(redis: Redis, woken: list[asyncio.Event]) -> None:
    """Wake loops when somebody has committed something due. Only a hint: every loop also polls."""
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=True) as bell:
                await bell.subscribe(channel_of(redis, DOORBELL_CHANNEL))
                while True:
                    if await bell.get_message(timeout=10) is None:
                        await bell.ping()
                        continue
                    for event in woken:
                        event.set()
        except (RedisError, OSError) as error:
            logger.debug("doorbell_away", problem=str(error))
            await asyncio.sleep(_RETRY_S)


def serve(settings: Settings) -> None:
    """Run a scheduler until SIGTERM or SIGINT."""
    log.configure(settings, "scheduler")
    faults.arm(settings.faults)

    async def main() -> None:
        scheduler = Scheduler(settings)
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, scheduler.stop)
        await scheduler.run()

    uvloop.run(main())
