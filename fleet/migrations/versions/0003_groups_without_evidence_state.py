"""Groups are judged by looks at stretches: a state of evidence over blocks is not kept of them.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the column that nobody writes or reads; forward only."""
    op.drop_column("drift_groups", "evidence_state")
