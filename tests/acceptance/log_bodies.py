"""Task bodies that say something, for acceptance tests of logs."""

import logging
import os
import signal
import sys
import time

from celery import shared_task

log = logging.getLogger("community.posts")


@shared_task(name="log.count")
def count(lines: int, per_second: float = 1000, mark: str = "") -> int:
    """Numbers its lines from 0, every other one printed."""
    begin = time.monotonic()
    for n in range(lines):
        if n % 2:
            log.info("%s line %d", mark, n)
        else:
            print(f"{mark} line {n}")
        time.sleep(max(begin + n / per_second - time.monotonic(), 0))
    return lines


@shared_task(name="log.flood")
def flood(mib: int) -> float:
    """Prints so many MiB of numbered lines of 128 bytes; the seconds that it took."""
    begin = time.monotonic()
    for n in range(mib * 8192):
        print(f"{n:0127}")
    return round(time.monotonic() - begin, 2)


@shared_task(name="log.rubbish")
def rubbish() -> str:
    """Bytes that are no text, one line of 5 MB, half a character and no end of line."""
    sys.stdout.write("\x00\x1b[31mred\x1b[0m \ud800 \ufffe\n")
    sys.stdout.write("x" * 5_000_000 + "\n")
    print(os.urandom(2000).decode("latin-1"))
    print("<script>alert(1)</script>")
    sys.stdout.write("no end")
    return "said"


@shared_task(name="log.killed")
def killed(lines: int) -> None:
    """Says its lines, and is gone without a word half a second later."""
    for n in range(lines):
        print(f"line {n}")
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
