"""Do means of windows say what frames say? The same camera both ways: where they lie, how they vary, what the detector makes of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.drift import frames
from benchmarks.drift.fleet import grid, one
from benchmarks.drift.stream import row_summaries
from benchmarks.drift.trial import REFERENCE_DAYS
from benchmarks.drift.world import WINDOWS
from protocol.sketches.counts import Sketcher
from protocol.sketches.looks import fit_looks
from protocol.sketches.summary import summary

Doubles = npt.NDArray[np.float64]


def compare(purpose: str, cameras: Sequence[int], windows: int, *, every: int = 1) -> dict[str, list[float]]:
    """By camera: the median over coordinates of |difference of means| / deviation and of the ratio of deviations, frames to means.

    And quantiles (.5, .9) of the score of the ten-minute look both ways, the shares of p <= .05 and <= .01, and the lag-1 autocorrelation
    of brightness. `windows` neighbouring ones begin at a random moment; frames are counted by the device's own sketcher.
    """
    result: dict[str, list[float]] = {}
    for index in cameras:
        device = one(purpose, index, 900, 60)
        clean = device.clean()
        reference = fit_looks(clean[: REFERENCE_DAYS * WINDOWS], grid())[0]
        start = int(np.random.default_rng([index, 17]).integers(REFERENCE_DAYS * WINDOWS, len(clean) - windows))
        at = range(start, start + windows)
        rows, classes = frames.windows(device.bank, purpose, index, device.path, at, (*device.key, 5), every=every)
        seen = np.stack([_sketched(values, answers) for values, answers in zip(rows, classes, strict=True)])
        drawn = clean[start : start + windows]
        for name, value in _likeness(seen, drawn, clean[REFERENCE_DAYS * WINDOWS :]).items():
            result.setdefault(name, []).append(value)
        for name, stream in (("frames", seen), ("means", drawn)):
            scores, p = reference.modes.scores(stream), reference.p_values(stream)
            for label, value in (
                ("score .5", np.quantile(scores, 0.5)),
                ("score .9", np.quantile(scores, 0.9)),
                ("p <= .05", (p <= 0.05).mean()),
                ("p <= .01", (p <= 0.01).mean()),
            ):
                result.setdefault(f"{label}, {name}", []).append(float(value))
    return result


def _sketched(rows: npt.NDArray[np.float32], classes: npt.NDArray[np.int8]) -> Doubles:
    sketcher = Sketcher(grid())
    for row, answer in zip(rows, classes.tolist(), strict=True):
        sketcher.add(row, answer)
    found = summary(sketcher.take(), grid())
    by_rows = row_summaries(grid(), rows, classes).mean(axis=0)
    assert np.allclose(found, by_rows, atol=1e-4), "the sum of rows is the summary of their counts"
    return found


def _likeness(seen: Doubles, drawn: Doubles, clean: Doubles) -> dict[str, float]:
    deviation = np.maximum(clean.std(axis=0), 1e-3)
    return {
        "difference of means / deviation": float(np.median(np.abs(seen.mean(axis=0) - drawn.mean(axis=0)) / deviation)),
        "noise of frames / noise of means": float(np.median(_noise(seen) / _noise(drawn))),
        "lag-1 of brightness, frames": float(np.corrcoef(seen[1:, 0], seen[:-1, 0])[0, 1]),
        "lag-1 of brightness, means": float(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]),
    }


def _noise(stream: Doubles) -> Doubles:
    """What neighbours differ by, per coordinate: the part that no weather explains."""
    return np.maximum(np.diff(stream, axis=0).std(axis=0), 1e-4)
