"""What is stored of rules, alerts and history: frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from fleet.monitoring.rules import Rule, RuleState
from protocol.ids import DeviceId, TenantId

#: Types of the events that are sent; consumers ignore those that they do not know.
ALARM_RAISED, ALARM_REOPENED, ALARM_CLEARED = "mooring.alarm.raised.v1", "mooring.alarm.reopened.v1", "mooring.alarm.cleared.v1"
RULE_FIRING, RULE_RECOVERED = "mooring.rule.firing.v1", "mooring.rule.recovered.v1"
SERVER_STANDS_STILL, SERVER_WORKS = "mooring.server.stands-still.v1", "mooring.server.works.v1"
RECIPIENT_TEST = "mooring.recipient.test.v1"


class RecipientKind(StrEnum):
    """How somebody is told."""

    WEBHOOK = "webhook"
    MAIL = "mail"


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who is told of alarms and rules."""

    tenant: TenantId
    name: str
    kind: RecipientKind
    #: URL of a webhook, or mail addresses with commas between.
    address: str
    #: Key of the signature ("whsec_" and base64); empty for mail.
    secret: str = field(default="", repr=False)
    #: Whether the address may be private (loopback, a local network).
    allows_private: bool = False
    #: "alarm", "rule", "server"; empty: all.
    topics: tuple[str, ...] = ()
    is_enabled: bool = True
    revision: int = 1
    created_by: str = ""
    created_at: datetime | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where each message goes, each by itself: what one does not take is no reason to bring it to another again."""
        return tuple(self.address.split(",")) if self.kind is RecipientKind.MAIL else (self.address,)


@dataclass(frozen=True, slots=True)
class Alert:
    """One message to people and machines: a CloudEvent in values. `id` stays the same over all attempts."""

    id: str
    type: str
    #: "rule/slow/cam-1/front", "alarm/…": what later alerts about the same thing have in common.
    subject: str
    time: datetime
    #: One line for people.
    title: str
    text: str
    severity: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule with who made it."""

    rule: Rule
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RuleKey:
    """What a rule is evaluated on: a device and, for figures of pipelines, one of them."""

    device: DeviceId
    pipeline: str = ""


@dataclass(frozen=True, slots=True)
class KeyedState:
    """The state of a rule on one key."""

    rule: str
    key: RuleKey
    state: RuleState


@dataclass(frozen=True, slots=True)
class FiringRow:
    """One stretch in which a rule fired on one key."""

    id: str
    rule: str
    key: RuleKey
    severity: str
    since: datetime
    until: datetime | None
    #: The worst value meanwhile, and why it ended: recovered, rule_changed, rule_deleted, out_of_scope; empty while it fires.
    worst: float
    ended_by: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Telemetry added up over a stretch of time; everything adds, so that late messages are just added."""

    #: Telemetry messages of the stream.
    messages: int = 0
    seconds: float = 0.0
    frames: int = 0
    errors: int = 0
    dropped: int = 0
    #: Messages with latencies, the sums of their percentiles, and the largest p99, milliseconds.
    timed: int = 0
    p50_sum: float = 0.0
    p95_sum: float = 0.0
    p99_sum: float = 0.0
    p99_max: float | None = None
    cpu_sum: float = 0.0
    rss_sum: float = 0.0
    temperature_max: float | None = None
    disk_free_min: float | None = None

    def plus(self, other: "Figures") -> "Figures":
        """Both stretches together."""
        return Figures(
            messages=self.messages + other.messages,
            seconds=self.seconds + other.seconds,
            frames=self.frames + other.frames,
            errors=self.errors + other.errors,
            dropped=self.dropped + other.dropped,
            timed=self.timed + other.timed,
            p50_sum=self.p50_sum + other.p50_sum,
            p95_sum=self.p95_sum + other.p95_sum,
            p99_sum=self.p99_sum + other.p99_sum,
            p99_max=_pick(max, self.p99_max, other.p99_max),
            cpu_sum=self.cpu_sum + other.cpu_sum,
            rss_sum=self.rss_sum + other.rss_sum,
            temperature_max=_pick(max, self.temperature_max, other.temperature_max),
            disk_free_min=_pick(min, self.disk_free_min, other.disk_free_min),
        )


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted at one moment: not a sum, the newest replaces the older one of its slot."""

    devices: int = 0
    online: int = 0
    open_alarms: int = 0
    firing_rules: int = 0


@dataclass(frozen=True, slots=True)
class FleetPoint:
    """The fleet in one slot of time."""

    at: datetime
    figures: Figures
    counted: Counted | None


@dataclass(frozen=True, slots=True)
class DevicePoint:
    """One stream of one device (and pipeline; empty for `sys`) in one hour."""

    device: DeviceId
    stream: str
    pipeline: str
    at: datetime
    figures: Figures


def _pick(choose: Any, first: float | None, second: float | None) -> float | None:
    known = [value for value in (first, second) if value is not None]
    return choose(known) if known else None
