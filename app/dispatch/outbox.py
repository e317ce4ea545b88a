"""Hands due runs to the broker: at least once, confirmed.

A pass claims runs and commits, publishes them with no transaction open, then marks what the broker confirmed. Whoever
dies in between leaves a claim that is free again after 30 s, and the same dispatch goes out once more under the same
task id. The run row is the outbox: there is nothing else to keep.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from redis.asyncio import Redis

from app import faults
from app.database import Database, Record, clock
from app.dispatch import limit_queries, limits, queries
from app.dispatch.broker import Broker, BrokerAway, Fate, Outcome
from app.dispatch.claim_queries import claim
from app.dispatch.hold import AWAY, hold_of
from app.dispatch.message import Message, message_of, too_large
from app.dispatch.room import limit_reached
from app.progress.announce import announce
from app.settings import Settings

log = structlog.get_logger()

#: When a message that came back is tried again.
RETRY_S: Final = 5.0
#: How often there is a pass where nothing asks for one.
PAUSE_S: Final = 1.0
#: How soon a queue is looked at again that has no place for what waits: later each time that none has become free, and
#: where a look would take more than this share of the time.
_FULL_S: Final = 0.1
_LOOK_SHARE: Final = 0.1
FIRST_PAUSE_S: Final = 0.2
LAST_PAUSE_S: Final = 5.0
#: How often the runs that wait are told why; less often where that would take more than this share of the time.
_TELL_EVERY_S: Final = 1.0
_TELL_SHARE: Final = 0.05
_TELL_AT_LEAST_EVERY_S: Final = 10.0
_MOST_COUNTED: Final = 100_000


@dataclass(slots=True)
class _Away:
    """The broker is away: since when in words, and when it is asked again (the event loop's clock)."""

    reason: str
    pause_s: float
    ask_at: float


@dataclass(frozen=True, slots=True)
class _Sent:
    """What became of one claimed run."""

    run_id: UUID
    dispatch: int
    outcome: Outcome


class Outbox:
    """The dispatch pass. One instance runs one pass at a time; any number of instances may run at once."""

    def __init__(self, settings: Settings, database: Database, redis: Redis, broker: Broker, name: str) -> None:
        self._limit = settings.dispatch_batch
        self._log_store = settings.log_store
        self._database = database
        self._redis = redis
        self._broker = broker
        self._reply_to = settings.reply_queue if settings.on_rabbitmq else ""
        #: Unique even if two processes bear one name: nobody else may mark what this one claimed.
        self.claimer = f"{name}:{secrets.token_hex(4)}"
        #: After how many seconds the next pass is worth it.
        self.pause_s = PAUSE_S
        self._full_s = _FULL_S
        self._away: _Away | None = None
        self._tell_at = 0.0
        #: By (queue, task): the workers that consume the queue, of which none registers the task.
        self._held: dict[tuple[str, str], tuple[str, ...]] = {}
        #: What was published and not yet written down, because the database went away in between.
        self._unsettled: list[_Sent] = []

    @property
    def broker_away(self) -> str | None:
        """`broker away since ...` while it is."""
        return self._away.reason if self._away else None

    async def run_once(self) -> bool:
        """One pass over at most `dispatch_batch` runs; True if there may be more to do at once.

        A broker that is away is no error: it is told on the runs that wait. Raises what the database raises.
        """
        self.pause_s = PAUSE_S
        await self._settle()
        if not await self._broker_answers():
            return await self._tell()
        # A broker that answers may still confirm nothing (a memory alarm), and may later deliver every batch that it
        # was sent meanwhile: after trouble one run goes ahead.
        limit = self._limit if self._away is None else 1
        async with self._database.transaction() as connection:
            began = asyncio.get_running_loop().time()
            now = await limit_queries.pass_the_gate(connection)
            rooms = await limits.look(connection, now, self.claimer)
            claimed = await claim(connection, now, self.claimer, limit, self._log_store, rooms)
            self._full_s = _FULL_S if claimed else min(2 * self._full_s, PAUSE_S)
            full_s = max(self._full_s, (asyncio.get_running_loop().time() - began) / _LOOK_SHARE)
            room_in_s = await limits.book(connection, rooms, claimed, full_s)
        if claimed:
            await faults.at("dispatch.after_claim")
        self._unsettled = await self._publish(claimed)
        if claimed:
            await faults.at("dispatch.after_publish")
        lost = next((sent.outcome for sent in self._unsettled if sent.outcome.fate is Fate.UNCERTAIN), None)
        if lost is None:
            self._broker_is_back()
            self.pause_s = min(room_in_s or PAUSE_S, PAUSE_S)
        else:
            self._broker_is_away(now, lost.reason)
        await self._settle()
        more_to_tell = await self._tell()
        return more_to_tell or (lost is None and len(claimed) == limit)

    async def _publish(self, runs: Sequence[Record]) -> list[_Sent]:
        """Build and publish the messages; a run of which no message can be made harms no other."""
        messages: list[Message] = []
        sent: list[_Sent] = []
        for run in runs:
            try:
                message = message_of(run, self._reply_to)
                trouble = too_large(message, run["max_message_kib"])
            except Exception as error:
                trouble = f"no message can be made of it: {error}".partition("\n")[0][:300]
            if trouble is None:
                messages.append(message)
            else:
                sent.append(_Sent(run["id"], run["dispatches"] + 1, Outcome(Fate.REFUSED, trouble)))
        if messages:
            await faults.at("dispatch.before_publish")
            outcomes = await self._broker.publish(messages)
            sent += [_Sent(m.run_id, m.dispatch, outcome) for m, outcome in zip(messages, outcomes, strict=True)]
        return sent

    async def _settle(self) -> None:
        """Write down what the broker said: confirmed runs are marked, the others given back with their reason."""
        if not self._unsettled:
            return
        confirmed = [(sent.run_id, sent.dispatch) for sent in self._unsettled if sent.outcome.fate is Fate.CONFIRMED]
        others = [sent for sent in self._unsettled if sent.outcome.fate is not Fate.CONFIRMED]
        changed: list[Record] = []
        # Two transactions: each takes its rows in the order of ids, both together would not.
        if confirmed:
            async with self._database.transaction() as connection:
                changed += await queries.mark_dispatched(connection, await clock(connection), self.claimer, confirmed)
            await faults.at("dispatch.after_mark")
        if others:
            async with self._database.transaction() as connection:
                now = await clock(connection)
                back = [(sent.run_id, *self._wait(sent.outcome, now)) for sent in others]
                changed += await queries.release(connection, now, self.claimer, back)
        self._unsettled = []
        await announce(self._redis, changed)
        if others:
            log.warning("runs_not_dispatched", runs=len(others), reason=others[0].outcome.reason)
        if confirmed:
            log.debug("runs_dispatched", runs=len(confirmed))

    def _wait(self, outcome: Outcome, now: datetime) -> tuple[str | None, datetime]:
        if outcome.fate is Fate.UNCERTAIN:
            return (self._away.reason if self._away else outcome.reason), now
        return outcome.reason, now + timedelta(seconds=RETRY_S)

    async def _tell(self) -> bool:
        """Tell the runs that cannot go out why; True if there are more of them.

        Looks at most once a second, and less often where so many wait that a look takes long.
        """
        clock_of_loop = asyncio.get_running_loop().time
        begin = clock_of_loop()
        if begin < self._tell_at:
            return False
        async with self._database.transaction() as connection:
            now = await clock(connection)
            kinds = await queries.waiting_kinds(connection, now)
            found = [hold_of(kind, self.broker_away, limit_reached(kind, now)) for kind in kinds]
            holds = [hold for hold in found if hold is not None]
            told = await queries.tell_why_waiting(connection, now, holds, self._limit) if holds else []
        async with self._database.transaction() as connection:
            consumed = await queries.tell_consumed(connection, await clock(connection), self._limit)
        await announce(self._redis, [*told, *consumed])
        await self._log_held({(hold.queue, hold.task): hold.workers for hold in holds if hold.workers})
        more = self._limit in {len(told), len(consumed)}
        took = clock_of_loop() - begin
        pause_s = min(max(_TELL_EVERY_S, took / _TELL_SHARE), _TELL_AT_LEAST_EVERY_S)
        self._tell_at = 0.0 if more else begin + pause_s
        return more

    async def _log_held(self, held: dict[tuple[str, str], tuple[str, ...]]) -> None:
        """Log which tasks no worker on their queue registers, each time that this changes."""
        for (queue, task), workers in held.items():
            if self._held.get((queue, task)) == workers:
                continue
            async with self._database.reading() as connection:
                count = await queries.count_waiting(connection, queue, task, _MOST_COUNTED)
            log.warning("runs_held", queue=queue, task=task, workers=list(workers), count=count)
        for queue, task in self._held.keys() - held.keys():
            log.info("runs_held_no_more", queue=queue, task=task)
        self._held = held

    async def _broker_answers(self) -> bool:
        """Whether to try: always, unless the last pass found the broker away; then it is asked with growing pauses."""
        away = self._away
        if away is None:
            return True
        if asyncio.get_running_loop().time() < away.ask_at:
            return False
        try:
            await self._broker.check()
        except BrokerAway:
            away.pause_s = min(2 * away.pause_s, LAST_PAUSE_S)
            away.ask_at = asyncio.get_running_loop().time() + away.pause_s
            return False
        return True

    def _broker_is_away(self, now: datetime, detail: str | None) -> None:
        if self._away is None:
            since = now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            self._away = _Away(f"{AWAY}{since}", FIRST_PAUSE_S, 0.0)
            log.warning("broker_away", detail=detail)
        else:
            self._away.pause_s = min(2 * self._away.pause_s, LAST_PAUSE_S)
        self._away.ask_at = asyncio.get_running_loop().time() + self._away.pause_s
        self._tell_at = 0.0

    def _broker_is_back(self) -> None:
        if self._away is not None:
            log.info("broker_back", was=self._away.reason)
            self._away = None
