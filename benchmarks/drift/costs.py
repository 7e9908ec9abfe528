"""What drift costs: bytes of an hour, microseconds of a frame, milliseconds of a merge, minutes of a million device-hours."""

import time
from collections.abc import Callable

import numpy as np

from protocol.sketches.codec import SketchWindow, encode
from protocol.sketches.counts import Counts, Sketcher, added
from protocol.sketches.grid import FeatureGroup, FloatArray, Grid, fit_feature
from protocol.sketches.leb128 import encode as packed
from protocol.sketches.leb128 import summed
from protocol.sketches.looks import fit_looks

FEATURES, CLASSES, ROWS = 32, 20, 600


def grid() -> Grid:
    """32 features and 20 classes."""
    rng = np.random.default_rng(1)
    features = (
        fit_feature(f"f{index}", FeatureGroup.INPUT, rng.normal(size=20_000), 64 if index == 0 else 32) for index in range(FEATURES)
    )
    return Grid(tuple(features), tuple(f"c{index}" for index in range(CLASSES)), 1, 0)


def hour(shift: float, seed: int = 2) -> tuple[Counts, Grid]:
    """An hour of rows, every feature moved by so many deviations."""
    rng, of = np.random.default_rng(seed), grid()
    sketcher = Sketcher(of)
    rows = (rng.normal(size=(6 * ROWS, FEATURES)) + shift).astype(np.float32)
    for row, label in zip(rows, rng.integers(0, CLASSES, len(rows)).tolist(), strict=True):
        sketcher.add(row, label)
    return sketcher.take(), of


def bytes_per_hour(shift: float = 0.0) -> int:
    """Length of the message of an hour."""
    counts, of = hour(shift)
    scores = np.full(6, 50.0, np.float32)
    return len(encode(SketchWindow("camera", of.grid_id, bytes(16), 0, 3_000_000, 6, 63, counts, scores, bytes(16), 0)))


def us_per_frame() -> float:
    """Microseconds of processor time to add one row of 32 features, flushes included."""
    of = grid()
    rows: FloatArray = np.random.default_rng(3).normal(size=(20_000, FEATURES)).astype(np.float32)
    sketcher = Sketcher(of)
    begun = time.process_time()
    for row in rows:
        sketcher.add(row, 3)
    sketcher.flush()
    return (time.process_time() - begun) / len(rows) * 1e6


def merge_ms(devices: int = 10_000) -> tuple[float, float]:
    """Milliseconds to add up the cells of so many devices of 32 features: already numbers, and from their bytes."""
    counts, of = hour(0.0)
    rng = np.random.default_rng(4)
    many = np.maximum(counts.cells[None] + rng.integers(-2, 3, (devices, of.cells)), 0)
    parts = [packed(row) for row in many]
    numbers = _ms(lambda: many.sum(axis=0))
    return numbers, _ms(lambda: summed(parts, of.cells))


def added_us() -> float:
    """Microseconds to add two hours of one device with all their fields."""
    counts, _ = hour(0.0)
    return _ms(lambda: [added(counts, counts) for _ in range(100)]) * 10


def judge_minutes(device_hours: int = 1_000_000) -> float:
    """Minutes to judge so many device-hours, six sub-windows each, with all looks: measured on 8,000, 64 + 20 coordinates."""
    of = grid()
    rng = np.random.default_rng(5)
    d = 2 * FEATURES + CLASSES
    references = fit_looks(rng.normal(size=(28 * 144, d)), of)
    windows = rng.normal(size=(48_000, d))
    begun = time.process_time()
    for reference in references:
        reference.p_values(windows)
    return (time.process_time() - begun) / (len(windows) / 6) * device_hours / 60


def _ms(call: Callable[[], object]) -> float:
    figures = []
    for _ in range(5):
        begun = time.process_time()
        call()
        figures.append((time.process_time() - begun) * 1e3)
    return float(np.median(figures))
