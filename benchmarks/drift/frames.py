"""The same streams frame by frame: every second taken anew by the camera, classified, extracted and sketched as a device does. Simulated.

It is what the means of `stream` are validated against, and what the peers are given.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.drift.bank import Bank, classifier, lens_and_things, rows_of
from benchmarks.drift.camera import Shot
from benchmarks.drift.stream import ROWS, draw
from benchmarks.drift.world import Course

Array = npt.NDArray[np.float32]


def windows(
    bank: Bank, purpose: str, index: int, path: Course, at: Sequence[int], seed: Sequence[int], *, every: int = 1
) -> tuple[Array, npt.NDArray[np.int8]]:
    """Rows float32[windows, 600 / every, F] and predicted classes of these windows."""
    rng = np.random.default_rng([*seed, 4])
    lens, things, places = lens_and_things(purpose, index)
    lights, weathers = np.array(bank.kind.lights, np.float32), np.array(bank.kind.weathers, np.float32)
    rows, classes = [], []
    for window in at:
        passed = draw(bank, path, slice(window, window + 1), rng)
        at_row = np.searchsorted(np.cumsum(passed.lengths[0]), (np.arange(0, ROWS, every) + 0.5) / ROWS).clip(0, path.things - 1)
        thing = passed.thing[0][at_row]
        shot = Shot(lights[passed.light[0][at_row]], weathers[passed.weather[0][at_row]], things[thing], places[thing])
        numbers, answers = rows_of(lens, shot, classifier(), rng)
        rows.append(numbers)
        classes.append(answers)
    return np.stack(rows), np.stack(classes)
