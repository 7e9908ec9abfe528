"""How the parts of the server's processes are.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; forward only."""
    op.create_table(
        "server_parts",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("part", sa.String(63), nullable=False),
        sa.Column("process", sa.String(200), nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("trouble", sa.Text, nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("worked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("tenant", "part", "process", name="pk_server_parts"),
    )
