"""The pass that keeps `workers` and `queue_sightings`: who lives, what each registers, who consumes which queue.

One scheduler at a time does it, by a lease that others take over. What is not known stays as it was seen last: a broker
or a Redis that is away empties nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.catalogue import queries
from app.catalogue.ask import Asker
from app.catalogue.present import contracts, presences
from app.catalogue.recheck import Recheck
from app.catalogue.seen import Seen, continued, of_answers, same_life
from app.catalogue.sight import Live, Sighting, lacking, sighting
from app.database import AWAY, Database, Record, clock
from app.progress.announce import ring
from app.progress.consumers import Backlog
from app.progress.queries import give_lease_back, hold_lease

log = structlog.get_logger()

EVERY_S: Final = 5.0
#: A worker that was not seen for this long does not count as live.
LIVE_S: Final = 30.0
#: One that was not seen for this long is forgotten.
FORGET_S: Final = 3600.0
_LEASE: Final = "catalogue"
_LEASE_S: Final = 20.0
_QUEUES_PER_PASS: Final = 200
_AT_ONCE: Final = 10
_BACKLOGS_S: Final = 8.0


class Catalogue:
    """Call `run_once` every five seconds. `backlog` asks the broker what waits in a queue and who takes from it."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        broker_url: str,
        backlog: Callable[[str], Awaitable[Backlog]],
        name: str,
    ) -> None:
        self._database = database
        self._redis = redis
        self._backlog = backlog
        self._name = name
        self._asker = Asker(broker_url)
        self._recheck = Recheck(database)
        #: On Redis the broker cannot count consumers.
        self._blind = not broker_url.startswith("amqp")
        #: The last queue of the pass before.
        self._after = ""
        #: By queue, what its workers were last told to lack.
        self._told: dict[str, dict[str, list[str]]] = {}
        #: Whether the last pass held the lease.
        self._ours = False

    async def run_once(self) -> bool:
        """One look at all workers and at the next 200 queues; always False."""
        async with self._database.reading() as connection:
            self._ours = await hold_lease(connection, _LEASE, self._name, _LEASE_S)
            if not self._ours:
                return False
            known = {row["node"]: row for row in await queries.all_lives(connection)}
        heard = await self._present()
        present = heard or {}
        strangers = [node for node, row in known.items() if not row["ours"] and node not in present]
        unnamed = [node for node in strangers if not known[node]["software"]]
        answers = await self._asker.ask(strangers, unnamed)
        async with self._database.reading() as connection:
            now = await clock(connection)
        seen = dict(present)
        for node, answer in (answers or {}).items():
            found = of_answers(node, answer, now)
            if found is not None and node not in seen:
                seen[node] = found
        await self._keep(now, seen, known, asked=answers is not None)
        await self._sight(now, heard=heard is not None, asked=answers is not None)
        await self._recheck.step(now, LIVE_S)
        return False

    async def close(self) -> None:
        """Let another scheduler look at once, and end the connection to the broker."""
        self._asker.close()
        if self._ours:
            try:
                async with self._database.reading() as connection:
                    await give_lease_back(connection, _LEASE, self._name)
            except AWAY as error:
                log.debug("lease_not_given_back", error=str(error))

    async def _present(self) -> dict[str, Seen] | None:
        """What workers of ours say; None if Redis is away."""
        try:
            return await presences(self._redis)
        except RedisError as error:
            log.debug("presence_unknown", error=str(error))
            return None

    async def _keep(self, now: datetime, seen: Mapping[str, Seen], known: Mapping[str, Record], *, asked: bool) -> None:
        """Write the workers that were seen; forget those of long ago, if everybody could be heard."""
        lives = {node: known[node] for node, one in seen.items() if node in known and same_life(known[node], one)}
        whole = {node: continued(lives[node], one) if node in lives else one for node, one in seen.items()}
        new_digests = {
            one.contracts_digest
            for node, one in whole.items()
            if one.contracts_digest and (node not in known or known[node]["contracts_digest"] != one.contracts_digest)
        }
        try:
            read = await contracts(self._redis, new_digests)
        except RedisError:
            read = {}
        rows: list[dict[str, Any]] = []
        for node, one in whole.items():
            row = {
                **asdict(one),
                "contracts": None,
                "first_seen_time": lives[node]["first_seen_time"] if node in lives else now,
            }
            if one.contracts_digest in new_digests:
                # What could not be read is read the next time.
                row["contracts"] = read.get(one.contracts_digest, {})
                row["contracts_digest"] = one.contracts_digest if one.contracts_digest in read else ""
            rows.append(row)
        async with self._database.transaction() as connection:
            if rows:
                await queries.keep_workers(connection, now, rows)
            if asked:
                await queries.forget_workers(connection, now - timedelta(seconds=FORGET_S))
        for node in sorted(whole.keys() - lives.keys()):
            one = whole[node]
            log.info("worker_seen", node=node, ours=one.ours, queues=one.queues, tasks=len(one.tasks))

    async def _sight(self, now: datetime, *, heard: bool, asked: bool) -> None:
        async with self._database.reading() as connection:
            names = await queries.queue_names(connection, self._after, _QUEUES_PER_PASS)
            if not names and self._after:
                names = await queries.queue_names(connection, "", _QUEUES_PER_PASS)
            rows = await queries.workers_seen_since(connection, now - timedelta(seconds=LIVE_S))
        self._after = names[-1] if len(names) == _QUEUES_PER_PASS else ""
        backlogs = await self._backlogs(names)
        live = [
            Live(row["node"], frozenset(row["queues"]), frozenset(row["tasks"]), row["seen_time"] == now)
            for row in rows
            # One of ours that says nothing any more has gone, where it could have been heard.
            if row["seen_time"] == now or not (row["ours"] and heard)
        ]
        seen = [
            sighting(
                name,
                live,
                ready=None if backlog is None else backlog.ready,
                counted=None if backlog is None else backlog.consumers,
                blind=self._blind,
                all_asked=asked,
            )
            for name, backlog in backlogs.items()
        ]
        if not seen:
            return
        async with self._database.transaction() as connection:
            before = {row["queue"]: row for row in await queries.sightings(connection, names)}
            await queries.keep_sightings(connection, now, [asdict(one) for one in seen])
            needed = await queries.tasks_needed(connection, [one.queue for one in seen if one.differ])
        if self._tell_changes(seen, before):
            await ring(self._redis)
        self._tell_thieves(seen, live, needed)

    async def _backlogs(self, names: Sequence[str]) -> dict[str, Backlog | None]:
        """What waits in each queue, None for one that the broker knows nothing of; empty if the broker is away."""
        gate = asyncio.Semaphore(_AT_ONCE)
        found: dict[str, Backlog | None] = {}

        async def look(name: str) -> None:
            async with gate:
                try:
                    found[name] = await self._backlog(name)
                except ConnectionError:
                    raise
                except Exception as error:
                    log.debug("backlog_unknown", queue=name, error=f"{type(error).__name__}: {error}")
                    found[name] = None

        try:
            async with asyncio.timeout(_BACKLOGS_S), asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(look(name))
        except (TimeoutError, ExceptionGroup) as error:
            log.debug("backlogs_unknown", error=str(error))
            return {}
        return {name: found[name] for name in names}

    def _tell_changes(self, seen: Sequence[Sighting], before: Mapping[str, Record]) -> bool:
        """Log the queues whose consumers are others than before; whether there is one."""
        changed = [one for one in seen if _facts(one) != _facts(before.get(one.queue))]
        for one in changed:
            log.info(
                "queue_consumers_changed",
                queue=one.queue,
                workers=one.workers,
                consumers=one.consumers,
                known=one.known_tasks is not None,
            )
        return bool(changed)

    def _tell_thieves(
        self, seen: Sequence[Sighting], live: Sequence[Live], needed: Mapping[str, Sequence[str]]
    ) -> None:
        """Warn of workers that take from a queue and cannot do what others on it can; once per change."""
        for one in seen:
            lacks = lacking(live, one.workers, needed.get(one.queue, ())) if one.differ else {}
            if lacks == self._told.get(one.queue, {}):
                continue
            for node, tasks in lacks.items():
                log.warning("workers_of_a_queue_differ", queue=one.queue, node=node, lacks=tasks)
            if not lacks:
                log.info("workers_of_a_queue_agree", queue=one.queue)
            self._told[one.queue] = lacks


def _facts(one: Sighting | Record | None) -> tuple[Any, ...] | None:
    """What of a sighting is news when it changes."""
    if one is None:
        return None
    if isinstance(one, Sighting):
        row: Mapping[str, Any] = asdict(one)
    else:
        row = one
    known, common = (None if row[name] is None else list(row[name]) for name in ("known_tasks", "common_tasks"))
    return list(row["workers"]), row["consumers"], known, common
