"""Pictures to learn from: scikit-learn's digits as a camera may see them, in two lights, and mosaics of them for the detector."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.delta_pairs.networks import ANCHORS, CLASSES, DETECTOR_SIDE, SIDE

#: Scans that the first version learns from; the next 500 belong to the changed site; the rest judge.
FIRST, SECOND = 900, 1400
GRIDS = (8, 4)
#: Sides of the mosaics' digits in pixels: four classes of four pixels from here, two per grid.
SMALLEST = 14


@dataclass(frozen=True, slots=True)
class Light:
    """How a site's pictures look: contrast, darkness, noise, and turn in radians."""

    contrast: float
    offset: float
    noise: float
    turn: float


#: Where the first version was trained, and where the later ones are.
LAB = Light(contrast=1.0, offset=0.0, noise=0.05, turn=0.10)
SITE = Light(contrast=0.75, offset=0.12, noise=0.12, turn=0.35)


@dataclass(frozen=True, slots=True)
class Scans:
    """Scans with their digits: n x 1 x 8 x 8 in 0..1, and n."""

    pictures: Tensor
    digits: Tensor


def load() -> dict[str, Scans]:
    """The parts `first`, `second` and `held_out`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    digits = torch.tensor(data.target, dtype=torch.long)
    parts = {"first": slice(0, FIRST), "second": slice(FIRST, SECOND), "held_out": slice(SECOND, None)}
    return {name: Scans(pictures[part], digits[part]) for name, part in parts.items()}


def frames(scans: Scans, light: Light, *, seed: int) -> tuple[Tensor, Tensor]:
    """Each scan once as a frame of the classifiers, n x 1 x 32 x 32, with its digit."""
    draw = torch.Generator().manual_seed(seed)
    return _seen(scans.pictures, light, SIDE, draw), scans.digits


def mosaics(scans: Scans, light: Light, *, seed: int, count: int = 400) -> tuple[Tensor, Tensor]:
    """Frames of the detector with up to four digits each, and the grids' targets (n x cells * anchors x 15, class as one-hot)."""
    draw = torch.Generator().manual_seed(seed)
    pictures = torch.zeros(count, 1, DETECTOR_SIDE, DETECTOR_SIDE)
    cells = sum(grid * grid for grid in GRIDS) * ANCHORS
    targets = torch.zeros(count, cells, 5 + CLASSES)
    for number in range(count):
        for quarter in range(4):
            if torch.rand(1, generator=draw).item() < 0.3:
                continue
            size = int(torch.randint(SMALLEST, SMALLEST + 16, (1,), generator=draw))
            left, top = (int(torch.randint(0, 33 - size, (1,), generator=draw)) for _ in range(2))
            left, top = left + 32 * (quarter % 2), top + 32 * (quarter // 2)
            row = int(torch.randint(0, len(scans.digits), (1,), generator=draw))
            digit = torch.nn.functional.interpolate(scans.pictures[row : row + 1], size=(size, size), mode="bilinear")[0, 0]
            pictures[number, 0, top : top + size, left : left + size] = digit
            _mark(targets[number], (left, top, size), int(scans.digits[row]))
    return _lit(pictures, light, draw), targets


def _mark(target: Tensor, box: tuple[int, int, int], digit: int) -> None:
    """Write the digit into its cell of the grid for its size."""
    left, top, size = box
    level, is_large = (size - SMALLEST) // 8, (size - SMALLEST) // 4 % ANCHORS
    grid = GRIDS[level]
    column, row = (int((edge + size / 2) / DETECTOR_SIDE * grid) for edge in (left, top))
    start = 0 if level == 0 else GRIDS[0] ** 2 * ANCHORS
    index = start + (row * grid + column) * ANCHORS + is_large
    middle = torch.tensor([left + size / 2, top + size / 2, size, size]) / DETECTOR_SIDE
    target[index] = 0
    target[index, :4], target[index, 4], target[index, 5 + digit] = middle, 1, 1


def _seen(scans: Tensor, light: Light, side: int, draw: torch.Generator) -> Tensor:
    """Scans enlarged, turned, moved and lit."""
    angle = (torch.rand(len(scans), generator=draw) * 2 - 1) * light.turn
    shift = (torch.rand(len(scans), 2, generator=draw) * 2 - 1) * 0.15
    rows = torch.stack(
        [torch.stack([angle.cos(), -angle.sin(), shift[:, 0]], 1), torch.stack([angle.sin(), angle.cos(), shift[:, 1]], 1)], 1
    )
    grid = torch.nn.functional.affine_grid(rows, [len(scans), 1, side, side], align_corners=False)
    return _lit(torch.nn.functional.grid_sample(scans, grid, align_corners=False), light, draw)


def _lit(pictures: Tensor, light: Light, draw: torch.Generator) -> Tensor:
    noise = torch.randn(pictures.shape, generator=draw) * light.noise
    return (pictures * light.contrast + light.offset + noise).clamp(0, 1)
