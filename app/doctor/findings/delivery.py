"""How messages are taken, given back and taken again. Pure."""

from collections.abc import Callable, Iterator
from typing import Final

from app.doctor.facts import CELERY_PREFETCH, CELERY_VISIBILITY_S, Facts, Need, Queue, Worker
from app.doctor.finding import Finding, Level
from app.doctor.findings.options import concerned, holds, limit_of, number, transport, which
from app.doctor.findings.words import listed, span

#: RabbitMQ's own, where nothing is said.
CONSUMER_TIMEOUT_S: Final = 1800.0
#: A run is long from so many seconds on where it was seen, and where only its time limit is known.
LONG_S: Final = 60.0
LONG_LIMIT_S: Final = 300.0
#: So many runs tell how long they take.
_ENOUGH: Final = 5
_NEARLY: Final = 0.8
_NO_HARD_LIMITS: Final = frozenset({"threads", "solo"})


def visibility(facts: Facts) -> Iterator[Finding]:
    """Redis: the shortest time-out of all workers on one database counts for every message in it."""
    if facts.on_rabbitmq:
        return
    for worker in facts.serving():
        if not worker.conf:
            continue
        told = number(transport(worker).get("visibility_timeout"))
        timeout = told if told is not None else CELERY_VISIBILITY_S
        worst = _outlasting(facts, timeout)
        if worst is None:
            continue
        level, why = worst
        default = "" if told is not None else ", Celery's default"
        yield Finding(
            "visibility_short",
            level,
            f"worker {worker.node}",
            f"Its visibility_timeout is {span(timeout)}{default}, and {why}: the broker then delivers the message again"
            f" while the work goes on. {_TWICE[level]} The shortest time-out of all workers on one Redis database"
            " counts for every queue in it.",
            "Set broker_transport_options = {'visibility_timeout': seconds} (JOBPLANE_WORKER_VISIBILITY_TIMEOUT_S on"
            " ours) above the longest task, on every worker of this broker, and give tasks a time limit.",
        )


_TWICE: Final[dict[Level, str]] = {
    "error": "On a stock worker it runs twice.",
    "warning": "A stock worker would run it twice; ours refuse the second delivery.",
}


def _outlasting(facts: Facts, timeout: float) -> tuple[Level, str] | None:
    """The worst of what may take longer than that; where nothing bounds a task, Celery's default is held too short."""
    found: list[tuple[Level, str]] = []
    for need in facts.needs:
        late = [
            worker
            for worker in facts.consumers_of(need.queue)
            if worker.stock and holds(worker, need.task, "acks_late", "task_acks_late")
        ]
        level: Level = "error" if late else "warning"
        queue = facts.queues.get(need.queue, Queue(need.queue))
        if need.time_limit_s is not None and need.time_limit_s >= timeout:
            found.append((level, f"{need.task} on {need.queue} may run for {span(need.time_limit_s)}"))
        elif queue.longest_s >= timeout:
            found.append((level, f"a run on {need.queue} took {span(queue.longest_s)}"))
        elif need.unlimited and timeout <= CELERY_VISIBILITY_S:
            endless = [worker for worker in late if limit_of(worker, need.task) is None]
            if endless:
                found.append(("warning", f"nothing bounds {need.task} on {need.queue}"))
    return min(found, default=None)


def consumer_timeout(facts: Facts) -> Iterator[Finding]:
    """RabbitMQ: how long a worker may keep a message."""
    if not facts.on_rabbitmq:
        return
    for queue in facts.queues.values():
        timeout = queue.consumer_timeout_s or CONSUMER_TIMEOUT_S
        known = queue.consumer_timeout_s is not None
        needs = [need for need in facts.needs if need.queue == queue.name and not _all_ack_early(facts, need)]
        limit = max((need.time_limit_s for need in needs if need.time_limit_s is not None), default=0.0)
        if limit >= timeout:
            longest = f"a task on it may run for {span(limit)}"
        elif needs and queue.longest_s >= _NEARLY * timeout:
            longest = f"a run on it took {span(queue.longest_s)}"
        else:
            continue
        says = span(timeout) if known else f"{span(timeout)} unless the broker's own setting says more"
        yield Finding(
            "consumer_timeout_short",
            "error" if known else "warning",
            f"queue {queue.name}",
            f"RabbitMQ takes back what is not acknowledged within {says}, and {longest}: the worker's channel is"
            " closed, a stock worker without broker_channel_error_retry ends with it, and the work begins again.",
            f"Raise RabbitMQ's consumer_timeout above that, or the queue's (x-consumer-timeout), and say so in"
            f" consumer_timeout_s of {queue.name}.",
        )


