"""Tasks that the tests run in real workers. Each body writes its start and end into a witness file."""

import os
import time
from pathlib import Path
from typing import Any

from celery import shared_task

from workers import progress


def witness(path: str, word: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{word} {os.getpid()}\n")


def await_file(path: str) -> None:
    """Return once there is such a file, or after a minute."""
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@shared_task(name="sample.steps", bind=True)
def steps(
    self: Any, path: str, count: int = 3, pause_s: float = 0.05, state: str | None = None, go: str | None = None
) -> int:
    """Steps with PROGRESS; with `state`, that one in the middle; with `go`, one alone until there is such a file."""
    witness(path, f"start {self.fence}")
    try:
        for step in range(1, count + 1):
            time.sleep(pause_s)
            progress(step, count, f"step {step}")
            if state is not None and step == count // 2:
                self.update_state(state=state, meta={"step": step})
            if go is not None and step == 1:
                await_file(go)
    except BaseException as error:
        witness(path, f"stopped {type(error).__name__}")
        raise
    witness(path, "end")
    return count


@shared_task(name="sample.when", bind=True)
def when(self: Any) -> str:
    """The time that it is for, told by its own retry."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return repr(self.scheduled_time)


@shared_task(name="sample.sleep")
def sleep(path: str, seconds: float) -> str:
    """One blocking call."""
    witness(path, "start")
    try:
        time.sleep(seconds)
    except BaseException as error:
        witness(path, f"stopped {type(error).__name__}")
        raise
    witness(path, "end")
    return "slept"


@shared_task(name="sample.spin")
def spin(path: str, seconds: float) -> None:
    """Pure Python that swallows every Exception and never reports."""
    witness(path, "start")
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            try:
                sum(range(1000))
            except Exception:
                continue
    except BaseException as error:
        witness(path, f"stopped {type(error).__name__}")
        raise
    witness(path, "end")


@shared_task(name="sample.fail")
def fail(message: str) -> None:
    raise ValueError(message)


@shared_task(name="sample.retry", bind=True, max_retries=2)
def retry(self: Any, path: str, go: str) -> int:
    """Fails once, then succeeds as soon as there is a file: Celery's own retry inside one attempt."""
    witness(path, f"start {self.request.retries}")
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=ValueError("once"))
    await_file(go)
    return int(self.request.retries)


@shared_task(name="sample.many", bind=True)
def many(self: Any, count: int) -> dict[str, float]:
    """A thousand calls of `progress` in no time, then a pause in which the newest must still go out."""
    start, start_cpu = time.monotonic(), time.thread_time()
    for step in range(1, count + 1):
        self.progress(step, count + 1)
    spent = {"spent_s": time.monotonic() - start, "cpu_s": time.thread_time() - start_cpu}
    time.sleep(0.4)
    return spent
