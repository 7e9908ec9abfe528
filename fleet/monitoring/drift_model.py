"""What the server knows of drift: frozen values, the states of an alarm and every arrow between them (DRIFT 5.9). Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from protocol.errors import ConflictError
from protocol.ids import DeviceId, TenantId

#: A crossing so soon after an alarm was cleared opens the same alarm again.
REOPEN_WITHIN = timedelta(days=7)
#: The shortest time that the evidence must stay low before an alarm recovers by itself.
MIN_HOLD = timedelta(hours=24)
SUB_WINDOW = timedelta(minutes=10)
#: Sub-windows of an hour and of a day.
HOUR, DAY = 6, 144


class AlarmState(StrEnum):
    """How far somebody answered."""

    #: It waits for a person or the loop.
    RAISED = "raised"
    #: Somebody took it.
    ACKNOWLEDGED = "acknowledged"
    #: It is over.
    CLEARED = "cleared"


class AlarmEvent(StrEnum):
    """What moves an alarm; those that clear it are stored as its outcome."""

    #: The evidence crossed the threshold, and the server verified it.
    CROSSING = "crossing"
    #: A person or the loop takes it.
    TAKEN = "taken"
    #: What looks say stayed low for the hold time.
    RECOVERED = "recovered"
    #: A new release was committed on the subject.
    RELEASED = "released"
    #: The reference was replaced: what is there now is the new normal.
    REREFERENCED = "rereferenced"
    #: A person says: a broken camera, a covered lens, maintenance; not drift.
    CONDITION = "condition"
    #: A person says: nothing changed.
    FALSE_ALARM = "false_alarm"


class ReferenceSource(StrEnum):
    """Where a reference comes from."""

    #: The device learned it from what it saw.
    DEVICE = "device"
    #: The server fitted it to the hours that the device sent.
    SERVER = "server"
    #: A recording that a device signed.
    SIGNED_RECORDING = "signed-recording"
    #: A recording that nobody signed: the one who brought it vouches for it. So are all from before recordings were signed.
    RECORDING = "recording"


#: Those that were learned here from a file that somebody brought.
BROUGHT = frozenset({ReferenceSource.SIGNED_RECORDING, ReferenceSource.RECORDING})

#: Every arrow there is; one that is missing raises.
TRANSITIONS: Mapping[tuple[AlarmState | None, AlarmEvent], AlarmState] = MappingProxyType(
    {
        (None, AlarmEvent.CROSSING): AlarmState.RAISED,
        (AlarmState.RAISED, AlarmEvent.TAKEN): AlarmState.ACKNOWLEDGED,
        (AlarmState.RAISED, AlarmEvent.RECOVERED): AlarmState.CLEARED,
        (AlarmState.RAISED, AlarmEvent.RELEASED): AlarmState.CLEARED,
        (AlarmState.RAISED, AlarmEvent.REREFERENCED): AlarmState.CLEARED,
        (AlarmState.RAISED, AlarmEvent.CONDITION): AlarmState.CLEARED,
        (AlarmState.RAISED, AlarmEvent.FALSE_ALARM): AlarmState.CLEARED,
        (AlarmState.ACKNOWLEDGED, AlarmEvent.RECOVERED): AlarmState.CLEARED,
        (AlarmState.ACKNOWLEDGED, AlarmEvent.RELEASED): AlarmState.CLEARED,
        (AlarmState.ACKNOWLEDGED, AlarmEvent.REREFERENCED): AlarmState.CLEARED,
        (AlarmState.ACKNOWLEDGED, AlarmEvent.CONDITION): AlarmState.CLEARED,
        (AlarmState.ACKNOWLEDGED, AlarmEvent.FALSE_ALARM): AlarmState.CLEARED,
        (AlarmState.CLEARED, AlarmEvent.CROSSING): AlarmState.RAISED,
    }
)
#: What a person may clear an alarm as.
BY_PERSON = frozenset({AlarmEvent.CONDITION, AlarmEvent.FALSE_ALARM})
OPEN_STATES = frozenset({AlarmState.RAISED, AlarmState.ACKNOWLEDGED})


def next_alarm_state(state: AlarmState | None, event: AlarmEvent) -> AlarmState:
    """Where the event leads. Raises: ConflictError when there is no such arrow."""
    found = TRANSITIONS.get((state, event))
    if found is None:
        raise ConflictError(f"An alarm that is {state or 'not there'} cannot become {event.value!r}.", code="alarm-state")
    return found


class SubjectKind(StrEnum):
    """What an alarm is about."""

    DEVICE = "device"
    #: Devices of one site and device type that run the same model version.
    GROUP = "group"
    #: Devices of one cohort of a campaign.
    COHORT = "cohort"


class Cause(StrEnum):
    """What moved."""

    #: What the camera or sensor delivers.
    INPUT = "input"
    #: How often each answer comes, while the input did not move.
    PRIOR = "prior"
    #: What the same input means: seen by labels or by a bigger model only.
    CONCEPT = "concept"
    #: Not told yet.
    UNKNOWN = "unknown"


#: What windows tell of; labels alone tell of the rest.
BY_WINDOWS = frozenset({Cause.INPUT, Cause.PRIOR, Cause.UNKNOWN})


class Grade(StrEnum):
    """How good a device's own reference is (DRIFT 5.2)."""

    #: Fewer than 14 complete days: no alarms yet.
    COLLECTING = "collecting"
    #: 14 to 27 days: alarms, marked.
    PROVISIONAL = "provisional"
    #: From 28 days on: alarms under the promised rate.
    CALIBRATED = "calibrated"


