"""Runs that wait for others of their job, limits of jobs and queues, and backfills.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_OVERLAP = "jobs_overlap_check"
_UNSENT = "state = 'PENDING' AND dispatch_time IS NULL"
_OUTBOX = ["queue", "task", "id", "due_time", "not_registered"]
_DEFINITION = "jsonb_build_object('max_active', NULL, 'pause_after_failures', NULL)"


def upgrade() -> None:
    instant = sa.TIMESTAMP(timezone=True)

    op.add_column("queues", sa.Column("max_active", sa.Integer(), nullable=True))
    op.add_column("queues", sa.Column("rate_limit", sa.Text(), nullable=True))
    op.add_column("queues", sa.Column("rate_tokens", sa.Double(), nullable=True))
    op.add_column("queues", sa.Column("rate_time", instant, nullable=True))
    op.create_check_constraint(op.f("queues_max_active_check"), "queues", "max_active IS NULL OR max_active >= 1")
    op.create_check_constraint(op.f("queues_rate_limit_check"), "queues", "rate_limit ~ '^[1-9][0-9]{0,5}/[smh]$'")
    op.create_table(
        "queue_places",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("queue_places_run_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["queue"], ["queues.name"], name=op.f("queue_places_queue_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("queue_places_pkey")),
    )
    op.create_index("queue_places_queue_idx", "queue_places", ["queue"])

    op.add_column("jobs", sa.Column("max_active", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("pause_after_failures", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("failures_from_time", instant, nullable=True))
    op.create_check_constraint(op.f("jobs_max_active_check"), "jobs", "max_active IS NULL OR max_active >= 1")
    op.create_check_constraint(
        op.f("jobs_pause_after_failures_check"), "jobs", "pause_after_failures IS NULL OR pause_after_failures >= 1"
    )
    op.drop_constraint(op.f(_OVERLAP), "jobs")
    op.create_check_constraint(
        op.f(_OVERLAP),
        "jobs",
        "overlap IN ('skip', 'buffer_one', 'buffer_all', 'cancel_other', 'terminate_other', 'allow')",
    )
    # A kept version is read back as a definition.
    op.execute(f"UPDATE job_versions SET definition = {_DEFINITION} || definition")  # noqa: S608  (our own text)

    op.create_table(
        "backfills",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("job_version", sa.Integer(), nullable=False),
        sa.Column("from_time", instant, nullable=False),
        sa.Column("to_time", instant, nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("max_active", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="ACTIVE", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("cursor_time", instant, nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("skipped", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("succeeded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("revoked", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("live", sa.ARRAY(sa.Uuid()), server_default="{}", nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("create_time", instant, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("update_time", instant, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("end_time", instant, nullable=True),
        sa.CheckConstraint("state IN ('ACTIVE', 'PAUSED', 'DONE', 'CANCELLED')", name=op.f("backfills_state_check")),
        sa.CheckConstraint(
            "(end_time IS NOT NULL) = (state IN ('DONE', 'CANCELLED'))", name=op.f("backfills_end_time_iff_ended_check")
        ),
        sa.CheckConstraint("mode IN ('missing', 'failed', 'all')", name=op.f("backfills_mode_check")),
        sa.CheckConstraint("overlap IN ('allow', 'buffer_all')", name=op.f("backfills_overlap_check")),
        sa.CheckConstraint("from_time < to_time", name=op.f("backfills_times_check")),
        sa.CheckConstraint("max_active >= 1", name=op.f("backfills_max_active_check")),
        sa.CheckConstraint("version >= 1", name=op.f("backfills_version_check")),
        sa.ForeignKeyConstraint(
            ["job_id", "job_version"],
            ["job_versions.job_id", "job_versions.version"],
            name="backfills_job_version_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("backfills_pkey")),
    )
    op.create_index(
        "backfills_active_key", "backfills", ["job_id"], unique=True, postgresql_where=sa.text("end_time IS NULL")
    )
    op.create_index("backfills_job_idx", "backfills", ["job_id", "id"])
    op.create_index(
        "backfills_open_idx", "backfills", ["id"], postgresql_where=sa.text("end_time IS NULL OR live <> '{}'")
    )

    op.add_column("runs", sa.Column("backfill_id", sa.Uuid(), nullable=True))
    op.add_column("runs", sa.Column("apart", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("runs", sa.Column("waits_for", sa.Uuid(), nullable=True))
    op.add_column("runs", sa.Column("most_active", sa.Integer(), nullable=True))
    for name, rule in (
        ("backfill", "(kind = 'backfill') = (backfill_id IS NOT NULL)"),
        ("apart_is_backfill", "NOT apart OR kind = 'backfill'"),
        ("waits", "(waits_for IS NULL) = (most_active IS NULL)"),
        ("waits_undispatched", "waits_for IS NULL OR (state = 'PENDING' AND dispatch_time IS NULL)"),
    ):
        op.create_check_constraint(op.f(f"runs_{name}_check"), "runs", rule)
    op.create_index("runs_waiting_idx", "runs", ["job_id", "id"], postgresql_where=sa.text("waits_for IS NOT NULL"))
    op.create_index(
        "runs_failed_jobs_idx",
        "runs",
        ["end_time"],
        postgresql_where=sa.text("state = 'FAILURE' AND job_id IS NOT NULL"),
    )
    op.create_index(
        "runs_failed_job_idx",
        "runs",
        ["job_id", "id"],
        postgresql_where=sa.text("state = 'FAILURE' AND kind <> 'backfill'"),
    )
    op.create_index(
        "runs_backfill_idx", "runs", ["backfill_id", "id"], postgresql_where=sa.text("backfill_id IS NOT NULL")
    )
    op.create_index(
        "runs_named_time_key",
        "runs",
        ["job_id", "scheduled_time", "backfill_id"],
        unique=True,
        postgresql_where=sa.text("kind <> 'schedule' AND scheduled_time IS NOT NULL"),
    )
    op.drop_index("runs_outbox_idx", "runs")
    op.create_index("runs_outbox_idx", "runs", _OUTBOX, postgresql_where=sa.text(f"{_UNSENT} AND waits_for IS NULL"))


def downgrade() -> None:
    # Who reads the tables of before knows neither backfills nor runs that wait: those go out with the others.
    op.drop_index("runs_outbox_idx", "runs")
    op.create_index("runs_outbox_idx", "runs", _OUTBOX, postgresql_where=sa.text(_UNSENT))
    for name in (
        "runs_named_time_key",
        "runs_backfill_idx",
        "runs_failed_job_idx",
        "runs_failed_jobs_idx",
        "runs_waiting_idx",
    ):
        op.drop_index(name, "runs")
    op.execute("UPDATE runs SET reason = NULL WHERE waits_for IS NOT NULL")
    for name in ("most_active", "waits_for", "apart", "backfill_id"):
        op.drop_column("runs", name)
    # Of no backfill any more: the way up again would refuse them.
    op.execute("UPDATE runs SET kind = 'manual' WHERE kind = 'backfill'")
    op.drop_table("backfills")
    op.execute("UPDATE job_versions SET definition = definition - 'max_active' - 'pause_after_failures'")
    op.execute("UPDATE jobs SET overlap = 'skip' WHERE overlap NOT IN ('skip', 'allow')")
    op.execute(
        "UPDATE job_versions SET definition = definition || jsonb_build_object('overlap', 'skip')"
        " WHERE NOT definition ->> 'overlap' IN ('skip', 'allow')"
    )
    op.drop_constraint(op.f(_OVERLAP), "jobs")
    op.create_check_constraint(op.f(_OVERLAP), "jobs", "overlap IN ('skip', 'allow')")
    for name in ("failures_from_time", "pause_after_failures", "max_active"):
        op.drop_column("jobs", name)
    op.drop_table("queue_places")
    for name in ("rate_time", "rate_tokens", "rate_limit", "max_active"):
        op.drop_column("queues", name)
