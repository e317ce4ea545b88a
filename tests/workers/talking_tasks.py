"""Tasks that say something, for the tests of logs."""

import asyncio
import contextlib
import logging
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger

from workers import progress

log = logging.getLogger("talk.plain")
own = logging.getLogger("talk.own")
own.propagate = False
task_log = get_task_logger("talk.task")
executor = ThreadPoolExecutor(2)


@shared_task(name="talk.all")
def all_kinds() -> str:
    """One line of each kind."""
    log.info("plain %d", 1)
    log.debug("too fine")
    own.error("own")
    task_log.info("task")
    print("printed", 1)
    print("half ", end="")
    print("and half")
    print("seen\rshown")
    sys.stderr.write("to stderr\n")
    warnings.warn("warned", stacklevel=1)
    log.warning("two\nlines password=hunter2")
    try:
        raise KeyError("caught")
    except KeyError:
        log.exception("with trace")
    handler = logging.StreamHandler()
    own.addHandler(handler)
    own.error("by a handler to stderr")
    own.removeHandler(handler)
    thread = threading.Thread(target=log.info, args=("in a thread",))
    thread.start()
    thread.join()
    executor.submit(log.info, "in an executor").result()
    with contextlib.redirect_stdout(None):
        print("nowhere")
    log.info("%d", "not a number")
    print("no end", end="")
    return "said"


@shared_task(name="talk.fail")
def fail() -> None:
    print("before")
    raise ValueError("token=abc")


def await_file(path: str) -> None:
    """Return once there is such a file, or after a minute."""
    end = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.02)


@shared_task(name="talk.retry", bind=True, max_retries=1)
def retry(self: Any, go: str) -> None:
    """Fails once, and says its second word as soon as there is a file."""
    if self.request.retries:
        await_file(go)
    log.info("delivery %d", self.request.retries)
    if self.request.retries == 0:
        raise self.retry(countdown=0.1, exc=ValueError("once"))


@shared_task(name="talk.rubbish")
def rubbish() -> None:
    print("nul\0 bell\x07 \udc80 \x1b[31mred\x1b[0m é\x85")
    print(b"\xff\xfe".decode("latin-1"), bytes(range(256)).decode("utf-8", "surrogateescape"))
    sys.stdout.write(b"raw \xff\n")  # type: ignore[arg-type]
    log.info("%s", "\ud800" * 3)
    print("x" * 100_000)
    log.info("ü" * 100_000)


@shared_task(name="talk.many")
def many(word: str, count: int, pause_s: float, go: str | None = None) -> None:
    """So many lines, a pause after each tenth; with `go`, half of them, and the others once there is that file."""
    for number in range(count):
        if go is not None and number == count // 2:
            await_file(go)
            progress(number, count)
        if number % 2:
            log.info("%s %d", word, number)
        else:
            print(word, number)
        if number % 10 == 9:
            time.sleep(pause_s)


@shared_task(name="talk.coroutine")
async def coroutine(word: str, count: int, pause_s: float) -> None:
    """As `many`, on the loop."""
    loop = asyncio.get_running_loop()
    for number in range(count):
        if number % 3 == 2:
            await loop.run_in_executor(None, log.info, "%s %d", word, number)
        elif number % 3:
            log.info("%s %d", word, number)
        else:
            print(word, number)
        if number % 10 == 9:
            await asyncio.sleep(pause_s)


@shared_task(name="talk.flood")
def flood(lines: int, size: int) -> int:
    """Many long lines."""
    import resource

    filler = "y" * size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(lines):
        print(f"{number} {filler}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


@shared_task(name="talk.wait")
def wait(seconds: float) -> None:
    print("waiting")
    time.sleep(seconds)
    print("waited")


@shared_task(name="talk.silent")
def silent() -> None:
    pass
