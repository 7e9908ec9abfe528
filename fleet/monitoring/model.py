"""What the server knows of what devices said: frozen values."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from protocol.ids import DeviceId, TenantId
from protocol.messages import Presence


class Health(StrEnum):
    """How a device is, computed from its conditions and its presence."""

    #: Nothing is wrong.
    HEALTHY = "healthy"
    #: It works, and something is wrong.
    DEGRADED = "degraded"
    #: It does not do its work.
    FAILED = "failed"
    #: It never reported.
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How bad a condition is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Condition:
    """One declared thing that is wrong on a device."""

    code: str
    severity: Severity
    text: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeviceView:
    """The latest of one device; all None or empty for one that never spoke."""

    tenant: TenantId
    device: DeviceId
    #: Presence.OFFLINE for a device that never spoke.
    presence: Presence = Presence.OFFLINE
    presence_since: datetime | None = None
    last_seen: datetime | None = None
    health: Health = Health.UNKNOWN
    conditions: tuple[Condition, ...] = ()
    agent_version: str = ""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The newest message of one state topic; `body` is the message as it came."""

    stream: str
    ts: datetime
    received_at: datetime
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TelemetryRow:
    """One telemetry message."""

    device: DeviceId
    #: perf, sys or sensor.
    name: str
    pipeline: str | None
    ts: datetime
    received_at: datetime
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event, audit entry or job message of a device."""

    device: DeviceId
    #: event, audit or job.
    stream: str
    type: str
    subject: str | None
    ts: datetime
    received_at: datetime
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was not understood, or not allowed."""

    id: str
    topic: str
    reason: str
    #: First 4 KiB.
    body: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a chart."""

    ts: datetime
    value: float


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """How one stream of one device arrived, in its newest epoch."""

    stream: str
    #: Numbers the device gave up before they were stored: dropped, merged, or lost on the way.
    missing: int
    #: Highest number seen.
    highest: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """One message just stored, for live views."""

    tenant: TenantId
    device: DeviceId
    #: e.g. "tel/perf", "event", "inf/front".
    topic: str
    ts: datetime
    body: dict[str, Any] = field(default_factory=dict)
