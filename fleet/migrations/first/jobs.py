"""The durable queue."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Create the table of the queue."""
    op.create_table(
        "jobs",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("job", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(63), nullable=False),
        sa.Column("key", sa.String(200)),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("lease", sa.String(63)),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("tenant", "job", name="pk_jobs"),
        sa.UniqueConstraint("tenant", "kind", "key", name="uq_jobs_tenant_kind_key"),
    )
    op.create_index("ix_jobs_state_due_at", "jobs", ["state", "due_at"])
