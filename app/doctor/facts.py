"""What was found out about a plane and its parts; `app.doctor.gather` fills it in, `app.doctor.findings` judge it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What Celery takes where nothing is configured.
CELERY_VISIBILITY_S = 3600.0
CELERY_PREFETCH = 4


@dataclass(frozen=True, slots=True)
class Need:
    """What is to run: a task on a queue, by enabled jobs and by runs that have not ended."""

    queue: str
    task: str
    jobs: int = 0
    runs: int = 0
    #: The longest time limit of those that have one, in seconds.
    time_limit_s: float | None = None
    #: Whether some have none.
    unlimited: bool = True


@dataclass(frozen=True, slots=True)
class Queue:
    """A row of `queues`, and what the broker says of it now (`consumers` None: it cannot tell)."""

    name: str
    consumer_timeout_s: float | None = None
    result_db: int | None = None
    result_prefix: str = ""
    problem: str | None = None
    consumers: int | None = None
    #: The longest run that was seen on it, in seconds, and how many were looked at.
    longest_s: float = 0.0
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A scheduler that lives: its loops, and what is wrong with some of them."""

    name: str
    loops: frozenset[str]
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Store:
    """What the database holds, besides queues and needs."""

    revision: str | None
    head: str
    #: Revisions that this release knows.
    known_revisions: frozenset[str]
    schedulers: tuple[Scheduler, ...] = ()
    #: Connections that ordinary users may have, those that are open now, and those of them that are the plane's.
    connections_limit: int = 100
    connections: int = 0
    connections_ours: int = 0
    #: API and scheduler processes, as far as their connections tell.
    processes: int = 0
    #: Enabled jobs whose trigger could not be evaluated: how many, and one of them.
    parked: int = 0
    parked_example: str = ""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A Redis or Valkey. `uses` are `results` and `broker`, `info` its INFO, `save` its rule for snapshots."""

    where: str
    uses: frozenset[str]
    info: Mapping[str, Any]
    save: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where results are kept: scheme, address, database. `same` as the plane's server; None: that cannot be told."""

    scheme: str
    address: str = ""
    db: int = 0
    same: bool | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}/{self.db}" if self.address else f"{self.scheme}://"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker on the broker. What it did not say is None or empty.

    `ours`: it says in the plane's Redis that it lives; `package`: it runs our package, wherever its Redis is.
    """

    node: str
    ours: bool = False
    package: bool = False
    answered: bool = False
    #: Whether it answered to what it consumes and registers; else that is what was last seen.
    queues: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    #: By task, the values of its options as Celery prints them.
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Its configuration with Celery's defaults in it; empty if it did not tell.
    conf: Mapping[str, Any] = field(default_factory=dict)
    results: Place | None = None
    pool: str = ""
    #: Processes that were heard under this name.
    processes: int = 1
    #: By how much its clock is ahead of ours, at least; negative: behind.
    ahead_s: float | None = None

    @property
    def stock(self) -> bool:
        """Whether it is a worker without our package, and said how it is configured."""
        return not self.ours and not self.package and bool(self.conf)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was found out. `away` are the parts that could not be asked, and why, in one line."""

    on_rabbitmq: bool
    away: Mapping[str, str] = field(default_factory=dict)
    store: Store | None = None
    queues: Mapping[str, Queue] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    redis: tuple[RedisServer, ...] = ()
    workers: tuple[Worker, ...] = ()
    #: By how much the clocks of parts are ahead of this machine's, in seconds.
    clocks: Mapping[str, float] = field(default_factory=dict)
    log_store: str = ""
    log_store_problem: str | None = None
    pool_size: int = 10
    #: Where the plane reads results: address and number of the database.
    redis_where: str = ""
    redis_db: int = 0

    @property
    def asked(self) -> bool:
        """Whether the workers on the broker could be asked."""
        return not self.away.keys() & {"broker", "workers"}

    def serving(self) -> list[Worker]:
        """The workers that consume a queue of the plane; how others are set is nobody's business here.

        All of them while the database does not say which queues those are.
        """
        if self.store is None:
            return [worker for worker in self.workers if worker.queues]
        return [worker for worker in self.workers if worker.queues & self.queues.keys()]

    def consumers_of(self, queue: str) -> list[Worker]:
        return [worker for worker in self.workers if queue in worker.queues]

    def needed_of(self, worker: Worker) -> list[Need]:
        """What is to run on the queues that it consumes."""
        return [need for need in self.needs if need.queue in worker.queues]
