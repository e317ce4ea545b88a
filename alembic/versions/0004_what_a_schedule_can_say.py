"""More misfire policies, and from when a version of a definition is valid.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MISFIRE = "jobs_misfire_check"


def upgrade() -> None:
    # Null in what is there: then the second in which it was written is the best that is known.
    op.add_column("job_versions", sa.Column("cursor_time", sa.TIMESTAMP(timezone=True), nullable=True))
    op.drop_constraint(op.f(_MISFIRE), "jobs")
    op.create_check_constraint(op.f(_MISFIRE), "jobs", "misfire IN ('latest', 'earliest', 'all', 'none')")


def downgrade() -> None:
    # Who reads the tables of before knows one policy.
    op.execute("UPDATE jobs SET misfire = 'latest' WHERE misfire <> 'latest'")
    op.execute(
        "UPDATE job_versions SET definition = definition || jsonb_build_object('misfire', 'latest')"
        " WHERE definition ? 'misfire'"
    )
    op.drop_constraint(op.f(_MISFIRE), "jobs")
    op.create_check_constraint(op.f(_MISFIRE), "jobs", "misfire IN ('latest')")
    op.drop_column("job_versions", "cursor_time")
