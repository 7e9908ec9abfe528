"""The tables of drift and the rows that come out of them: windows by key, sums, references, profiles, groups, quarantine.

Times of windows are counted in sub-windows of 600 s since 1970 (DRIFT 2).
"""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from fleet import db
from fleet.monitoring.drift_model import AlarmSubject, Check, FeatureCell, Grade, SubjectKind
from protocol.ids import DeviceId, TenantId

_KEY_BITS = 48
_KEYS_PER_QUERY = 500
#: Longest window in sub-windows (DRIFT 2).
MAX_NSUB = 144

drift_group_hours = sa.Table(
    "drift_group_hours",
    db.metadata,
    db.tenant_column(),
    sa.Column("group_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reporting", sa.Integer, nullable=False),
    sa.Column("residuals", sa.LargeBinary, nullable=False),
    sa.Column("mean", sa.LargeBinary, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("p", sa.Float),
)

drift_groups = sa.Table(
    "drift_groups",
    db.metadata,
    db.tenant_column(),
    sa.Column("group_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("grid_id", sa.String(32), nullable=False),
    sa.Column("members", sa.Integer, nullable=False),
    sa.Column("dirty_from", sa.BigInteger),
    sa.Column("due_at", db.utc),
    sa.Column("reference", sa.LargeBinary),
    sa.Column("peers", sa.LargeBinary),
    sa.Column("grade", sa.String(16), nullable=False),
    sa.Column("statistic", sa.Float, nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("p", sa.Float),
    sa.Column("judged_until", sa.BigInteger),
    sa.Column("restarted_at", sa.BigInteger),
    sa.Column("updated_at", db.utc, nullable=False),
    sa.UniqueConstraint("tenant", "kind", "name", "model", "grid_id"),
    sa.Index("ix_drift_groups_due", "due_at"),
)

drift_profiles = sa.Table(
    "drift_profiles",
    db.metadata,
    db.tenant_column(),
    sa.Column("model", sa.String(32), primary_key=True),
    sa.Column("grid_id", sa.String(32), primary_key=True),
    sa.Column("line", sa.String(63), nullable=False),
    sa.Column("version", sa.String(63), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("added_at", db.utc, nullable=False),
    sa.Index("ix_drift_profiles_grid_id", "tenant", "grid_id"),
)

drift_references = sa.Table(
    "drift_references",
    db.metadata,
    db.tenant_column(),
    sa.Column("series_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reference_id", sa.String(32), primary_key=True),
    sa.Column("grade", sa.String(16), nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("stored_at", db.utc, nullable=False),
    sa.Column("retired_at", db.utc),
)

drift_series = sa.Table(
    "drift_series",
    db.metadata,
    db.tenant_column(),
    sa.Column("series_key", sa.BigInteger, primary_key=True, autoincrement=False),
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
    # of the release that brought the grid
    sa.Column("line", sa.String(63), nullable=False),
    sa.Column("grade", sa.String(16), nullable=False),
    sa.Column("decided_by", sa.String(16), nullable=False),
    sa.Column("reference_id", sa.String(32)),
    # as protocol.sketches.evidence encodes it
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
    sa.Column("updated_at", db.utc, nullable=False),
    sa.UniqueConstraint("tenant", "device", "pipeline", "model", "src", "grid_id"),
    sa.Index("ix_drift_series_dirty", "dirty_from"),
    sa.Index("ix_drift_series_group", "tenant", "group_key"),
)

drift_sums = sa.Table(
    "drift_sums",
    db.metadata,
    db.tenant_column(),
    sa.Column("owner_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("level", sa.String(8), primary_key=True),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sub_windows", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

quarantined_windows = sa.Table(
    "quarantined_windows",
    db.metadata,
    db.tenant_column(),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("model", sa.String(32), primary_key=True),
    sa.Column("src", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("grid_id", sa.String(32), primary_key=True),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("nsub", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rev", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Column("until", db.utc, nullable=False),
    sa.Index("ix_quarantined_windows_grid_id", "tenant", "reason", "grid_id"),
    sa.Index("ix_quarantined_windows_until", "until"),
)

sketch_windows = sa.Table(
    "sketch_windows",
    db.metadata,
    db.tenant_column(),
    sa.Column("series_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("w0", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("nsub", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rev", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at", db.utc, nullable=False),
    sa.Index("ix_sketch_windows_received", "tenant", "received_at"),
)


class SeriesKey(NamedTuple):
    """Whose windows; ids in hex."""

    device: DeviceId
    pipeline: str
    model: str
    #: 0: what the device acts on, 1: what runs in its shadow.
    src: int
    grid_id: str


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """A series: what is stored of it, and where its evidence stands."""

    tenant: TenantId
    series_key: int
    device: DeviceId
    pipeline: str
    model: str
    src: int
    grid_id: str
    #: The first sub-window of all, and the one after the last.
    first_w0: int
    next_w0: int
    #: From here on sums and evidence wait to be computed again; None: nothing waits.
    dirty_from: int | None
    #: Windows that came again with the same rev and other bytes; windows that overlapped another one.
    conflicts: int
    overlaps: int
    group_key: int | None
    line: str
    grade: Grade
    decided_by: Check
    reference_id: str | None
    #: As protocol.sketches.evidence encodes it; None: nothing was judged yet.
    evidence_state: bytes | None
    statistic: float
    threshold: float
    score: float | None
    p: float | None
    evidence: float
    is_listed: bool
    judged_until: int | None
    #: Where the evidence was started again at zero, at the raise of an alarm.
    restarted_at: int | None
    #: What came before this is no part of a reference: somebody took what is there now as normal.
    learning_from: int | None
    days: int
    site_gap: float | None
    peer_p: float | None
    conditions: Mapping[str, int]
    cells: tuple[FeatureCell, ...]
    updated_at: datetime

    @property
    def key(self) -> SeriesKey:
        """What it is found by."""
        return SeriesKey(self.device, self.pipeline, self.model, self.src, self.grid_id)

    @property
    def subject(self) -> AlarmSubject:
        """What an alarm of its own is about."""
        return AlarmSubject(SubjectKind.DEVICE, self.device, self.pipeline, self.model)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One window as it came."""

    w0: int
    nsub: int
    rev: int
    body: bytes

    @property
    def end(self) -> int:
        """The sub-window after its last."""
        return self.w0 + self.nsub


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A window that waits: for its grid to be known, or for a person to look at the overlap."""

    key: SeriesKey
    window: WindowRow
    reason: str
    received_at: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """Windows of one series that were put aside for one reason."""

    key: SeriesKey
    #: unknown-grid, or overlap.
    reason: str
    windows: int
    #: The first sub-window of all, and the one after the last.
    first_w0: int
    next_w0: int
    #: When the first of them came, and when the last of them is given up.
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class SumRow:
    """A sum of windows."""

    level: str
    w0: int
    #: How many of its sub-windows have rows.
    sub_windows: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """What a release carries for drift, by model version and grid."""

    model: str
    grid_id: str
    line: str
    version: str
    body: bytes


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Devices that are watched together, and where their common evidence stands."""

    tenant: TenantId
    group_key: int
    kind: SubjectKind
    #: "site/device-type", or "campaign/arm".
    name: str
    model: str
    grid_id: str
    members: int
    dirty_from: int | None
    due_at: datetime | None
    #: Of the means of hours, and of what one member differs from the others by.
    reference: bytes | None
    peers: bytes | None
    grade: Grade
    statistic: float
    threshold: float
    score: float | None
    p: float | None
    judged_until: int | None
    restarted_at: int | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class GroupHour:
    """One hour of a group: mean over members of what each differs from its own reference by."""

    w0: int
    reporting: int
    #: float64, little endian.
    mean: bytes
    #: float64, little endian, reporting × d.
    residuals: bytes
    score: float | None = None
    p: float | None = None


def new_key() -> int:
    """A key of a series or a group that nobody has."""
    return secrets.randbits(_KEY_BITS)


def parts_of(values: Collection[Any]) -> Iterable[Sequence[Any]]:
    """The values in order, so many at a time as one query may name."""
    many = sorted(values)
    return (many[start : start + _KEYS_PER_QUERY] for start in range(0, len(many), _KEYS_PER_QUERY))
