"""The device's own check: each sub-window's score, several looks at the latest ones, a crossing that the server is shown (ADR 0034). Pure.

It works without a server. What it finds is evidence and not yet an alarm: the server verifies it from the counts.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from protocol.sketches.grid import Grid
from protocol.sketches.looks import LookReference, statistic_of, threshold_of
from protocol.sketches.normal import DoubleArray
from protocol.sketches.reference import COMPLETE_DAY, DeviceReference
from protocol.sketches.summary import summarizer

#: Sub-windows of a day: the least time for which the statistic stays low before a crossing is over (DRIFT 5.9).
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
    #: Sub-windows before this one enter no look: they were judged by another reference, or their alarm is over.
    from_w0: int = 0
    #: Latest score, its tail probability, and the sub-window that was judged last.
    score: float | None = None
    p: float | None = None
    judged_w0: int = -1
    #: What the looks say together, against the threshold; None: nothing is known.
    statistic: float | None = None
    #: The look that says most, and the sub-windows of its stretch; at the crossing once something is raised.
    look: str = ""
    stretch: int = 0
    #: The sub-window that crossed, None while nothing is raised; and since when the statistic has been low again.
    raised_w0: int | None = None
    low_w0: int | None = None
    #: The statistic at the crossing.
    crossed_at: float = 0.0
    #: (name, share of T²), the largest first.
    features: tuple[tuple[str, float], ...] = ()
    #: The reference's id was put into the outbox.
    is_told: bool = False
    #: Model and grid of the release before, whose inputs' reference is still to be carried over.
    carries: tuple[str, str] | None = None

    @property
    def is_raised(self) -> bool:
        """Whether a crossing stands."""
        return self.raised_w0 is not None


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one sub-window."""

    state: CheckState
    #: The ten-minute look's score as it travels; None: not judged.
    score: float | None = None
    #: This sub-window crossed: it goes to the server at once, behind those of the stretch before it.
    is_crossing: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user asks of the check."""

    #: False alarms per device-year.
    rate: float = 1.0
    #: Whether a crossing counts; False: the server judges.
    may_raise: bool = True


def with_reference(state: CheckState, *, from_w0: int, origin: str, usual_rows: float | None = None) -> CheckState:
    """The state with another reference: it judges from this sub-window on, and what was raised before is another one's matter."""
    return CheckState(state.step_s, state.since_w0, state.days, usual_rows, origin, from_w0)


def first_row(state: CheckState, reference: DeviceReference, w0: int) -> int:
    """The first sub-window that enters a look at the one given."""
    return max(w0 - reference.longest + 1, state.since_w0, 0 if _is_turned_back(state, w0) else state.from_w0)


def judge(state: CheckState, reference: DeviceReference, grid: Grid, rows: DoubleArray, w0: int, rules: Rules) -> Judged:
    """The sub-window's score, what the looks say with it, and whether that crosses.

    `rows`: summaries of consecutive sub-windows up to this one, float64[n, d], from `first_row` on; NaN rows where one is missing or not
    testable. A sub-window that is not testable itself crosses nothing.
    """
    if _is_turned_back(state, w0):
        state = _turned_back(state, w0)
    if w0 <= state.judged_w0:
        return Judged(state)
    if w0 - state.judged_w0 > reference.longest:  # a time of which nothing is known is not low
        state = replace(state, low_w0=None)
    state = _looked(replace(state, judged_w0=w0), reference, grid, rows)
    is_known = not np.isnan(rows[-1]).all()
    if is_known:
        score = reference.scores(rows[-1:])
        state = replace(state, score=float(score[0]), p=float(reference.p_values(score)[0]))
    score_now = state.score if is_known else None
    statistic = state.statistic if is_known and rules.may_raise and reference.may_alarm and not state.is_raised else None
    if statistic is not None and statistic >= threshold_of(rules.rate):
        return Judged(replace(state, raised_w0=w0, low_w0=None, crossed_at=statistic), score_now, is_crossing=True)
    return Judged(_settled(state, w0, rules), score_now)


