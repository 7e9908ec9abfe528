"""What devices count, the evidence of drift, and alarms."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Create the tables of drift."""
    op.create_table(
        "alarm_devices",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("alarm", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "alarm", "device", name="pk_alarm_devices"),
    )
    op.create_index("ix_alarm_devices_device", "alarm_devices", ["tenant", "device"])
    op.create_table(
        "audit_labels",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("label", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("model", sa.String(32), nullable=False),
        sa.Column("slice", sa.String(100), nullable=False),
        sa.Column("is_right", sa.Boolean, nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("labeled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("labeled_by", sa.String(200), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "label", name="pk_audit_labels"),
    )
    op.create_index("ix_audit_labels_device", "audit_labels", ["tenant", "device", "pipeline", "model"])
    op.create_table(
        "drift_alarms",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("alarm", sa.String(63), nullable=False),
        sa.Column("subject", sa.String(300), nullable=False),
        sa.Column("subject_kind", sa.String(16), nullable=False),
        sa.Column("subject_name", sa.String(200), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("model", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("grade", sa.String(16), nullable=False),
        sa.Column("grid_id", sa.String(32), nullable=False),
        sa.Column("reference_id", sa.String(32)),
        sa.Column("onset", sa.DateTime(timezone=True), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("statistic", sa.Float, nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("rate", sa.Float, nullable=False),
        sa.Column("features", sa.Text, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.Column("devices", sa.Text, nullable=False),
        sa.Column("parent", sa.String(63)),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("reopened", sa.Integer, nullable=False),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True)),
        sa.Column("acknowledged_by", sa.String(200), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("link", sa.String(200), nullable=False),
        sa.Column("cleared_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("muted_until", sa.DateTime(timezone=True)),
        sa.Column("notified_at", sa.DateTime(timezone=True)),
        sa.Column("low_since", sa.DateTime(timezone=True)),
        sa.Column("revision", sa.Integer, server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("tenant", "alarm", name="pk_drift_alarms"),
    )
    op.create_index("ix_drift_alarms_state", "drift_alarms", ["tenant", "state", "raised_at"])
    op.create_index("ix_drift_alarms_subject", "drift_alarms", ["tenant", "subject", "raised_at"])
    op.create_table(
        "drift_budgets",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("devices", sa.Integer, nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_drift_budgets"),
    )
    op.create_table(
        "drift_group_hours",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("group_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("w0", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("reporting", sa.Integer, nullable=False),
        sa.Column("residuals", sa.LargeBinary, nullable=False),
        sa.Column("mean", sa.LargeBinary, nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("p", sa.Float),
        sa.PrimaryKeyConstraint("tenant", "group_key", "w0", name="pk_drift_group_hours"),
    )
    op.create_table(
        "drift_groups",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("group_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("model", sa.String(32), nullable=False),
        sa.Column("grid_id", sa.String(32), nullable=False),
        sa.Column("members", sa.Integer, nullable=False),
        sa.Column("dirty_from", sa.BigInteger),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("reference", sa.LargeBinary),
        sa.Column("peers", sa.LargeBinary),
        sa.Column("evidence_state", sa.LargeBinary),
        sa.Column("grade", sa.String(16), nullable=False),
        sa.Column("statistic", sa.Float, nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("p", sa.Float),
        sa.Column("judged_until", sa.BigInteger),
        sa.Column("restarted_at", sa.BigInteger),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "group_key", name="pk_drift_groups"),
        sa.UniqueConstraint("tenant", "kind", "name", "model", "grid_id", name="uq_drift_groups_tenant_kind_name_model_grid_id"),
    )
    op.create_index("ix_drift_groups_due", "drift_groups", ["due_at"])
    op.create_table(
        "drift_profiles",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("model", sa.String(32), nullable=False),
        sa.Column("grid_id", sa.String(32), nullable=False),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "model", "grid_id", name="pk_drift_profiles"),
    )
    op.create_index("ix_drift_profiles_grid_id", "drift_profiles", ["tenant", "grid_id"])
    op.create_table(
        "drift_references",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("series_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("reference_id", sa.String(32), nullable=False),
        sa.Column("grade", sa.String(16), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("tenant", "series_key", "reference_id", name="pk_drift_references"),
    )
    op.create_table(
        "drift_series",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("series_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("model", sa.String(32), nullable=False),
        sa.Column("src", sa.Integer, nullable=False),
        sa.Column("grid_id", sa.String(32), nullable=False),
        sa.Column("first_w0", sa.BigInteger, nullable=False),
        sa.Column("next_w0", sa.BigInteger, nullable=False),
        sa.Column("dirty_from", sa.BigInteger),
        sa.Column("conflicts", sa.Integer, nullable=False),
        sa.Column("overlaps", sa.Integer, nullable=False),
        sa.Column("group_key", sa.BigInteger),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("grade", sa.String(16), nullable=False),
        sa.Column("decided_by", sa.String(16), nullable=False),
        sa.Column("reference_id", sa.String(32)),
        sa.Column("evidence_state", sa.LargeBinary),
        sa.Column("statistic", sa.Float, nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("p", sa.Float),
        sa.Column("evidence", sa.Float, nullable=False),
        sa.Column("is_listed", sa.Boolean, nullable=False),
        sa.Column("judged_until", sa.BigInteger),
        sa.Column("restarted_at", sa.BigInteger),
        sa.Column("learning_from", sa.BigInteger),
        sa.Column("days", sa.Integer, nullable=False),
        sa.Column("site_gap", sa.Float),
        sa.Column("peer_p", sa.Float),
        sa.Column("conditions", sa.Text, nullable=False),
        sa.Column("cells", sa.Text, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "series_key", name="pk_drift_series"),
        sa.UniqueConstraint(
            "tenant", "device", "pipeline", "model", "src", "grid_id", name="uq_drift_series_tenant_device_pipeline_model_src_grid_id"
        ),
    )
    op.create_index("ix_drift_series_dirty", "drift_series", ["dirty_from"])
    op.create_index("ix_drift_series_group", "drift_series", ["tenant", "group_key"])
    op.create_table(
        "drift_sums",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("owner_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("w0", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("sub_windows", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "owner_key", "level", "w0", name="pk_drift_sums"),
    )
    op.create_table(
        "quarantined_windows",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("model", sa.String(32), nullable=False),
        sa.Column("src", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("grid_id", sa.String(32), nullable=False),
        sa.Column("w0", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("nsub", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("rev", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", "pipeline", "model", "src", "grid_id", "w0", "nsub", name="pk_quarantined_windows"),
    )
    op.create_index("ix_quarantined_windows_grid_id", "quarantined_windows", ["tenant", "reason", "grid_id"])
    op.create_index("ix_quarantined_windows_until", "quarantined_windows", ["until"])
    op.create_table(
        "sketch_windows",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("series_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("w0", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("nsub", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("rev", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "series_key", "w0", "nsub", name="pk_sketch_windows"),
    )
    op.create_index("ix_sketch_windows_received", "sketch_windows", ["tenant", "received_at"])
