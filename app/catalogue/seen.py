"""What a worker said of itself, read with care: its presence key (ours) or its answers to remote control (any). Pure.

These are a stranger's words. What is not of the expected kind is left out, names that a database cannot keep too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from workers.protocol import BUILT_IN_PREFIX

#: Two start times of one process, told by its uptime in whole seconds, may be this far apart.
_SAME_START: Final = timedelta(seconds=5)
_NAME_LIMIT: Final = 255
_MOST_NAMES: Final = 5000
_COUNT_LIMIT: Final = 2**31 - 1
_UNKEEPABLE: Final = re.compile("[\x00\ud800-\udfff]")
_VERSION: Final = re.compile(r"\bcelery:(\S{1,40})")


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker as it was seen now."""

    node: str
    ours: bool
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    software: str = ""
    #: Names what it registers; empty if that is not known.
    contracts_digest: str = ""
    pool: str = ""
    concurrency: int | None = None
    active: int | None = None
    reserved: int | None = None
    pid: int | None = None
    start_time: datetime | None = None


def of_presence(node: str, value: bytes | None) -> Seen | None:
    """What the presence key of a worker of ours says; None if that is no presence."""
    try:
        said = orjson.loads(value) if value is not None else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("queues"), list) or not _name(node):
        return None
    return Seen(
        node=node,
        ours=True,
        queues=_names(said["queues"]),
        tasks=_tasks(said.get("tasks")),
        software=_name(said.get("software")),
        contracts_digest=_name(said.get("contracts")),
        pool=_pool(_name(said.get("pool"))),
        concurrency=_count(said.get("concurrency")),
        active=_count(said.get("active")),
        reserved=_count(said.get("reserved")),
        pid=_count(said.get("pid")),
        start_time=_instant(said.get("start_time")),
    )


def of_answers(node: str, answers: Mapping[str, Any], now: datetime) -> Seen | None:
    """What a worker answered, by question; None unless it told its queues and its tasks."""
    queues, tasks = answers.get("active_queues"), answers.get("registered")
    if not isinstance(queues, list) or not isinstance(tasks, list) or not _name(node):
        return None
    stats = answers.get("stats")
    stats = stats if isinstance(stats, dict) else {}
    pool = stats.get("pool")
    pool = pool if isinstance(pool, dict) else {}
    report = answers.get("report")
    text = report.get("ok") if isinstance(report, dict) else None
    version = _VERSION.search(text) if isinstance(text, str) else None
    uptime_s = _count(stats.get("uptime"))
    return Seen(
        node=node,
        ours=False,
        queues=_names([queue.get("name") for queue in queues if isinstance(queue, dict)]),
        # Some tasks are told with their options behind: `svc.add [rate_limit=10/m]`.
        tasks=_tasks([task.partition(" [")[0] for task in tasks if isinstance(task, str)]),
        software=f"py-celery {version[1]}" if version and _name(version[1]) else "",
        pool=_pool(_name(pool.get("implementation")).partition(":")[0].rpartition(".")[2]),
        concurrency=_count(pool.get("max-concurrency")),
        active=_length(answers.get("active")),
        reserved=_length(answers.get("reserved")),
        pid=_count(stats.get("pid")),
        start_time=None if uptime_s is None else now - timedelta(seconds=uptime_s),
    )


def same_life(old: Mapping[str, Any], seen: Seen) -> bool:
    """Whether a worker is the process that was known under its name before (a row of `workers`)."""
    if old["pid"] != seen.pid:
        return False
    if old["start_time"] is None or seen.start_time is None:
        return True
    apart: timedelta = abs(old["start_time"] - seen.start_time)
    return apart <= _SAME_START


def continued(old: Mapping[str, Any], seen: Seen) -> Seen:
    """A worker with what is known of the same life from before and was not said this time.

    One of ours whose presence could not be read is still one of ours.
    """
    still_ours = bool(old["ours"]) and not seen.ours
    return replace(
        seen,
        ours=seen.ours or still_ours,
        software=seen.software or old["software"],
        contracts_digest=old["contracts_digest"] if still_ours else seen.contracts_digest,
        start_time=old["start_time"] or seen.start_time,
    )


def _name(value: object) -> str:
    """A name as it is; empty for anything else."""
    good = isinstance(value, str) and 0 < len(value) <= _NAME_LIMIT and not _UNKEEPABLE.search(value)
    return str(value) if good else ""


def _names(values: object) -> tuple[str, ...]:
    """The names in a list, sorted."""
    if not isinstance(values, list):
        return ()
    return tuple(sorted({name for name in map(_name, values[:_MOST_NAMES]) if name}))


def _tasks(values: object) -> tuple[str, ...]:
    """The names of tasks in a list, without Celery's own."""
    return tuple(name for name in _names(values) if not name.startswith(BUILT_IN_PREFIX))


def _pool(module: str) -> str:
    """The name of a pool as `-P` takes it."""
    return "threads" if module == "thread" else module


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _COUNT_LIMIT else None


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, list) else None


def _instant(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
        return found.astimezone(UTC) if found is not None and found.tzinfo is not None else None
    except (ValueError, OverflowError):  # at either end of what a datetime can be
        return None
