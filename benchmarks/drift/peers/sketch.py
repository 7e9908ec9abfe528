"""Microseconds per frame of 32 features that KLL (k = 128, in batches of 1,000 rows) and whylogs (a dict per frame) take; JSON."""

import json
import time

import numpy as np
import whylogs as why
from datasketches import kll_floats_sketch

rows = np.random.default_rng(1).normal(size=(20_000, 32)).astype(np.float32)


def kll() -> int:
    """Bytes of 32 sketches."""
    sketches = [kll_floats_sketch(128) for _ in range(32)]
    for start in range(0, len(rows), 1000):
        for column, sketch in enumerate(sketches):
            sketch.update(rows[start : start + 1000, column])
    return sum(len(sketch.serialize()) for sketch in sketches)


def whylogs_rows(count: int) -> int:
    """Bytes of a profile."""
    profile = why.log(row={f"f{index}": float(value) for index, value in enumerate(rows[0])}).profile()
    for row in rows[:count]:
        profile.track({f"f{index}": float(value) for index, value in enumerate(row)})
    return len(profile.view().serialize())


begun = time.process_time()
kll_bytes = kll()
middle = time.process_time()
whylogs_bytes = whylogs_rows(300)
ended = time.process_time()
print(
    json.dumps(
        {
            "kll": (middle - begun) / len(rows) * 1e6,
            "whylogs": (ended - middle) / 300 * 1e6,
            "kll bytes": kll_bytes,
            "whylogs bytes": whylogs_bytes,
        }
    )
)
