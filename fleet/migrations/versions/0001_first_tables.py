"""The first tables of every domain.

Revision ID: 0001
Revises: none
"""

from fleet.migrations.first import alerts, audit, campaigns, configurations, devices, drift, governance, jobs, monitoring, registry, web

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create all tables; forward only."""
    audit.create()
    jobs.create()
    devices.create()
    registry.create()
    monitoring.create()
    drift.create()
    alerts.create()
    governance.create()
    campaigns.create()
    configurations.create()
    web.create()
