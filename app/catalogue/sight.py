"""What is known of the consumers of one queue, from the workers that live and the broker's word. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from workers.protocol import BUILT_IN_PREFIX


@dataclass(frozen=True, slots=True)
class Live:
    """A worker that was seen lately; `fresh` if just now."""

    node: str
    queues: frozenset[str]
    tasks: frozenset[str]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Sighting:
    """A row of `queue_sightings` but for its time; see there."""

    queue: str
    ready: int | None
    consumers: int | None
    workers: tuple[str, ...]
    known_tasks: tuple[str, ...] | None
    common_tasks: tuple[str, ...] | None

    @property
    def differ(self) -> bool:
        """Whether its workers register different tasks."""
        return self.known_tasks != self.common_tasks


def sighting(
    queue: str, live: Sequence[Live], *, ready: int | None, counted: int | None, blind: bool, all_asked: bool
) -> Sighting:
    """Who consumes a queue and what they register.

    `counted` are the consumers by the broker's word. On a broker that cannot count (`blind`) the live workers are all
    there is to know, provided that everybody was asked just now.
    """
    here = [worker for worker in live if queue in worker.queues]
    if blind:
        consumers = len(here) if all_asked else None
        certain = all_asked
    else:
        if counted is not None and counted < len(here):
            # Some are gone that have not been silent for long enough; those who spoke just now are not.
            spoke = [worker for worker in here if worker.fresh]
            here = spoke if len(spoke) == counted else here
        if counted == 0:
            here = []
        consumers = counted
        certain = counted is not None and counted <= len(here)
    tasks = [worker.tasks for worker in here] if certain else []
    return Sighting(
        queue=queue,
        ready=ready,
        consumers=consumers,
        workers=tuple(sorted(worker.node for worker in here)),
        known_tasks=_sorted(frozenset.union(*tasks)) if tasks else None,
        common_tasks=_sorted(frozenset.intersection(*tasks)) if tasks else None,
    )


def lacking(workers: Sequence[Live], nodes: Collection[str], needed: Collection[str]) -> dict[str, list[str]]:
    """By node, the tasks that are needed and that it does not register; who lacks none is left out."""
    told = {task for task in needed if not task.startswith(BUILT_IN_PREFIX)}
    found = {worker.node: sorted(told - worker.tasks) for worker in workers if worker.node in nodes}
    return {node: lacks for node, lacks in sorted(found.items()) if lacks}


def _sorted(names: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
