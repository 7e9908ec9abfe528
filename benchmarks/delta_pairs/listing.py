"""Which pairs the benchmark measures, and what is wanted of each: given ones of the data folder, and those that `make.py` trained."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GIVEN = Path(os.environ.get("MOORING_DATA", ROOT.parent / "shared" / "data")) / "delta-pairs"
MADE = ROOT / "build" / "delta-pairs"
#: Given pairs: kind of change, and how many times smaller than the best generic tool's delta ours has to be.
GIVEN_TARGETS = {
    "mbs_v5": ("recalibrated", 15.0),
    "mbs_v3head": ("head", 6.0),
    "rn_v3head": ("head", 6.0),
    "mbs_v2": ("medium", 3.2),
    "mbs_v2lo": ("small", 1.75),
    "rn_v2lo": ("small", 1.2),
    "mbs_v7sp5_pin": ("sparse", 2.9),
}
#: The same for pairs of our own in int8 ONNX.
MADE_TARGETS = {"recalibrated": 15.0, "head": 6.0, "medium": 3.2, "small": 1.75, "sparse": 2.9}
#: A gentle fine-tune of a network above this size is held to the large given network's figure (5.4 million), below to the small one's.
LARGE_BYTES, LARGE_SMALL_TARGET = 1_000_000, 1.2


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files; `times` is how many times smaller than the best generic delta ours has to be (1: not larger; None: no claim)."""

    name: str
    change: str
    format: str
    old: Path
    new: Path
    times: float | None
    is_given: bool

    @property
    def is_float(self) -> bool:
        return self.format in {"fp32", "fp16"}

    @property
    def twin(self) -> str:
        """Name of the pair of the same change in int8 ONNX."""
        return self.name.removesuffix(f"_{self.format}")


def given() -> list[Pair]:
    """The pairs of the data folder; none where it is missing."""
    pairs = []
    for name, (change, times) in GIVEN_TARGETS.items():
        old, new = GIVEN / f"{name.split('_')[0]}_v1_int8.onnx", GIVEN / f"{name}_int8.onnx"
        if old.exists() and new.exists():
            pairs.append(Pair(name, change, "int8", old, new, times, is_given=True))
    return pairs


def made() -> list[Pair]:
    """The pairs of our own; none where they were not made."""
    manifest = MADE / "manifest.json"
    if not manifest.exists():
        return []
    pairs = []
    for item in json.loads(manifest.read_text())["pairs"]:
        old, new = MADE / item["old"], MADE / item["new"]
        times = _target(item["change"], item["format"], new.stat().st_size)
        pairs.append(Pair(item["name"], item["change"], item["format"], old, new, times, is_given=False))
    return pairs


def _target(change: str, form: str, length: int) -> float | None:
    if form != "int8":
        return 1.0
    if change == "small" and length >= LARGE_BYTES:
        return LARGE_SMALL_TARGET
    return MADE_TARGETS.get(change)
