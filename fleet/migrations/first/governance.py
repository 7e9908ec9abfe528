"""Approvals."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Create the tables of the governance domain."""
    op.create_table(
        "approvals",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("approval", sa.String(63), nullable=False),
        sa.Column("subject_kind", sa.String(63), nullable=False),
        sa.Column("subject_id", sa.String(200), nullable=False),
        sa.Column("title", sa.String(300), nullable=False),
        sa.Column("digests", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_by", sa.String(220), nullable=False),
        sa.Column("authors", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.String(220)),
        sa.Column("decided_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "approval", name="pk_approvals"),
    )
    op.create_index("ix_approvals_state", "approvals", ["tenant", "state", "created_at"])
    op.create_index("ix_approvals_subject", "approvals", ["tenant", "subject_kind", "subject_id"])
