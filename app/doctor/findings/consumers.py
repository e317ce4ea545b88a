"""Who consumes what, and who knows which task. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from app.doctor.facts import Facts, Need
from app.doctor.finding import Finding
from app.doctor.findings.words import counted, listed
from workers.protocol import BUILT_IN_PREFIX


def twins(facts: Facts) -> Iterator[Finding]:
    for worker in facts.workers:
        if worker.processes > 1:
            yield Finding(
                "node_twice",
                "error",
                f"worker {worker.node}",
                f"{worker.processes} workers have this name: they overwrite each other's word on what they consume, and"
                " what is said to one, as a cancel, another may hear instead.",
                "Start each with a name of its own, as `-n name-1@%h`; containers with one hostname need that too.",
            )


def silent(facts: Facts) -> Iterator[Finding]:
    """Those that live by their heartbeat and did not answer: others are busy, gone, or never spoke."""
    if not facts.asked:
        return
    for worker in facts.workers:
        if worker.ahead_s is None or worker.answered or worker.ours:
            continue
        yield Finding(
            "worker_silent",
            "warning",
            f"worker {worker.node}",
            "It sends heartbeats and answers no question: what it consumes and registers is not known, so its queues"
            " look as if nobody consumed them. If it does not accept JSON, it refuses our messages as well.",
            "Set worker_enable_remote_control = True, accept_content with json in it, and task_serializer = json.",
        )


def elsewhere(facts: Facts) -> Iterator[Finding]:
    """Workers with our package that are not seen where their presence should be."""
    if "redis" in facts.away:
        return
    for worker in facts.workers:
        if worker.package and not worker.ours:
            place = f" ({worker.results})" if worker.results is not None else ""
            yield Finding(
                "worker_elsewhere",
                "error",
                f"worker {worker.node}",
                "It runs jobplane's package and says nothing in the plane's Redis: its Redis is another server or"
                f" database{place}, or is away. Leases and results that it keeps there are seen by nobody.",
                "Set its JOBPLANE_WORKER_REDIS_URL to the plane's JOBPLANE_REDIS_URL, with the same database.",
            )


def queues_in_trouble(facts: Facts) -> Iterator[Finding]:
    for queue in facts.queues.values():
        if queue.problem:
            yield Finding(
                "queue_in_trouble",
                "error",
                f"queue {queue.name}",
                f"The broker refuses what the plane wants of it: {queue.problem.rstrip('.')}. Runs on it wait.",
                "Make the queue's row and the queue on the broker agree: delete one of the two, or edit the route.",
            )


def unconsumed(facts: Facts) -> Iterator[Finding]:
    for queue, needs in _needs_by_queue(facts).items():
        if _consumers(facts, queue) != 0:
            continue
        hint = " (with a global_keyprefix it consumes another one)" if not facts.on_rabbitmq else ""
        yield Finding(
            "queue_not_consumed",
            "error",
            f"queue {queue}",
            f"Nobody consumes it, and {_users(needs)} it, with {listed({need.task for need in needs})}.",
            f"Start a worker with `-Q {queue}`{hint}, or move or disable the jobs.",
        )


def unknown_consumers(facts: Facts) -> Iterator[Finding]:
    if not facts.asked:
        return
    for queue in _needs_by_queue(facts):
        told = facts.queues[queue].consumers
        known = sum(worker.processes for worker in facts.consumers_of(queue))
        if told is not None and told > known:
            yield Finding(
                "consumer_unknown",
                "note",
                f"queue {queue}",
                f"The broker counts {told} consumers, and {known} workers are known: the plane cannot tell whether the"
                " others register its tasks, and holds nothing back from them.",
                "Let all workers of the queue answer: worker_enable_remote_control = True, and JSON accepted. One with"
                " a solo pool is silent while it is at a task.",
            )


def unregistered(facts: Facts) -> Iterator[Finding]:
    """Tasks that none of a queue's workers registers, and those that some of them do not."""
    if not facts.asked:
        return
    for queue, needs in _needs_by_queue(facts).items():
        workers = facts.consumers_of(queue)
        told = facts.queues[queue].consumers
        if not workers or (told is not None and told != sum(worker.processes for worker in workers)):
            continue
        known = frozenset[str]().union(*(worker.tasks for worker in workers))
        wanted = {need.task for need in needs if not need.task.startswith(BUILT_IN_PREFIX)}
        if missing := wanted - known:
            lost = [need for need in needs if need.task in missing]
            yield Finding(
                "task_not_registered",
                "error",
                f"queue {queue}",
                f"None of its workers ({listed(worker.node for worker in workers)}) registers {listed(missing)}, and"
                f" {_users(lost)} it: their runs wait.",
                "Import the task's module in the workers (`include`, or JOBPLANE_WORKER_INCLUDE), correct the name, or"
                " choose the queue whose workers know it.",
            )
        for worker in workers:
            lacks = (wanted & known) - worker.tasks
            # One that was only seen a while ago may be gone.
            if lacks and (worker.answered or worker.ours):
                yield Finding(
                    "thief_waiting",
                    "error",
                    f"worker {worker.node}",
                    f"It consumes {queue} and does not know {listed(lacks)}: of what it takes it rejects that, and the"
                    " plane has to send it again.",
                    f"Give its service a queue of its own (task_default_queue, `-Q`); only workers that register all"
                    f" tasks of {queue} should consume it.",
                )


def _needs_by_queue(facts: Facts) -> dict[str, list[Need]]:
    found: dict[str, list[Need]] = defaultdict(list)
    for need in facts.needs:
        if need.queue in facts.queues:
            found[need.queue].append(need)
    return found


def _consumers(facts: Facts, queue: str) -> int | None:
    """How many consume it: by RabbitMQ's count; on Redis those that are known, if they could be asked."""
    if facts.on_rabbitmq:
        return facts.queues[queue].consumers
    if not facts.asked:
        return None
    return len(facts.consumers_of(queue))


def _users(needs: list[Need]) -> str:
    jobs, runs = sum(need.jobs for need in needs), sum(need.runs for need in needs)
    said = [counted(jobs, "enabled job", "enabled jobs")] if jobs else []
    said += [counted(runs, "live run", "live runs")] if runs else []
    return f"{' and '.join(said)} {'uses' if jobs + runs == 1 else 'use'}"


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    twins,
    silent,
    elsewhere,
    queues_in_trouble,
    unconsumed,
    unknown_consumers,
    unregistered,
)
