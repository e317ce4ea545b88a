"""What runs and ran."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Uuid,
    text,
)
from sqlmodel import Field, SQLModel

from app.models.columns import document, flag, instant, number, words
from app.states import CUSTOM_PATTERN, TERMINAL

_ENDED = f"state IN ({', '.join(repr(state) for state in sorted(TERMINAL))})"


class Run(SQLModel, table=True):
    """One firing of a job, or an ad-hoc dispatch. Also the outbox: undispatched rows are what is to be published.

    No index covers version, progress or update_time, so that news of the same state stays a cheap in-place update.
    """

    __tablename__: ClassVar[str] = "runs"
    __table_args__ = (
        Index(
            "runs_scheduled_key", "job_id", "scheduled_time", unique=True, postgresql_where=text("kind = 'schedule'")
        ),
        # By kind, so that a backlog that is held costs nothing; the last two decide without a look at the row.
        Index(
            "runs_outbox_idx",
            "queue",
            "task",
            "id",
            "due_time",
            "not_registered",
            postgresql_where=text("state = 'PENDING' AND dispatch_time IS NULL AND waits_for IS NULL"),
        ),
        Index("runs_live_idx", "id", postgresql_where=text("end_time IS NULL")),
        Index("runs_live_job_idx", "job_id", postgresql_where=text("end_time IS NULL")),
        Index("runs_waiting_idx", "job_id", "id", postgresql_where=text("waits_for IS NOT NULL")),
        Index("runs_job_idx", "job_id", "id"),
        Index("runs_queue_idx", "queue", "id"),
        Index("runs_task_idx", "task", "id"),
        Index("runs_ended_idx", "end_time", postgresql_where=text("end_time IS NOT NULL")),
        Index("runs_cancel_idx", "cancel_next_time", postgresql_where=text("cancel_next_time IS NOT NULL")),
        Index("runs_failed_idx", "id", postgresql_where=text("state = 'FAILURE'")),
        Index("runs_failed_jobs_idx", "end_time", postgresql_where=text("state = 'FAILURE' AND job_id IS NOT NULL")),
        Index("runs_failed_job_idx", "job_id", "id", postgresql_where=text("state = 'FAILURE' AND kind <> 'backfill'")),
        Index("runs_backfill_idx", "backfill_id", "id", postgresql_where=text("backfill_id IS NOT NULL")),
        # One run per time of a backfill; and how the runs that name a time are found, beside those of the schedule.
        Index(
            "runs_named_time_key",
            "job_id",
            "scheduled_time",
            "backfill_id",
            unique=True,
            postgresql_where=text("kind <> 'schedule' AND scheduled_time IS NOT NULL"),
        ),
        ForeignKeyConstraint(
            ["job_id", "job_version"], ["job_versions.job_id", "job_versions.version"], name="runs_job_version_fkey"
        ),
        CheckConstraint("kind IN ('schedule', 'manual', 'adhoc', 'backfill')", name="kind"),
        CheckConstraint("(kind = 'adhoc') = (job_id IS NULL)", name="adhoc_has_no_job"),
        CheckConstraint("(kind = 'backfill') = (backfill_id IS NOT NULL)", name="backfill"),
        CheckConstraint("NOT apart OR kind = 'backfill'", name="apart_is_backfill"),
        CheckConstraint("(waits_for IS NULL) = (most_active IS NULL)", name="waits"),
        CheckConstraint(
            "waits_for IS NULL OR (state = 'PENDING' AND dispatch_time IS NULL)", name="waits_undispatched"
        ),
        CheckConstraint("kind <> 'schedule' OR scheduled_time IS NOT NULL", name="schedule_has_time"),
        CheckConstraint("(job_id IS NULL) = (job_version IS NULL)", name="job_version"),
        CheckConstraint("extract(epoch FROM scheduled_time) % 1 = 0", name="scheduled_whole_seconds"),
        CheckConstraint(f"state ~ '{CUSTOM_PATTERN}'", name="state"),
        CheckConstraint(f"(end_time IS NOT NULL) = ({_ENDED})", name="end_time_iff_ended"),
        CheckConstraint("(error IS NOT NULL) = (state = 'FAILURE')", name="error_iff_failure"),
        CheckConstraint("attempt >= 1 AND lost >= 0", name="attempt"),
        CheckConstraint("dispatches >= 0 AND first_dispatch BETWEEN 1 AND dispatches + 1", name="dispatches"),
        CheckConstraint("(claim_time IS NULL) = (claimed_by IS NULL)", name="claim"),
        CheckConstraint("not_registered >= 0", name="not_registered"),
        CheckConstraint("cancel_next_time IS NULL OR cancel IS NOT NULL", name="cancel"),
        CheckConstraint("version >= 1", name="version"),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: UUID = Field(sa_column=Column(Uuid, primary_key=True))
    job_id: UUID | None = Field(sa_column=Column(Uuid, nullable=True))
    job_version: int | None = number(nullable=True)
    job_name: str | None = words(nullable=True)
    namespace: str = words()
    kind: str = words()
    #: The backfill that made it, and whether it counts beside the other runs of its job instead of among them.
    backfill_id: UUID | None = Field(sa_column=Column(Uuid, nullable=True))
    apart: bool = flag(False)
    scheduled_time: datetime | None = instant(nullable=True)
    task: str = words()
    args: list[Any] = document(default="[]")
    kwargs: dict[str, Any] = document(default="{}")
    queue: str = words()
    priority: int | None = number(SmallInteger, nullable=True)
    retry: dict[str, Any] = document()
    time_limit_s: float | None = number(Double, nullable=True)
    soft_time_limit_s: float | None = number(Double, nullable=True)
    #: REVOKED with the reason "start deadline" if no worker has started it by then.
    start_deadline_time: datetime | None = instant(nullable=True)
    #: FAILURE if it has not ended by then, all attempts together.
    deadline_time: datetime | None = instant(nullable=True)
    state: str = words(default="PENDING")
    reason: str | None = words(nullable=True)
    #: A run of its job that is in the way; it is sent once less than `most_active` of them are active.
    waits_for: UUID | None = Field(sa_column=Column(Uuid, nullable=True))
    most_active: int | None = number(nullable=True)
    #: The try that is under way, from 1; `lost` of those before it ended by a lost worker.
    attempt: int = number(default="1")
    lost: int = number(default="0")
    #: The attempts that have ended, as `{attempt, state, worker, start_time, end_time, error}`.
    attempts: list[dict[str, Any]] = document(default="[]")
    progress: dict[str, Any] | None = document(nullable=True)
    result: Any = document(nullable=True)
    error: dict[str, Any] | None = document(nullable=True)
    worker: str | None = words(nullable=True)
    #: Whether the worker that has this attempt holds a lease for it (our base task).
    leased: bool = flag(False)
    #: Celery's retry number inside this attempt; part of the lease's key.
    retries: int = number(default="0")
    #: How often a worker that does not know the task took the message of this attempt.
    not_registered: int = number(default="0")
    #: The ends that came after the one that counts, as `{state, attempt, worker, time, error}`; the newest few.
    late: list[dict[str, Any]] = document(default="[]")
    #: A cancel that was asked for: `{time, by, terminate, grace_s}`, and when it is pursued next.
    cancel: dict[str, Any] | None = document(nullable=True)
    cancel_next_time: datetime | None = instant(nullable=True)
    log_path: str | None = words(nullable=True)
    #: Not to be published before this instant (retry backoff).
    due_time: datetime = instant(default=True)
    claim_time: datetime | None = instant(nullable=True)
    claimed_by: str | None = words(nullable=True)
    #: How many dispatches the broker has confirmed; the next message is number `dispatches + 1`.
    dispatches: int = number(default="0")
    #: The number of the first dispatch of this attempt: a report of an older one belongs to an older attempt.
    first_dispatch: int = number(default="1")
    dispatch_time: datetime | None = instant(nullable=True)
    start_time: datetime | None = instant(nullable=True)
    end_time: datetime | None = instant(nullable=True)
    author: str = words()
    create_time: datetime = instant(default=True)
    update_time: datetime = instant(default=True)
    version: int = number(default="1")


class Backfill(SQLModel, table=True):
    """Scheduled times of the past that somebody wants run, a few at a time."""

    __tablename__: ClassVar[str] = "backfills"
    __table_args__ = (
        Index("backfills_active_key", "job_id", unique=True, postgresql_where=text("end_time IS NULL")),
        Index("backfills_job_idx", "job_id", "id"),
        # What schedulers look at: an ended one may have runs that have not.
        Index("backfills_open_idx", "id", postgresql_where=text("end_time IS NULL OR live <> '{}'")),
        ForeignKeyConstraint(
            ["job_id", "job_version"],
            ["job_versions.job_id", "job_versions.version"],
            name="backfills_job_version_fkey",
            ondelete="CASCADE",
        ),
        CheckConstraint("state IN ('ACTIVE', 'PAUSED', 'DONE', 'CANCELLED')", name="state"),
        CheckConstraint("(end_time IS NOT NULL) = (state IN ('DONE', 'CANCELLED'))", name="end_time_iff_ended"),
        CheckConstraint("mode IN ('missing', 'failed', 'all')", name="mode"),
        CheckConstraint("overlap IN ('allow', 'buffer_all')", name="overlap"),
        CheckConstraint("from_time < to_time", name="times"),
        CheckConstraint("max_active >= 1", name="max_active"),
        CheckConstraint("version >= 1", name="version"),
    )

    id: UUID = Field(sa_column=Column(Uuid, primary_key=True))
    job_id: UUID = Field(sa_column=Column(Uuid, nullable=False))
    #: The definition that names the times and the work, whatever the job becomes meanwhile.
    job_version: int = number()
    from_time: datetime = instant()
    to_time: datetime = instant()
    mode: str = words()
    overlap: str = words()
    max_active: int = number()
    state: str = words(default="ACTIVE")
    reason: str | None = words(nullable=True)
    #: The last scheduled time that was dealt with.
    cursor_time: datetime = instant()
    #: Scheduled times in the window, those dealt with without a run, and the runs that were made, by their end.
    total: int = number(BigInteger)
    skipped: int = number(BigInteger, default="0")
    succeeded: int = number(BigInteger, default="0")
    failed: int = number(BigInteger, default="0")
    revoked: int = number(BigInteger, default="0")
    #: The runs that have not ended as of the last look.
    live: list[UUID] = Field(sa_column=Column(ARRAY(Uuid), nullable=False, server_default="{}"))
    author: str = words()
    version: int = number(default="1")
    create_time: datetime = instant(default=True)
    update_time: datetime = instant(default=True)
    end_time: datetime | None = instant(nullable=True)


class RunEvent(SQLModel, table=True):
    """One recorded state change. `xid` is the transaction that wrote it: the feed's cursor counts in those."""

    __tablename__: ClassVar[str] = "run_events"
    __table_args__ = (Index("run_events_xid_idx", "xid"),)

    run_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True))
    version: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    state: str = words()
    attempt: int = number()
    reason: str | None = words(nullable=True)
    worker: str | None = words(nullable=True)
    time: datetime = instant()
    xid: int = Field(
        sa_column=Column(BigInteger, nullable=False, server_default=text("(pg_current_xact_id()::text::bigint)"))
    )


class RunLog(SQLModel, table=True):
    """What of one attempt's log is in the log store; what came later is in Redis."""

    __tablename__: ClassVar[str] = "run_logs"

    run_id: UUID = Field(sa_column=Column(Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True))
    attempt: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    #: What is kept, in order, as `[offset in what was written, bytes, place in the object]`; between two is a cut.
    segments: list[list[int]] = document()
    #: Bytes of the object.
    size: int = number(BigInteger)
    #: The newest entry of the Redis stream that is in the object.
    sealed_id: str = words()
    #: Nothing comes any more.
    ended: bool = flag(False)
    update_time: datetime = instant(default=True)


class RefusedReport(SQLModel, table=True):
    """A report that could not be recorded, kept for a person to look at; the sweep bounds the table."""

    __tablename__: ClassVar[str] = "refused_reports"

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    source: str = words()
    task_id: str = words()
    problem: str = words()
    #: The first 4 KiB of what was said.
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    time: datetime = instant(default=True)
