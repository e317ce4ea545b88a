"""Task bodies for acceptance tests: they report PROGRESS and write a witness of when they were at work."""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
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
    self: Any,
    count: int = 3,
    step_s: float = 0.1,
    witness: str | None = None,
    until: str | None = None,
    gate: str | None = None,
) -> dict[str, int]:
    """Sleeps `count` times `step_s`, with PROGRESS at each step; then until a file of its run's name is in a folder.

    With `gate`, not before there is such a file.
    """
    run, body = _run(self), self.context or uuid.uuid4().hex
    _witness(witness, run=run, body=body, what="begin", task_id=self.request.id)
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while gate is not None and not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(step_s)
        _witness(witness, run=run, body=body, what="beat")
    for n in range(1, count + 1):
        time.sleep(step_s)
        _witness(witness, run=run, body=body, what="beat")
        self.update_state(state="PROGRESS", meta={"current": n, "total": count})
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while until is not None and not (Path(until) / run).exists() and time.monotonic() < deadline:
        time.sleep(step_s)
        _witness(witness, run=run, body=body, what="beat")
    if self.context is None:
        _witness(witness, run=run, body=body, what="end")
    return {"steps": count}


@contextlib.contextmanager
def ends(task: Any) -> Iterator[str]:
    """A worker's context: the witness of an end comes when the body has returned, and not before."""
    body = uuid.uuid4().hex
    yield body
    _witness(task.request.kwargs.get("witness"), run=_run(task), body=body, what="end")


def _run(task: Any) -> str:
    return str(task.request.id).partition(".")[0]


@shared_task(name="test.add")
def add(a: int, b: int) -> int:
    return a + b
