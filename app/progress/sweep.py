"""Retention: deletes what is past its time, in small batches, from the first day on."""

from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from app import faults
from app.database import Database, clock
from app.logs import place
from app.logs.store import Store, StoreAway
from app.progress import sweep_queries as queries
from app.settings import Settings

log = structlog.get_logger()

BATCH: Final = 1000
IDEMPOTENCY_KEPT: Final = timedelta(hours=24)
PROCESS_KEPT: Final = timedelta(hours=1)
REFUSED_KEPT: Final = 1000


class Sweeper:
    """Call `run_once` every few seconds: it is cheap when there is nothing to delete."""

    def __init__(self, database: Database, settings: Settings, store: Store, *, batch: int = BATCH) -> None:
        self._database = database
        self._store = store
        #: What the store last had against deleting, told once.
        self._problem: str | None = None
        self._success = timedelta(days=settings.retain_success_days)
        self._failure = timedelta(days=settings.retain_failure_days)
        self._batch = batch

    async def run_once(self) -> bool:
        """Delete at most one batch of each kind, in one transaction; whether there may be more.

        What runs have in the log store goes before them, so that nothing is left there that nobody knows.
        """
        gone = await self._forget_objects()
        async with self._database.transaction() as connection:
            now = await clock(connection)
            deleted = {
                "runs": await queries.forget_runs(connection, gone),
                "idempotency_keys": await queries.forget_idempotency_keys(
                    connection, now - IDEMPOTENCY_KEPT, self._batch
                ),
                "refused_reports": await queries.forget_refused_reports(connection, REFUSED_KEPT, self._batch),
                "processes": await queries.forget_silent_processes(connection, now - PROCESS_KEPT),
                "skips": await queries.forget_skips(connection, now - self._failure, self._batch),
                "backfills": await queries.forget_backfills(connection, now - self._failure, self._batch),
                "jobs": await queries.forget_deleted_jobs(connection, now - self._failure, self._batch),
            }
            await faults.at("sweep.before_commit")
        if any(deleted.values()):
            log.info("swept", **deleted)
        return any(count >= self._batch for count in deleted.values())

    async def _forget_objects(self) -> list[UUID]:
        """Delete the objects of the next runs that go; which runs may go. Those with objects wait for their store."""
        async with self._database.reading() as connection:
            now = await clock(connection)
            past = now - self._success, now - self._failure, self._batch
            runs = await queries.runs_to_forget(connection, *past)
            paths = [place.log_of(run["id"], attempt) for run in runs for attempt in run["logs"]]
            paths += [place.result_of(run["id"]) for run in runs if run["result_stored"]]
        try:
            await self._store.delete(paths)
        except StoreAway as error:
            if self._problem != error.detail:
                log.warning("objects_not_swept", problem=error.detail)
            self._problem = error.detail
            async with self._database.reading() as connection:
                runs = await queries.runs_to_forget(connection, *past, without_objects=True)
        else:
            self._problem = None
        return [run["id"] for run in runs]
