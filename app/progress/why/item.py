"""What an answer to "why" consists of. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

#: Every code, in the order of the documentation.
CODES: Final = (
    "ended",
    "cancel_asked",
    "running",
    "worker_gone",
    "worker_retry",
    "start_deadline",
    "deadline",
    "no_scheduler",
    "queue_missing",
    "queue_paused",
    "queue_problem",
    "queue_not_declared",
    "broker_away",
    "queue_limit",
    "queue_rate",
    "task_not_registered",
    "not_registered_taken",
    "waits_for_run",
    "retry_backoff",
    "worker_lost",
    "lost_resent",
    "unroutable",
    "refused",
    "sending",
    "no_worker",
    "dispatched_waiting",
    "unheard",
    "revoked_outside",
    "disabled",
    "paused",
    "parked",
    "finished",
    "overlap",
    "overdue",
    "contract_problem",
    "next_time",
    "live_runs",
    "backfill",
    "last_skip",
)


@dataclass(frozen=True, slots=True)
class Item:
    """One sentence with its code, and the facts in it."""

    code: str
    detail: str
    time: datetime | None = None
    queue: str | None = None
    task: str | None = None
    worker: str | None = None
    workers: Sequence[str] | None = None
    run_id: UUID | None = None
    backfill_id: UUID | None = None
    by: str | None = None
    count: int | None = None
    items: "Sequence[Item] | None" = None

    def view(self) -> dict[str, Any]:
        """The members that are there."""
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.items is not None:
            shown["items"] = [item.view() for item in self.items]
        return {name: value for name, value in shown.items() if value is not None}
