"""Jobs of one lane are worked on one after the other, and those of others meanwhile.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; jobs that wait already are in no lane. Forward only."""
    op.add_column("jobs", sa.Column("lane", sa.String(200)))
