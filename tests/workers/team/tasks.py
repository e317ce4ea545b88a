"""Tasks that know nothing of the app."""

import os
from typing import Any

from celery import current_app, shared_task


@shared_task
def whose() -> dict[str, Any]:
    """Which app this runs in."""
    return {"main": current_app.main, "late": current_app.conf.task_acks_late, "pid": os.getpid()}


@shared_task(bind=True)
def halfway(self: Any) -> int:
    """Reports as Celery's documentation shows it."""
    self.update_state(state="PROGRESS", meta={"current": 1, "total": 2})
    return 2


@shared_task
def not_a_number() -> float:
    """What Celery writes, and JSON does not know."""
    return float("nan")
