"""The plane itself: parts that are away, its database and schedulers, clocks, the log store. Pure."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from app.doctor.facts import Facts
from app.doctor.finding import Finding
from app.doctor.findings.words import counted, listed

#: Clocks that lie further apart than this are told: the plane's parts, and workers, whose word takes its time.
CLOCKS_S: Final = 2.0
WORKER_CLOCKS_S: Final = 5.0

_SETTING: Final = {"database": "JOBPLANE_DATABASE_URL", "redis": "JOBPLANE_REDIS_URL", "broker": "JOBPLANE_BROKER_URL"}
_UNSEEN: Final = {
    "database": "Jobs, queues and runs could not be looked at",
    "redis": "Neither its settings nor our workers' word could be looked at",
    "broker": "Workers and queues could not be asked",
}


def away(facts: Facts) -> Iterator[Finding]:
    for part, setting in _SETTING.items():
        if part in facts.away:
            says = f"{_UNSEEN[part]}: {facts.away[part].rstrip('.')}."
            do = f"Start it, or set {setting} to where it is, and ask again; the other findings do not know of it."
            yield Finding(f"{part}_away", "error", part, says, do)
    if "workers" in facts.away:
        yield Finding(
            "workers_not_asked",
            "error",
            "workers",
            f"How workers are set could not be asked: {facts.away['workers']}.",
            "Ask again. If it stays so, let the broker's user write to Celery's exchanges for remote control"
            " (celery.pidbox, reply.celery.pidbox, celeryev) and make queues for the answers.",
        )


def migrations(facts: Facts) -> Iterator[Finding]:
    store = facts.store
    if store is None or store.revision == store.head:
        return
    if store.revision is not None and store.revision not in store.known_revisions:
        yield Finding(
            "migrations",
            "note",
            "database",
            f"Its schema {store.revision} is newer than this release, which knows up to {store.head}.",
            "Finish the upgrade: this release runs on the next one's schema, but it is not meant to stay so.",
        )
        return
    stands = f"stands at {store.revision}" if store.revision else "was never migrated"
    yield Finding(
        "migrations",
        "error",
        "database",
        f"It {stands}, and this release wants {store.head}: its statements fail.",
        "Run `jobplane migrate` before the new processes start.",
    )


def schedulers(facts: Facts) -> Iterator[Finding]:
    if facts.store is None or facts.store.revision is None:
        return
    alive = facts.store.schedulers
    if not alive:
        yield Finding(
            "no_scheduler",
            "error",
            "schedulers",
            "None lives: nothing is fired, sent, recorded or found lost.",
            "Start `jobplane scheduler`, two of them in production.",
        )
    kinds = Counter(scheduler.loops for scheduler in alive)
    if len(kinds) > 1:
        most = kinds.most_common(1)[0][0]
        others = [scheduler.name for scheduler in alive if scheduler.loops != most]
        yield Finding(
            "schedulers_differ",
            "warning",
            "schedulers",
            f"They are of different releases, for they do not do the same: {listed(others)} beside"
            f" {counted(len(alive) - len(others), 'other', 'others')}.",
            "End the old ones; while a deploy goes on, this is as it should be.",
        )
    for scheduler in alive:
        for loop, problem in sorted(scheduler.problems.items()):
            yield Finding(
                "loop_in_trouble",
                "warning",
                f"scheduler {scheduler.name}",
                f"Its loop {loop} fails: {problem}.",
                "It tries again by itself; what it names has to come back. Its log has more.",
            )


def connections(facts: Facts) -> Iterator[Finding]:
    store = facts.store
    if store is None or store.processes == 0:
        return
    others = max(store.connections - store.connections_ours, 0)
    wanted = store.processes * facts.pool_size
    if others + wanted > store.connections_limit:
        yield Finding(
            "connections_short",
            "warning",
            "database",
            f"It lets us have {store.connections_limit} connections; {store.processes} processes of the plane may want"
            f" {wanted} (JOBPLANE_POOL_SIZE {facts.pool_size} each), and others hold {others}.",
            "Raise PostgreSQL's max_connections, or the limit of the database or the role, or lower"
            " JOBPLANE_POOL_SIZE.",
        )


def parked_jobs(facts: Facts) -> Iterator[Finding]:
    if facts.store is not None and facts.store.parked:
        yield Finding(
            "job_parked",
            "error",
            "jobs",
            f"{counted(facts.store.parked, 'enabled job never fires, for its', 'enabled jobs never fire, for their')}"
            f" trigger could not be evaluated, as {facts.store.parked_example.rstrip('.')}.",
            "Edit the trigger: `GET /api/v1/jobs/{id}` shows the problem, and an edit clears it.",
        )


def clocks(facts: Facts) -> Iterator[Finding]:
    """By the clock of the database, where it is known; else by this machine's."""
    base = facts.clocks.get("the database")
    against = "this machine's" if base is None else "the database's"
    parts = {name: ahead for name, ahead in facts.clocks.items() if name != "the database"}
    if base is not None:
        parts["this machine"] = 0.0
    found = [(f"clock of {name}", ahead - (base or 0.0), CLOCKS_S) for name, ahead in parts.items()]
    found += [
        (f"worker {worker.node}", worker.ahead_s - (base or 0.0), WORKER_CLOCKS_S)
        for worker in facts.workers
        if worker.ahead_s is not None
    ]
    for subject, ahead, limit in found:
        if abs(ahead) > limit:
            yield Finding(
                "clocks_differ",
                "warning",
                subject,
                f"Its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {against}: times that are"
                " shown cannot be compared, and on a Redis broker a worker whose clock is far ahead takes back work"
                " that others are at.",
                "Let NTP keep the clock of that machine.",
            )


def log_store(facts: Facts) -> Iterator[Finding]:
    if facts.log_store_problem is not None:
        yield Finding(
            "log_store",
            "error",
            facts.log_store,
            f"Nothing can be written there from here: {facts.log_store_problem.rstrip('.')}. Logs of runs stay in Redis"
            " and are lost from there, and large results are lost.",
            "Set JOBPLANE_LOG_STORE to a place that every API and scheduler can write to, with the rights (or AWS_"
            " variables) for it.",
        )


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    away,
    migrations,
    schedulers,
    connections,
    parked_jobs,
    clocks,
    log_store,
)
