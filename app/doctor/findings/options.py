"""What holds for a task on a worker: what the task says itself, or else the worker's configuration. Pure."""

from collections.abc import Iterable
from datetime import timedelta
from re import fullmatch
from typing import Any

from app.doctor.facts import Facts, Worker
from app.doctor.findings.words import listed


def holds(worker: Worker, task: str, option: str, setting: str, default: bool = False) -> bool:
    """Whether an option that is on or off is on for this task there."""
    told = worker.options.get(task, {}).get(option)
    if told in {"True", "False"}:
        return told == "True"
    return bool(worker.conf.get(setting, default))


def concerned(facts: Facts, worker: Worker) -> list[str]:
    """The tasks of a worker that are to run; all that it registers where nothing is to run yet."""
    needed = {need.task for need in facts.needed_of(worker)} & worker.tasks
    return sorted(needed or worker.tasks)


def which(tasks: Iterable[str], all_tasks: Iterable[str]) -> str:
    """Which tasks a sentence is about; empty if it is about all of them."""
    return "" if set(tasks) == set(all_tasks) else f" for {listed(tasks)}"


def limit_of(worker: Worker, task: str) -> float | None:
    """How long the worker lets a task run whose message says nothing of that, in seconds; None: for ever."""
    for told in (worker.options.get(task, {}).get("time_limit"), worker.conf.get("task_time_limit")):
        limit = number(told)
        if limit:
            return limit
    return None


def number(value: Any) -> float | None:
    """A number out of what a worker told; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def seconds(value: Any) -> float | None:
    """A duration as a worker tells it: a number of seconds, or a timedelta in words."""
    found = number(value)
    if found is not None or not isinstance(value, str):
        return found
    match = fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)(?:\.\d+)?", value)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=rest).total_seconds()


def transport(worker: Worker) -> dict[str, Any]:
    found = worker.conf.get("broker_transport_options")
    return found if isinstance(found, dict) else {}
