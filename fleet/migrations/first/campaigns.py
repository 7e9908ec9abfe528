"""Campaigns and assignments."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Create the tables of the campaigns domain."""
    for name in ("assignments", "candidate_assignments"):
        op.create_table(
            name,
            sa.Column("tenant", sa.String(63), nullable=False),
            sa.Column("device", sa.String(63), nullable=False),
            sa.Column("line", sa.String(63), nullable=False),
            sa.Column("version", sa.String(63), nullable=False),
            sa.Column("assignment", sa.String(63), nullable=False),
            sa.Column("attempt", sa.Integer, nullable=False),
            sa.Column("campaign", sa.String(63), nullable=False),
            sa.Column("assigned_at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
            sa.PrimaryKeyConstraint("tenant", "device", "line", name=f"pk_{name}"),
        )
    op.create_table(
        "campaign_devices",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("campaign", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("phase", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("assignment", sa.String(63), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("assigned_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "campaign", "device", name="pk_campaign_devices"),
    )
    op.create_index("ix_campaign_devices_device", "campaign_devices", ["tenant", "device"])
    op.create_index("ix_campaign_devices_state", "campaign_devices", ["tenant", "campaign", "state"])
    op.create_table(
        "campaigns",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("campaign", sa.String(63), nullable=False),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("group", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("phases", sa.Text, nullable=False),
        sa.Column("phase", sa.Integer, nullable=False),
        sa.Column("phase_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("min_inferences", sa.BigInteger, nullable=False),
        sa.Column("timeout_s", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("full_bytes", sa.BigInteger),
        sa.Column("again", sa.Boolean, nullable=False),
        sa.Column("run_as", sa.String(16), nullable=False),
        sa.Column("share", sa.Integer, nullable=False),
        sa.Column("cpu", sa.Integer, nullable=False),
        sa.Column("until", sa.DateTime(timezone=True)),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "campaign", name="pk_campaigns"),
    )
    op.create_index("ix_campaigns_state", "campaigns", ["tenant", "state"])
    op.create_table(
        "reported_slots",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("slot", sa.String(8), nullable=False),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("sha256", sa.String(71), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", "line", "slot", name="pk_reported_slots"),
    )
    op.create_index("ix_reported_slots_line", "reported_slots", ["tenant", "line", "sha256"])
    op.create_table(
        "shadow_reports",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("event", sa.String(200), nullable=False),
        sa.Column("campaign", sa.String(200), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", "event", name="pk_shadow_reports"),
    )
    op.create_index("ix_shadow_reports_campaign", "shadow_reports", ["tenant", "campaign", "device"])
    op.create_index("ix_shadow_reports_pipeline", "shadow_reports", ["tenant", "device", "pipeline"])
    op.create_table(
        "version_reports",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("report_counter", sa.BigInteger, nullable=False),
        sa.Column("nonce", sa.String(63), nullable=False),
        sa.Column("previous_nonce", sa.String(63), nullable=False),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("is_stale", sa.Boolean, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.Column("envelope", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", name="pk_version_reports"),
    )
