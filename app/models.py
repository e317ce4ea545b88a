"""The tables, with every constraint and index. What can be a constraint is one; Python only says it nicer.

Instants are `timestamptz` in UTC and end in `_time`; durations are seconds and end in `_s`. SQLModel classes declare
the tables for migrations and for statements that vary; rows travel as the driver's records.
"""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlmodel import Field, SQLModel

from app.states import CUSTOM_PATTERN, TERMINAL

SQLModel.metadata.naming_convention = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
).naming_convention

_ENDED = f"state IN ({', '.join(repr(state) for state in sorted(TERMINAL))})"


def _instant(*, nullable: bool = False, default: bool = False) -> Any:
    return Field(
        sa_column=Column(
            TIMESTAMP(timezone=True), nullable=nullable, server_default=text("clock_timestamp()") if default else None
        )
    )


def _json(*, nullable: bool = False, default: str | None = None) -> Any:
    return Field(sa_column=Column(JSONB(none_as_null=True), nullable=nullable, server_default=default))


def _text(*, nullable: bool = False, default: str | None = None) -> Any:
    return Field(sa_column=Column(Text, nullable=nullable, server_default=default))


def _number(kind: Any = Integer, *, nullable: bool = False, default: str | None = None) -> Any:
    return Field(sa_column=Column(kind, nullable=nullable, server_default=default))


def _flag(default: bool) -> Any:
    return Field(sa_column=Column(Boolean, nullable=False, server_default=text(str(default).lower())))


class Queue(SQLModel, table=True):
    """An exchange, a routing key and a binding, owned by one namespace. Names are unique on the plane."""

    __tablename__: ClassVar[str] = "queues"  # type: ignore[misc]
    __table_args__ = (
        CheckConstraint("type IN ('classic', 'quorum')", name="type"),
        CheckConstraint("exchange_type IN ('direct', 'topic', 'fanout')", name="exchange_type"),
        CheckConstraint("max_priority IS NULL OR (max_priority BETWEEN 1 AND 255)", name="max_priority"),
        CheckConstraint("max_priority IS NULL OR type = 'classic'", name="priority_is_classic"),
        CheckConstraint("version >= 1", name="version"),
    )

    name: str = Field(sa_column=Column(Text, primary_key=True))
    namespace: str = _text()
    exchange: str = _text()
    exchange_type: str = _text(default="direct")
    routing_key: str = _text()
    type: str = _text(default="classic")
    max_priority: int | None = _number(SmallInteger, nullable=True)
    shared_with: list[str] = _json(default="[]")
    paused: bool = _flag(False)
    description: str = _text(default="")
    #: Null until the scheduler has found or made the queue on the broker.
    declare_time: datetime | None = _instant(nullable=True)
    #: Whether the queue was there before us: then it is used as it is and never declared.
    adopted: bool | None = Field(default=None, sa_column=Column(Boolean, nullable=True))
    #: What is wrong with this queue on the broker, in a sentence; null if nothing is.
    problem: str | None = _text(nullable=True)
    author: str = _text()
    version: int = _number(default="1")
    create_time: datetime = _instant(default=True)
    update_time: datetime = _instant(default=True)


class Job(SQLModel, table=True):
    """A stored definition and where its schedule stands. Delete is soft, so that runs keep their job."""

    __tablename__: ClassVar[str] = "jobs"  # type: ignore[misc]
    __table_args__ = (
        Index("jobs_name_key", "namespace", "name", unique=True, postgresql_where=text("delete_time IS NULL")),
        Index("jobs_due_idx", "next_run_time", postgresql_where=text("next_run_time IS NOT NULL")),
        Index("jobs_labels_idx", "labels", postgresql_using="gin"),
        Index("jobs_queue_idx", "queue"),
        CheckConstraint("overlap IN ('skip', 'allow')", name="overlap"),
        CheckConstraint("misfire IN ('latest')", name="misfire"),
        CheckConstraint("catchup_window_s >= 0", name="catchup_window"),
        CheckConstraint("start_deadline_s IS NULL OR start_deadline_s > 0", name="start_deadline"),
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
    namespace: str = _text()
    name: str = _text()
    description: str = _text(default="")
    task: str = _text()
    args: list[Any] = _json(default="[]")
    kwargs: dict[str, Any] = _json(default="{}")
    queue: str | None = Field(sa_column=Column(Text, ForeignKey("queues.name", ondelete="SET NULL"), nullable=True))
    priority: int | None = _number(SmallInteger, nullable=True)
    trigger: dict[str, Any] = _json()
    enabled: bool = _flag(True)
    overlap: str = _text(default="skip")
    misfire: str = _text(default="latest")
    catchup_window_s: int = _number(default="86400")
    start_deadline_s: int | None = _number(nullable=True)
    retry: dict[str, Any] = _json()
    time_limit_s: float | None = _number(Double, nullable=True)
    soft_time_limit_s: float | None = _number(Double, nullable=True)
    labels: dict[str, str] = _json(default="{}")
    pause_time: datetime | None = _instant(nullable=True)
    pause_reason: str | None = _text(nullable=True)
    pause_by: str | None = _text(nullable=True)
    #: Why the job is parked: its trigger could not be evaluated. An edit clears it.
    problem: str | None = _text(nullable=True)
    #: The last scheduled time that was dealt with (fired or skipped): nominal, before jitter.
    cursor_time: datetime = _instant()
    #: When the tick looks at this job next, jitter included; null: never.
    next_run_time: datetime | None = _instant(nullable=True)
    last_run_time: datetime | None = _instant(nullable=True)
    author: str = _text()
    version: int = _number(default="1")
    create_time: datetime = _instant(default=True)
    update_time: datetime = _instant(default=True)
    delete_time: datetime | None = _instant(nullable=True)


class JobVersion(SQLModel, table=True):
    """Every definition that a job ever had; a run names the one it was fired from."""

    __tablename__: ClassVar[str] = "job_versions"  # type: ignore[misc]

    job_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True))
    version: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    definition: dict[str, Any] = _json()
    author: str = _text()
    create_time: datetime = _instant(default=True)


