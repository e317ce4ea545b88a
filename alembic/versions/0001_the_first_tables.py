"""The first tables, and the guard that a terminal state never changes.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("headers", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("body", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("caller", "operation", "key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_index("idempotency_keys_create_time_idx", "idempotency_keys", ["create_time"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("until_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("leases_pkey")),
    )
    op.create_table(
        "plane",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("system_identifier", sa.BigInteger(), nullable=False),
        sa.Column("tzdata_version", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("plane_single_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("plane_pkey")),
    )
    op.create_table(
        "processes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("start_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("beat_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("processes_pkey")),
    )
    op.create_table(
        "queues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("exchange", sa.Text(), nullable=False),
        sa.Column("exchange_type", sa.Text(), server_default="direct", nullable=False),
        sa.Column("routing_key", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), server_default="classic", nullable=False),
        sa.Column("max_priority", sa.SmallInteger(), nullable=True),
        sa.Column(
            "shared_with",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default="[]",
            nullable=False,
        ),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("declare_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("adopted", sa.Boolean(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "update_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("exchange_type IN ('direct', 'topic', 'fanout')", name=op.f("queues_exchange_type_check")),
        sa.CheckConstraint("max_priority IS NULL OR type = 'classic'", name=op.f("queues_priority_is_classic_check")),
        sa.CheckConstraint("type IN ('classic', 'quorum')", name=op.f("queues_type_check")),
        sa.CheckConstraint(
            "max_priority IS NULL OR (max_priority BETWEEN 1 AND 255)", name=op.f("queues_max_priority_check")
        ),
        sa.CheckConstraint("version >= 1", name=op.f("queues_version_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("queues_pkey")),
    )
    op.create_table(
        "refused_reports",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column(
            "time", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("refused_reports_pkey")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column(
            "args", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column(
            "kwargs", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=True),
        sa.Column("trigger", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("overlap", sa.Text(), server_default="skip", nullable=False),
        sa.Column("misfire", sa.Text(), server_default="latest", nullable=False),
        sa.Column("catchup_window_s", sa.Integer(), server_default="86400", nullable=False),
        sa.Column("start_deadline_s", sa.Integer(), nullable=True),
        sa.Column("retry", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("time_limit_s", sa.Double(), nullable=True),
        sa.Column("soft_time_limit_s", sa.Double(), nullable=True),
        sa.Column(
            "labels", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("pause_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.Column("pause_by", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("cursor_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("next_run_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("last_run_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "update_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("delete_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("misfire IN ('latest')", name=op.f("jobs_misfire_check")),
        sa.CheckConstraint("overlap IN ('skip', 'allow')", name=op.f("jobs_overlap_check")),
        sa.CheckConstraint("(pause_time IS NULL) = (pause_by IS NULL)", name=op.f("jobs_pause_check")),
        sa.CheckConstraint("catchup_window_s >= 0", name=op.f("jobs_catchup_window_check")),
        sa.CheckConstraint("extract(epoch FROM cursor_time) % 1 = 0", name=op.f("jobs_cursor_whole_seconds_check")),
        sa.CheckConstraint(
            "next_run_time IS NULL OR (enabled AND pause_time IS NULL AND problem IS NULL AND delete_time IS NULL)",
            name=op.f("jobs_next_run_of_live_job_check"),
        ),
        sa.CheckConstraint("queue IS NOT NULL OR delete_time IS NOT NULL", name=op.f("jobs_queue_of_live_job_check")),
        sa.CheckConstraint("start_deadline_s IS NULL OR start_deadline_s > 0", name=op.f("jobs_start_deadline_check")),
        sa.CheckConstraint("version >= 1", name=op.f("jobs_version_check")),
        sa.ForeignKeyConstraint(["queue"], ["queues.name"], name=op.f("jobs_queue_fkey"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
    )
    op.create_index(
        "jobs_due_idx", "jobs", ["next_run_time"], unique=False, postgresql_where=sa.text("next_run_time IS NOT NULL")
    )
    op.create_index("jobs_labels_idx", "jobs", ["labels"], unique=False, postgresql_using="gin")
    op.create_index(
        "jobs_name_key", "jobs", ["namespace", "name"], unique=True, postgresql_where=sa.text("delete_time IS NULL")
    )
    op.create_index("jobs_queue_idx", "jobs", ["queue"], unique=False)
    op.create_table(
        "job_versions",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("definition", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("job_versions_job_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "version", name=op.f("job_versions_pkey")),
    )
    op.create_table(
        "skips",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("first_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("last_time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("exact", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.CheckConstraint(
            "reason IN ('coalesced', 'missed', 'overlap', 'paused', 'limit')", name=op.f("skips_reason_check")
        ),
        sa.CheckConstraint("count >= 1", name=op.f("skips_count_check")),
        sa.CheckConstraint("first_time <= last_time", name=op.f("skips_times_check")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("skips_job_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("skips_pkey")),
    )
    op.create_index("skips_last_idx", "skips", ["job_id", "last_time"], unique=True)
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("job_version", sa.Integer(), nullable=True),
        sa.Column("job_name", sa.Text(), nullable=True),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("scheduled_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column(
            "args", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column(
            "kwargs", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=True),
        sa.Column("retry", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("time_limit_s", sa.Double(), nullable=True),
        sa.Column("soft_time_limit_s", sa.Double(), nullable=True),
        sa.Column("start_deadline_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("state", sa.Text(), server_default="PENDING", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("lost", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "attempts", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column("progress", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("leased", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("log_path", sa.Text(), nullable=True),
        sa.Column(
            "due_time", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("claim_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("dispatches", sa.Integer(), server_default="0", nullable=False),
        sa.Column("first_dispatch", sa.Integer(), server_default="1", nullable=False),
        sa.Column("dispatch_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("start_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("end_time", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "update_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint(
            "(end_time IS NOT NULL) = (state IN ('FAILURE', 'REVOKED', 'SUCCESS'))",
            name=op.f("runs_end_time_iff_ended_check"),
        ),
        sa.CheckConstraint("(error IS NOT NULL) = (state = 'FAILURE')", name=op.f("runs_error_iff_failure_check")),
        sa.CheckConstraint("(kind = 'adhoc') = (job_id IS NULL)", name=op.f("runs_adhoc_has_no_job_check")),
        sa.CheckConstraint(
            "kind <> 'schedule' OR scheduled_time IS NOT NULL", name=op.f("runs_schedule_has_time_check")
        ),
        sa.CheckConstraint("kind IN ('schedule', 'manual', 'adhoc', 'backfill')", name=op.f("runs_kind_check")),
        sa.CheckConstraint("state ~ '^[A-Z][A-Z0-9_]{0,39}$'", name=op.f("runs_state_check")),
        sa.CheckConstraint("(claim_time IS NULL) = (claimed_by IS NULL)", name=op.f("runs_claim_check")),
        sa.CheckConstraint("(job_id IS NULL) = (job_version IS NULL)", name=op.f("runs_job_version_check")),
        sa.CheckConstraint("attempt >= 1 AND lost >= 0", name=op.f("runs_attempt_check")),
        sa.CheckConstraint(
            "dispatches >= 0 AND first_dispatch BETWEEN 1 AND dispatches + 1", name=op.f("runs_dispatches_check")
        ),
        sa.CheckConstraint(
            "extract(epoch FROM scheduled_time) % 1 = 0", name=op.f("runs_scheduled_whole_seconds_check")
        ),
        sa.CheckConstraint("version >= 1", name=op.f("runs_version_check")),
        sa.ForeignKeyConstraint(
            ["job_id", "job_version"], ["job_versions.job_id", "job_versions.version"], name="runs_job_version_fkey"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("runs_pkey")),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "runs_ended_idx", "runs", ["end_time"], unique=False, postgresql_where=sa.text("end_time IS NOT NULL")
    )
    op.create_index("runs_failed_idx", "runs", ["id"], unique=False, postgresql_where=sa.text("state = 'FAILURE'"))
    op.create_index("runs_job_idx", "runs", ["job_id", "id"], unique=False)
    op.create_index("runs_live_idx", "runs", ["id"], unique=False, postgresql_where=sa.text("end_time IS NULL"))
    op.create_index("runs_live_job_idx", "runs", ["job_id"], unique=False, postgresql_where=sa.text("end_time IS NULL"))
    op.create_index(
        "runs_outbox_idx",
        "runs",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state = 'PENDING' AND dispatch_time IS NULL"),
    )
    op.create_index("runs_queue_idx", "runs", ["queue", "id"], unique=False)
    op.create_index(
        "runs_scheduled_key",
        "runs",
        ["job_id", "scheduled_time"],
        unique=True,
        postgresql_where=sa.text("kind = 'schedule'"),
    )
    op.create_index("runs_task_idx", "runs", ["task", "id"], unique=False)
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("time", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column(
            "xid", sa.BigInteger(), server_default=sa.text("(pg_current_xact_id()::text::bigint)"), nullable=False
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("run_events_run_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "version", name=op.f("run_events_pkey")),
    )
    op.create_index("run_events_xid_idx", "run_events", ["xid"], unique=False)
    op.execute("""
        CREATE FUNCTION jobplane_keep_the_end() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'run % has ended in %: a terminal state never changes', OLD.id, OLD.state
                USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'runs_end_is_final';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER runs_end_is_final BEFORE UPDATE ON runs FOR EACH ROW
        WHEN (
            OLD.end_time IS NOT NULL
            AND (NEW.state, NEW.end_time, NEW.attempt) IS DISTINCT FROM (OLD.state, OLD.end_time, OLD.attempt)
        )
        EXECUTE FUNCTION jobplane_keep_the_end()
    """)
    op.execute("INSERT INTO plane (id, system_identifier) SELECT 1, system_identifier FROM pg_control_system()")


def downgrade() -> None:
    op.drop_table("run_events")
    op.drop_table("runs")
    op.drop_table("skips")
    op.drop_table("job_versions")
    op.drop_table("jobs")
    op.drop_table("refused_reports")
    op.drop_table("queues")
    op.drop_table("processes")
    op.drop_table("plane")
    op.drop_table("leases")
    op.drop_table("idempotency_keys")
    op.execute("DROP FUNCTION jobplane_keep_the_end()")