def _all_ack_early(facts: Facts, need: Need) -> bool:
    workers = facts.consumers_of(need.queue)
    return bool(workers) and all(
        worker.stock and not holds(worker, need.task, "acks_late", "task_acks_late") for worker in workers
    )


def prefetch(facts: Facts) -> Iterator[Finding]:
    for worker in facts.serving():
        if not worker.conf:
            continue
        told = number(worker.conf.get("worker_prefetch_multiplier"))
        multiplier = CELERY_PREFETCH if told is None else int(told)
        long = _long(facts, worker) if multiplier != 1 else None
        if long is not None:
            many = f"{multiplier} messages for each of its places" if multiplier else "as many messages as there are"
            yield Finding(
                "prefetch_long",
                "warning",
                f"worker {worker.node}",
                f"It takes {many} at once (worker_prefetch_multiplier {multiplier}), and {long}: the others wait behind"
                " that although another worker is free.",
                "Set worker_prefetch_multiplier = 1, and task_acks_late = True.",
            )


def _long(facts: Facts, worker: Worker) -> str | None:
    for name in sorted(worker.queues & facts.queues.keys()):
        queue = facts.queues[name]
        if queue.longest_s >= LONG_S:
            return f"a run on {name} took {span(queue.longest_s)}"
        if queue.seen >= _ENOUGH:
            continue
        for need in facts.needs:
            if need.queue == name and (need.time_limit_s or 0) >= LONG_LIMIT_S:
                return f"{need.task} on {name} may run for {span(need.time_limit_s or 0)}"
    return None


def acknowledgement(facts: Facts) -> Iterator[Finding]:
    for worker in facts.serving():
        if not worker.conf or worker.ours:
            continue
        tasks = concerned(facts, worker)
        late = [task for task in tasks if holds(worker, task, "acks_late", "task_acks_late")]
        early = [task for task in tasks if task not in late]
        if early or (not tasks and not worker.conf.get("task_acks_late")):
            yield Finding(
                "acks_early",
                "warning",
                f"worker {worker.node}",
                f"task_acks_late is off{which(early, tasks)}: what it is at when it is killed is gone; its run"
                " waits to its deadline.",
                "Set task_acks_late = True where a task may run a second time.",
            )
        looping = [task for task in late if holds(worker, task, "reject_on_worker_lost", "task_reject_on_worker_lost")]
        if looping:
            yield Finding(
                "rejects_lost",
                "error",
                f"worker {worker.node}",
                f"task_reject_on_worker_lost is on{which(looping, tasks)}: a task that kills its process, as by want of"
                " memory, is delivered again for ever, and never fails.",
                "Set task_reject_on_worker_lost = False; lost runs are the plane's to repeat (retry.max_lost).",
            )


def limits(facts: Facts) -> Iterator[Finding]:
    for worker in facts.serving():
        if not worker.stock or worker.pool not in _NO_HARD_LIMITS:
            continue
        tasks = {need.task for need in facts.needed_of(worker) if need.time_limit_s is not None}
        if tasks:
            yield Finding(
                "limit_not_kept",
                "warning",
                f"worker {worker.node}",
                f"Its pool ({worker.pool}) keeps no time limits, and {listed(tasks)} has one: it runs on for ever.",
                "Start it with `-P prefork`, or bound the run by deadline_s, which ends it on the plane.",
            )


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    visibility,
    consumer_timeout,
    prefetch,
    acknowledgement,
    limits,
)
