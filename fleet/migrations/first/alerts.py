"""Rules, who is told, and the history that charts are drawn from."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Create the tables of alerts and history."""
    op.create_table(
        "alert_rules",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("metric", sa.String(63), nullable=False),
        sa.Column("comparison", sa.String(16), nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("recovers_at", sa.Float, nullable=False),
        sa.Column("window_s", sa.Float, nullable=False),
        sa.Column("for_s", sa.Float, nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("is_enabled", sa.Boolean, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_alert_rules"),
    )
    op.create_table(
        "alert_rule_states",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("rule", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True)),
        sa.Column("pending_since", sa.DateTime(timezone=True)),
        sa.Column("value", sa.Float),
        sa.PrimaryKeyConstraint("tenant", "rule", "device", "pipeline", name="pk_alert_rule_states"),
    )
    op.create_table(
        "alert_firings",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("id", sa.String(63), nullable=False),
        sa.Column("rule", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True)),
        sa.Column("worst", sa.Float, nullable=False),
        sa.Column("ended_by", sa.String(63), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_alert_firings"),
    )
    op.create_index("ix_alert_firings_since", "alert_firings", ["tenant", "since"])
    op.create_index("ix_alert_firings_until", "alert_firings", ["tenant", "until"])
    op.create_table(
        "alert_recipients",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("secret", sa.String(200), nullable=False),
        sa.Column("allows_private", sa.Boolean, nullable=False),
        sa.Column("topics", sa.String(200), nullable=False),
        sa.Column("is_enabled", sa.Boolean, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_alert_recipients"),
    )
    op.create_table(
        "alert_subjects",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("subject", sa.String(300), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "subject", name="pk_alert_subjects"),
    )
    figures = _figures
    op.create_table(
        "telemetry_hours",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("stream", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        *figures(),
        sa.PrimaryKeyConstraint("tenant", "device", "stream", "pipeline", "at", name="pk_telemetry_hours"),
    )
    op.create_index("ix_telemetry_hours_at", "telemetry_hours", ["tenant", "at"])
    op.create_table(
        "fleet_history",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        *figures(),
        sa.Column("devices", sa.Integer),
        sa.Column("online", sa.Integer),
        sa.Column("open_alarms", sa.Integer),
        sa.Column("firing_rules", sa.Integer),
        sa.PrimaryKeyConstraint("tenant", "at", name="pk_fleet_history"),
    )
    op.create_table(
        "history_cursors",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_history_cursors"),
    )


def _figures() -> list[sa.Column[object]]:
    return [
        sa.Column("messages", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("frames", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("timed", sa.BigInteger, nullable=False),
        sa.Column("p50_sum", sa.Float, nullable=False),
        sa.Column("p95_sum", sa.Float, nullable=False),
        sa.Column("p99_sum", sa.Float, nullable=False),
        sa.Column("p99_max", sa.Float),
        sa.Column("cpu_sum", sa.Float, nullable=False),
        sa.Column("rss_sum", sa.Float, nullable=False),
        sa.Column("temperature_max", sa.Float),
        sa.Column("disk_free_min", sa.Float),
    ]
