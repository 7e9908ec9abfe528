"""Our detectors on one simulated device: several looks with one budget (ADR 0034), and beside them the blocks of DRIFT 5.4."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.scales import LOOKS, fit_scales, judged
from benchmarks.drift.trial import HORIZON, REFERENCE_DAYS, Case, Device, alarms, delay
from benchmarks.drift.world import WINDOWS
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR, blocks_per_year, e_values, threshold, trajectory
from protocol.sketches.grid import Grid
from protocol.sketches.reference import choose_block
from protocol.sketches.scatter import fit_scatter
from protocol.sketches.tail import fit_tail

Doubles = npt.NDArray[np.float64]
RATES = (0.2, 1.0, 5.0)
#: More of them, to see how what is seen follows what is asked.
CURVE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one device: clean years, false alarms and delays in windows per rate; delays by (kind, case)."""

    years: float
    alarms: dict[float, int]
    delays: dict[float, dict[tuple[str, str], int]]
    #: Share of clean windows with p below 1e-2, 1e-3, 1e-4 for each look, as multiples of it.
    calibration: dict[str, tuple[float, ...]]


def looks(device: Device, grid: Grid, cases: Sequence[Case]) -> Outcome:
    """Several looks at once."""
    clean = device.clean()
    start = REFERENCE_DAYS * WINDOWS
    references = fit_scales(clean[:start], grid)
    by_look = [reference.p_values(clean)[start:] for reference in references]
    values = np.min([p / reference.look.share for p, reference in zip(by_look, references, strict=True)], axis=0)
    before = clean[device.onset - max(look.subwindows for look in LOOKS) : device.onset]
    seen = {(case.kind, case.name): judged(references, np.concatenate([before, device.shifted(case)]))[len(before) :] for case in cases}
    return Outcome(
        len(values) / SUBWINDOWS_PER_YEAR,
        {rate: alarms(values <= rate / SUBWINDOWS_PER_YEAR) for rate in CURVE},
        {rate: {case: delay(p <= rate / SUBWINDOWS_PER_YEAR) for case, p in seen.items()} for rate in CURVE},
        {reference.look.name: _calibration(p) for p, reference in zip(by_look, references, strict=True)},
    )


def blocks(device: Device, grid: Grid, cases: Sequence[Case]) -> Outcome:
    """The scheme of DRIFT 5.2 to 5.4 by itself: T², p, e, means over blocks, Shiryaev-Roberts across them."""
    del grid
    clean = device.clean()
    half, start = 14 * WINDOWS, REFERENCE_DAYS * WINDOWS
    scatter = fit_scatter(clean[:half])
    reference_scores = scatter.scores(clean[half:start])
    tail = fit_tail(reference_scores)
    size = choose_block(reference_scores, np.arange(half, start), is_indoor=device.bank.kind.name == "indoor")
    e = e_values(tail.p_values(scatter.scores(clean[start:])))
    whole = e[: len(e) // size * size].reshape(-1, size)
    counts, delays = {}, {}
    for rate in RATES:
        wanted = threshold(rate, blocks_per_year(size))
        counts[rate] = _restarting(whole, wanted)
        begin = (device.onset - start) // size * size
        r = _r_before(whole[: begin // size], wanted)
        delays[rate] = {}
        for case in cases:
            shifted = e_values(tail.p_values(scatter.scores(device.shifted(case))))
            run = np.concatenate([e[begin : device.onset - start], shifted])
            run = run[: len(run) // size * size] if len(run) >= size else run
            missing = np.full(-len(run) % size, np.nan)
            value = trajectory(np.concatenate([run, missing]).reshape(-1, size), r).ravel()[device.onset - start - begin :]
            delays[rate][case.kind, case.name] = min(delay(value >= wanted), HORIZON)
    return Outcome(len(e) / SUBWINDOWS_PER_YEAR, counts, delays, {})


def _restarting(e: Doubles, wanted: float) -> int:
    """Alarms of blocks [n, size]: R starts anew after each."""
    r, count = 0.0, 0
    for block in e:
        if (1 + r) * block.sum() / len(block) >= wanted:
            count, r = count + 1, 0.0
        else:
            r = (1 + r) * block.mean()
    return count


def _r_before(e: Doubles, wanted: float) -> float:
    r = 0.0
    for block in e:
        r = 0.0 if (1 + r) * block.mean() >= wanted else (1 + r) * block.mean()
    return r


def _calibration(p: Doubles) -> tuple[float, ...]:
    return tuple(float(np.nanmean(p <= level) / level) for level in (1e-2, 1e-3, 1e-4))
