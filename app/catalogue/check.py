"""What is known to be wrong with work before it is sent: nobody takes it, or its arguments fit nobody's task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from app.catalogue import queries
from app.catalogue.fit import misfits
from app.catalogue.look import LIVE_S
from app.database import Connection, Record
from app.errors import FieldError

#: An older look says nothing of how many consumers there are now.
_LOOK_S: Final = 60.0
_MOST_NAMED: Final = 5
#: Pools whose tasks nobody can end from outside, and those in which Celery raises nothing in them either.
_NO_HARD_LIMIT: Final = frozenset({"threads", "solo", "eventlet"})
_NO_SOFT_LIMIT: Final = frozenset({"threads", "solo", "eventlet", "gevent"})


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that may keep work from running. `pointer` names the member of the body that it is about."""

    code: str
    detail: str
    pointer: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong with some work: arguments that cannot fit, and what is only doubtful."""

    misfits: list[FieldError]
    doubts: list[Doubt]


async def examine(connection: Connection, now: datetime, work: Mapping[str, Any]) -> Findings:
    """Look at work before it is saved: its `queue`, `task`, `args`, `kwargs` and time limits."""
    queue, task = work["queue"], work["task"]
    workers = await queries.workers_of_queue(connection, now - timedelta(seconds=LIVE_S), queue, task)
    seen = await queries.queue_seen(connection, now - timedelta(seconds=_LOOK_S), queue)
    schemas = [row["contract"].get("schema") for row in workers if row["registers"] and row["contract"] is not None]
    doubts = [*_doubts(queue, task, workers, seen), *_limits(work, workers)]
    if seen is not None and seen["consumer_timeout_s"] is not None and work["time_limit_s"] is None:
        detail = (
            f"the broker takes a message back from a worker after {seen['consumer_timeout_s']} s on the queue "
            f"{queue!r}, and there is no time limit that ends the task before"
        )
        doubts.append(Doubt("consumer_timeout", detail, "/time_limit_s"))
    return Findings(least_misfits(schemas, work["args"], work["kwargs"]), doubts)


def _limits(work: Mapping[str, Any], workers: Sequence[Record]) -> Iterator[Doubt]:
    for member, name, heedless in (
        ("time_limit_s", "hard", [row for row in workers if row["pool"] in _NO_HARD_LIMIT]),
        ("soft_time_limit_s", "soft", [row for row in workers if row["pool"] in _NO_SOFT_LIMIT and not row["ours"]]),
    ):
        if work[member] is not None and heedless:
            nodes = [row["node"] for row in heedless]
            pools = ", ".join(sorted({row["pool"] for row in heedless}))
            detail = (
                f"{_named(nodes)} {_verb(nodes, 'keeps', 'keep')} no {name} time limit: so it is with the pool {pools}"
            )
            yield Doubt("time_limit", detail, f"/{member}")


def least_misfits(schemas: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[FieldError]:
    """What fits none of the contracts of a task: none at all if one is fitted, or is not known."""
    tried = [misfits(schema, args, kwargs) for schema in schemas]
    return min(tried, key=len, default=[])


def _doubts(queue: str, task: str, workers: Sequence[Record], seen: Record | None) -> list[Doubt]:
    consumers = None if seen is None else seen["consumers"]
    if not workers:
        if consumers:
            return []  # somebody whom we do not know
        return [Doubt("no_worker", f"no live worker consumes the queue {queue!r}", "/queue")]
    lacking = [row["node"] for row in workers if not row["registers"]]
    if not lacking:
        return []
    if len(lacking) < len(workers):
        detail = (
            f"{_named(lacking)} {_verb(lacking, 'consumes', 'consume')} the queue {queue!r} too and "
            f"{_verb(lacking, 'does', 'do')} not register {task!r}: a message may be refused there and sent again"
        )
        return [Doubt("some_lack_task", detail, "/task")]
    if consumers is not None and consumers > len(workers):
        return []
    who = f"{_named(lacking)} {_verb(lacking, 'consumes', 'consume')} it"
    detail = f"no worker on the queue {queue!r} registers {task!r} ({who})"
    return [Doubt("task_not_registered", detail, "/task")]


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - _MOST_NAMED
    return ", ".join(nodes[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _verb(nodes: Sequence[str], one: str, many: str) -> str:
    return one if len(nodes) == 1 else many