class Check(StrEnum):
    """Who judges a device's windows: twin setting `drift.check`."""

    DEVICE = "device"
    SERVER = "server"


class Trust(StrEnum):
    """Whether an accuracy that was estimated without labels may be believed (DRIFT 6)."""

    #: No open alarm on input or embedding features.
    TRUSTED = "trusted"
    #: An open alarm, of a kind that was validated at release.
    MATCHED = "matched"
    #: Anything else: shown gray, barred from gates.
    NOT_TRUSTED = "not_trusted"


@dataclass(frozen=True, slots=True)
class AlarmSubject:
    """What an alarm is about: a device's pipeline, or devices that share a model version."""

    kind: SubjectKind
    #: Device id; "site/device-type"; "campaign/arm".
    name: str
    #: Empty for groups and cohorts.
    pipeline: str
    #: First 16 bytes of the model version's digest, hex.
    model: str

    @property
    def text(self) -> str:
        """One line of it, stable; part of a key."""
        return f"{self.kind.value}/{self.name}/{self.pipeline}/{self.model}"


@dataclass(frozen=True, slots=True)
class Attribution:
    """One feature that moved. Explains an alarm, never raises one (DRIFT 5.7)."""

    #: "classes" for the shares of the predicted classes.
    feature: str
    #: input, embedding, output or classes.
    group: str
    #: How it moved, a word for people: darker, blurrier, higher …
    word: str
    #: Its own tail probability, after the reference.
    p: float
    #: Its part of T², -1 to 1; parts of all features sum to 1.
    share: float
    #: Shift of its place and of its spread, in deviations of the reference.
    place: float
    spread: float
    #: Distances of the drawn distributions; shares floored at 1e-4.
    psi: float
    js: float
    w1: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """Drift that needs an answer: one row."""

    tenant: TenantId
    alarm: str
    subject: AlarmSubject
    state: AlarmState
    cause: Cause
    grade: Grade
    #: hex; of the windows that raised it.
    grid_id: str
    #: hex; None for alarms without a reference (concept).
    reference_id: str | None
    #: Start of the sub-window in which it began.
    onset: datetime
    raised_at: datetime
    #: How seldom what crossed comes without a change (1 / least p over share of the looks), and the threshold it crossed.
    statistic: float
    threshold: float
    #: The false alarms per device-year that threshold stands for.
    rate: float
    features: tuple[Attribution, ...] = ()
    #: One sentence for people.
    words: str = ""
    #: Devices it holds: 1 for a device's own.
    devices: tuple[DeviceId, ...] = ()
    #: The group alarm that adopted it.
    parent: str | None = None
    #: Window ids ("w0-nsub") of the evidence.
    evidence: tuple[str, ...] = ()
    reopened: int = 0
    acknowledged_at: datetime | None = None
    acknowledged_by: str = ""
    note: str = ""
    #: Run or site job that answers it.
    link: str = ""
    cleared_at: datetime | None = None
    #: Why it was cleared.
    outcome: AlarmEvent | None = None
    muted_until: datetime | None = None
    #: When people were last told.
    notified_at: datetime | None = None
    #: Since when, by the time of its windows, the statistic has been below the root of the threshold; None while it is above.
    low_since: datetime | None = None
    revision: int = 1

    @property
    def is_open(self) -> bool:
        """Whether it is raised or acknowledged."""
        return self.state in OPEN_STATES

    @property
    def moves_input(self) -> bool:
        """Whether an input or embedding feature moved: then no estimate of accuracy is trusted as it is."""
        return any(one.group in {"input", "embedding"} for one in self.features)


