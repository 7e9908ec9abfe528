"""From p-values to alarms: e-values, their means over blocks, and Shiryaev-Roberts across blocks (DRIFT 5.3, 5.4); pure.

The promise "at most so many false alarms per device-year" is kept here. Inside a block windows may depend on each other in any way: a mean
of e-values is an e-value. Across blocks R_b = (1 + R_(b-1)) ē_b; without a change the mean time until R reaches A is at least A blocks.

A window that is missing or not testable counts as e = 1 when its block is closed and as 0 before: the running value of an open block only
grows. A block of which nothing was seen is no time at all: R stays, so a device that was off for a year raises nothing when it returns.
The state is what was seen, not the order it came in: late and replaced windows of the open block take their place by themselves
(`step`), those of a closed block by giving the whole block again (`replaced`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidError
from protocol.sketches import cbor
from protocol.sketches.grid import FloatArray
from protocol.sketches.leb128 import IntArray
from protocol.sketches.normal import DoubleArray, read_floats
from protocol.sketches.tail import P_MAX, P_MIN

FORMAT = 1
SUBWINDOWS_PER_YEAR = 365 * 144
#: False alarms per device-year that are allowed unless the user says otherwise.
DEFAULT_RATE = 1.0
#: Closed blocks that are remembered: late windows reach back so far, and evidence of many devices is compared over them.
HISTORY = 28
#: Longest block, sub-windows, and longest encoded state of all detectors, bytes.
MAX_SUBWINDOWS, MAX_STATE_BYTES = 1008, 64 << 10
MAX_DETECTORS = 8
#: Below this the mixture is taken from its series: the closed form loses digits.
_SMALL = 0.05
#: Where R ends: nothing is learned beyond.
_MOST = 1e30


def e_values(p: npt.ArrayLike) -> DoubleArray:
    """The mixture of power e-values, int_0^1 eps p^(eps-1) d eps = (1 - p + p ln p) / (p ln² p): float64[n] of p-values [n].

    Their mean is 1 at most when p is uniform or larger. p is cut to [1e-12, 1 - 1e-9]; NaN (not testable) stays NaN.
    Source: Vovk and Wang 2021, Annals of Statistics 49(3).
    """
    # with t = -ln p it is (e^t - 1 - t) / t²
    t = -np.log(np.clip(np.asarray(p, dtype=np.float64), P_MIN, P_MAX))
    safe = np.maximum(t, _SMALL)
    closed = (np.expm1(safe) - safe) / safe**2
    series = 0.5 + t * (1 / 6 + t * (1 / 24 + t * (1 / 120 + t * (1 / 720 + t * (1 / 5040 + t / 40320)))))
    return np.where(t < _SMALL, series, np.where(np.isnan(t), np.nan, closed))


def blocks_per_year(subwindows: int) -> float:
    """How many blocks of so many sub-windows a year has: 365 of a day."""
    return SUBWINDOWS_PER_YEAR / subwindows


def threshold(rate: float, blocks_a_year: float) -> float:
    """A: what the running value must reach for at most `rate` false alarms a year. Raises: ValueError when rate is not above 0."""
    if not rate > 0:
        raise ValueError(f"a rate of {rate} false alarms per year; wanted more than 0")
    return blocks_a_year / rate


@dataclass(frozen=True, slots=True, eq=False)
class BlockState:
    """What one detector knows. Raises on creation: InvalidError (bad-state)."""

    #: Sub-windows per block.
    subwindows: int
    #: Number of the open block: sub-window // subwindows; -1 before the first window.
    block: int
    #: R at the end of the block before the open one.
    r: float
    #: float32[subwindows]: e-values of the open block; NaN where none was seen.
    seen: FloatArray
    #: float64[up to HISTORY]: ē of the blocks before the open one, oldest first; NaN of a block of which nothing was seen.
    past: DoubleArray
    #: R before the oldest of `past`.
    r_before: float = 0.0
    #: Sub-windows before this one are not part of R: a restart.
    since: int = 0
    #: ē of the block that `since` lies in, as far as it comes after; NaN while that one is open or nothing of it was seen.
    partial: float = float("nan")

    def __post_init__(self) -> None:
        is_so = 1 <= self.subwindows <= MAX_SUBWINDOWS and -1 <= self.block < 1 << 32 and 0 <= self.since < 1 << 32
        is_so = is_so and self.seen.shape == (self.subwindows,) and self.past.ndim == 1 and len(self.past) <= HISTORY
        is_so = is_so and not bool((self.seen < 0).any() or (self.past < 0).any() or np.isinf(self.seen).any() or np.isinf(self.past).any())
        is_so = is_so and 0 <= self.r <= _MOST and 0 <= self.r_before <= _MOST and not self.partial < 0
        if not is_so:
            raise InvalidError(f"A state of blocks of {self.subwindows} that contradicts itself.", code="bad-state")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockState) and _document(self) == _document(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def value(self) -> float:
        """What is compared with the threshold: R, or (1 + R) S / m of the open block when that is more."""
        counted = self.seen[_start(self, self.block) :]
        return min(_MOST, max(self.r, (1 + self.r) * float(np.nansum(counted, dtype=np.float64)) / self.subwindows))

    @property
    def closed_blocks(self) -> range:
        """Numbers of the blocks that are remembered, the open one left out."""
        return range(self.block - len(self.past), self.block)


def fresh(subwindows: int) -> BlockState:
    """Nothing seen yet."""
    return BlockState(subwindows, -1, 0.0, _unseen(subwindows), np.empty(0))


def is_late(state: BlockState, w0: int) -> bool:
    """Whether the sub-window belongs to a block that is closed: `replaced` takes the whole block, `step` refuses."""
    return w0 // state.subwindows < state.block


def step(state: BlockState, w0: int, e: float) -> BlockState:
    """The state with the e-value of a sub-window, or with another one in its place; NaN: not testable. Blocks in between are closed.

    Raises: ValueError when its block is closed (`is_late`).
    """
    return steps(state, np.array([w0]), np.array([e]))


def steps(state: BlockState, w0s: IntArray, e: DoubleArray) -> BlockState:
    """The state with the e-values [n] of sub-windows w0s [n], ascending. Raises: ValueError when one is late or out of order."""
    if not len(w0s):
        return state
    blocks = w0s // state.subwindows
    if blocks[0] < state.block or (np.diff(w0s) < 0).any():
        raise ValueError(f"sub-windows from {w0s[0]} on are out of order or before the open block {state.block}")
    for block in np.unique(blocks):
        state = _opened(state, int(block))
        inside = blocks == block
        seen = state.seen.copy()
        seen[w0s[inside] - block * state.subwindows] = np.minimum(e[inside], np.finfo(np.float32).max)
        state = replace(state, seen=seen)
    return state


def replaced(state: BlockState, block: int, e: DoubleArray) -> BlockState:
    """The state with these e-values [subwindows] for a closed block, NaN where none was seen; R is followed from there on again.

    A block that is forgotten, or that ended before a restart, changes nothing of R. Raises: ValueError when the block is not closed.
    """
    if block >= state.block:
        raise ValueError(f"block {block} is not closed: the open one is {state.block}")
    place = block - state.closed_blocks.start
    if place < 0:
        return state
    seen = np.minimum(e, np.finfo(np.float32).max).astype(np.float32)
    past = state.past.copy()
    past[place] = _mean(seen)
    partial = _mean(seen, _start(state, block)) if block == state.since // state.subwindows else state.partial
    state = replace(state, past=past, partial=partial)
    return replace(state, r=_follow(state.r_before, past, state.closed_blocks.start, state))


def restarted(state: BlockState, w0: int) -> BlockState:
    """The state with R = 0 at sub-window w0, now or later: what an alarm does, so that the same windows do not raise the next one.

    Raises: ValueError when the block of w0 is closed.
    """
    if is_late(state, w0):
        raise ValueError(f"a restart at sub-window {w0}, before the open block {state.block}")
    return replace(_opened(state, w0 // state.subwindows), r=0.0, since=w0, partial=float("nan"))


def advanced(state: BlockState, w0: int) -> BlockState:
    """The state at the beginning of sub-window w0: blocks before it are closed, also when nothing came."""
    block = w0 // state.subwindows
    return _opened(state, block) if block > state.block else state


def trajectory(e: DoubleArray, r: float = 0.0) -> DoubleArray:
    """The running value after every sub-window of consecutive blocks: float64[blocks, subwindows] of e [blocks, subwindows], R before them.

    What `step` and `value` give one by one, for simulations.
    """
    running = np.cumsum(np.nan_to_num(e, nan=0.0), axis=1) / e.shape[1]
    means = np.where(np.isnan(e).all(axis=1), np.nan, np.where(np.isnan(e), 1.0, e).mean(axis=1))
    for block, mean in enumerate(means):
        running[block] = np.maximum(r, (1 + r) * running[block])
        r = r if np.isnan(mean) else (1 + r) * float(mean)
    return np.asarray(running, dtype=np.float64)


def fleet_evidence(state: BlockState, blocks: int = HISTORY) -> float:
    """E = 1/H sum over j of the product of ē_b from j to the last closed block: an e-value of "nothing changed in H blocks" (DRIFT 5.6)."""
    past = np.where(np.isnan(state.past), 1.0, state.past)[-blocks:]
    products = np.cumprod(past[::-1])
    missing = blocks - len(past)  # a change before the first block, had there been one: as the longest product
    return float((products.sum() + missing * (products[-1] if products.size else 1.0)) / blocks)


def onset_block(state: BlockState) -> int:
    """The block from which on the product of ē up to now is largest, the open one (so far) included; none before a restart."""
    open_mean = _mean(state.seen)
    means = np.append(np.where(np.isnan(state.past), 1.0, state.past), 1.0 if np.isnan(open_mean) else open_mean)
    with np.errstate(divide="ignore"):
        sums = np.cumsum(np.log(means)[::-1])[::-1]
    first = min(max(0, state.since // state.subwindows - state.closed_blocks.start), len(sums) - 1)
    return state.closed_blocks.start + first + int(np.argmax(sums[first:]))


@dataclass(frozen=True, slots=True)
class Detector:
    """One way to look at the same windows. Several share the budget: their shares add up to 1 at most."""

    name: str
    #: Sub-windows per block.
    subwindows: int
    #: Part of the false alarms allowed, 0..1.
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Detectors that spend one budget together. Raises on creation: ValueError when they spend more."""

    detectors: tuple[Detector, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.detectors) <= MAX_DETECTORS or len({one.name for one in self.detectors}) != len(self.detectors):
            raise ValueError(f"{len(self.detectors)} detectors; wanted 1 to {MAX_DETECTORS} of different names")
        if sum(one.share for one in self.detectors) > 1 + 1e-9 or any(one.share <= 0 for one in self.detectors):
            raise ValueError("detectors that spend more than the budget; wanted shares above 0 that add up to 1 at most")

    def thresholds(self, rate: float) -> tuple[float, ...]:
        """A of each detector, so that together they raise at most `rate` false alarms a year."""
        return tuple(threshold(rate * one.share, blocks_per_year(one.subwindows)) for one in self.detectors)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The states of all detectors of a plan, in its order; changed all together."""

    states: tuple[BlockState, ...]

    def is_late(self, w0: int) -> bool:
        """Whether some detector needs the whole block of this sub-window again."""
        return any(is_late(state, w0) for state in self.states)

    def step(self, w0: int, e: float) -> "Evidence":
        """See `step`. Raises: ValueError when it is late for one of them."""
        return Evidence(tuple(step(state, w0, e) for state in self.states))

    def restarted(self, w0: int) -> "Evidence":
        """See `restarted`."""
        return Evidence(tuple(restarted(state, w0) for state in self.states))

    def urgency(self, plan: Plan, rate: float) -> float:
        """The values in units of their thresholds, added up: an alarm from 1 on, at most `rate` false ones a year.

        Each R minus its number of blocks has mean 0 without a change, so the sum has the mean rate x years: it is sharper than waiting for
        one of them to reach its own threshold, at the same price.
        """
        return sum(state.value / wanted for state, wanted in zip(self.states, plan.thresholds(rate), strict=True))

    def is_crossed(self, plan: Plan, rate: float) -> bool:
        """Whether it is an alarm."""
        return self.urgency(plan, rate) >= 1

    def leading(self, plan: Plan, rate: float) -> Detector:
        """The detector that has the largest part in it."""
        parts = [state.value / wanted for state, wanted in zip(self.states, plan.thresholds(rate), strict=True)]
        return plan.detectors[int(np.argmax(parts))]


def default_plan(subwindows: int) -> Plan:
    """The detector of the design: one block length, the whole budget."""
    return Plan((Detector(f"blocks-{subwindows}", subwindows),))


def fresh_evidence(plan: Plan) -> Evidence:
    """Nothing seen yet by any of them."""
    return Evidence(tuple(fresh(detector.subwindows) for detector in plan.detectors))


def rebuilt(plan: Plan, w0s: IntArray, e: DoubleArray, *, since: int = 0) -> Evidence:
    """The evidence of all these sub-windows [n] in any order, the last one of a place counting; R begins at `since`."""
    order = np.argsort(w0s, kind="stable")
    begun = (replace(state, since=since) for state in fresh_evidence(plan).states)
    return Evidence(tuple(steps(state, w0s[order], e[order]) for state in begun))


def encode_evidence(evidence: Evidence) -> bytes:
    """Canonical bytes; `decode_evidence(encode_evidence(x)) == x`."""
    return cbor.encode([FORMAT, [_document(state) for state in evidence.states]])


def decode_evidence(data: bytes, plan: Plan) -> Evidence:
    """The states in these bytes.

    Raises: InvalidError (too-large, malformed, unknown-version, bad-state), also when they are of another plan.
    """
    document = cbor.decode(data, max_bytes=MAX_STATE_BYTES, what="Evidence")
    if not isinstance(document, list) or len(document) != 2 or document[0] != FORMAT or not isinstance(document[1], list):
        raise InvalidError("Evidence of another format.", code="unknown-version")
    states = tuple(map(_state, document[1]))
    if [state.subwindows for state in states] != [detector.subwindows for detector in plan.detectors]:
        raise InvalidError("Evidence of other block lengths than the plan's.", code="bad-state")
    return Evidence(states)


def _opened(state: BlockState, block: int) -> BlockState:
    """The state with that block open, empty unless it was."""
    if block == state.block:
        return state
    if state.block < 0:
        return replace(state, block=block)
    skipped = min(block - state.block - 1, HISTORY)
    first = state.closed_blocks.start
    past = np.concatenate([state.past, [_mean(state.seen)], np.full(skipped, np.nan)])
    if state.since // state.subwindows == state.block:
        state = replace(state, partial=_mean(state.seen, _start(state, state.block)))
    forgotten, kept = past[:-HISTORY], past[-HISTORY:]
    r_before = _follow(state.r_before, forgotten, first, state)
    r = _follow(r_before, kept, block - len(kept), state)
    return replace(state, block=block, r=r, seen=_unseen(state.subwindows), past=kept, r_before=r_before)


def _follow(r: float, means: DoubleArray, first: int, state: BlockState) -> float:
    """R after blocks with these means, the first of which has this number; it begins at 0 with the restart."""
    restart = state.since // state.subwindows
    for block, mean in enumerate(means.tolist(), first):
        if block <= restart and state.since:
            r, mean = 0.0, (state.partial if block == restart else float("nan"))  # noqa: PLW2901 - the part that counts
        r = r if np.isnan(mean) else min((1 + r) * mean, _MOST)
    return r


def _start(state: BlockState, block: int) -> int:
    """The first place in the block that counts for R."""
    return max(0, min(state.subwindows, state.since - block * state.subwindows))


def _mean(seen: FloatArray, start: int = 0) -> float:
    """ē of a closed block: what was not seen, or came before `start`, counts 1; NaN when nothing was seen."""
    counted = seen.astype(np.float64)
    counted[:start] = np.nan
    return float(np.where(np.isnan(counted), 1.0, counted).mean()) if not np.isnan(counted).all() else float("nan")


def _unseen(subwindows: int) -> FloatArray:
    return np.full(subwindows, np.nan, dtype=np.float32)


def _document(state: BlockState) -> list[Any]:
    seen = np.where(np.isnan(state.seen), np.float32(np.nan), state.seen)
    past = np.where(np.isnan(state.past), np.nan, state.past)
    numbers = np.array([state.r, state.r_before, np.nan if np.isnan(state.partial) else state.partial])
    packed = (seen.astype("<f4"), past.astype("<f8"), numbers.astype("<f8"))
    return [state.subwindows, state.block, state.since, *(part.tobytes() for part in packed)]


def _state(document: Any) -> BlockState:
    is_so = isinstance(document, list) and len(document) == 6 and all(type(value) is int for value in document[:3])
    is_so = is_so and all(isinstance(part, bytes) for part in document[3:])
    is_so = is_so and len(document[3]) == 4 * document[0] and len(document[4]) % 8 == 0 and len(document[5]) == 24
    if not is_so:
        raise InvalidError("A state of a detector that is no list of six.", code="bad-state")
    subwindows, block, since, seen, past, numbers = document
    r, r_before, partial = read_floats(numbers, np.float64).tolist()
    return BlockState(
        subwindows,
        block,
        r,
        read_floats(seen, np.float32),
        read_floats(past, np.float64),
        r_before,
        since,
        partial,
    )
