"""Keeps the queues of the plane on the broker; only the scheduler does this.

A row of `queues` that was never looked at is found or made at once; what is in trouble is looked at again every 5 s,
everything every 30 s and after each new connection to the broker. What the broker refuses about one queue is told on
that queue (`problem`), and the others go on. See `app.dispatch.rabbitmq` for what is made, and what never.
"""

import asyncio
from typing import Final

import structlog
from redis.asyncio import Redis

from app.database import Connection, Database, Record, clock
from app.dispatch import queries
from app.dispatch.broker import Broker, BrokerAway, QueueTrouble, Route
from app.progress.announce import ring
from app.settings import Settings

log = structlog.get_logger()

TROUBLED_EVERY_S: Final = 5.0
ALL_EVERY_S: Final = 30.0
_BATCH: Final = 200
_ROUTE: Final = (
    "name",
    "exchange",
    "exchange_type",
    "routing_key",
    "type",
    "max_priority",
    "delivery_limit",
    "consumer_timeout_s",
    "adopted",
)


async def ensure_default_queues(database: Database, settings: Settings) -> None:
    """Make the rows of the queues that exist from the first start on: `default` and those of the settings.

    On RabbitMQ they are quorum queues with dead letters. A row that exists is left alone.
    """
    on_rabbitmq = settings.on_rabbitmq
    names = list(dict.fromkeys(("default", *settings.task_queues)))
    async with database.transaction() as connection:
        await queries.insert_default_queues(
            connection, names, "quorum" if on_rabbitmq else "classic", dead_letter=on_rabbitmq
        )


class Topology:
    """The loop over queues. One scheduler at a time does it, by an advisory lock that spares the broker the others."""

    def __init__(self, settings: Settings, database: Database, redis: Redis, broker: Broker) -> None:
        self._dead_letter_queue = settings.dead_letter_queue
        self._database = database
        self._redis = redis
        self._broker = broker
        #: Where the look at everything has come to; None between two of them.
        self._after: str | None = None
        self._all_at = 0.0
        self._troubled_at = 0.0
        self._connects = broker.connects
        #: Whether the queue of dead letters was found or made in this pass.
        self._kept_dead_letters = False

    async def run_once(self) -> bool:
        """Look at the queues whose turn it is; True if there are more. Raises BrokerAway."""
        async with self._database.reading() as connection:
            if not await queries.only_looker(connection):
                return False
            try:
                return await self._look(connection)
            finally:
                await queries.let_others_look(connection)

    async def _look(self, connection: Connection) -> bool:
        now = asyncio.get_running_loop().time()
        if self._after is None and (now >= self._all_at or self._connects != self._broker.connects):
            self._after = ""
        everything, troubled = self._after is not None, now >= self._troubled_at
        rows = await queries.queues_to_look_at(
            connection, troubled=troubled, everything=everything, after=self._after or "", limit=_BATCH
        )
        news = False
        self._kept_dead_letters = False
        for row in rows:
            news |= await self._look_at(row)
        more = len(rows) == _BATCH
        if troubled:
            self._troubled_at = now + TROUBLED_EVERY_S
        if everything:
            self._after = rows[-1]["name"] if more else None
            if not more:
                self._all_at, self._connects = now + ALL_EVERY_S, self._broker.connects
        if news:
            await ring(self._redis)
        return more

    async def _look_at(self, row: Record) -> bool:
        """Find or make one queue and write down what came of it; whether it may be used now and could not before."""
        name, version = row["name"], row["version"]
        try:
            stood = await self._declare(row)
        except QueueTrouble as trouble:
            async with self._database.transaction() as connection:
                news = await queries.queue_in_trouble(connection, name, version, str(trouble))
            if news:
                log.warning("queue_in_trouble", queue=name, problem=str(trouble))
            return False
        async with self._database.transaction() as connection:
            news = await queries.queue_stands(connection, await clock(connection), name, version, adopted=stood)
        if news:
            log.info("queue_stands", queue=name, adopted=stood)
        return news

    async def _declare(self, row: Record) -> bool:
        route = Route(
            **{field: row[field] for field in _ROUTE},
            dead_letter_queue=self._dead_letter_queue if row["dead_letter"] else None,
        )
        try:
            if row["dead_letter"] and not row["adopted"]:
                await self._keep_dead_letters()
            return await self._broker.declare(route)
        except BrokerAway as away:
            # Some refusals end the whole connection, and some names cannot be sent at all. If the broker answers, it is
            # this queue that it does not like.
            await self._broker.check()
            raise QueueTrouble(str(away)) from away

    async def _keep_dead_letters(self) -> None:
        if self._kept_dead_letters:
            return
        try:
            await self._broker.keep_dead_letters(self._dead_letter_queue)
        except QueueTrouble as trouble:
            raise QueueTrouble(f"the queue of dead letters, {self._dead_letter_queue!r}: {trouble}") from trouble
        self._kept_dead_letters = True
