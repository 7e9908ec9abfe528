"""Models, artifacts, releases, metadata of the two repositories."""

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Create the tables of the registry domain."""
    op.create_table(
        "director_metadata",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("targets", sa.LargeBinary, nullable=False),
        sa.Column("snapshot", sa.LargeBinary, nullable=False),
        sa.Column("timestamp", sa.LargeBinary, nullable=False),
        sa.Column("etag", sa.String(71), nullable=False),
        sa.Column("order_digest", sa.String(71), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("renew_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_stale", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", name="pk_director_metadata"),
    )
    op.create_table(
        "model_lines",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("next_counter", sa.BigInteger, nullable=False),
        sa.Column("floor", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "line", name="pk_model_lines"),
    )
    op.create_table(
        "model_versions",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("golden", sa.Text, nullable=False),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("profile", sa.Text),
        sa.Column("draft", sa.Text, nullable=False),
        sa.Column("tensors", sa.Text, nullable=False),
        sa.Column("device_types", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "model", "version", name="pk_model_versions"),
    )
    op.create_table(
        "release_deltas",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("base_sha256", sa.String(71), nullable=False),
        sa.Column("new_sha256", sa.String(71), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("method", sa.Integer),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(71), nullable=False),
        sa.Column("cpu_s", sa.Float, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "base_sha256", "new_sha256", name="pk_release_deltas"),
    )
    op.create_index("ix_release_deltas_new_sha256", "release_deltas", ["tenant", "new_sha256"])
    op.create_table(
        "releases",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("counter", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("variants", sa.Text, nullable=False),
        sa.Column("content_digest", sa.String(71), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("approval", sa.String(63)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True)),
        sa.Column("published_at", sa.DateTime(timezone=True)),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "line", "version", name="pk_releases"),
        sa.UniqueConstraint("tenant", "line", "counter", name="uq_releases_tenant_line_counter"),
    )
    op.create_table(
        "signing_requests",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("request", sa.String(63), nullable=False),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("role", sa.String(100), nullable=False),
        sa.Column("role_version", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("previous", sa.LargeBinary, nullable=False),
        sa.Column("content_digest", sa.String(71), nullable=False),
        sa.Column("approval", sa.String(63), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signed", sa.LargeBinary),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "request", name="pk_signing_requests"),
        sa.UniqueConstraint("tenant", "line", "version", name="uq_signing_requests_tenant_line_version"),
    )