def _looked(state: CheckState, reference: DeviceReference, grid: Grid, rows: DoubleArray) -> CheckState:
    """The state with what the looks say of the last row; what a crossing was made of stays."""
    value = float(reference.judged(rows)[-1])
    if math.isnan(value):
        return replace(state, statistic=None) if state.is_raised else replace(state, statistic=None, look="", stretch=0, features=())
    state = replace(state, statistic=statistic_of(value))
    if state.is_raised:
        return state
    leading = reference.leading(rows)
    features = parts_of(reference, grid, rows, leading)
    return replace(state, look=leading.look.name, stretch=leading.look.subwindows, features=features)


def _is_turned_back(state: CheckState, w0: int) -> bool:
    return w0 < max(state.judged_w0, state.raised_w0 or 0) - DAY


def _turned_back(state: CheckState, w0: int) -> CheckState:
    """The state for a clock that is put back by more than a day: what was judged lies in a time that is not yet. An alarm stays one."""
    raised_w0 = None if state.raised_w0 is None else min(state.raised_w0, w0)
    return replace(state, judged_w0=-1, raised_w0=raised_w0, low_w0=None, from_w0=min(state.from_w0, w0))


def _settled(state: CheckState, w0: int, rules: Rules) -> CheckState:
    """The state without its crossing, once the statistic stayed below the root of the threshold for the hold (DRIFT 5.9)."""
    if state.raised_w0 is None:
        return state
    if state.statistic is None or state.statistic >= math.sqrt(threshold_of(rules.rate)):
        return replace(state, low_w0=None)
    low_w0 = w0 if state.low_w0 is None else state.low_w0
    if w0 + 1 - low_w0 < max(DAY, 2 * state.stretch):
        return replace(state, low_w0=low_w0)
    return replace(state, raised_w0=None, low_w0=None, crossed_at=0.0, from_w0=w0 + 1)


def parts_of(reference: DeviceReference, grid: Grid, rows: DoubleArray, look: LookReference) -> tuple[tuple[str, float], ...]:
    """Which features the look's last stretch differs by: (name, share of T² from its nearest mode), the largest first.

    The shares of classes count as one, "classes".
    """
    made = summarizer(grid)
    parts = np.zeros(made.dimensions)
    parts[reference.coordinates] = reference.contributions(rows, look)
    total = float(parts.sum())
    if not math.isfinite(total) or total <= 0:
        return ()
    named = {feature.name: float(parts[list(made.of_feature(index))].sum()) for index, feature in enumerate(grid.features)}
    if grid.classes:
        named["classes"] = float(parts[made.classes].sum())
    ordered = sorted(named.items(), key=lambda item: -item[1])[:NAMED_FEATURES]
    return tuple((name, round(part / total, 4)) for name, part in ordered)


def days_of(w0s: Sequence[int]) -> int:
    """Complete days among these testable sub-windows, as `complete_days` finds them; numpy would take a MB of a device for it."""
    counts = Counter(w0 // DAY for w0 in set(w0s))
    return sum(count >= COMPLETE_DAY for count in counts.values())


def to_json(state: CheckState) -> str:
    """The state as it is remembered."""
    return json.dumps({name: getattr(state, name) for name in CheckState.__dataclass_fields__})


def from_json(text: str) -> CheckState:
    """Inverse of `to_json`. Raises: ValueError, TypeError, KeyError when the text is damaged."""
    document: dict[str, Any] = json.loads(text)
    known = {name: value for name, value in document.items() if name in CheckState.__dataclass_fields__}
    known["features"] = tuple((str(name), float(share)) for name, share in known.get("features", ()))
    if known.get("carries") is not None:
        model, grid = known["carries"]
        known["carries"] = (str(model), str(grid))
    return CheckState(**known)
