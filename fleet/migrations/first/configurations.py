"""Sections, releases and attempts of device configuration."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

json_type = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def create() -> None:
    """Create the tables of the configurations domain."""
    op.create_table(
        "configuration_sections",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("settings", json_type, nullable=False),
        sa.Column("changed_by", sa.String(220), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "scope", "name", name="pk_configuration_sections"),
    )
    op.create_table(
        "configuration_releases",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("rev", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("content_digest", sa.String(71), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_by", sa.String(220), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("approval", sa.String(63), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True)),
        sa.Column("payload", sa.LargeBinary),
        sa.Column("previous", sa.LargeBinary),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "rev", name="pk_configuration_releases"),
        sa.UniqueConstraint("rev", name="uq_configuration_releases_rev"),
    )
    op.create_index("ix_configuration_releases_state", "configuration_releases", ["tenant", "state", "rev"])
    op.create_table(
        "configuration_files",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("rev", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("group_name", sa.String(63), nullable=False),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(71), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "rev", "group_name", name="pk_configuration_files"),
        sa.ForeignKeyConstraint(
            ["tenant", "rev"],
            ["configuration_releases.tenant", "configuration_releases.rev"],
            name="fk_configuration_files_tenant_rev",
        ),
    )
    op.create_index("ix_configuration_files_group_name", "configuration_files", ["tenant", "group_name", "rev"])
    op.create_table(
        "configuration_attempts",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "device", name="pk_configuration_attempts"),
    )