@dataclass(frozen=True, slots=True)
class DriftState:
    """Where the evidence of one pipeline of a device stands; what a restart goes on from."""

    device: DeviceId
    pipeline: str
    model: str
    grid_id: str
    grade: Grade
    check: Check
    reference_id: str | None
    #: How seldom the latest stretch comes without a change: an alarm when it reaches the threshold.
    statistic: float
    #: What a crossing needs: windows of a year over the false alarms allowed.
    threshold: float
    #: Latest T² and its p; None before a testable sub-window.
    score: float | None
    p: float | None
    #: E of DRIFT 5.6: orders devices.
    evidence: float
    #: Whether e-BH lists the device at the fleet's false-discovery share.
    is_listed: bool
    #: End of the latest window that was judged.
    judged_until: datetime | None
    #: Complete days of rows seen; counts up to `provisional` and `calibrated`.
    days: int
    #: Distance to the model version's reference profile, T² per coordinate; None while unknown. Shown, never an alarm.
    site_gap: float | None = None
    #: Peer residual's p in its latest hour; shown, never an alarm.
    peer_p: float | None = None
    #: Code → seconds of the latest window.
    conditions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reference:
    """A device's reference profile as the server keeps it."""

    device: DeviceId
    pipeline: str
    model: str
    grid_id: str
    reference_id: str
    grade: Grade
    source: ReferenceSource
    #: As protocol.sketches.reference encodes it.
    body: bytes
    stored_at: datetime
    #: None for the one in use.
    retired_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Accuracy measured with labels, and how sure: holds at any time somebody looks (DRIFT 6)."""

    right: int
    labels: int
    low: float
    high: float
    #: Value of the slice, e.g. "night"; empty: all.
    slice: str = ""

    @property
    def accuracy(self) -> float | None:
        """Share that was right; None without labels."""
        return self.right / self.labels if self.labels else None


@dataclass(frozen=True, slots=True)
class AccuracyRange:
    """Accuracy without labels: a range and whether it may be believed.

    A range of estimates; or, where the release knows the places it was tried on, what was wrong by at places that were left out.
    """

    low: float
    high: float
    trust: Trust
    #: Why it is not trusted or how it matched, a sentence.
    reason: str
    #: Name (doc, atc, atc_confidence, cbpe; places where they are known, labels where some correct that) → estimate.
    estimates: Mapping[str, float]
    #: Class priors by BBSE, in order of the grid's classes; empty without classes.
    priors: tuple[float, ...]
    rows: int
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True, slots=True)
class FeatureCell:
    """One cell of the heat map: a feature of a pipeline of a device."""

    feature: str
    group: str
    #: None: not tested.
    p: float | None
    #: Shift of its place in deviations of the reference.
    place: float | None


@dataclass(frozen=True, slots=True)
class OverviewRow:
    """One row of the heat map."""

    state: DriftState
    #: The open alarm, if any.
    alarm: str | None
    alarm_state: AlarmState | None
    cells: tuple[FeatureCell, ...]
    #: Where the reference in use comes from; None while there is none.
    source: ReferenceSource | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """One feature, reference against now, over the cells between the grid's edges (under and over in the outer ones)."""

    feature: str
    edges: tuple[float, ...]
    reference: tuple[float, ...]
    now: tuple[float, ...]
    rows: int
    psi: float
    js: float
    w1: float
    #: Whose reference: device or model.
    reference_of: str


@dataclass(frozen=True, slots=True)
class TimePoint:
    """One sub-window of a time line; `score` and `p` are None when it was not testable."""

    at: datetime
    score: float | None
    p: float | None
    #: What the looks say at its end, to be compared with the threshold; None: nothing is known there.
    statistic: float | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What `f/alarm` and webhooks tell of one alarm (CloudEvents data)."""

    #: raised, reopened, acknowledged or cleared.
    what: str
    alarm: Alarm


#: False alarms that were to be expected before their absence says anything.
TELLING = 0.1


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """How the promise was kept: alarms people called false, over the device-years watched."""

    count: int
    alarms: int
    device_years: float
    #: One-sided 95 % upper bound of the rate per device-year (Poisson); None while nothing was watched.
    bound: float | None
    #: What was asked for.
    rate: float

    @property
    def is_telling(self) -> bool:
        """Whether the bound says anything of the rate: a false alarm was seen, or a tenth of one was to be expected by what was asked."""
        return self.count > 0 or self.device_years * self.rate >= TELLING
