"""What windows say of drift: reference and windows in, scores, and the evidence that orders devices, out (DRIFT 5.3 to 5.6). Pure.

A device's alarm comes from one check: by the scores that the device sends (verified where its counts are there), or by the server's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from protocol.sketches.codec import Head, SketchWindow
from protocol.sketches.counts import Counts
from protocol.sketches.evidence import (
    BlockState,
    Evidence,
    Plan,
    e_values,
    fresh,
    fresh_evidence,
    is_late,
    steps,
)
from protocol.sketches.grid import Grid
from protocol.sketches.reference import DeviceReference
from protocol.sketches.scatter import Scatter
from protocol.sketches.summary import summarizer

DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: A score that the device says and one computed from its counts are the same when they differ by no more, absolute or relative.
SCORE_TOLERANCE = 1e-3
#: R is cut here, as in protocol.sketches.evidence: what is more needs no larger number.
_MOST = 1e30
#: The first sub-window of a stretch with a p below this is where a change began.
ONSET_P = 0.05
#: Share of wrong names that the order of devices may hold (DRIFT 5.6).
ALPHA = 0.1
#: A group's hour is judged with so many members reporting at least, and this share of all.
MIN_MEMBERS, MIN_SHARE = 3, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Sub-windows with their drift scores, ascending; NaN: not testable."""

    w0s: IntArray
    scores: DoubleArray
    p: DoubleArray


# --- scores ---


def device_scores(heads: Sequence[Head], references: Mapping[str, DeviceReference]) -> Scored:
    """The scores that a device sent, with their p by the reference each was measured against; those of an unknown one are left out."""
    parts: list[Scored] = []
    for head in heads:
        reference = references.get(head.reference_id.hex()) if head.reference_id is not None else None
        if reference is not None:
            scores = head.scores.astype(np.float64)
            parts.append(Scored(np.arange(head.w0, head.w0 + head.nsub), scores, reference.p_values(head.scores)))
    return _in_order(parts)


def server_scores(windows: Sequence[SketchWindow], reference: DeviceReference, grid: Grid) -> Scored:
    """T² of each window's counts by the server's own reference; it stands for every sub-window in it that has rows."""
    if not windows:
        return _in_order([])
    scores = reference.scores(summaries_of([window.counts for window in windows], grid))
    parts = []
    for window, score, p in zip(windows, scores.astype(np.float64), reference.p_values(scores), strict=True):
        has_rows = np.array([window.mask >> index & 1 for index in range(window.nsub)], dtype=bool)
        known = has_rows & is_testable(window.counts)
        w0s = np.arange(window.w0, window.w0 + window.nsub)
        parts.append(Scored(w0s, np.where(known, score, np.nan), np.where(known, p, np.nan)))
    return _in_order(parts)


def is_testable(counts: Counts) -> bool:
    """Whether at most half of the rows were left out."""
    return counts.rows > 0 and counts.excluded <= counts.rows


def summaries_of(counts: Sequence[Counts], grid: Grid) -> DoubleArray:
    """float64[n, d] of n counts."""
    made = summarizer(grid)
    return made.summarize(np.stack([one.cells for one in counts]), np.stack([one.classes for one in counts]))


def is_verified(window: SketchWindow, reference: DeviceReference, grid: Grid) -> bool:
    """Whether T² from the counts of a sub-window is the score that the device said."""
    said, computed = float(window.scores[0]), float(reference.scores(summaries_of([window.counts], grid))[0])
    return bool(np.isfinite(said)) and abs(said - computed) <= SCORE_TOLERANCE * max(1.0, abs(said))


# --- evidence ---


def judge(evidence: Evidence | None, plan: Plan, scored: Scored, *, start: int) -> Evidence:
    """The evidence after these sub-windows, which are all there are of the blocks from sub-window `start` on.

    Blocks that were judged before are judged again from the one that `start` lies in; what is older than the history stays as it is.
    """
    values = np.where(np.isnan(scored.p), np.nan, e_values(scored.p))
    states = (evidence or fresh_evidence(plan)).states
    return Evidence(tuple(_forward(rewound(state, start // state.subwindows), scored.w0s, values) for state in states))


def rewound(state: BlockState, block: int) -> BlockState:
    """The state at the beginning of a block that is open or closed: what came from there on is forgotten."""
    if state.block < 0 or block > state.block:
        return state
    first = state.closed_blocks.start
    block = max(block, first)
    kept, r = state.past[: block - first], state.r_before
    for mean in kept.tolist():
        r = r if math.isnan(mean) else min((1 + r) * mean, _MOST)
    return replace(state, block=block, r=r, seen=fresh(state.subwindows).seen, past=kept)


def _forward(state: BlockState, w0s: IntArray, values: DoubleArray) -> BlockState:
    usable = np.array([not is_late(state, int(w0)) for w0 in w0s], dtype=bool)
    return steps(state, w0s[usable], values[usable])


# --- many devices ---


def list_by_e_values(evidence: Mapping[int, float], *, alpha: float = ALPHA) -> frozenset[int]:
    """e-BH: those whose E is among the k* largest, k* the largest k with E_(k) >= N / (k alpha); wrong names stay below `alpha` of them."""
    order = sorted(evidence, key=lambda key: (-evidence[key], key))
    most = max((k for k, key in enumerate(order, 1) if evidence[key] >= len(order) / (k * alpha)), default=0)
    return frozenset(order[:most])


def peer_residuals(residuals: DoubleArray) -> DoubleArray:
    """What each member differs from the mean of the others by: float64[n, d]; needs two members."""
    known = np.nan_to_num(residuals, nan=0.0)
    count = len(known)
    others = (known.sum(axis=0) - known) / (count - 1)
    return np.asarray(known - others, dtype=np.float64)


def group_is_testable(reporting: int, members: int) -> bool:
    """Whether enough members reported for the group's hour."""
    return reporting >= MIN_MEMBERS and reporting >= MIN_SHARE * members


def site_gap(reference: DeviceReference, model: DoubleArray) -> float:
    """Distance of a device's reference from the model version's, root mean square over coordinates in deviations of the device."""
    scatter: Scatter = reference.scatter
    x = scatter.standardized(model[reference.coordinates][None])[0]
    return float(np.sqrt((x**2).mean()))


def _in_order(parts: Sequence[Scored]) -> Scored:
    if not parts:
        return Scored(np.empty(0, np.int64), np.empty(0), np.empty(0))
    w0s = np.concatenate([part.w0s for part in parts]).astype(np.int64)
    scores, p = np.concatenate([part.scores for part in parts]), np.concatenate([part.p for part in parts])
    # evidence and its hour tell of the same sub-window: the longer window, later in the sequence, counts, unless it knows nothing
    order = np.lexsort((np.arange(len(w0s)), ~np.isnan(scores), w0s))
    w0s, scores, p = w0s[order], scores[order], p[order]
    is_last = np.append(np.diff(w0s) > 0, True)
    return Scored(w0s[is_last], scores[is_last], p[is_last])
