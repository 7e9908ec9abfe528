"""How often looks alarm on clean years of the study where their budgets are simply added up: what `COMES_TO` is fitted to (ADR 0055).

`python -m benchmarks.drift.sums 30` prints it for thirty device-years before each camera: some two seconds each. Simulated.
"""

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from benchmarks.drift import bank, fleet
from benchmarks.drift.trial import REFERENCE_DAYS, alarms
from benchmarks.drift.world import WINDOWS
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR
from protocol.sketches.looks import LOOKS, fit_looks, judged, looks_for

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
#: False alarms a year by the sum of the looks, 5 % apart.
BY_SUM = np.exp(np.arange(np.log(0.05), np.log(60), 0.05))
#: Those of them that are printed, and what a user may ask for.
SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 7, 10, 12, 14, 16, 18, 20)
ASKED = (0.2, 1.0, 5.0)


def alarms_of(index: int, repeat: int) -> Ints:
    """Alarms in the clean year of a device before this camera of the study, for each of `BY_SUM`: int64[rates]."""
    clean = fleet.one("study", index, repeat, fleet.CLEAN_DAYS).clean()
    start, before = REFERENCE_DAYS * WINDOWS, max(look.subwindows for look in LOOKS)
    values = judged(looks_for(fit_looks(clean[:start], fleet.grid())), clean[start - before :])[before:]
    return np.array([alarms(values <= rate / SUBWINDOWS_PER_YEAR) for rate in BY_SUM])


def where(rates: Doubles, wanted: float) -> float:
    """The least of `BY_SUM` from which on at least so many alarms a year come, float64[rates]: the last one when they never do."""
    return float(BY_SUM[min(int(np.searchsorted(np.maximum.accumulate(rates), wanted)), len(BY_SUM) - 1)])


def report(counts: Ints, spent: Sequence[float]) -> list[str]:
    """What so many alarms int64[cameras, repeats, rates] say, a line each; `spent`: parts of what is asked that shall come."""
    cameras, repeats, _ = counts.shape
    by_camera = counts.mean(axis=1)
    bounds = by_camera.mean(axis=0) + t.ppf(0.95, cameras - 1) * by_camera.std(axis=0, ddof=1) / np.sqrt(cameras)
    lines = [
        f"{cameras * repeats} device-years: by the sum, alarms, a year, 95 % bound over cameras, least and most camera, most on a device"
    ]
    for rate in SHOWN:
        at = int(np.abs(BY_SUM - rate).argmin())
        its, most = by_camera[:, at], counts[..., at].max()
        lines.append(f"{rate:5} {counts[..., at].sum():6} {its.mean():8.3f} {bounds[at]:8.3f} {its.min():8.2f} {its.max():6.2f} {most:4}")
    for asked in ASKED:
        for part in spent:
            found = where(by_camera.mean(axis=0), part * asked)
            left_out = [where(np.delete(by_camera, camera, axis=0).mean(axis=0), part * asked) for camera in range(cameras)]
            lines.append(
                f"{part:.2f} of {asked} come at {found:.2f} by the sum; without one camera {min(left_out):.2f} to {max(left_out):.2f}"
            )
    return lines


def main() -> int:
    """Judge and print."""
    repeats, cameras = int(sys.argv[1]), len(bank.roster("study"))
    counts = np.array([[alarms_of(index, repeat) for repeat in range(repeats)] for index in range(cameras)])
    print("\n".join(report(counts, (0.5, 0.75, 0.8))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
