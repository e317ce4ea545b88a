"""Queues that say more, live workers, and the whole life of a run.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_QUEUES = ("delivery_limit", "dead_letter", "max_message_kib", "consumer_timeout_s", "result_db", "result_prefix")
_RETRY = "jsonb_build_object('jitter', 'none', 'retry_on', NULL)"
_RUNS = ("deadline_time", "not_registered", "late", "cancel", "cancel_next_time")

_OUTBOX = "state = 'PENDING' AND dispatch_time IS NULL"


def upgrade() -> None:
    document = postgresql.JSONB(astext_type=sa.Text(), none_as_null=True)
    instant = sa.TIMESTAMP(timezone=True)

    op.add_column("queues", sa.Column("delivery_limit", sa.Integer(), nullable=True))
    op.add_column("queues", sa.Column("dead_letter", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("queues", sa.Column("max_message_kib", sa.Integer(), nullable=True))
    op.add_column("queues", sa.Column("consumer_timeout_s", sa.Integer(), nullable=True))
    op.add_column("queues", sa.Column("result_db", sa.SmallInteger(), nullable=True))
    op.add_column("queues", sa.Column("result_prefix", sa.Text(), server_default="", nullable=False))
    for name, rule in (
        ("delivery_limit", "delivery_limit IS NULL OR (delivery_limit >= 1 AND type = 'quorum')"),
        ("max_message_kib", "max_message_kib IS NULL OR max_message_kib >= 1"),
        ("consumer_timeout_s", "consumer_timeout_s IS NULL OR consumer_timeout_s >= 60"),
        ("result_db", "result_db IS NULL OR result_db >= 0"),
    ):
        op.create_check_constraint(op.f(f"queues_{name}_check"), "queues", rule)

    op.create_table(
        "queue_sightings",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("ready", sa.BigInteger(), nullable=True),
        sa.Column("consumers", sa.Integer(), nullable=True),
        sa.Column("workers", document, server_default="[]", nullable=False),
        sa.Column("known_tasks", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("common_tasks", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("look_time", instant, nullable=False),
        sa.ForeignKeyConstraint(
            ["queue"], ["queues.name"], name=op.f("queue_sightings_queue_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("queue", name=op.f("queue_sightings_pkey")),
    )
    op.create_table(
        "workers",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("ours", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("software", sa.Text(), server_default="", nullable=False),
        sa.Column("queues", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("tasks", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("contracts", document, server_default="{}", nullable=False),
        sa.Column("contracts_digest", sa.Text(), server_default="", nullable=False),
        sa.Column("pool", sa.Text(), server_default="", nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("active", sa.Integer(), nullable=True),
        sa.Column("reserved", sa.Integer(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("start_time", instant, nullable=True),
        sa.Column("first_seen_time", instant, nullable=False),
        sa.Column("seen_time", instant, nullable=False),
        sa.PrimaryKeyConstraint("node", name=op.f("workers_pkey")),
    )

    op.add_column("jobs", sa.Column("deadline_s", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("contract_problem", sa.Text(), nullable=True))
    op.create_check_constraint(op.f("jobs_deadline_check"), "jobs", "deadline_s IS NULL OR deadline_s > 0")
    op.create_index(
        "jobs_contract_problem_idx", "jobs", ["id"], postgresql_where=sa.text("contract_problem IS NOT NULL")
    )
    # A kept version is read back as a definition.
    op.execute("UPDATE job_versions SET definition = definition || jsonb_build_object('deadline_s', NULL)")
    # Equal definitions must compare equal.
    op.execute(f"UPDATE jobs SET retry = {_RETRY} || retry")  # noqa: S608  (our own text)
    op.execute(f"UPDATE runs SET retry = {_RETRY} || retry WHERE end_time IS NULL")  # noqa: S608
    op.execute(
        "UPDATE job_versions SET definition = jsonb_set(definition, '{retry}', "  # noqa: S608
        f"{_RETRY} || (definition -> 'retry')) WHERE definition ? 'retry'"
    )

    op.add_column("runs", sa.Column("deadline_time", instant, nullable=True))
    op.add_column("runs", sa.Column("not_registered", sa.Integer(), server_default="0", nullable=False))
    op.add_column("runs", sa.Column("late", document, server_default="[]", nullable=False))
    op.add_column("runs", sa.Column("cancel", document, nullable=True))
    op.add_column("runs", sa.Column("cancel_next_time", instant, nullable=True))
    op.create_check_constraint(op.f("runs_not_registered_check"), "runs", "not_registered >= 0")
    op.create_check_constraint(op.f("runs_cancel_check"), "runs", "cancel_next_time IS NULL OR cancel IS NOT NULL")
    op.create_index(
        "runs_cancel_idx", "runs", ["cancel_next_time"], postgresql_where=sa.text("cancel_next_time IS NOT NULL")
    )
    op.drop_index("runs_outbox_idx", "runs")
    op.create_index(
        "runs_outbox_idx",
        "runs",
        ["queue", "task", "id", "due_time", "not_registered"],
        postgresql_where=sa.text(_OUTBOX),
    )


def downgrade() -> None:
    op.drop_index("runs_outbox_idx", "runs")
    op.create_index("runs_outbox_idx", "runs", ["id"], postgresql_where=sa.text(_OUTBOX))
    for name in _RUNS:
        op.drop_column("runs", name)
    op.execute("UPDATE job_versions SET definition = definition #- '{retry,jitter}' #- '{retry,retry_on}'")
    op.execute("UPDATE runs SET retry = retry - 'jitter' - 'retry_on' WHERE end_time IS NULL")
    op.execute("UPDATE jobs SET retry = retry - 'jitter' - 'retry_on'")
    op.execute("UPDATE job_versions SET definition = definition - 'deadline_s'")
    op.drop_column("jobs", "contract_problem")
    op.drop_column("jobs", "deadline_s")
    op.drop_table("workers")
    op.drop_table("queue_sightings")
    for name in _QUEUES:
        op.drop_column("queues", name)
