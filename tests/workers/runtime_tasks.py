"""Tasks for the tests of context, coroutines and progress; the module that those workers include."""

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.exceptions import MaxRetriesExceededError

from workers import progress, step, track

session: contextvars.ContextVar[str] = contextvars.ContextVar("session", default="none")


def note(path: str, word: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{word}\n")


def _witness(task: Any) -> str:
    """The file that a task's first argument names."""
    return str(task.request.args[0])


@contextlib.contextmanager
def opened(task: Any) -> Iterator[str]:
    """A context: says how it is left, sets a context variable, and fails or waits where an argument says so."""
    path, words = _witness(task), task.request.args[1:]
    note(path, f"entered {task.name}")
    if "enter fails" in words:
        raise LookupError("no database")
    token = session.set(str(task.request.id))
    try:
        yield f"session of {task.request.id}"
    except BaseException as error:
        note(path, f"left {type(error).__name__}")
        if "rollback fails" in words:
            raise LookupError("no rollback") from error
        if "keeps all" not in words:
            raise
    else:
        note(path, "left None")
        if "exit fails" in words:
            raise LookupError("no commit")
    finally:
        session.reset(token)
        if _waits(words) and "sync" in words:
            end = time.monotonic() + 60
            while not Path(f"{path}.go").exists() and time.monotonic() < end:
                time.sleep(0.02)


def _waits(words: Any) -> bool:
    """Whether a context is left only when there is a file beside the witness."""
    return any(str(word).startswith("waits") for word in words)


@contextlib.asynccontextmanager
async def opened_async(task: Any) -> AsyncIterator[str]:
    """The same, asynchronous, with a time-out around the body, which wants one coroutine to enter and leave it."""
    async with asyncio.timeout(60):
        await asyncio.sleep(0)
        try:
            with opened(task) as value:
                try:
                    yield value
                finally:
                    await asyncio.sleep(0)
        finally:
            if _waits(task.request.args):
                await await_file(f"{_witness(task)}.go")


def context(task: Any) -> Any:
    """What the workers of these tests have as their context: one of the above, for the tasks that name it."""
    kind = task.request.args[2] if len(task.request.args) > 2 else None
    return {"sync": opened, "async": opened_async}[kind](task) if isinstance(kind, str) else contextlib.nullcontext()


def plain_body(self: Any, path: str, word: str = "", kind: str = "") -> list[str]:
    if word in {"body fails", "waits after failure"}:
        raise ValueError("broken")
    if word == "waits after retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    return [self.context, session.get()]


async def coroutine_body(self: Any, path: str, word: str = "", kind: str = "") -> list[str]:
    await asyncio.sleep(0)
    if word in {"body fails", "waits after failure"}:
        raise ValueError("broken")
    if word == "waits after retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    if word == "exits":
        raise SystemExit(3)
    if word == "cancels itself":
        raise asyncio.CancelledError
    return [self.context, session.get()]


shared_task(plain_body, name="runtime.plain", bind=True)
shared_task(coroutine_body, name="runtime.coroutine", bind=True)


@shared_task(name="runtime.sleep")
def sleep(path: str, seconds: float, kind: str = "", word: str = "") -> None:
    note(path, "start")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)


@shared_task(name="runtime.steps", bind=True)
async def steps(self: Any, path: str, count: int = 20, pause_s: float = 0.02) -> dict[str, Any]:
    """Says everything that a body can say, and where it ran."""
    for n in range(1, count + 1):
        await asyncio.sleep(pause_s)
        if n == count // 2:
            self.update_state(state="MERGING", meta={"n": n})
        progress(n, count, f"step {n}")
    in_thread = await asyncio.to_thread(lambda: str(self.request.id))
    both = await asyncio.gather(_id_of(self), _id_of(self))
    return {"id": str(self.request.id), "ids": [in_thread, *both], "thread": threading.current_thread().name}


async def _id_of(task: Any) -> str:
    await asyncio.sleep(0)
    return str(task.request.id)


@shared_task(name="runtime.wait", bind=True)
async def wait(self: Any, path: str, clean_up: str = "", kind: str | None = None, seconds: float = 30) -> str:
    """Waits, and says what ended it; `clean_up` says what it does about it."""
    note(path, "start")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError as error:
        note(path, f"stopped {type(error).__name__}")
        if clean_up == "returns":
            return "what there was"
        if clean_up == "stays":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            note(path, "ended late")
        if clean_up == "cleans":
            await asyncio.sleep(0.05)
            note(path, "cleaned")
        raise
    return "slept"


async def await_file(path: str) -> None:
    """Return once there is such a file, or after a minute."""
    end = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < end:
        await asyncio.sleep(0.05)


@shared_task(name="runtime.together")
async def together(path: str, go: str) -> str:
    """At work until there is a file."""
    note(path, "start")
    await await_file(go)
    return "went"


@shared_task(name="runtime.retry", bind=True, max_retries=2)
async def retry(self: Any, path: str, go: str) -> int:
    """Fails once and retries itself, to end when there is a file; `MaxRetriesExceededError` is the body's to catch."""
    await asyncio.sleep(0)
    note(path, f"start {self.request.retries}")
    if self.request.retries == 0:
        raise self.retry(countdown=0.2, exc=ValueError("once"))
    await await_file(go)
    try:
        raise self.retry(max_retries=1)
    except MaxRetriesExceededError:
        return int(self.request.retries)


@shared_task(name="runtime.autoretry", bind=True, autoretry_for=(KeyError,), retry_kwargs={"countdown": 0.2})
async def autoretry(self: Any, path: str, go: str) -> int:
    await asyncio.sleep(0)
    if self.request.retries == 0:
        raise KeyError("once")
    await await_file(go)
    return int(self.request.retries)


@shared_task(name="runtime.bad_news")
async def bad_news(path: str) -> None:
    progress(1, 2, what=object())


@shared_task(name="runtime.million")
def million(path: str, count: int) -> dict[str, float]:
    begin, begin_cpu = time.monotonic(), time.thread_time()
    for n in range(count):
        progress(n, count)
    told_cpu = time.thread_time()
    for _ in track(range(count)):
        pass
    end_cpu = time.thread_time()
    return {"spent_s": time.monotonic() - begin, "progress_s": told_cpu - begin_cpu, "track_s": end_cpu - told_cpu}


@shared_task(name="runtime.upload")
def upload(path: str, go: str) -> None:
    with step("read", 0.5):
        for file in track(["a", "b"], message="file"):
            progress(1, 2, file)
            end = time.monotonic() + 60
            while not Path(go).exists() and time.monotonic() < end:
                time.sleep(0.02)
    with step("write", 0.5):
        progress(1, 4)
