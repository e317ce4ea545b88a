"""Looks at the jobs that exist when workers with other contracts come: `jobs.contract_problem`.

A pass goes through the jobs whose task has a contract on their queue, in batches; one begins when contracts have
changed, and every minute. A job whose task has no contract now keeps what was said of it last.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import structlog

from app.catalogue import queries
from app.catalogue.fit import Contract, read
from app.database import Database, Record

log = structlog.get_logger()

BATCH: Final = 500
#: So many batches in one step, so that the look at the workers is not kept waiting.
_BATCHES: Final = 10
_EVERY_S: Final = 60.0
_PROBLEM_LIMIT: Final = 500
_FIRST_ID: Final = UUID(int=0)


class Recheck:
    """Call `step` after each look at the workers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Which contracts stand on which queue, when the pass began.
        self._standing: set[tuple[str, str]] = set()
        self._began_at = float("-inf")
        #: The last job of the pass under way; None between two of them.
        self._after: UUID | None = None
        #: By queue and task, the contracts; None among them stands for one that cannot be read.
        self._contracts: dict[tuple[str, str], list[Contract | None]] = {}

    async def step(self, now: datetime, live_s: float) -> None:
        """Go on with the pass, or begin one where there is reason to."""
        since = now - timedelta(seconds=live_s)
        async with self._database.reading() as connection:
            standing = await queries.standing_contracts(connection, since)
            if standing != self._standing or (self._after is None and time.monotonic() - self._began_at >= _EVERY_S):
                self._contracts = _by_task(await queries.live_contracts(connection, since))
                self._standing, self._after, self._began_at = standing, _FIRST_ID, time.monotonic()
        for _ in range(_BATCHES):
            if self._after is None:
                return
            self._after = await self._batch(self._after)

    async def _batch(self, after: UUID) -> UUID | None:
        """Look at the next jobs; the last of them, or None if there are no more."""
        if not self._contracts:
            return None
        async with self._database.reading() as connection:
            jobs = await queries.jobs_with_contract(connection, list(self._contracts), after, BATCH)
        found = {job["id"]: _problem(job, self._contracts[job["queue"], job["task"]]) for job in jobs}
        changed = [job for job in jobs if job["contract_problem"] != found[job["id"]]]
        if changed:
            async with self._database.transaction() as connection:
                await queries.set_contract_problems(
                    connection, [(job["id"], job["version"], found[job["id"]]) for job in changed]
                )
            for job in changed:
                log.info("job_contract", job_id=str(job["id"]), task=job["task"], problem=found[job["id"]])
        return jobs[-1]["id"] if len(jobs) == BATCH else None


def _by_task(rows: list[Record]) -> dict[tuple[str, str], list[Contract | None]]:
    found: dict[tuple[str, str], list[Contract | None]] = defaultdict(list)
    for row in rows:
        read_once = {task: read(contract.get("schema")) for task, contract in row["contracts"].items()}
        for queue in row["queues"]:
            for task, contract in read_once.items():
                found[queue, task].append(contract)
    return dict(found)


def _problem(job: Mapping[str, Any], contracts: list[Contract | None]) -> str | None:
    """Why the arguments of a job fit none of the contracts."""
    tried = [[] if one is None else one.misfits(job["args"], job["kwargs"]) for one in contracts]
    faults = min(tried, key=len)
    return "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults)[:_PROBLEM_LIMIT] or None
