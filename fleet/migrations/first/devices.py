"""Sites, groups, device types, devices, invitations, twins."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

json_type = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def create() -> None:
    """Create the tables of the devices' domain."""
    op.create_table(
        "device_types",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_device_types"),
    )
    op.create_table(
        "revoked_certificates",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("serial", sa.String(50), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "serial", name="pk_revoked_certificates"),
    )
    op.create_table(
        "sites",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("time_zone", sa.String(64), nullable=False),
        sa.Column("consent", sa.String(16), nullable=False),
        sa.Column("bandwidth_kbit_s", sa.BigInteger),
        sa.Column("max_updating", sa.Integer),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_sites"),
    )
    op.create_table(
        "groups",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("site", sa.String(63)),
        sa.Column("config", json_type, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_groups"),
        sa.ForeignKeyConstraint(["tenant", "site"], ["sites.tenant", "sites.name"], name="fk_groups_tenant_site"),
    )
    op.create_table(
        "devices",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("device_type", sa.String(63), nullable=False),
        sa.Column("group_name", sa.String(63), nullable=False),
        sa.Column("site", sa.String(63)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("labels", json_type, nullable=False),
        sa.Column("hardware", json_type, nullable=False),
        sa.Column("agent_version", sa.String(200), nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("sealing_key", sa.String(64), nullable=False),
        sa.Column("serial", sa.String(50), nullable=False),
        sa.Column("certificate_ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("trust_digest", sa.String(64), nullable=False),
        sa.Column("pending_serial", sa.String(50)),
        sa.Column("pending_public_key", sa.Text),
        sa.Column("pending_ends_at", sa.DateTime(timezone=True)),
        sa.Column("pending_trust_digest", sa.String(64)),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "device", name="pk_devices"),
        sa.UniqueConstraint("device", name="uq_devices_device"),
        sa.ForeignKeyConstraint(
            ["tenant", "device_type"], ["device_types.tenant", "device_types.name"], name="fk_devices_tenant_device_type"
        ),
        sa.ForeignKeyConstraint(["tenant", "group_name"], ["groups.tenant", "groups.name"], name="fk_devices_tenant_group_name"),
        sa.ForeignKeyConstraint(["tenant", "site"], ["sites.tenant", "sites.name"], name="fk_devices_tenant_site"),
    )
    op.create_index("ix_devices_group_name", "devices", ["tenant", "group_name", "device"])
    op.create_index("ix_devices_site", "devices", ["tenant", "site", "device"])
    op.create_table(
        "enrollment_tokens",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("token_id", sa.String(63), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("group_name", sa.String(63), nullable=False),
        sa.Column("device_type", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63)),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.Column("used_by", sa.String(63)),
        sa.PrimaryKeyConstraint("tenant", "token_id", name="pk_enrollment_tokens"),
        sa.ForeignKeyConstraint(
            ["tenant", "device_type"], ["device_types.tenant", "device_types.name"], name="fk_enrollment_tokens_tenant_device_type"
        ),
        sa.ForeignKeyConstraint(["tenant", "group_name"], ["groups.tenant", "groups.name"], name="fk_enrollment_tokens_tenant_group_name"),
    )
    op.create_table(
        "device_secrets",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "device", "name", name="pk_device_secrets"),
        sa.ForeignKeyConstraint(["tenant", "device"], ["devices.tenant", "devices.device"], name="fk_device_secrets_tenant_device"),
    )
    op.create_table(
        "pipelines",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("line", sa.String(63), nullable=False),
        sa.Column("spec", json_type, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "device", "name", name="pk_pipelines"),
        sa.ForeignKeyConstraint(["tenant", "device"], ["devices.tenant", "devices.device"], name="fk_pipelines_tenant_device"),
    )
    op.create_index("ix_pipelines_line", "pipelines", ["tenant", "line", "device"])
    op.create_table(
        "twins",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("config", json_type, nullable=False),
        sa.Column("desired_rev", sa.BigInteger, nullable=False),
        sa.Column("desired", sa.Text, nullable=False),
        sa.Column("manifest_url", sa.String(200)),
        sa.Column("manifest_sha256", sa.String(71)),
        sa.Column("spread_s", sa.Integer, nullable=False),
        sa.Column("consents", json_type, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("tenant", "device", name="pk_twins"),
        sa.ForeignKeyConstraint(["tenant", "device"], ["devices.tenant", "devices.device"], name="fk_twins_tenant_device"),
    )
