"""The device's own check: a score for each sub-window, evidence over blocks, a crossing that the server is shown (DRIFT 5.2 to 5.5). Pure.

It works without a server. What it finds is evidence and not yet an alarm: the server verifies it from the counts.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from protocol.errors import InvalidError
from protocol.sketches.evidence import Evidence, Plan, decode_evidence, default_plan, e_values, encode_evidence, fresh_evidence
from protocol.sketches.grid import Grid
from protocol.sketches.normal import DoubleArray
from protocol.sketches.reference import DeviceReference, complete_days
from protocol.sketches.summary import summarizer

#: Sub-windows of a day: the least time for which the evidence stays low before a crossing is over (DRIFT 5.9).
DAY = 144
#: Features that are named with a score.
NAMED_FEATURES = 8
#: Where a reference comes from: fitted here, carried over from the release before, brought from elsewhere.
OWN, CARRIED, LENT = "own", "carried", "lent"


@dataclass(frozen=True, slots=True)
class CheckState:
    """Where the check of one subject stands; all that a restart needs besides the reference's bytes."""

    #: Seconds between two rows.
    step_s: float
    #: Sub-windows before this one count for no reference: somebody took what came then as past.
    since_w0: int = 0
    #: Complete days seen so far.
    days: int = 0
    #: Rows of a sub-window of the reference, the median; None without one.
    usual_rows: float | None = None
    #: OWN, CARRIED or LENT; empty without a reference.
    origin: str = ""
    #: Evidence of the reference's blocks, encoded; None without a reference.
    evidence: bytes | None = None
    #: Latest score, its tail probability, and the sub-window.
    score: float | None = None
    p: float | None = None
    judged_w0: int = -1
    #: The sub-window that crossed, None while nothing is raised; and since when the evidence has been low again.
    raised_w0: int | None = None
    low_w0: int | None = None
    #: R at the crossing.
    crossed_at: float = 0.0
    #: (name, share of T²), the largest first.
    features: tuple[tuple[str, float], ...] = ()
    #: The reference's id was put into the outbox.
    is_told: bool = False

    @property
    def is_raised(self) -> bool:
        """Whether a crossing stands."""
        return self.raised_w0 is not None


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one sub-window."""

    state: CheckState
    #: T² as it travels; None: not judged.
    score: float | None = None
    #: This sub-window made the evidence cross: it goes to the server at once.
    is_crossing: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user asks of the check."""

    #: False alarms per device-year.
    rate: float = 1.0
    #: Whether a crossing counts; False: the server judges.
    may_raise: bool = True


def plan_of(reference: DeviceReference) -> Plan:
    """The detectors that share the budget."""
    return default_plan(reference.subwindows)


def evidence_of(state: CheckState, reference: DeviceReference) -> Evidence:
    """The evidence so far; a new one when it is of other blocks or cannot be read. Raises: never."""
    plan = plan_of(reference)
    if state.evidence is not None:
        try:
            return decode_evidence(state.evidence, plan)
        except InvalidError:
            pass
    return fresh_evidence(plan)


def value_of(state: CheckState, reference: DeviceReference, rate: float) -> tuple[float, float]:
    """The evidence in units of the leading detector's threshold, and that threshold: it crosses when the first reaches the second."""
    plan, evidence = plan_of(reference), evidence_of(state, reference)
    leading = evidence.leading(plan, rate)
    wanted = dict(zip((one.name for one in plan.detectors), plan.thresholds(rate), strict=True))[leading.name]
    return evidence.urgency(plan, rate) * wanted, wanted


def with_reference(
    state: CheckState, reference: DeviceReference | None, *, origin: str = "", usual_rows: float | None = None
) -> CheckState:
    """The state with that reference: the evidence begins anew."""
    evidence = None if reference is None else encode_evidence(fresh_evidence(plan_of(reference)))
    fresh = CheckState(state.step_s, state.since_w0, state.days)
    return replace(fresh, origin=origin, usual_rows=usual_rows, evidence=evidence)


