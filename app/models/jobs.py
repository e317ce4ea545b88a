"""What should run, where, and where its schedule stands."""

from datetime import datetime
from typing import Any, ClassVar, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Text,
    Uuid,
    text,
)
from sqlmodel import Field, SQLModel

from app.models.columns import document, flag, instant, number, words

#: A rate of runs per second, minute or hour, as Celery writes it.
RATE_PATTERN: Final = "^[1-9][0-9]{0,5}/[smh]$"


class Queue(SQLModel, table=True):
    """An exchange, a routing key and a binding, owned by one namespace. Names are unique on the plane."""

    __tablename__: ClassVar[str] = "queues"
    __table_args__ = (
        CheckConstraint("type IN ('classic', 'quorum')", name="type"),
        CheckConstraint("exchange_type IN ('direct', 'topic', 'fanout')", name="exchange_type"),
        CheckConstraint("max_priority IS NULL OR (max_priority BETWEEN 1 AND 255)", name="max_priority"),
        CheckConstraint("max_priority IS NULL OR type = 'classic'", name="priority_is_classic"),
        CheckConstraint("delivery_limit IS NULL OR (delivery_limit >= 1 AND type = 'quorum')", name="delivery_limit"),
        CheckConstraint("max_message_kib IS NULL OR max_message_kib >= 1", name="max_message_kib"),
        CheckConstraint("consumer_timeout_s IS NULL OR consumer_timeout_s >= 60", name="consumer_timeout_s"),
        CheckConstraint("result_db IS NULL OR result_db >= 0", name="result_db"),
        CheckConstraint("max_active IS NULL OR max_active >= 1", name="max_active"),
        CheckConstraint(f"rate_limit ~ '{RATE_PATTERN}'", name="rate_limit"),
        CheckConstraint("version >= 1", name="version"),
    )

    name: str = Field(sa_column=Column(Text, primary_key=True))
    namespace: str = words()
    exchange: str = words()
    exchange_type: str = words(default="direct")
    routing_key: str = words()
    type: str = words(default="classic")
    max_priority: int | None = number(SmallInteger, nullable=True)
    #: How often the broker delivers one message before it gives up (quorum queues that the plane makes).
    delivery_limit: int | None = number(nullable=True)
    #: Whether a queue that the plane makes sends what it gives up to the plane's own queue of dead letters.
    dead_letter: bool = flag(False)
    #: Longest message that is published to it.
    max_message_kib: int | None = number(nullable=True)
    #: How long the broker lets a worker keep a message unacknowledged; no task may run longer.
    consumer_timeout_s: int | None = number(nullable=True)
    #: Where its stock workers keep results on the plane's Redis, if not in its database and without a key prefix.
    result_db: int | None = number(SmallInteger, nullable=True)
    result_prefix: str = words(default="")
    #: Most runs that have been sent to it and have not ended.
    max_active: int | None = number(nullable=True)
    #: How many runs are sent to it in a time, as `100/m`.
    rate_limit: str | None = words(nullable=True)
    #: What of that may be sent at once, as of then: a token bucket. The dispatch writes it alone.
    rate_tokens: float | None = number(Double, nullable=True)
    rate_time: datetime | None = instant(nullable=True)
    shared_with: list[str] = document(default="[]")
    paused: bool = flag(False)
    description: str = words(default="")
    #: Null until the scheduler has found or made the queue on the broker.
    declare_time: datetime | None = instant(nullable=True)
    #: Whether the queue was there before us: then it is used as it is and never declared.
    adopted: bool | None = Field(default=None, sa_column=Column(Boolean, nullable=True))
    #: What is wrong with this queue on the broker, in a sentence; null if nothing is.
    problem: str | None = words(nullable=True)
    author: str = words()
    version: int = number(default="1")
    create_time: datetime = instant(default=True)
    update_time: datetime = instant(default=True)


class QueuePlace(SQLModel, table=True):
    """A run that takes one of the `max_active` places of its queue. Written by the dispatch; may outlive its run's end
    until somebody wants the place."""

    __tablename__: ClassVar[str] = "queue_places"
    __table_args__ = (Index("queue_places_queue_idx", "queue"),)

    run_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True))
    queue: str = Field(sa_column=Column(Text, ForeignKey("queues.name", ondelete="CASCADE"), nullable=False))


class QueueSighting(SQLModel, table=True):
    """What was last seen of a queue: who consumes it, and which tasks they register. Written by the catalogue alone."""

    __tablename__: ClassVar[str] = "queue_sightings"

    queue: str = Field(sa_column=Column(Text, ForeignKey("queues.name", ondelete="CASCADE"), primary_key=True))
    #: Messages that wait; null: the broker could not be asked.
    ready: int | None = number(BigInteger, nullable=True)
    #: Consumers by the broker's word, or the workers that are known where the broker cannot tell.
    consumers: int | None = number(nullable=True)
    #: Nodes of the live workers that consume it.
    workers: list[str] = document(default="[]")
    #: Tasks that at least one of them registers; null: some consumer is not known, so nothing is held back.
    known_tasks: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text), nullable=True))
    #: Tasks that each of them registers; null likewise.
    common_tasks: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text), nullable=True))
    look_time: datetime = instant()


#: The columns of a job that its owner writes; the rest is where its schedule stands.
DEFINITION: Final = (
    "namespace",
    "name",
    "description",
    "task",
    "args",
    "kwargs",
    "queue",
    "priority",
    "trigger",
    "enabled",
    "overlap",
    "misfire",
    "catchup_window_s",
    "start_deadline_s",
    "deadline_s",
    "max_active",
    "pause_after_failures",
    "retry",
    "time_limit_s",
    "soft_time_limit_s",
    "labels",
)


