"""The real scans (scikit-learn's digits, 1,797 handwritten digits of 8 x 8 pixels), their split, and how one looks in a camera frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

#: All scans and their digits, written by `collect`.
SCANS = Path(__file__).resolve().parent / "scans.npz"
Pixels = npt.NDArray[np.uint8]

SPLIT_SEED = 7
#: Scans for the first version, for the second one (which contains the first), and for nobody: tests and videos.
FIRST, SECOND, HELD_OUT = 500, 1300, 497


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers in scikit-learn's data set; `first` is a part of `second`, `held_out` shares nothing with either."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    held_out: tuple[int, ...]


def split() -> Split:
    """The one split that everything in this folder uses."""
    order = np.random.default_rng(SPLIT_SEED).permutation(FIRST_TOTAL).tolist()
    return Split(tuple(order[:FIRST]), tuple(order[:SECOND]), tuple(order[SECOND:]))


FIRST_TOTAL = SECOND + HELD_OUT


def load() -> tuple[Pixels, list[int]]:
    """All scans as [n, 8, 8] from 0 to 255, and their digits, from the file beside this one."""
    with np.load(SCANS, allow_pickle=False) as kept:
        return np.asarray(kept["scans"], np.uint8), [int(digit) for digit in kept["digits"]]


def collect() -> None:
    """Write that file from scikit-learn, so that the demo needs no scikit-learn (170 MB with SciPy)."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = np.rint(found.images * (255.0 / 16.0)).astype(np.uint8)
    np.savez_compressed(SCANS, scans=pixels, digits=np.asarray(found.target, np.uint8))


def draw(scan: Pixels, rng: np.random.Generator, *, width: int = 320, height: int = 240) -> Pixels:
    """A camera frame (height x width x 3, BGR) with the scan on a dim, uneven, noisy background: size, place and light vary."""
    shade = float(rng.uniform(0, 40))
    slope = rng.uniform(-20, 20, 2)
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    ground = shade + slope[0] * rows + slope[1] * columns + rng.normal(0, 4, (height, width))
    side = int(min(width, height) * rng.uniform(0.72, 0.92))
    left = (width - side) // 2 + int(rng.integers(-side // 20, side // 20 + 1))
    top = (height - side) // 2 + int(rng.integers(-side // 20, side // 20 + 1))
    left, top = max(0, min(width - side, left)), max(0, min(height - side, top))
    ink = cv2.resize(scan, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float64) * rng.uniform(0.75, 1.0)
    ground[top : top + side, left : left + side] = np.maximum(ground[top : top + side, left : left + side], ink)
    gray = np.clip(np.rint(ground), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), np.uint8)


def frames_of(scans: Pixels, rows: Sequence[int], *, seed: int, copies: int = 1, size: tuple[int, int] = (320, 240)) -> list[Pixels]:
    """`copies` frames of every scan in `rows`, row after row."""
    rng = np.random.default_rng(seed)
    return [draw(scans[row], rng, width=size[0], height=size[1]) for row in rows for _ in range(copies)]


if __name__ == "__main__":
    collect()
