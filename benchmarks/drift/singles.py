"""PSI, KS, JS and W1 against the device's own reference, the largest over the features: what libraries alarm on. Simulated.

Each is given what ours is given: the same windows, the same four weeks, a tail of its own, and a threshold from the study's seeds alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.bank import Bank
from benchmarks.drift.stream import Means, Mixture, summaries
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
    start, half = REFERENCE_DAYS * WINDOWS, 14 * WINDOWS
    shares = summaries(device.bank, table.table, device.path, device.key)
    reference = shares[:half].mean(axis=0)
    scores = statistics(shares, reference, table.offsets)
    tails = [_tail(scores[half:start, index]) for index in range(len(NAMES))]
    clean = np.stack([_p(tail, scores[start:, index]) for index, tail in enumerate(tails)], axis=1)
    seen = {}
    for case in cases:
        values = statistics(_shifted(device, table, case), reference, table.offsets)
        seen[case.kind, case.name] = np.stack([_p(tail, values[:, index]) for index, tail in enumerate(tails)], axis=1)
    return clean, seen


def _tail(scores: Doubles) -> Tail | None:
    """None where a statistic has reached its largest value on every clean window: it can tell nothing on this device."""
    try:
        return fit_tail(scores)
    except InvalidError:
        return None


def _p(tail: Tail | None, scores: Doubles) -> Doubles:
    return np.ones(len(scores)) if tail is None else tail.p_values(scores)


def _shifted(device: Device, table: Cells, case: Case) -> Doubles:
    path = course(device.bank, device.sky, device.key, rare_factor=case.rare_factor) if case.rare_factor != 1 else device.path
    part = slice(device.onset, device.onset + _HORIZON)
    cut = Course(path.light[part], path.flicker[part], path.weather[part], path.chances[part], path.things)
    mixtures: tuple[Mixture, ...] = case.mixtures
    return summaries(device.bank, table.table, cut, (*device.key, 7), mixtures)
