"""What devices said."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Create the tables of the monitoring domain."""
    op.create_table(
        "dead_letters",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("id", sa.String(63), nullable=False),
        sa.Column("topic", sa.String(300), nullable=False),
        sa.Column("reason", sa.String(300), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_dead_letters"),
    )
    op.create_index("ix_dead_letters_received", "dead_letters", ["tenant", "received_at"])
    op.create_table(
        "device_epochs",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("epoch", sa.String(200), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device_key", "number", name="pk_device_epochs"),
        sa.UniqueConstraint("device_key", "epoch", name="uq_device_epochs_device_key_epoch"),
    )
    op.create_table(
        "device_states",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("stream", sa.String(63), nullable=False),
        sa.Column("epoch_number", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device_key", "stream", name="pk_device_states"),
    )
    op.create_table(
        "device_streams",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("epoch_number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("stream", sa.String(63), nullable=False),
        sa.Column("stream_key", sa.BigInteger, nullable=False),
        sa.Column("settled", sa.Text, nullable=False),
        sa.Column("floor", sa.BigInteger, nullable=False),
        sa.Column("missing", sa.BigInteger, nullable=False),
        sa.Column("highest", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device_key", "epoch_number", "stream", name="pk_device_streams"),
        sa.UniqueConstraint("stream_key", name="uq_device_streams_stream_key"),
    )
    op.create_table(
        "events",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("stream_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("device_key", sa.BigInteger, nullable=False),
        sa.Column("stream", sa.String(63), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("subject", sa.String(200)),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "stream_key", "seq", name="pk_events"),
    )
    op.create_index("ix_events_device", "events", ["tenant", "device_key", "ts"])
    op.create_index("ix_events_received", "events", ["tenant", "received_at"])
    op.create_table(
        "last_predictions",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device_key", "pipeline", name="pk_last_predictions"),
    )
    op.create_table(
        "monitored_devices",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("device_key", sa.BigInteger, nullable=False),
        sa.Column("presence", sa.String(16), nullable=False),
        sa.Column("presence_since", sa.DateTime(timezone=True)),
        sa.Column("last_seen", sa.DateTime(timezone=True)),
        sa.Column("health", sa.String(16), nullable=False),
        sa.Column("conditions", sa.Text, nullable=False),
        sa.Column("agent_version", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", name="pk_monitored_devices"),
        sa.UniqueConstraint("device_key", name="uq_monitored_devices_device_key"),
    )
    op.create_table(
        "telemetry",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("stream_key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("device_key", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("pipeline", sa.String(63)),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "stream_key", "seq", name="pk_telemetry"),
    )
    op.create_index("ix_telemetry_device", "telemetry", ["tenant", "device_key", "name", "ts"])
    op.create_index("ix_telemetry_received", "telemetry", ["tenant", "received_at"])
