"""PSI, KS, JS and W1 against the device's own reference, the largest over the features: what libraries alarm on. Simulated.

Each is given what ours is given: the same windows, the same four weeks, a tail of its own, and a threshold from the study's seeds alone.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.bank import Bank
from benchmarks.drift.stream import WEEK, Means, in_weeks
from benchmarks.drift.trial import REFERENCE_DAYS, Case, Device
from benchmarks.drift.world import WINDOWS, Course, course
from protocol.errors import InvalidError
from protocol.sketches.grid import Grid
from protocol.sketches.tail import Tail, fit_tail

Doubles = npt.NDArray[np.float64]
NAMES = ("psi", "ks", "js", "w1")
_FLOOR = 1e-4
_HORIZON = 2 * WINDOWS


@dataclass(frozen=True, slots=True)
class Cells:
    """Shares of every bin per state, as `Means`, and where each feature's bins (and the classes) begin."""

    table: Means
    offsets: tuple[int, ...]


def cells(grid: Grid, bank: Bank, shifts: Sequence[str]) -> Cells:
    """Like `stream.means`, of one-hot bins instead of summaries."""
    sizes = [feature.bins for feature in grid.features] + [len(grid.classes)]
    offsets = tuple(int(at) for at in np.cumsum([0, *sizes]))
    by_shift = {}
    for name in ("clean", *shifts):
        rows, predicted = bank.rows[name], bank.predicted[name]
        flat = rows.reshape(-1, rows.shape[-1])
        hot = np.zeros((len(flat), offsets[-1]), np.float32)
        for index, feature in enumerate(grid.features):
            bins = np.searchsorted(np.array(feature.edges, np.float32), flat[:, index], side="left")
            hot[np.arange(len(flat)), offsets[index] + bins] = 1
        hot[np.arange(len(flat)), offsets[-2] + predicted.reshape(-1).astype(np.int64)] = 1
        by_shift[name] = hot.reshape(*rows.shape[:-1], -1).mean(axis=3)
    return Cells(Means(by_shift, np.zeros(offsets[-1])), offsets)


def statistics(shares: Doubles, reference: Doubles, offsets: Sequence[int]) -> Doubles:
    """float64[n, 4]: PSI, KS, JS, W1 of windows [n, cells] against reference [cells], each the largest over features."""
    best = np.zeros((len(shares), len(NAMES)))
    for start, stop in itertools.pairwise(offsets):
        p = np.maximum(shares[:, start:stop], 0)
        q = reference[None, start:stop]
        safe_p, safe_q = np.maximum(p, _FLOOR), np.maximum(q, _FLOOR)
        middle = (safe_p + safe_q) / 2
        gap = np.abs(np.cumsum(p - q, axis=1))
        js = np.sqrt(np.maximum(((safe_p * np.log2(safe_p / middle)) + (safe_q * np.log2(safe_q / middle))).sum(axis=1) / 2, 0))
        found = np.stack([((safe_p - safe_q) * np.log(safe_p / safe_q)).sum(axis=1), gap.max(axis=1), js, gap.mean(axis=1)], axis=1)
        best = np.maximum(best, found)
    return best


def p_values(device: Device, table: Cells, cases: Sequence[Case]) -> tuple[Doubles, dict[tuple[str, str], Doubles]]:
    """P of clean windows after the reference [n, 4], and of each case's windows [horizon, 4]; the tail as ours: 14 days and 14 days."""
    half, start = 14 * WINDOWS, REFERENCE_DAYS * WINDOWS
    weeks = in_weeks(device.bank, table.table, device.path, device.key)
    first = [next(weeks) for _ in range(half // WEEK)]
    reference = np.concatenate(first).mean(axis=0)
    scores = np.concatenate([statistics(week, reference, table.offsets) for week in weeks])  # from `half` on; a year has no room in memory
    tails = [_tail(scores[: start - half, index]) for index in range(len(NAMES))]
    seen = {}
    for case in cases:
        values = np.concatenate([statistics(week, reference, table.offsets) for week in _shifted(device, table, case)])
        seen[case.kind, case.name] = _p_values(tails, values)
    return _p_values(tails, scores[start - half :]), seen


def _p_values(tails: Sequence[Tail | None], scores: Doubles) -> Doubles:
    """float64[n, 4] of scores [n, 4]."""
    return np.stack([_p(tail, scores[:, index]) for index, tail in enumerate(tails)], axis=1)


def _tail(scores: Doubles) -> Tail | None:
    """None where a statistic has reached its largest value on every clean window: it can tell nothing on this device."""
    try:
        return fit_tail(scores)
    except InvalidError:
        return None


def _p(tail: Tail | None, scores: Doubles) -> Doubles:
    return np.ones(len(scores)) if tail is None else tail.p_values(scores)


def _shifted(device: Device, table: Cells, case: Case) -> Iterator[Doubles]:
    path = course(device.bank, device.sky, device.key, rare_factor=case.rare_factor) if case.rare_factor != 1 else device.path
    part = slice(device.onset, device.onset + _HORIZON)
    cut = Course(path.light[part], path.flicker[part], path.weather[part], path.chances[part], path.things)
    return in_weeks(device.bank, table.table, cut, (*device.key, 7), case.mixtures)
