"""Why the runs of one kind, a (queue, task), are not sent. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.progress.words import few

#: How the reason begins of runs that wait for the broker.
AWAY: Final = "broker away since "


@dataclass(frozen=True, slots=True)
class Hold:
    """What the waiting runs of a kind say of themselves."""

    queue: str
    task: str
    reason: str
    #: Those that workers gave up too often as not registered have a reason of their own.
    spares_not_registered: bool = False
    #: The workers that consume the queue, where none of them registers the task; else empty.
    workers: tuple[str, ...] = ()
    #: Those that have a place among the runs that their queue bounds do not wait for one.
    spares_placed: bool = False


def hold_of(kind: Mapping[str, Any], away: str | None, limit: str | None = None) -> Hold | None:
    """Why a kind (a row of `queries.waiting_kinds`) is held; None if it may go out.

    `away` is the reason of a broker that cannot be reached; what is wrong with the queue itself says more. `limit` is
    the one of a queue that takes no more just now, which says least.
    """
    queue, task = kind["queue"], kind["task"]
    if not kind["known"]:
        return Hold(queue, task, f"there is no queue {queue}")
    if kind["paused"]:
        return Hold(queue, task, "queue paused")
    if kind["problem"] is not None:
        return Hold(queue, task, f"queue in trouble: {kind['problem']}")
    if kind["declare_time"] is None:
        return Hold(queue, task, "queue not yet found on the broker")
    if kind["unknown_task"]:
        workers = tuple(kind["workers"])
        return Hold(queue, task, not_registered_by(workers), spares_not_registered=True, workers=workers)
    if away is not None:
        return Hold(queue, task, away, spares_not_registered=kind["uncommon_task"])
    if limit is not None:
        return Hold(queue, task, limit, spares_not_registered=kind["uncommon_task"], spares_placed=True)
    return None


def not_registered_by(workers: Sequence[str]) -> str:
    """The reason of runs whose task no worker on the queue registers."""
    verb = "consumes" if len(workers) == 1 else "consume"
    return f"no worker on the queue registers the task ({few(workers)} {verb} it)"
