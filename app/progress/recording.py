"""Writes a batch of reports, by whichever route they came: one transaction, then the news of it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from redis.asyncio import Redis

from app import faults
from app.database import AWAY, Connection, Database, Record, clock
from app.progress import queries, reports, transition
from app.progress.announce import tell
from app.progress.fold import fold
from app.progress.listen import Heard
from app.progress.moves import NOT_REGISTERED
from app.progress.reports import Refusal
from app.progress.standing import Move
from app.states import PENDING

log = structlog.get_logger()

#: Most reports, and bytes of them, that one transaction writes.
BATCH: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024

#: Refused reports of one batch that are kept; a flood is counted only.
_REFUSED_KEPT: Final = 20
BODY_KEPT: Final = 4096

#: Classes of SQLSTATE that say no to the values, for ever; every other error may pass by itself.
_REFUSING: Final = {"22", "23", "54", "P0"}

Refused = tuple[str, str, bytes]


def is_refusal(error: Exception) -> bool:
    """Whether a batch failed because of what it says; False if the database was away or troubled."""
    if isinstance(error, asyncpg.InterfaceError):
        return isinstance(error, ValueError)  # the driver could not encode a value
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _REFUSING
    return not isinstance(error, (*AWAY, faults.InjectedFault))


class Recording:
    """Where one route writes; `source` names it in `refused_reports`."""

    def __init__(self, database: Database, redis: Redis, source: str) -> None:
        self._database = database
        self._redis = redis
        self._source = source
        #: How many reports were recorded and refused since the start.
        self.recorded = self.refused = 0

    async def record(self, batch: Sequence[Heard]) -> list[Record]:
        """Commit a batch and tell of it; what the database refuses is narrowed down to the report at fault.

        Returns the runs that changed. Raises what the database raises if it is away: then the batch is to be kept.
        """
        try:
            rows = await self._commit(batch)
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(batch) == 1:
                await self._set_aside(batch[0], error)
                return []
            return [row for part in _parts(batch) for row in await self.record(part)]
        await faults.at("record.after_commit")
        await self.tell(rows)
        return rows

    async def tell(self, rows: Sequence[Record]) -> None:
        """Tell watchers and schedulers of runs that were written, and the log of those that a worker gave up."""
        for row in rows:
            if row["state"] == PENDING and (row["reason"] or "").startswith(NOT_REGISTERED):
                log.warning(
                    "task_not_registered",
                    run_id=str(row["id"]),
                    task=row["task"],
                    queue=row["queue"],
                    times=row["not_registered"],
                    reason=row["reason"],
                )
        await tell(self._redis, rows)

    async def refuse(self, connection: Connection, refused: Sequence[Refused]) -> None:
        """Keep what is refused and does not stand in the way of others: (task id, problem, first bytes)."""
        if refused:
            await queries.keep_refused(connection, self._source, refused[:_REFUSED_KEPT])
            log.warning(
                "reports_refused",
                source=self._source,
                count=len(refused),
                task_id=refused[0][0],
                problem=refused[0][1],
            )

    async def _commit(self, batch: Sequence[Heard]) -> list[Record]:
        async with self._database.transaction() as connection:
            now = await clock(connection)
            moves: defaultdict[UUID, list[Move]] = defaultdict(list)
            refused: list[Refused] = []
            for heard in batch:
                report = heard.report or reports.read(heard.task_id, heard.body, heard.size)
                if isinstance(report, Refusal):
                    refused.append((str(report.task_id), report.problem, heard.body[:BODY_KEPT]))
                else:
                    moves[report.task_id.run_id].append(fold(report, now))
            rows = await transition.apply(connection, now, moves)
            refused += await _unknown(connection, batch, {row["id"] for row in rows}, moves)
            await self.refuse(connection, refused)
            await faults.at("record.before_commit")
        self.recorded += len(batch) - len(refused)
        self.refused += len(refused)
        return rows

    async def _set_aside(self, heard: Heard, error: Exception) -> None:
        problem = f"{type(error).__name__}: {error}".replace("\0", "")[:1000]
        async with self._database.transaction() as connection:
            await queries.keep_refused(
                connection, self._source, [(str(heard.task_id), problem, heard.body[:BODY_KEPT])]
            )
        self.refused += 1
        log.error("report_set_aside", task_id=str(heard.task_id), problem=problem)


def _parts(batch: Sequence[Heard]) -> list[list[Heard]]:
    """A batch by run; the reports of a single run one by one."""
    by_run: defaultdict[UUID, list[Heard]] = defaultdict(list)
    for heard in batch:
        by_run[heard.task_id.run_id].append(heard)
    return list(by_run.values()) if len(by_run) > 1 else [[heard] for heard in batch]


async def _unknown(
    connection: Connection, batch: Sequence[Heard], changed: set[UUID], moves: dict[UUID, list[Move]]
) -> list[Refused]:
    """The reports of runs that there are not."""
    doubtful = moves.keys() - changed
    unknown = doubtful - await queries.existing(connection, list(doubtful))
    return [
        (str(heard.task_id), "no such run", heard.body[:BODY_KEPT])
        for heard in {heard.task_id.run_id: heard for heard in batch if heard.task_id.run_id in unknown}.values()
    ]
