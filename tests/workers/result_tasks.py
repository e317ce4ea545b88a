"""Tasks whose results are large, odd, or no results at all."""

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from celery import shared_task

from workers import progress


class _Thing:
    pass


ODD: Final[dict[str, Any]] = {
    "set": {"rows": [1, 2, {3}]},
    "nan": {"mean": math.nan},
    "object": [_Thing()],
    "large": "x" * 2 * 1024 * 1024,
    "typed": [datetime(2026, 1, 1, tzinfo=UTC)],
    "mark": {"jobplane": "result stored", "bytes": 1, "path": "file:///etc/passwd"},
}


@shared_task(name="result.rows")
def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "name": f"number {number}"} for number in range(count)]


@shared_task(name="result.odd")
def odd(kind: str) -> Any:
    return ODD[kind]


@shared_task(name="result.talk")
def talk(lines: int, after: str, until: str) -> str:
    """Prints lines, with progress, once there is a file, and ends once there is another; each for a minute at most."""
    _await_file(after)
    for number in range(1, lines + 1):
        print(f"line {number}")
        progress(number, lines)
        time.sleep(0.01)
    _await_file(until)
    return "said"


def _await_file(path: str) -> None:
    end = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.05)