def judge(state: CheckState, reference: DeviceReference, grid: Grid, summary: DoubleArray | None, w0: int, rules: Rules) -> Judged:
    """The sub-window's score, what the evidence is with it, and whether it crosses. `summary`: float64[d]; None: it is not testable."""
    evidence, plan = evidence_of(state, reference), plan_of(reference)
    if w0 < max(state.judged_w0, *(one.block * one.subwindows for one in evidence.states)) - DAY:
        state, evidence = _turned_back(state, w0), fresh_evidence(plan)
    if evidence.is_late(w0) or w0 <= state.judged_w0:
        return Judged(state)
    if summary is None:
        evidence = evidence.step(w0, math.nan)
        return Judged(_settled(replace(state, evidence=encode_evidence(evidence)), evidence, plan, w0, rules))
    vector = np.asarray(summary, np.float64)
    score = float(reference.scores(vector[None])[0])
    p = float(reference.p_values(np.array([score], np.float32))[0])
    e = float(e_values(np.array([p]))[0]) if reference.may_alarm else math.nan
    evidence = evidence.step(w0, e)
    state = replace(state, score=score, p=p, judged_w0=w0, evidence=encode_evidence(evidence))
    is_crossed = evidence.is_crossed(plan, rules.rate) and rules.may_raise and reference.may_alarm
    if is_crossed and not state.is_raised:
        value, _ = value_of(state, reference, rules.rate)
        evidence = evidence.restarted(w0 + 1)
        raised = replace(state, raised_w0=w0, low_w0=None, crossed_at=value, features=parts_of(reference, grid, vector))
        return Judged(replace(raised, evidence=encode_evidence(evidence)), score, is_crossing=True)
    if not state.is_raised:
        state = replace(state, features=parts_of(reference, grid, vector))
    return Judged(_settled(state, evidence, plan, w0, rules), score)


def _turned_back(state: CheckState, w0: int) -> CheckState:
    """The state for a clock that is put back by more than a day: what was judged lies in a time that is not yet. An alarm stays one."""
    return replace(state, judged_w0=-1, raised_w0=None if state.raised_w0 is None else min(state.raised_w0, w0), low_w0=None)


def _settled(state: CheckState, evidence: Evidence, plan: Plan, w0: int, rules: Rules) -> CheckState:
    """The state without its crossing, once the evidence, begun anew, stayed below the root of the threshold for the hold (DRIFT 5.9)."""
    if state.raised_w0 is None:
        return state
    is_low = all(one.value < math.sqrt(wanted) for one, wanted in zip(evidence.states, plan.thresholds(rules.rate), strict=True))
    if not is_low:
        return replace(state, low_w0=None)
    low_w0 = w0 if state.low_w0 is None else state.low_w0
    hold = max(DAY, 2 * max(detector.subwindows for detector in plan.detectors))
    if w0 + 1 - low_w0 < hold:
        return replace(state, low_w0=low_w0)
    return replace(state, raised_w0=None, low_w0=None, crossed_at=0.0)


def parts_of(reference: DeviceReference, grid: Grid, summary: DoubleArray) -> tuple[tuple[str, float], ...]:
    """Which features a score is made of: (name, share of T²), the largest first; the shares of classes count as one, "classes"."""
    made = summarizer(grid)
    parts = np.zeros(made.dimensions)
    parts[reference.coordinates] = reference.scatter.contributions(np.asarray(summary, np.float64)[reference.coordinates])
    total = float(parts.sum())
    if not math.isfinite(total) or total <= 0:
        return ()
    named = {feature.name: float(parts[list(made.of_feature(index))].sum()) for index, feature in enumerate(grid.features)}
    if grid.classes:
        named["classes"] = float(parts[made.classes].sum())
    ordered = sorted(named.items(), key=lambda item: -item[1])[:NAMED_FEATURES]
    return tuple((name, round(part / total, 4)) for name, part in ordered)


def days_of(w0s: Sequence[int]) -> int:
    """Complete days among these testable sub-windows."""
    return len(complete_days(np.array(w0s, np.int64)))


def to_json(state: CheckState) -> str:
    """The state as it is remembered."""
    document = {name: getattr(state, name) for name in CheckState.__dataclass_fields__}
    document["evidence"] = None if state.evidence is None else base64.b64encode(state.evidence).decode()
    return json.dumps(document)


def from_json(text: str) -> CheckState:
    """Inverse of `to_json`. Raises: ValueError, TypeError, KeyError when the text is damaged."""
    document: dict[str, Any] = json.loads(text)
    known = {name: value for name, value in document.items() if name in CheckState.__dataclass_fields__}
    if known.get("evidence") is not None:
        known["evidence"] = base64.b64decode(known["evidence"])
    known["features"] = tuple((str(name), float(share)) for name, share in known.get("features", ()))
    return CheckState(**known)