class Run(SQLModel, table=True):
    """One firing of a job, or an ad-hoc dispatch. Also the outbox: undispatched rows are what is to be published.

    No index covers version, progress or update_time, so that news of the same state stays a cheap in-place update.
    """

    __tablename__: ClassVar[str] = "runs"  # type: ignore[misc]
    __table_args__ = (
        Index(
            "runs_scheduled_key", "job_id", "scheduled_time", unique=True, postgresql_where=text("kind = 'schedule'")
        ),
        Index("runs_outbox_idx", "id", postgresql_where=text("state = 'PENDING' AND dispatch_time IS NULL")),
        Index("runs_live_idx", "id", postgresql_where=text("end_time IS NULL")),
        Index("runs_live_job_idx", "job_id", postgresql_where=text("end_time IS NULL")),
        Index("runs_job_idx", "job_id", "id"),
        Index("runs_queue_idx", "queue", "id"),
        Index("runs_task_idx", "task", "id"),
        Index("runs_ended_idx", "end_time", postgresql_where=text("end_time IS NOT NULL")),
        Index("runs_failed_idx", "id", postgresql_where=text("state = 'FAILURE'")),
        ForeignKeyConstraint(
            ["job_id", "job_version"], ["job_versions.job_id", "job_versions.version"], name="runs_job_version_fkey"
        ),
        CheckConstraint("kind IN ('schedule', 'manual', 'adhoc', 'backfill')", name="kind"),
        CheckConstraint("(kind = 'adhoc') = (job_id IS NULL)", name="adhoc_has_no_job"),
        CheckConstraint("kind <> 'schedule' OR scheduled_time IS NOT NULL", name="schedule_has_time"),
        CheckConstraint("(job_id IS NULL) = (job_version IS NULL)", name="job_version"),
        CheckConstraint("extract(epoch FROM scheduled_time) % 1 = 0", name="scheduled_whole_seconds"),
        CheckConstraint(f"state ~ '{CUSTOM_PATTERN}'", name="state"),
        CheckConstraint(f"(end_time IS NOT NULL) = ({_ENDED})", name="end_time_iff_ended"),
        CheckConstraint("(error IS NOT NULL) = (state = 'FAILURE')", name="error_iff_failure"),
        CheckConstraint("attempt >= 1 AND lost >= 0", name="attempt"),
        CheckConstraint("dispatches >= 0 AND first_dispatch BETWEEN 1 AND dispatches + 1", name="dispatches"),
        CheckConstraint("(claim_time IS NULL) = (claimed_by IS NULL)", name="claim"),
        CheckConstraint("version >= 1", name="version"),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: UUID = Field(sa_column=Column(Uuid, primary_key=True))
    job_id: UUID | None = Field(sa_column=Column(Uuid, nullable=True))
    job_version: int | None = _number(nullable=True)
    job_name: str | None = _text(nullable=True)
    namespace: str = _text()
    kind: str = _text()
    scheduled_time: datetime | None = _instant(nullable=True)
    task: str = _text()
    args: list[Any] = _json(default="[]")
    kwargs: dict[str, Any] = _json(default="{}")
    queue: str = _text()
    priority: int | None = _number(SmallInteger, nullable=True)
    retry: dict[str, Any] = _json()
    time_limit_s: float | None = _number(Double, nullable=True)
    soft_time_limit_s: float | None = _number(Double, nullable=True)
    #: REVOKED with the reason "start deadline" if no worker has started it by then.
    start_deadline_time: datetime | None = _instant(nullable=True)
    state: str = _text(default="PENDING")
    reason: str | None = _text(nullable=True)
    #: The try that is under way, from 1; `lost` of those before it ended by a lost worker.
    attempt: int = _number(default="1")
    lost: int = _number(default="0")
    #: The attempts that have ended, as `{attempt, state, worker, start_time, end_time, error}`.
    attempts: list[dict[str, Any]] = _json(default="[]")
    progress: dict[str, Any] | None = _json(nullable=True)
    result: Any = _json(nullable=True)
    error: dict[str, Any] | None = _json(nullable=True)
    worker: str | None = _text(nullable=True)
    #: Whether the worker that has this attempt holds a lease for it (our base task).
    leased: bool = _flag(False)
    #: Celery's retry number inside this attempt; part of the lease's key.
    retries: int = _number(default="0")
    log_path: str | None = _text(nullable=True)
    #: Not to be published before this instant (retry backoff).
    due_time: datetime = _instant(default=True)
    claim_time: datetime | None = _instant(nullable=True)
    claimed_by: str | None = _text(nullable=True)
    #: How many dispatches the broker has confirmed; the next message is number `dispatches + 1`.
    dispatches: int = _number(default="0")
    #: The number of the first dispatch of this attempt: a report of an older one belongs to an older attempt.
    first_dispatch: int = _number(default="1")
    dispatch_time: datetime | None = _instant(nullable=True)
    start_time: datetime | None = _instant(nullable=True)
    end_time: datetime | None = _instant(nullable=True)
    author: str = _text()
    create_time: datetime = _instant(default=True)
    update_time: datetime = _instant(default=True)
    version: int = _number(default="1")


class RunEvent(SQLModel, table=True):
    """One recorded state change. `xid` is the transaction that wrote it: the feed's cursor counts in those."""

    __tablename__: ClassVar[str] = "run_events"  # type: ignore[misc]
    __table_args__ = (Index("run_events_xid_idx", "xid"),)

    run_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True))
    version: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    state: str = _text()
    attempt: int = _number()
    reason: str | None = _text(nullable=True)
    worker: str | None = _text(nullable=True)
    time: datetime = _instant()
    xid: int = Field(
        sa_column=Column(BigInteger, nullable=False, server_default=text("(pg_current_xact_id()::text::bigint)"))
    )


