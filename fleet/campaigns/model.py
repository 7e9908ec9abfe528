"""Values of campaigns: phases, the way of each device, what is assigned, and the verdict over a signed report; pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from protocol.errors import ConflictError, InvalidError
from protocol.ids import DeviceId, Digest, GroupName, LineName, ReleaseVersion, TenantId
from protocol.messages import VersionReport
from protocol.reasons import BLOCKED, REASONS, explained


class CampaignState(StrEnum):
    """Where a campaign is."""

    #: Its open phase goes on.
    RUNNING = "running"
    #: Opens nothing further until resumed; updates under way go on.
    PAUSED = "paused"
    #: Every device has a verdict, and the failures stayed below the threshold.
    SUCCEEDED = "succeeded"
    #: Too many failures: the loop stopped it, and devices without a verdict were given back what they had.
    FAILED = "failed"
    #: A person stopped it.
    ABORTED = "aborted"


#: Every arrow that exists.
ARROWS: Mapping[CampaignState, frozenset[CampaignState]] = {
    CampaignState.RUNNING: frozenset({CampaignState.PAUSED, CampaignState.SUCCEEDED, CampaignState.FAILED, CampaignState.ABORTED}),
    CampaignState.PAUSED: frozenset({CampaignState.RUNNING, CampaignState.FAILED, CampaignState.ABORTED}),
    CampaignState.SUCCEEDED: frozenset(),
    CampaignState.FAILED: frozenset(),
    CampaignState.ABORTED: frozenset(),
}
OVER = frozenset(state for state, after in ARROWS.items() if not after)
#: A group runs what the newest campaign in one of these states brings it; who comes late to the group joins that one.
FOLLOWED = frozenset({CampaignState.RUNNING, CampaignState.SUCCEEDED})


class RunAs(StrEnum):
    """What a campaign brings its release to devices for."""

    #: To run it.
    ACTIVE = "active"
    #: To have it answer beside what they run, with nobody acting on that.
    SHADOW = "shadow"
    #: To have it take turns with what they run.
    AB = "ab"


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """How a campaign's release runs beside the one that its devices have."""

    run_as: RunAs = RunAs.ACTIVE
    #: Percent of the time blocks in which it answers, for `ab`.
    share: int = 100
    #: Percent of one core that comparing may take on each device.
    cpu: int = 20
    #: When it ends by itself; None: when somebody aborts the campaign.
    until: datetime | None = None

    @property
    def is_candidate(self) -> bool:
        """Whether the release is not to become what devices run."""
        return self.run_as is not RunAs.ACTIVE


class UpdateState(StrEnum):
    """How far one device is in one campaign, as its signed reports say."""

    #: Its phase is not open.
    WAITING = "waiting"
    #: The director names the release; no verdict yet.
    ASSIGNED = "assigned"
    #: Active, committed, the assigned digest, and enough healthy inferences; a candidate: installed beside what runs.
    UPDATED = "updated"
    #: It reported a failure or a rollback; the reason says which.
    FAILED = "failed"
    #: No verdict in time. A late report still counts.
    TIMED_OUT = "timed-out"
    #: Another assignment took its place.
    SUPERSEDED = "superseded"
    #: Taken back because the campaign ended before the device had a verdict.
    WITHDRAWN = "withdrawn"


#: Failures in the sense of a phase's threshold.
BAD = frozenset({UpdateState.FAILED, UpdateState.TIMED_OUT})
#: No verdict will follow by itself.
DECIDED = frozenset({UpdateState.UPDATED, UpdateState.SUPERSEDED, UpdateState.WITHDRAWN, *BAD})


@dataclass(frozen=True, slots=True)
class Phase:
    """One ordered step."""

    #: Percent of the campaign's devices that are in this phase or an earlier one.
    until_percent: int = 100
    #: Share of devices with a verdict that may be bad, 0..1; above it the campaign fails.
    failure_threshold: float = 0.1
    #: The threshold counts only once so many devices of the phase have a verdict.
    min_devices: int = 1
    #: Seconds that the phase stays open at least before the next one opens.
    soak_s: int = 0