class Job(SQLModel, table=True):
    """A stored definition and where its schedule stands. Delete is soft, so that runs keep their job."""

    __tablename__: ClassVar[str] = "jobs"
    __table_args__ = (
        Index("jobs_name_key", "namespace", "name", unique=True, postgresql_where=text("delete_time IS NULL")),
        Index("jobs_due_idx", "next_run_time", postgresql_where=text("next_run_time IS NOT NULL")),
        Index("jobs_labels_idx", "labels", postgresql_using="gin"),
        Index("jobs_queue_idx", "queue"),
        Index("jobs_contract_problem_idx", "id", postgresql_where=text("contract_problem IS NOT NULL")),
        CheckConstraint(
            "overlap IN ('skip', 'buffer_one', 'buffer_all', 'cancel_other', 'terminate_other', 'allow')",
            name="overlap",
        ),
        CheckConstraint("misfire IN ('latest', 'earliest', 'all', 'none')", name="misfire"),
        CheckConstraint("catchup_window_s >= 0", name="catchup_window"),
        CheckConstraint("start_deadline_s IS NULL OR start_deadline_s > 0", name="start_deadline"),
        CheckConstraint("deadline_s IS NULL OR deadline_s > 0", name="deadline"),
        CheckConstraint("max_active IS NULL OR max_active >= 1", name="max_active"),
        CheckConstraint("pause_after_failures IS NULL OR pause_after_failures >= 1", name="pause_after_failures"),
        CheckConstraint("(pause_time IS NULL) = (pause_by IS NULL)", name="pause"),
        CheckConstraint("queue IS NOT NULL OR delete_time IS NOT NULL", name="queue_of_live_job"),
        CheckConstraint(
            "next_run_time IS NULL OR (enabled AND pause_time IS NULL AND problem IS NULL AND delete_time IS NULL)",
            name="next_run_of_live_job",
        ),
        CheckConstraint("extract(epoch FROM cursor_time) % 1 = 0", name="cursor_whole_seconds"),
        CheckConstraint("version >= 1", name="version"),
    )

    id: UUID = Field(sa_column=Column(Uuid, primary_key=True))
    namespace: str = words()
    name: str = words()
    description: str = words(default="")
    task: str = words()
    args: list[Any] = document(default="[]")
    kwargs: dict[str, Any] = document(default="{}")
    queue: str | None = Field(sa_column=Column(Text, ForeignKey("queues.name", ondelete="SET NULL"), nullable=True))
    priority: int | None = number(SmallInteger, nullable=True)
    trigger: dict[str, Any] = document()
    enabled: bool = flag(True)
    overlap: str = words(default="skip")
    misfire: str = words(default="latest")
    catchup_window_s: int = number(default="86400")
    start_deadline_s: int | None = number(nullable=True)
    deadline_s: int | None = number(nullable=True)
    #: Most runs of the job that may be under way at once; null: as many as `overlap` lets.
    max_active: int | None = number(nullable=True)
    pause_after_failures: int | None = number(nullable=True)
    retry: dict[str, Any] = document()
    time_limit_s: float | None = number(Double, nullable=True)
    soft_time_limit_s: float | None = number(Double, nullable=True)
    labels: dict[str, str] = document(default="{}")
    pause_time: datetime | None = instant(nullable=True)
    pause_reason: str | None = words(nullable=True)
    pause_by: str | None = words(nullable=True)
    #: Runs that were made before this do not count for `pause_after_failures`: the job was resumed since.
    failures_from_time: datetime | None = instant(nullable=True)
    #: Why the job is parked: its trigger could not be evaluated. An edit clears it.
    problem: str | None = words(nullable=True)
    #: Why its arguments do not fit the task as live workers register it. The catalogue sets and clears it.
    contract_problem: str | None = words(nullable=True)
    #: The last scheduled time that was dealt with (fired or skipped): nominal, before jitter.
    cursor_time: datetime = instant()
    #: When the tick looks at this job next, jitter included; null: never.
    next_run_time: datetime | None = instant(nullable=True)
    last_run_time: datetime | None = instant(nullable=True)
    author: str = words()
    version: int = number(default="1")
    create_time: datetime = instant(default=True)
    update_time: datetime = instant(default=True)
    delete_time: datetime | None = instant(nullable=True)


class JobVersion(SQLModel, table=True):
    """Every definition that a job ever had; a run names the one it was fired from."""

    __tablename__: ClassVar[str] = "job_versions"

    job_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True))
    version: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    definition: dict[str, Any] = document()
    #: The scheduled times behind this one are its own. Null in versions from before this was kept.
    cursor_time: datetime | None = instant(nullable=True)
    author: str = words()
    create_time: datetime = instant(default=True)


class Skip(SQLModel, table=True):
    """Scheduled times of a job that policy did not run: consecutive ones of one cause share a row."""

    __tablename__: ClassVar[str] = "skips"
    __table_args__ = (
        Index("skips_last_idx", "job_id", "last_time", unique=True),
        CheckConstraint("reason IN ('coalesced', 'missed', 'overlap', 'paused', 'limit')", name="reason"),
        CheckConstraint("first_time <= last_time", name="times"),
        CheckConstraint("count >= 1", name="count"),
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    job_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False))
    reason: str = words()
    #: The run that was in the way, or that the times were coalesced into.
    run_id: UUID | None = Field(sa_column=Column(Uuid, nullable=True))
    first_time: datetime = instant()
    last_time: datetime = instant()
    count: int = number(BigInteger)
    #: False where counting stopped at a bound, so `count` is the least number that it can be.
    exact: bool = flag(True)
