"""Pursues cancels until they have lasted: the row says that one was asked for, and nothing but its end ends that.

Any number of cancellers may run: each pass takes the runs whose time has come by putting them off, so that whoever
dies in between leaves them to the next look.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.database import Database, Record, clock
from app.progress import cancel_queries as queries
from app.progress import cancelling, withdraw
from app.progress.announce import tell
from app.progress.cancelling import WAITS_FOR_BROKER, WAITS_FOR_REDIS, Audience
from app.progress.control import Control
from app.progress.sources import Source
from app.progress.standing import Move, Standing
from app.progress.transition import apply
from app.progress.withdraw import Whose
from app.settings import Settings
from app.states import REVOKED

log = structlog.get_logger()

PAGE: Final = 200

#: Until then a run that one pass looks at is left alone by the others.
_HOLD: Final = timedelta(seconds=30)
_REDIS_S: Final = 3.0
#: How long the end of work that is done may take to be recorded; what comes to no end then is the reaper's.
_DONE: Final = timedelta(seconds=60)
_SOON: Final = timedelta(seconds=1)
_PAUSE: Final = timedelta(seconds=5)
_LONG_PAUSE: Final = timedelta(seconds=30)
#: How long a worker that does not answer is asked whether a body still runs there, and how often it is told to kill.
_ASKED_FOR: Final = timedelta(seconds=60)
_MOST_KILLS: Final = 3
#: A child of a worker of ours has been told by `Cancelled` already. Celery forgets a task that it was told to end, so
#: there is no second, stronger word.
_KILL: Final = "SIGKILL"
_TERMINATE: Final = "SIGTERM"


class Canceller:
    """Call `run_once` every second, and when somebody asked for a cancel."""

    def __init__(self, database: Database, redis: Redis, settings: Settings) -> None:
        self._database = database
        self._redis = redis
        self._control = Control(settings.broker_url.get_secret_value())
        self._kills: dict[UUID, int] = {}

    async def run_once(self) -> bool:
        """One pass over at most `PAGE` runs; whether there may be more. A part that is away is told on the runs."""
        async with self._database.reading() as connection:
            now, next_time = await queries.time_of_next_look(connection)
        if next_time is None or next_time > now:
            return False
        until = now + _HOLD
        async with self._database.transaction() as connection:
            rows = await queries.take_due(connection, now, until, PAGE)
        looks = await self._pursue(now, [row for row in rows if row["end_time"] is None])
        looks |= await self._look_after(now, [row for row in rows if row["end_time"] is not None])
        async with self._database.transaction() as connection:
            await queries.put_off(connection, until, sorted(looks.items()))
        return len(rows) == PAGE

    async def _pursue(self, now: datetime, rows: Sequence[Record]) -> dict[UUID, datetime | None]:
        """Live runs: take them back, or tell the stock worker that has one. When to look again at those that live."""
        looks: dict[UUID, datetime | None] = {}
        reasons: dict[UUID, str] = {}
        strangers: list[Record] = []
        redis_away = False
        for row in rows:
            asked_for = cancelling.asked_for(now, row)
            whose = None if redis_away else await self._take_back(row)
            if whose is None:
                redis_away = True
                reasons[row["id"]] = WAITS_FOR_REDIS
                looks[row["id"]] = now + cancelling.growing(asked_for, 1, 5)
            elif whose is Whose.STRANGER:
                strangers.append(row)
                looks[row["id"]] = now + cancelling.growing(asked_for, 5, 60)
            elif whose is Whose.DONE:
                looks[row["id"]] = now + (_SOON if asked_for < _DONE else _LONG_PAUSE)
            else:
                looks[row["id"]] = now  # it has ended, and says itself what comes, or it went on meanwhile
        for row in await self._tell(strangers):
            terminate = row["cancel"]["terminate"]
            reasons[row["id"]] = cancelling.told_to(row["worker"], row["pool"], terminate=terminate)
        for row in strangers:
            if reasons.setdefault(row["id"], WAITS_FOR_BROKER) == WAITS_FOR_BROKER:
                looks[row["id"]] = now + _PAUSE
        await self._explain({run_id: [cancelling.explain(reason)] for run_id, reason in reasons.items()})
        return looks

    async def _take_back(self, row: Record) -> Whose | None:
        """End the run if it is not a stranger's. None: Redis is away."""
        try:
            async with asyncio.timeout(_REDIS_S):
                taken = await withdraw.take(self._redis, Standing.of(row), Source.of(row))
        except (RedisError, OSError) as error:  # a time-out is an OSError
            log.debug("cancel_waits", run_id=str(row["id"]), error=f"{type(error).__name__}: {error}")
            return None
        await self._announce(await withdraw.write(self._database, taken))
        return taken.whose

    async def _explain(self, moves: Mapping[UUID, Sequence[Move]]) -> None:
        if not moves:
            return
        async with self._database.transaction() as connection:
            rows = await apply(connection, await clock(connection), moves)
        await self._announce(rows)

    async def _announce(self, rows: Sequence[Record]) -> None:
        for row in rows:
            log.info("cancel_pursued", run_id=str(row["id"]), state=row["state"], reason=row["reason"])
        await tell(self._redis, rows)

    async def _look_after(self, now: datetime, rows: Sequence[Record]) -> dict[UUID, datetime | None]:
        """Ended runs: what their end left behind. When to look again; None: no more."""
        looks: dict[UUID, datetime | None] = {row["id"]: None for row in rows}
        revoked = [row for row in rows if row["state"] == REVOKED]
        bodies = [row for row in revoked if row["leased"] and row["cancel"]["terminate"]]
        if bodies:
            looks |= await self._kill(now, bodies)
        messages = [row for row in revoked if not row["leased"]]
        if messages:
            looks |= await self._revoke(now, messages)
        return looks

    async def _revoke(self, now: datetime, rows: Sequence[Record]) -> dict[UUID, datetime | None]:
        """Runs that were ended before a worker had them, as far as we know: a stock one may still take the message."""
        async with self._database.reading() as connection:
            found = await queries.audiences(connection, now, [row["queue"] for row in rows])
        plans = {
            row["id"]: cancelling.aftermath(now, row["end_time"], found.get(row["queue"], Audience())) for row in rows
        }
        wanted = [row for row in rows if plans[row["id"]][0]]
        told = {row["id"] for row in await self._tell(wanted)}
        return {
            run_id: next_time if run_id in told or not tell else now + _PAUSE
            for run_id, (tell, next_time) in plans.items()
        }

    async def _tell(self, rows: Sequence[Record]) -> list[Record]:
        """Tell every worker of these runs, in one word for those to be terminated and one for the others.

        The runs of which the broker took the word.
        """
        told: list[Record] = []
        for terminate in (False, True):
            mine = [row for row in rows if _is_to_be_terminated(row) is terminate]
            ids = [task_id for row in mine for task_id in cancelling.ids_of(row)]
            if mine and await self._control.revoke(ids, _TERMINATE if terminate else None):
                told += mine
        return told

    async def _kill(self, now: datetime, rows: Sequence[Record]) -> dict[UUID, datetime | None]:
        """Bodies of ours that had their time to heed `Cancelled`: end the process of those that still run."""
        looks: dict[UUID, datetime | None] = {row["id"]: None for row in rows}
        asked = [row for row in rows if row["worker"] and self._can_be_killed(row)]
        if not asked:
            return looks
        active = await self._control.active(sorted({row["worker"] for row in asked}))
        doomed: defaultdict[str, list[str]] = defaultdict(list)
        for row in asked:
            ids = (active or {}).get(row["worker"])
            running = ids.intersection(cancelling.ids_of(row)) if ids is not None else set()
            if running:
                doomed[row["worker"]] += running
                self._kills[row["id"]] = self._kills.get(row["id"], 0) + 1
                log.warning("body_killed", run_id=str(row["id"]), worker=row["worker"])
            grace = timedelta(seconds=row["cancel"]["grace_s"])
            patient = ids is None and now < row["update_time"] + grace + _ASKED_FOR
            if running or patient:
                looks[row["id"]] = now + _PAUSE
            else:
                self._kills.pop(row["id"], None)
        for node, task_ids in doomed.items():
            await self._control.revoke(task_ids, _KILL, node)
        return looks

    def _can_be_killed(self, row: Record) -> bool:
        if cancelling.can_terminate(row["pool"]) and self._kills.get(row["id"], 0) < _MOST_KILLS:
            return True
        log.warning("body_not_killed", run_id=str(row["id"]), worker=row["worker"], pool=row["pool"])
        self._kills.pop(row["id"], None)
        return False


def _is_to_be_terminated(row: Record) -> bool:
    # A worker that cannot would only fill its log with that.
    return bool(row["cancel"]["terminate"]) and cancelling.can_terminate(row["pool"])