@dataclass(frozen=True, slots=True)
class Campaign:
    """Plan and progress of bringing a release to the devices of a group."""

    tenant: TenantId
    campaign: str
    line: LineName
    version: ReleaseVersion
    group: GroupName
    state: CampaignState
    phases: tuple[Phase, ...]
    #: Index of the open phase.
    phase: int
    phase_since: datetime
    #: Healthy inferences that a report must show before its device counts as updated.
    min_inferences: int
    #: Seconds without a verdict after which a device counts as timed out.
    timeout_s: int
    created_at: datetime
    created_by: str
    revision: int
    reason: str = ""
    finished_at: datetime | None = None
    #: Bytes that each device may fetch in full over a metered link; None: its own policy alone decides.
    full_bytes: int | None = None
    #: Devices that refused or failed the release before try it once more: somebody said so.
    again: bool = False
    comparison: ComparisonPlan = ComparisonPlan()

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    def moved(self, state: CampaignState, *, now: datetime, reason: str = "") -> "Campaign":
        """The campaign in its new state, one revision on. Raises: ConflictError when there is no such arrow."""
        if state not in ARROWS[self.state]:
            raise ConflictError(f"Campaign {self.campaign} is {self.state}; it cannot become {state}.")
        finished = now if state in OVER else None
        return replace(self, state=state, reason=reason, finished_at=finished, revision=self.revision + 1)

    def advanced(self, *, now: datetime) -> "Campaign":
        """The campaign with its next phase open. Raises: ConflictError when the open one is the last."""
        if self.phase + 1 >= len(self.phases):
            raise ConflictError(f"Campaign {self.campaign} has its last phase open.")
        return replace(self, phase=self.phase + 1, phase_since=now, revision=self.revision + 1)


@dataclass(frozen=True, slots=True)
class Assigned:
    """What one line of a device shall run."""

    device: DeviceId
    line: LineName
    version: ReleaseVersion
    assignment: str
    attempt: int
    campaign: str
    assigned_at: datetime


@dataclass(frozen=True, slots=True)
class DeviceUpdate:
    """One device's way in one campaign."""

    campaign: str
    device: DeviceId
    phase: int
    state: UpdateState
    updated_at: datetime
    reason: str = ""
    text: str = ""
    assignment: str = ""
    assigned_at: datetime | None = None
    #: What the device had been assigned before on this line; None: nothing.
    previous: Assigned | None = None
    #: The attempt that it was assigned with; 0 before that.
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class BlockCause:
    """Why devices took a release back that they refuse since."""

    #: A code of `protocol.reasons`; empty: what the devices say is not listed here.
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Devices of a campaign that failed for one cause, with one of them as the example."""

    reason: str
    count: int
    example: DeviceUpdate
    #: Of `blocked`: what was behind it, the most frequent first.
    causes: tuple[BlockCause, ...] = ()


def meaning_of(campaign: Campaign, failures: FailureGroup) -> str:
    """What the failure means and what to do, for people; empty when its code is not listed."""
    if failures.reason != BLOCKED:
        return explained(failures.reason)
    causes = " ".join(
        f"{cause.count} for {cause.reason}: {REASONS[cause.reason].meaning}" if cause.reason else f"{cause.count} for what their texts say."
        for cause in failures.causes
    )
    again = f"mooring campaign create --line {campaign.line} --release {campaign.version} --group {campaign.group} --again"
    again += f" --as {campaign.comparison.run_as}" if campaign.comparison.is_candidate else ""
    if campaign.state not in OVER:
        again = f"mooring campaign abort {campaign.campaign}, then {again}"
    return f"{REASONS[BLOCKED].meaning} {causes} When that is mended: {again}"


class ReportChannel(StrEnum):
    """How a report came."""

    #: Over HTTPS from the device itself.
    ONLINE = "online"
    #: On a stick: it says how the device was when it wrote it.
    BUNDLE = "bundle"


@dataclass(frozen=True, slots=True)
class StoredReport:
    """The latest verified report of a device."""

    device: DeviceId
    report: VersionReport
    received_at: datetime
    #: What the next report should carry, and what the one before should have; empty: none was given.
    nonce: str
    previous_nonce: str = ""
    channel: ReportChannel = ReportChannel.ONLINE
    #: It carried neither of the two nonces given last: kept as what the device said, counted for nothing.
    is_stale: bool = False

    def is_fresh(self, nonce: str) -> bool:
        """Whether a report with this nonce was made after this one, or after the one before: an answer may be lost once."""
        return nonce in {self.nonce, self.previous_nonce}


@dataclass(frozen=True, slots=True)
class ReportedSlot:
    """What a device has in one slot of a line, by its latest signed report: a base that deltas may start from."""

    device: DeviceId
    line: LineName
    slot: str
    version: ReleaseVersion
    #: Digest of the model file as the device hashed it.
    sha256: Digest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a report says about an assignment; state None: no verdict yet."""

    state: UpdateState | None
    reason: str = ""
    text: str = ""


