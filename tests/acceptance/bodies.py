"""Task bodies for acceptance tests: they report PROGRESS and write a witness of when they were at work."""

import json
import os
import time
import uuid
from typing import Any

from celery import shared_task


def _witness(path: str | None, **line: Any) -> None:
    if path:
        with open(path, "a") as file:  # noqa: PTH123  (append is atomic for a short line)
            file.write(json.dumps({**line, "pid": os.getpid(), "at": time.time()}) + "\n")


@shared_task(bind=True, name="test.steps")
def steps(self: Any, count: int = 3, step_s: float = 0.1, witness: str | None = None) -> dict[str, int]:
    """Sleeps `count` times `step_s`, with PROGRESS at each step."""
    run, body = self.request.id.partition(".")[0], uuid.uuid4().hex
    _witness(witness, run=run, body=body, what="begin", task_id=self.request.id)
    for n in range(1, count + 1):
        time.sleep(step_s)
        _witness(witness, run=run, body=body, what="beat")
        self.update_state(state="PROGRESS", meta={"current": n, "total": count})
    _witness(witness, run=run, body=body, what="end")
    return {"steps": count}


@shared_task(name="test.add")
def add(a: int, b: int) -> int:
    return a + b