class Skip(SQLModel, table=True):
    """Scheduled times of a job that policy did not run: consecutive ones of one cause share a row."""

    __tablename__: ClassVar[str] = "skips"  # type: ignore[misc]
    __table_args__ = (
        Index("skips_last_idx", "job_id", "last_time", unique=True),
        CheckConstraint("reason IN ('coalesced', 'missed', 'overlap', 'paused', 'limit')", name="reason"),
        CheckConstraint("first_time <= last_time", name="times"),
        CheckConstraint("count >= 1", name="count"),
    )

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    job_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False))
    reason: str = _text()
    #: The run that was in the way, or that the times were coalesced into.
    run_id: UUID | None = Field(sa_column=Column(Uuid, nullable=True))
    first_time: datetime = _instant()
    last_time: datetime = _instant()
    count: int = _number(BigInteger)
    #: False where counting stopped at a bound, so `count` is the least number that it can be.
    exact: bool = _flag(True)


class IdempotencyKey(SQLModel, table=True):
    """What a POST with this key answered; written in the transaction of its effect."""

    __tablename__: ClassVar[str] = "idempotency_keys"  # type: ignore[misc]
    __table_args__ = (Index("idempotency_keys_create_time_idx", "create_time"),)

    caller: str = Field(sa_column=Column(Text, primary_key=True))
    operation: str = Field(sa_column=Column(Text, primary_key=True))
    key: str = Field(sa_column=Column(Text, primary_key=True))
    body_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    status: int = _number(SmallInteger)
    headers: dict[str, str] = _json()
    body: dict[str, Any] = _json()
    create_time: datetime = _instant(default=True)


class RefusedReport(SQLModel, table=True):
    """A report that could not be recorded, kept for a person to look at; the sweep bounds the table."""

    __tablename__: ClassVar[str] = "refused_reports"  # type: ignore[misc]

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    source: str = _text()
    task_id: str = _text()
    problem: str = _text()
    #: The first 4 KiB of what was said.
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    time: datetime = _instant(default=True)


class Lease(SQLModel, table=True):
    """Work that one process at a time should do (`record:redis`). It saves work; correctness never hangs on it."""

    __tablename__: ClassVar[str] = "leases"  # type: ignore[misc]

    name: str = Field(sa_column=Column(Text, primary_key=True))
    holder: str = _text()
    until_time: datetime = _instant()


class Process(SQLModel, table=True):
    """A scheduler that lives: what `/readyz` and `/metrics` know of it."""

    __tablename__: ClassVar[str] = "processes"  # type: ignore[misc]

    id: str = Field(sa_column=Column(Text, primary_key=True))
    kind: str = _text()
    #: By loop: when its last pass ended well, and what is wrong with it now.
    detail: dict[str, Any] = _json()
    start_time: datetime = _instant()
    beat_time: datetime = _instant()


class Plane(SQLModel, table=True):
    """The one row that names this database: a feed cursor of another epoch is of another life."""

    __tablename__: ClassVar[str] = "plane"  # type: ignore[misc]
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: int = Field(sa_column=Column(SmallInteger, primary_key=True, autoincrement=False))
    epoch: UUID = Field(sa_column=Column(Uuid, nullable=False, server_default=text("gen_random_uuid()")))
    #: The cluster that `epoch` was made in; a restore into another one renews it.
    system_identifier: int = _number(BigInteger)
    tzdata_version: str = _text(default="")