#: States of the device's update machine that end without the new release.
_FAILURES = frozenset({"failed", "rolled_back", "inconsistent"})


def judge(assigned: Assigned, wanted: Collection[Digest], report: VersionReport, *, min_inferences: int) -> Verdict:
    """The verdict of a verified report (UPDATES 1.8): updated only if the slot is active AND committed AND has the assigned digest.

    `wanted` are the digests of the model files that fit the device: compared with what it hashed, not with what it was told.
    """
    is_about_this = (report.assignment, report.attempt) == (assigned.assignment, assigned.attempt)
    if is_about_this and report.update_state in _FAILURES:
        return Verdict(UpdateState.FAILED, report.reason or report.update_state, report.text)
    slots = [slot for slot in report.slots if slot.line == assigned.line and slot.active]
    if any(slot.committed and slot.sha256 in wanted and slot.release == assigned.version for slot in slots):
        if report.healthy_inferences >= min_inferences:
            return Verdict(UpdateState.UPDATED)
        return Verdict(None, "unverified", f"{report.healthy_inferences} healthy inferences of {min_inferences} wanted")
    # a device that trusts the offer not has no update of it: what it refused is all that it says
    return Verdict(None, report.update_state if is_about_this else report.attack_indicator)


def judge_candidate(assigned: Assigned, wanted: Collection[Digest], report: VersionReport) -> Verdict:
    """The verdict of a verified report on a candidate: updated once it lies beside what the line runs, with the assigned digest."""
    if (report.assignment, report.attempt) != (assigned.assignment, assigned.attempt):
        return Verdict(None)
    if report.update_state in _FAILURES:
        return Verdict(UpdateState.FAILED, report.reason or report.update_state, report.text)
    slots = [slot for slot in report.slots if slot.line == assigned.line and slot.slot == "c"]
    if report.update_state == "succeeded" and any(slot.sha256 in wanted and slot.release == assigned.version for slot in slots):
        return Verdict(UpdateState.UPDATED)
    return Verdict(None, report.update_state)


def check_comparison(comparison: ComparisonPlan, now: datetime) -> ComparisonPlan:
    """The comparison when it makes sense. Raises: InvalidError naming what does not."""
    if not comparison.is_candidate:
        if comparison != ComparisonPlan():
            raise InvalidError("share, cpu and until belong to campaigns that compare.", hint="Say --as shadow or --as ab.")
        return comparison
    if not 1 <= comparison.cpu <= 100:
        raise InvalidError(f"cpu is {comparison.cpu} %; wanted 1 to 100 percent of one core.")
    lowest, highest = (1, 99) if comparison.run_as is RunAs.AB else (100, 100)
    if not lowest <= comparison.share <= highest:
        raise InvalidError(f"share is {comparison.share} % with --as {comparison.run_as}; wanted {lowest} to {highest} percent.")
    if comparison.until is not None and comparison.until <= now:
        raise InvalidError(f"until is {comparison.until:%Y-%m-%dT%H:%MZ}, which is over; wanted a moment to come.")
    return comparison


def check_phases(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The phases when they make sense. Raises: InvalidError naming the phase."""
    if not 1 <= len(phases) <= 20:
        raise InvalidError(f"{len(phases)} phases were given; wanted 1 to 20.")
    last = 0
    for number, phase in enumerate(phases, 1):
        if not last < phase.until_percent <= 100:
            raise InvalidError(f"Phase {number} ends at {phase.until_percent} %; wanted more than {last} % and at most 100 %.")
        if not 0 <= phase.failure_threshold <= 1 or phase.min_devices < 1 or phase.soak_s < 0:
            raise InvalidError(f"Phase {number}: {phase}; wanted a threshold of 0 to 1, at least 1 device, no negative time.")
        last = phase.until_percent
    if last != 100:
        raise InvalidError(f"The last phase ends at {last} %; wanted 100 %.")
    return phases
