"""What the pages show, as values: made by `console_views` from the domains, read by the templates. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ConditionView:
    """One thing that is wrong, with what to do about it."""

    code: str
    severity: str
    text: str
    since: datetime | None
    advice: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class EventView:
    """One event in words."""

    device: str
    title: str
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """One approval in a list."""

    id: str
    title: str
    state: str
    created_by: str
    created_at: datetime
    text: str = ""
    decided_by: str = ""
    decided_at: datetime | None = None
    reason: str = ""
    #: Asked for by the person who looks.
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """One campaign in a list."""

    id: str
    name: str
    line: str
    release: str
    state: str
    total: int
    updated: int
    failed: int
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class HomeView:
    """What a page shows that answers "is anything wrong now?"."""

    total: int
    failed: int
    degraded: int
    offline: int
    problems: tuple[ConditionView, ...] = ()
    more_problems: bool = False
    approvals: tuple[ApprovalRow, ...] = ()
    campaigns: tuple[CampaignRow, ...] = ()
    events: tuple[EventView, ...] = ()
    #: Open alarms of drift.
    alarms: int = 0
    #: Keys and clock of the server itself.
    server: tuple[ConditionView, ...] = ()

    @property
    def offline_share(self) -> str:
        """Percent of all devices."""
        return f"{100 * self.offline / self.total:.0f} %" if self.total else ""


@dataclass(frozen=True, slots=True)
class SelectView:
    """One drop-down of a filter bar."""

    name: str
    label: str
    options: tuple[str, ...]
    value: str


@dataclass(frozen=True, slots=True)
class DeviceFilterView:
    """What the filter bar of Devices asks for; empty = any."""

    text: str = ""
    group: str = ""
    site: str = ""
    device_type: str = ""
    presence: str = ""
    health: str = ""


@dataclass(frozen=True, slots=True)
class LineSummary:
    """Where one model line of a device is, for a table."""

    line: str
    installed: str
    desired: str
    state: str
    progress: int
    reason: str
    is_moving: bool


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device in the table."""

    device: str
    device_type: str
    group: str
    site: str
    presence: str
    health: str
    #: Code of the worst condition.
    worst: str
    last_seen: datetime | None
    lines: tuple[LineSummary, ...] = ()
    #: Its certificate is refused: it is not of the fleet any more.
    is_revoked: bool = False


