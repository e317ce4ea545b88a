"""Standings and reports for the tests of the pure steps."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.progress.fold import Report
from app.progress.standing import Standing
from workers.protocol import TaskId

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
RUN = UUID("01a203d1-2004-716f-abf6-d4e1af5e5b55")
RETRY_POLICY = {"max_attempts": 1, "max_lost": 2, "backoff_s": 10, "backoff_factor": 2, "max_backoff_s": 600}

NEW = Standing(
    id=RUN,
    task="t",
    state="PENDING",
    reason=None,
    waits_for=None,
    most_active=None,
    attempt=1,
    lost=0,
    attempts=[],
    progress=None,
    result=None,
    error=None,
    worker=None,
    leased=False,
    retries=0,
    retry=RETRY_POLICY,
    due_time=NOW,
    claim_time=None,
    claimed_by=None,
    dispatches=0,
    first_dispatch=1,
    dispatch_time=None,
    start_time=None,
    end_time=None,
    start_deadline_time=None,
    deadline_time=None,
    not_registered=0,
    late=[],
    cancel=None,
    cancel_next_time=None,
    version=1,
)
SENT = replace(NEW, dispatches=1, dispatch_time=NOW, version=2)


def report(state: str, meta: Any = None, n: int = 1, **more: Any) -> Report:
    return Report(TaskId(RUN, n), state, meta, **more)


def policy(**changes: Any) -> dict[str, Any]:
    return {**RETRY_POLICY, **changes}
