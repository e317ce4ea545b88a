"""Whether the plane hears what stock workers say of their tasks. Pure."""

from collections.abc import Callable, Iterator
from typing import Final

from app.doctor.facts import Facts, Place, Worker
from app.doctor.finding import Finding
from app.doctor.findings.options import concerned, holds, seconds, which
from app.doctor.findings.words import span

_REDIS: Final = frozenset({"redis", "rediss"})
#: A result must outlast a moment in which nobody records, and should outlast a restart of all schedulers.
EXPIRES_AT_ONCE_S: Final = 60.0
EXPIRES_SOON_S: Final = 3600.0


def _stock(facts: Facts) -> Iterator[tuple[Worker, Place]]:
    for worker in facts.serving():
        if worker.stock and worker.results is not None:
            yield worker, worker.results


def unreadable(facts: Facts) -> Iterator[Finding]:
    for worker, place in _stock(facts):
        if place.scheme in _REDIS or (place.scheme == "rpc" and facts.on_rabbitmq):
            continue
        if place.scheme == "disabled":
            says = "It keeps no results (result_backend is not set)"
        elif place.scheme == "rpc":
            says = "It answers by rpc:// through a Redis broker, where nobody listens"
        else:
            says = f"It keeps results in {place.scheme}, which the plane cannot read"
        yield Finding(
            "results_unreadable",
            "error",
            f"worker {worker.node}",
            f"{says}: its runs stay as they were sent until their deadline.",
            f"Set result_backend = redis://{facts.redis_where}/{facts.redis_db} (the plane's Redis)"
            + (", or rpc://." if facts.on_rabbitmq else "."),
        )


def elsewhere(facts: Facts) -> Iterator[Finding]:
    for worker, place in _stock(facts):
        if place.scheme not in _REDIS:
            continue
        subject = f"worker {worker.node}"
        if not place.same:
            yield Finding(
                "results_elsewhere",
                "warning" if place.same is None else "error",
                subject,
                f"It keeps results on {place}, and the plane reads {facts.redis_where}"
                + (
                    "; whether these are one server cannot be told from here. If they are not, its runs"
                    if place.same is None
                    else ": its runs"
                )
                + " stay as they were sent until their deadline.",
                "Let its result_backend name the plane's Redis, JOBPLANE_REDIS_URL.",
            )
            continue
        for name in sorted(worker.queues & facts.queues.keys()):
            queue = facts.queues[name]
            wanted = facts.redis_db if queue.result_db is None else queue.result_db
            if place.db != wanted:
                yield Finding(
                    "results_elsewhere",
                    "error",
                    subject,
                    f"It keeps results in database {place.db} of the Redis, and of queue {name} the plane reads"
                    f" database {wanted}: its runs stay as they were sent until their deadline.",
                    f'Set "result_db": {place.db} on queue {name}, or the database {wanted} in result_backend.',
                )
            elif _has_prefix(worker) != bool(queue.result_prefix):
                has = "puts a prefix before" if _has_prefix(worker) else "puts no prefix before"
                expects = "none" if _has_prefix(worker) else repr(queue.result_prefix)
                yield Finding(
                    "results_elsewhere",
                    "error",
                    subject,
                    f"It {has} the keys of its results (global_keyprefix), and of queue {name} the plane expects"
                    f" {expects}: its runs stay as they were sent until their deadline.",
                    f"Set result_prefix on queue {name} to the global_keyprefix of the service.",
                )


def _has_prefix(worker: Worker) -> bool:
    """What the prefix is, workers do not tell: they hide whatever has a "key" in its name."""
    options = worker.conf.get("result_backend_transport_options")
    return isinstance(options, dict) and bool(options.get("global_keyprefix"))


def expiry(facts: Facts) -> Iterator[Finding]:
    for worker, place in _stock(facts):
        expires = seconds(worker.conf.get("result_expires"))
        if place.scheme not in _REDIS or not expires or expires >= EXPIRES_SOON_S:
            continue
        yield Finding(
            "results_expire",
            "error" if expires < EXPIRES_AT_ONCE_S else "warning",
            f"worker {worker.node}",
            f"Its results expire after {span(expires)}: an end that nobody records in that time, as while schedulers or"
            " the database are away, is never heard of.",
            "Set result_expires to a day (Celery's default); the plane shortens the life of what it has recorded.",
        )


def serializer(facts: Facts) -> Iterator[Finding]:
    for worker, _ in _stock(facts):
        told = worker.conf.get("result_serializer", "json")
        if told not in {"json", "application/json"}:
            yield Finding(
                "results_not_json",
                "error",
                f"worker {worker.node}",
                f"It writes results as {told}; the plane reads JSON alone, so no word of its runs is recorded.",
                "Set result_serializer = json.",
            )


def started(facts: Facts) -> Iterator[Finding]:
    for worker, _ in _stock(facts):
        tasks = concerned(facts, worker)
        silent = [task for task in tasks if not holds(worker, task, "track_started", "task_track_started")]
        if silent or (not tasks and not worker.conf.get("task_track_started")):
            yield Finding(
                "track_started_off",
                "warning",
                f"worker {worker.node}",
                f"task_track_started is off{which(silent, tasks)}: a run looks as if it waited while it is at work, a"
                " start deadline may end it, and a cancel writes REVOKED although the body goes on.",
                "Set task_track_started = True.",
            )


def extended(facts: Facts) -> Iterator[Finding]:
    for worker, _ in _stock(facts):
        if not worker.conf.get("result_extended"):
            yield Finding(
                "result_extended_off",
                "warning",
                f"worker {worker.node}",
                "result_extended is off: its reports name neither the worker nor the retry, so the plane cannot tell a"
                " second delivery from the first.",
                "Set result_extended = True.",
            )


def retried(facts: Facts) -> Iterator[Finding]:
    for worker, place in _stock(facts):
        if place.scheme in _REDIS and not worker.conf.get("result_backend_always_retry"):
            yield Finding(
                "results_not_retried",
                "note",
                f"worker {worker.node}",
                "result_backend_always_retry is off: an end that comes while Redis is away for a moment is lost.",
                "Set result_backend_always_retry = True (Celery 5.7 or newer).",
            )


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    unreadable,
    elsewhere,
    expiry,
    serializer,
    started,
    extended,
    retried,
)