@dataclass(frozen=True, slots=True)
class DevicesView:
    """One page of devices."""

    rows: tuple[DeviceRow, ...]
    filter: DeviceFilterView
    selects: tuple[SelectView, ...]
    is_filtered: bool
    #: The query string of this page, with its "?", or empty.
    query: str = ""
    next_url: str = ""
    first_url: str = ""


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot of a line."""

    slot: str
    release: str
    active: bool
    committed: bool
    counter: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StepView:
    """One arrow the update machine went."""

    release: str
    state: str
    at: datetime
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class BlockedView:
    """A release the device refuses."""

    release: str
    reason: str
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class PathPoint:
    """One state of the update machine on the way that an update takes."""

    state: str
    #: done, now, bad or ahead.
    kind: str


@dataclass(frozen=True, slots=True)
class LineView:
    """One model line of a device: slots, and how it got there."""

    line: str
    installed: str
    desired: str
    state: str
    progress: int
    reason: str
    text: str
    is_moving: bool
    slots: tuple[SlotView, ...] = ()
    steps: tuple[StepView, ...] = ()
    blocked: tuple[BlockedView, ...] = ()
    #: The way of the update under way, or of the last one; empty when there was none.
    path: tuple[PathPoint, ...] = ()
    #: What it waits for (`LineState.waits_for`), and until when if that is known.
    waits_for: str = ""
    until: datetime | None = None
    #: How the files come, in words; empty: not decided.
    transfer: str = ""
    #: Whether an operator may let it try again what it refused or failed.
    can_offer_again: bool = False

    @property
    def waits_for_consent(self) -> bool:
        """Whether somebody must allow the installation."""
        return self.waits_for == "consent"


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """One runtime of a device."""

    name: str
    version: str
    state: str


@dataclass(frozen=True, slots=True)
class PipelineView:
    """One pipeline, with the backend asked for and the one in use."""

    name: str
    source: str
    line: str
    keep: str
    asked: str
    effective: str

    @property
    def is_fallback(self) -> bool:
        """Whether another backend runs than was asked for."""
        return bool(self.asked) and self.asked not in {"auto", self.effective}


@dataclass(frozen=True, slots=True)
class TelemetryView:
    """The newest telemetry window of a pipeline; latencies in milliseconds."""

    pipeline: str
    p50: float | None
    p95: float | None
    p99: float | None
    fps: float
    dropped: str
    backend: str
    #: opening, running, lost, ended or stopped; empty: the agent does not say.
    source_state: str
    at: datetime


@dataclass(frozen=True, slots=True)
class SystemView:
    """The newest figures of a device."""

    cpu_percent: float
    rss_mb: float
    temperature_c: float | None
    disk_free_mb: float
    outbox_rows: int
    #: MB exchanged with the server and written to storage today (UTC); None: the device does not say.
    day_exchanged_mb: float | None = None
    day_written_mb: float | None = None


@dataclass(frozen=True, slots=True)
class PredictionView:
    """One answer of a model."""

    pipeline: str
    release: str
    #: Its best class, its objects, or its value, in words.
    label: str
    #: None: the answer has none.
    score: float | None
    at: datetime


@dataclass(frozen=True, slots=True)
class ConfigurationView:
    """The signed configuration of a device: what it shall have and what it says that it has; revision 0: none."""

    wanted_rev: int
    rev: int
    #: none, trial, committed or returned; empty: the device says nothing of it.
    state: str
    #: Why it went back from the newest one, and to which revision that was.
    reason: str = ""
    text: str = ""
    returned_rev: int = 0
    #: Dotted key and why the device leaves it out.
    ignored: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DevicePage:
    """What a page shows that answers "why is this one unhappy?"."""

    device: str
    device_type: str
    group: str
    site: str
    revision: int
    presence: str
    health: str
    last_seen: datetime | None
    agent_version: str
    labels: Mapping[str, str]
    desired_rev: int | None
    applied_rev: int | None
    config_errors: Mapping[str, str]
    conditions: tuple[ConditionView, ...]
    runtimes: tuple[RuntimeView, ...]
    pipelines: tuple[PipelineView, ...]
    lines: tuple[LineView, ...]
    telemetry: tuple[TelemetryView, ...]
    system: SystemView | None
    predictions: tuple[PredictionView, ...]
    events: tuple[EventView, ...]
    configuration: ConfigurationView | None = None
    #: Its certificate is refused: it is not of the fleet any more.
    is_revoked: bool = False
    #: When its certificate ends unless it is renewed.
    certificate_ends_at: datetime | None = None
    #: JSON list of {t, p50, p95, fps} of the pipeline that the chart shows, oldest first.
    points_json: str = "[]"


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """One release of a line."""

    version: str
    state: str
    variants: tuple[str, ...]
    size: int
    running: int
    approved_by: str
    signatures: int
    threshold: int
    created_by: str
    created_at: datetime
    #: No device installs it any more.
    is_below_floor: bool = False


@dataclass(frozen=True, slots=True)
class ModelLineView:
    """One model line with its releases, newest first."""

    name: str
    task: str
    running: int
    releases: tuple[ReleaseRow, ...]


@dataclass(frozen=True, slots=True)
class ModelsView:
    """What a page shows that answers "what may ship?"."""

    lines: tuple[ModelLineView, ...]


@dataclass(frozen=True, slots=True)
class FileView:
    """One file of a release."""

    variant: str
    runtime: str
    device_types: tuple[str, ...]
    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class SignatureView:
    """One signature of a release."""

    keyid: str
    by: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """One thing that happened to a release, from the audit log."""

    text: str
    by: str
    at: datetime
    reason: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class TravelView:
    """How one file of a release comes to devices that have a certain base, in bytes; no base: the compressed whole."""

    variant: str
    file: str
    base: str
    devices: int
    state: str
    length: int
    full: int
    reason: str

    @property
    def times_smaller(self) -> float:
        """Bytes of the file for one byte that travels; 0 when there is no delta."""
        return self.full / self.length if self.length else 0.0


@dataclass(frozen=True, slots=True)
class ReleaseView:
    """One release: what is in it, who made it, approved it and signed it."""

    line: str
    version: str
    state: str
    counter: int
    created_by: str
    created_at: datetime
    running: int
    files: tuple[FileView, ...]
    facts: tuple[tuple[str, str], ...] = ()
    approvals: tuple[ApprovalRow, ...] = ()
    signatures: tuple[SignatureView, ...] = ()
    steps: tuple[HistoryStep, ...] = ()
    travels: tuple[TravelView, ...] = ()
    #: Of its line; with a lower counter no device installs it any more.
    floor: int = 0


@dataclass(frozen=True, slots=True)
class ApprovalsView:
    """What a page shows that answers "what waits for me?"."""

    waiting: tuple[ApprovalRow, ...]
    decided: tuple[ApprovalRow, ...]


@dataclass(frozen=True, slots=True)
class PartDigest:
    """One part that an approval is bound to."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class ApprovalPage:
    """One approval, to decide."""

    id: str
    title: str
    state: str
    subject: str
    subject_url: str
    digests: tuple[PartDigest, ...]
    created_by: str
    created_at: datetime
    decided_by: str
    decided_at: datetime | None
    reason: str
    revision: int
    is_waiting: bool
    may_decide: bool
    why_not: str


@dataclass(frozen=True, slots=True)
class CampaignsView:
    """What a page shows that answers "what moves?"."""

    rows: tuple[CampaignRow, ...]
    next_url: str = ""
    first_url: str = ""


@dataclass(frozen=True, slots=True)
class FailureView:
    """Devices that failed for one reason, with an example."""

    code: str
    count: int
    device: str
    text: str
    #: What the code means and what to do.
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class UpdateView:
    """One device's way in a campaign."""

    device: str
    state: str
    reason: str
    text: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class ActionView:
    """Something a person may do now."""

    verb: str
    label: str
    text: str
    is_dangerous: bool


@dataclass(frozen=True, slots=True)
class CampaignPage:
    """What a page shows that answers "should I go on?"."""

    id: str
    name: str
    line: str
    release: str
    state: str
    reason: str
    total: int
    updated: int
    failed: int
    moving: int
    revision: int
    failures: tuple[FailureView, ...]
    devices: tuple[UpdateView, ...]
    actions: tuple[ActionView, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One entry of the audit log."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class VerifiedView:
    """What verifying the chain said."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """What a page shows that answers "who did what?"."""

    rows: tuple[AuditRow, ...]
    verified: VerifiedView | None = None
    next_url: str = ""
    first_url: str = ""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One API token of the person who looks."""

    name: str
    scopes: frozenset[str] = field(default_factory=frozenset)
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
