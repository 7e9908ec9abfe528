"""What a campaign does next: open, hold, fail or end. Values in, values out; it never opens more than its phases allow."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fleet.campaigns.model import BAD, DECIDED, FOLLOWED, Campaign, CampaignState, UpdateState
from protocol.ids import DeviceId


class Step(StrEnum):
    """What to do now."""

    #: Assign the release to the waiting devices of the open phase.
    ASSIGN = "assign"
    #: Nothing: wait for reports or time.
    HOLD = "hold"
    #: Open the next phase.
    ADVANCE = "advance"
    #: Open nothing further until somebody resumes it.
    PAUSE = "pause"
    #: Too many failures: stop and take back what has no verdict.
    FAIL = "fail"
    #: All devices have a verdict: the campaign is done.
    SUCCEED = "succeed"


@dataclass(frozen=True, slots=True)
class Decision:
    """The step, and why."""

    step: Step
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many devices of each phase are in each state."""

    by_phase: Mapping[int, Mapping[UpdateState, int]] = field(default_factory=dict)

    def count(self, phase: int, states: Iterable[UpdateState] | None = None) -> int:
        """Devices of the phase in these states, in all when None."""
        counts = self.by_phase.get(phase, {})
        return sum(counts.values()) if states is None else sum(counts.get(state, 0) for state in states)


@dataclass(frozen=True, slots=True)
class Rank:
    """Where the campaign's release stands in its line: below the floor no device installs it any more."""

    counter: int
    floor: int = 0

    @property
    def is_below_floor(self) -> bool:
        return self.counter < self.floor


def decide(campaign: Campaign, counts: Counts, now: datetime, rank: Rank) -> Decision:
    """The next step of a campaign. One step at a time: the caller counts again and asks again."""
    if campaign.is_over:
        return Decision(Step.HOLD, "over")
    failure = _find_failure(campaign, counts)
    if failure:
        return Decision(Step.FAIL, failure)
    if campaign.state is CampaignState.PAUSED:
        return Decision(Step.HOLD, "paused")
    if campaign.comparison.until is not None and now >= campaign.comparison.until:
        return Decision(Step.SUCCEED)
    if rank.is_below_floor and any(counts.count(number) > counts.count(number, DECIDED) for number in range(len(campaign.phases))):
        text = f"The release has counter {rank.counter}; the floor of line {campaign.line} was raised to {rank.floor}: devices refuse it."
        return Decision(Step.PAUSE, text)
    if counts.count(campaign.phase, [UpdateState.WAITING]):
        return Decision(Step.ASSIGN)
    if counts.count(campaign.phase) > counts.count(campaign.phase, DECIDED):
        return Decision(Step.HOLD, "waits for verdicts")
    if campaign.phase + 1 == len(campaign.phases):
        # a comparison goes on with all devices in it, until its time is over or somebody ends it
        return Decision(Step.HOLD, "compares") if campaign.comparison.is_candidate else Decision(Step.SUCCEED)
    if (now - campaign.phase_since).total_seconds() < campaign.phases[campaign.phase].soak_s:
        return Decision(Step.HOLD, "soaks")
    return Decision(Step.ADVANCE)


def _find_failure(campaign: Campaign, counts: Counts) -> str:
    """Why the campaign has failed, empty when it has not: any open phase over its threshold, counted over devices with a verdict."""
    for number, phase in enumerate(campaign.phases[: campaign.phase + 1]):
        bad = counts.count(number, BAD)
        judged = bad + counts.count(number, [UpdateState.UPDATED])
        if judged >= phase.min_devices and bad > phase.failure_threshold * judged:
            return f"{bad} of {judged} devices of phase {number + 1} failed; at most {phase.failure_threshold:.0%} may"
    return ""


def phase_of_newcomer(campaign: Campaign) -> int | None:
    """The phase that a device gets which came to the group after the campaign began; None: it does not join.

    Always the last one, so that no earlier phase grows beyond its plan; of a campaign that succeeded the last one is open.
    """
    return len(campaign.phases) - 1 if campaign.state in FOLLOWED and not campaign.comparison.is_candidate else None


def spread(campaign: str, devices: Iterable[DeviceId], until_percents: Iterable[int]) -> dict[DeviceId, int]:
    """The phase of each device: the same for the same campaign and device list, by a hash, so that nobody picks.

    A phase that ends at p percent gets the devices up to ceil(n * p / 100), so the first phase never is empty.
    """
    ranked = sorted(devices, key=lambda device: hashlib.sha256(f"{campaign}/{device}".encode()).digest())
    bounds = [-(-len(ranked) * percent // 100) for percent in until_percents]
    return {device: next(phase for phase, bound in enumerate(bounds) if rank < bound) for rank, device in enumerate(ranked)}
