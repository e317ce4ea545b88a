"""What runs and jobs stand in, and what of it keeps them waiting. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from app.progress.why.item import Item
from app.progress.words import counted, duration, few, instant
from app.states import PENDING, RETRY
from workers.protocol import BUILT_IN_PREFIX

#: A worker or a queue that was seen longer ago than this was not seen.
SEEN_AGE: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Limits:
    """How the limits of a queue stand for a run that is to be sent to it."""

    #: Most runs that may be there, how many are, and the first of them: their `id` and `worker`.
    max_active: int | None = None
    taken: int = 0
    holders: Sequence[Mapping[str, Any]] = ()
    #: The rate as it is written, and when it lets out the next run.
    rate: str | None = None
    next_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run or a job stands in: rows of `queues`, `queue_sightings` and `workers`, and the schedulers that live.

    `workers` are those of the queue and the one that has the run, also if they were not seen for long.
    """

    queue: Mapping[str, Any] | None
    sighting: Mapping[str, Any] | None
    workers: Sequence[Mapping[str, Any]]
    schedulers: int
    #: When the catalogue last saw anything.
    catalogue_time: datetime | None
    #: Of the queue; None where it has none, and where the run has its place.
    limits: Limits | None = None


def no_scheduler(around: Surroundings) -> Iterator[Item]:
    """That nobody does the plane's work."""
    if around.schedulers == 0:
        yield Item("no_scheduler", "No scheduler lives, so nothing is fired, sent, recorded or ended.")


def queue_trouble(name: str, queue: Mapping[str, Any] | None) -> Iterator[Item]:
    """What keeps every run from this queue."""
    if queue is None:
        yield Item("queue_missing", f"There is no queue {name}.", queue=name)
        return
    if queue["paused"]:
        by, time = queue["author"], queue["update_time"]
        detail = f"The queue {name} is paused (last changed by {by} at {instant(time)})."
        yield Item("queue_paused", detail, time=time, queue=name, by=by)
    if queue["problem"] is not None:
        yield Item("queue_problem", f"The queue {name} is in trouble: {queue['problem']}.", queue=name)
    elif queue["declare_time"] is None:
        detail = f"The queue {name} was not yet found or made on the broker."
        yield Item("queue_not_declared", detail, queue=name)


def limits_reached(now: datetime, queue: str, limits: Limits | None) -> Iterator[Item]:
    """What a run waits for whose queue takes no more just now."""
    if limits is None:
        return
    if limits.max_active is not None and limits.taken >= limits.max_active:
        held = [f"{one['id']}{' on ' + one['worker'] if one['worker'] else ''}" for one in limits.holders]
        rest = limits.taken - len(held)
        more = f" and {rest} more" if rest > 0 else ""
        many, have = counted(limits.max_active, "run is", "runs are"), counted(limits.taken, "has", "have")
        detail = f"At most {many} active in the queue {queue}, and {have} a place: {', '.join(held)}{more}."
        workers = sorted({one["worker"] for one in limits.holders if one["worker"]})
        first = limits.holders[0]["id"] if limits.holders else None
        yield Item("queue_limit", detail, queue=queue, workers=workers or None, run_id=first, count=limits.taken)
    if limits.next_time is not None and limits.next_time > now:
        wait = duration(limits.next_time - now)
        detail = f"The queue {queue} takes {limits.rate}; the next run goes out at about {instant(limits.next_time)}, "
        yield Item("queue_rate", f"{detail}in {wait}.", time=limits.next_time, queue=queue)


def task_unknown(now: datetime, queue: str, task: str, around: Surroundings) -> Iterator[Item]:
    """That workers consume the queue and none of them registers the task."""
    sighting = fresh(now, around)
    if sighting is None or sighting["known_tasks"] is None or task in sighting["known_tasks"]:
        return
    if task.startswith(BUILT_IN_PREFIX):
        return
    names = sighting["workers"]
    detail = f"No worker on the queue {queue} registers the task {task} ({few(names)} {agree(names)} it)."
    yield Item("task_not_registered", detail, time=sighting["look_time"], queue=queue, task=task, workers=names or None)


def no_consumer(now: datetime, queue: str, around: Surroundings) -> Iterator[Item]:
    """That nobody takes messages from the queue."""
    sighting = fresh(now, around)
    if sighting is not None and sighting["consumers"] == 0:
        detail = f"No worker consumes the queue {queue}."
        yield Item("no_worker", detail, time=sighting["look_time"], queue=queue)


def fresh(now: datetime, around: Surroundings) -> Mapping[str, Any] | None:
    """What was seen of the queue, if that is not long ago."""
    sighting = around.sighting
    return sighting if sighting is not None and now - sighting["look_time"] <= SEEN_AGE else None


def common_tasks(now: datetime, around: Surroundings) -> Sequence[str] | None:
    """The tasks that each worker on the queue registers; None if that is not known."""
    sighting = fresh(now, around)
    return None if sighting is None else sighting["common_tasks"]


def live_workers(now: datetime, around: Surroundings) -> list[Mapping[str, Any]]:
    """The live workers that consume the queue, without those that have gone since they were seen."""
    sighting = fresh(now, around)

    def lives(worker: Mapping[str, Any]) -> bool:
        gone = sighting is not None and sighting["look_time"] >= worker["seen_time"]
        gone = gone and sighting is not None and worker["node"] not in sighting["workers"]
        return worker["consumes"] and now - worker["seen_time"] <= SEEN_AGE and not gone

    return [worker for worker in around.workers if lives(worker)]


def standing(now: datetime, run: Mapping[str, Any]) -> str:
    """Where another run is, in a few words."""
    if run["state"] not in {PENDING, RETRY}:
        since = run["start_time"] or run["update_time"]
        on = f" on the worker {run['worker']}" if run["worker"] else ""
        return f"{run['state']}{on} for {duration(now - since)}"
    return f"{run['state']} since {instant(run['create_time'])}"


def agree(names: Sequence[str], one: str = "consumes", more: str = "consume") -> str:
    """The verb that goes with so many names."""
    return one if len(names) == 1 else more
