"""Earlier versions of the director's metadata, for devices in the middle of a check.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and the index that its pruning reads; forward only."""
    op.create_table(
        "earlier_director_metadata",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("targets", sa.LargeBinary, nullable=False),
        sa.Column("snapshot", sa.LargeBinary, nullable=False),
        sa.Column("etag", sa.String(71), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", "version", name="pk_earlier_director_metadata"),
    )
    op.create_index("ix_earlier_director_metadata_replaced_at", "earlier_director_metadata", ["replaced_at"])
