"""Whether the workers of this machine, or of this container, do their work: `jobplane worker-health`.

Each worker keeps a small file that says how it fares (`Status`), so that the question costs neither it nor the broker
anything, and has an answer while both are away.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

#: So long may a worker say nothing, or consume nothing, or its event loop stand still without a task.
PATIENCE_S: Final = 60.0
_PREFIX: Final = f"jobplane-worker-{os.getuid()}-"


@dataclass(frozen=True, slots=True)
class Status:
    """How a worker fares. Instants are seconds on the machine's monotonic clock."""

    pid: int
    #: When the process was born, as the kernel counts it; a later one of that number is another.
    born: str
    node: str
    at: float
    #: The queues that messages come from now, and since when there was none; tasks at work.
    queues: list[str]
    hungry_since: float | None
    active: int
    #: When the event loop last turned.
    turned: float


def trouble(status: Status, now: float) -> str | None:
    """What is wrong with a worker, in one line; None if nothing is."""
    if now - status.at > PATIENCE_S:
        return f"{status.node}: has not said anything for {now - status.at:.0f} s"
    if status.hungry_since is not None and now - status.hungry_since > PATIENCE_S:
        return f"{status.node}: consumes nothing for {now - status.hungry_since:.0f} s"
    if not status.active and status.hungry_since is None and now - status.turned > PATIENCE_S:
        return f"{status.node}: its event loop stands still for {now - status.turned:.0f} s"
    return None


def born(pid: int) -> str:
    """When a process was born, in the kernel's ticks; empty where that cannot be asked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def path_of(pid: int) -> Path:
    """The file of a worker."""
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{pid}.json"


def write(status: Status) -> None:
    """Replace the worker's file; OSError if that cannot be."""
    path = path_of(status.pid)
    handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(asdict(status)))
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def found() -> Iterator[Status]:
    """The workers of this user that are alive; the files of those that are not are taken away."""
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*.json")):
        with suppress(OSError, ValueError, TypeError):
            if path.lstat().st_uid != os.getuid():
                continue
            status = Status(**orjson.loads(path.read_bytes()))
            if _is_alive(status):
                yield status
            else:
                path.unlink(missing_ok=True)


def _is_alive(status: Status) -> bool:
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    return born(status.pid) == status.born


def main() -> int:
    """0 if there is a worker and nothing is wrong with any; otherwise 1 and a line for each trouble."""
    parser = argparse.ArgumentParser(prog="jobplane worker-health", description=main.__doc__)
    parser.add_argument(
        "--live",
        action="store_true",
        help="do not count it as trouble that nothing is consumed while the broker or Redis cannot be reached: "
        "a new start would not help",
    )
    live: bool = parser.parse_args().live
    workers = list(found())
    troubles = [said for status in workers if (said := trouble(status, time.monotonic()))]
    if not workers:
        troubles = ["no worker runs here"]
    if troubles and live and workers and (away := _away()):
        sys.stdout.write(f"{away}; the worker waits for it\n")
        return 0
    sys.stdout.write("".join(f"{line}\n" for line in troubles or [f"{status.node}: sound" for status in workers]))
    return 1 if troubles else 0


def _away() -> str | None:
    from celery import Celery
    from redis import Redis

    from workers.settings import current

    settings = current()
    # Whatever is wrong there, the worker meets it too.
    try:
        Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=2, socket_connect_timeout=2).ping()
    except Exception as error:
        return f"Redis cannot be reached: {error}"
    try:
        app = Celery(broker=settings.broker_url.get_secret_value(), set_as_current=False)
        with app.connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except Exception as error:
        return f"the broker cannot be reached: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
