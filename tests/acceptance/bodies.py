"""Task bodies for acceptance tests: they report PROGRESS and write a witness of when they were at work."""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, Final

from celery import shared_task

#: A body that nobody lets go ends all the same.
_LONGEST_WAIT_S: Final = 120


def _witness(path: str | None, **line: Any) -> None:
    if path:
        with open(path, "a") as file:  # noqa: PTH123  (append is atomic for a short line)
            file.write(json.dumps({**line, "pid": os.getpid(), "at": time.time()}) + "\n")


@shared_task(bind=True, name="test.steps")
def steps(
    self: Any, count: int = 3, step_s: float = 0.1, witness: str | None = None, until: str | None = None
) -> dict[str, int]:
    """Sleeps `count` times `step_s`, with PROGRESS at each step; then until a file of its run's name is in a folder."""
    run, body = self.request.id.partition(".")[0], uuid.uuid4().hex
    _witness(witness, run=run, body=body, what="begin", task_id=self.request.id)
    for n in range(1, count + 1):
        time.sleep(step_s)
        _witness(witness, run=run, body=body, what="beat")
        self.update_state(state="PROGRESS", meta={"current": n, "total": count})
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while until is not None and not (Path(until) / run).exists() and time.monotonic() < deadline:
        time.sleep(step_s)
        _witness(witness, run=run, body=body, what="beat")
    _witness(witness, run=run, body=body, what="end")
    return {"steps": count}


@shared_task(name="test.add")
def add(a: int, b: int) -> int:
    return a + b
