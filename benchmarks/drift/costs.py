"""What drift costs: bytes of an hour, microseconds of a frame, milliseconds of a merge, minutes of a million device-hours; and a device.

`python -m benchmarks.drift.costs` measures what a device pays (`benchmarks.drift.device`) and puts that into results/drift.json alone.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent.slots import MOBILENET, VWW_INT8, make_slot
from benchmarks.drift import device
from benchmarks.record import RESULTS, Row, measure, write
from protocol.sketches.codec import SketchWindow, Source, encode
from protocol.sketches.counts import Counts, Sketcher, added
from protocol.sketches.grid import FeatureGroup, FloatArray, Grid, fit_feature
from protocol.sketches.leb128 import encode as packed
from protocol.sketches.leb128 import summed
from protocol.sketches.looks import fit_looks, looks_for

FEATURES, CLASSES, ROWS = 32, 20, 600
ROUNDS = 3
#: Rows of a device that README shows.
SHOWN = ("drift cost, % of one core", "sketch memory over numpy", "drift memory over numpy")
#: Height and width of a camera's frames.
PICTURES = {"640x480": (480, 640), "1080p": (1080, 1920)}


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
    return len(encode(SketchWindow("camera", of.grid_id, bytes(16), Source.ACTIVE, 3_000_000, 6, 63, counts, scores, bytes(16), 0)))


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
    """Minutes to judge so many device-hours, six sub-windows each, with all looks at ten minutes: from 8,000, 64 + 20 coordinates."""
    of = grid()
    rng = np.random.default_rng(5)
    d = 2 * FEATURES + CLASSES
    references = looks_for(fit_looks(rng.normal(size=(28 * 144, d)), of))
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


def device_rows(rounds: int = ROUNDS) -> tuple[list[Row], dict[str, object]]:
    """What one pipeline pays on its device, in rows, and the parts they are made of: interleaved rounds, a process for each figure."""
    parts: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-drift-") as name:
        folder = Path(name)
        (folder / "watched").mkdir()
        device.prepare(folder / "watched")
        slots = {model.name: make_slot(folder / model.name, model) for model in (VWW_INT8, MOBILENET)}
        for _ in range(rounds):
            for model, slot in slots.items():
                for size, (height, width) in PICTURES.items():
                    parts.setdefault(f"rows of {model}, {size}", []).append(device.child("rows", slot, height, width))
            for kind in ("control", "memory sketch", "memory all"):
                shutil.copytree(folder / "watched", folder / "run")
                call, _, what = kind.partition(" ")
                parts.setdefault(kind, []).append(device.child(call, folder / "run", what))
                shutil.rmtree(folder / "run")
    rows = [
        _share(f"drift cost, % of one core, {model}, {size}", parts[f"rows of {model}, {size}"], parts["control"])
        for model in slots
        for size in PICTURES
    ]
    worst = max(rows, key=lambda row: row.ours)
    rows.insert(0, replace(worst, what="drift cost, % of one core"))
    rows += memory_rows(parts["memory sketch"], parts["memory all"])
    return rows, {name: _medians(found) for name, found in parts.items()}


def memory_rows(sketched: list[dict[str, Any]], watched: list[dict[str, Any]]) -> list[Row]:
    """What is resident after an hour beside numpy imported and not used; and that without numpy's own pages, which use brings."""
    rows = []
    for title, found in (("sketch memory over numpy", sketched), ("drift memory over numpy", watched)):
        whole = [one["resident KiB"] / 1024 for one in found]
        rest = [(one["resident KiB"] - one["of it pages of numpy's own files KiB"]) / 1024 for one in found]
        rows.append(measure(title, ours=whole, unit="MiB resident, an hour of rows", target="<= 2"))
        rows.append(measure(f"{title}, its library's pages left out", ours=rest, unit="MiB resident, an hour of rows", target="<= 2"))
    return rows


def _share(what: str, made: list[dict[str, Any]], counted: list[dict[str, Any]]) -> Row:
    """At the default step of one second: a row and the frames that are none, and all that the control process does."""
    shares = [
        0.1 * (one["row ms"] + device.FPS * one["frame that is no row ms"])
        + 100 * sum(share for name, share in other.items() if name.endswith(", share"))
        for one, other in zip(made, counted, strict=True)
    ]
    return measure(what, ours=shares, unit="% of one core", target="<= 1")


def _medians(found: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def main() -> int:
    """Measure what a device pays, and replace these rows of results/drift.json."""
    rows, details = device_rows()
    path = RESULTS / "drift.json"
    document = json.loads(path.read_text())
    names = {row.what for row in rows}
    kept = [Row(**row) for row in document["rows"] if row["what"] not in names]
    shown = [*document.get("headline", ()), *SHOWN]
    write("drift", [*kept, *rows], headline=list(dict.fromkeys(shown)), details={**document["details"], "a device": details})
    return 0


if __name__ == "__main__":
    sys.exit(main())
