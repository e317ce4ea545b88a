"""Retention: deletes what is past its time, in small batches, from the first day on."""

from datetime import timedelta
from typing import Final

import structlog

from app import faults
from app.database import Database, clock
from app.progress import queries
from app.settings import Settings

log = structlog.get_logger()

BATCH: Final = 1000
IDEMPOTENCY_KEPT: Final = timedelta(hours=24)
PROCESS_KEPT: Final = timedelta(hours=1)
REFUSED_KEPT: Final = 1000


class Sweeper:
    """Call `run_once` every few seconds: it is cheap when there is nothing to delete."""

    def __init__(self, database: Database, settings: Settings, *, batch: int = BATCH) -> None:
        self._database = database
        self._success = timedelta(days=settings.retain_success_days)
        self._failure = timedelta(days=settings.retain_failure_days)
        self._batch = batch

    async def run_once(self) -> bool:
        """Delete at most one batch of each kind, in one transaction; whether there may be more."""
        async with self._database.transaction() as connection:
            now = await clock(connection)
            deleted = {
                "runs": await queries.forget_ended_runs(
                    connection, now - self._success, now - self._failure, self._batch
                ),
                "idempotency_keys": await queries.forget_idempotency_keys(
                    connection, now - IDEMPOTENCY_KEPT, self._batch
                ),
                "refused_reports": await queries.forget_refused_reports(connection, REFUSED_KEPT, self._batch),
                "processes": await queries.forget_silent_processes(connection, now - PROCESS_KEPT),
                "skips": await queries.forget_skips(connection, now - self._failure, self._batch),
                "jobs": await queries.forget_deleted_jobs(connection, now - self._failure, self._batch),
            }
            await faults.at("sweep.before_commit")
        if any(deleted.values()):
            log.info("swept", **deleted)
        return any(count >= self._batch for count in deleted.values())
