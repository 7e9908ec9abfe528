"""Our detectors on one simulated device: several looks with one budget (ADR 0034), and beside them the blocks of DRIFT 5.4."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.trial import HORIZON, REFERENCE_DAYS, Case, Device, alarms, delay
from benchmarks.drift.world import WINDOWS
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR, blocks_per_year, e_values, threshold, trajectory
from protocol.sketches.grid import Grid
from protocol.sketches.looks import LOOKS, calibrated, fit_looks, looks_for
from protocol.sketches.reference import choose_block
from protocol.sketches.scatter import fit_scatter
from protocol.sketches.tail import fit_tail

Doubles = npt.NDArray[np.float64]
RATES = (0.2, 1.0, 5.0)
#: More of them, to see how what is seen follows what is asked.
CURVE = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, slots=True)
class Judged:
    """Of one device: clean years, false alarms and delays in windows per rate asked; what else was seen."""

    years: float
    alarms: dict[float, int]
    delays: dict[float, dict[tuple[str, str], int]]
    notes: dict[str, list[float]]


def looks(device: Device, grid: Grid, cases: Sequence[Case]) -> Judged:
    """Several looks at once. Notes: how often p <= 0.01, 0.001, 0.0001 on clean windows, as multiples of that, for each look."""
    clean = device.clean()
    start = REFERENCE_DAYS * WINDOWS
    references = looks_for(fit_looks(clean[:start], grid))

    def values(stream: Doubles) -> tuple[list[Doubles], Doubles]:
        by_look = [reference.p_values(stream) for reference in references]
        return by_look, calibrated(np.min([p / one.look.share for p, one in zip(by_look, references, strict=True)], axis=0))

    before = max(look.subwindows for look in LOOKS)
    by_look, value = values(clean[start - before :])
    seen = {}
    for case in cases:
        stream = np.concatenate([clean[device.onset - before : device.onset], device.shifted(case)])
        seen[case.kind, case.name] = values(stream)[1][before:]
    return Judged(
        (len(value) - before) / SUBWINDOWS_PER_YEAR,
        {rate: alarms(value[before:] <= rate / SUBWINDOWS_PER_YEAR) for rate in CURVE},
        {rate: {case: delay(p <= rate / SUBWINDOWS_PER_YEAR) for case, p in seen.items()} for rate in RATES},
        {
            one.look.name: [float((p[before:] <= level).mean() / level) for level in (1e-2, 1e-3, 1e-4)]
            for p, one in zip(by_look, references, strict=True)
        },
    )


def blocks(device: Device, cases: Sequence[Case]) -> Judged:
    """The scheme of DRIFT 5.2 to 5.4 by itself: T², p, e, means over blocks, Shiryaev-Roberts across them."""
    clean = device.clean()
    half, start = 14 * WINDOWS, REFERENCE_DAYS * WINDOWS
    scatter = fit_scatter(clean[:half])
    reference_scores = scatter.scores(clean[half:start])
    tail = fit_tail(reference_scores)
    size = choose_block(reference_scores, np.arange(half, start), is_indoor=device.bank.kind.name == "indoor")
    e = e_values(tail.p_values(scatter.scores(clean[start:])))
    whole = e[: len(e) // size * size].reshape(-1, size)
    begin = (device.onset - start) // size * size
    counts = {rate: _restarting(whole, threshold(rate, blocks_per_year(size)))[0] for rate in CURVE}
    delays: dict[float, dict[tuple[str, str], int]] = {rate: {} for rate in RATES}
    for case in cases:
        shifted = e_values(tail.p_values(scatter.scores(device.shifted(case))))
        run = np.concatenate([e[begin : device.onset - start], shifted])
        run = np.concatenate([run, np.full(-len(run) % size, np.nan)]).reshape(-1, size)
        for rate in RATES:
            wanted = threshold(rate, blocks_per_year(size))
            r = _restarting(whole[: begin // size], wanted)[1]
            value = trajectory(run, r).ravel()[device.onset - start - begin :]
            delays[rate][case.kind, case.name] = min(delay(value >= wanted), HORIZON)
    return Judged(len(e) / SUBWINDOWS_PER_YEAR, counts, delays, {"subwindows per block": [float(size)]})


def _restarting(e: Doubles, wanted: float) -> tuple[int, float]:
    """Alarms of blocks [n, size], R starting anew after each, and R at the end."""
    r, count = 0.0, 0
    for block in e:
        r = (1 + r) * float(block.mean())
        if r >= wanted:
            count, r = count + 1, 0.0
    return count, r
