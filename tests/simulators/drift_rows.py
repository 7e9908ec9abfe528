"""What the tests of drift on the device share: a small grid, a model's slot, and rows of a stationary world that the test can shift."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from simulators.clock import START

from agent.inference.messages import Quality, Sampled
from protocol.clock import to_unix_ms
from protocol.files import digest_of_file
from protocol.sketches.counts import Sketcher
from protocol.sketches.grid import FeatureGroup, Grid, fit_feature
from protocol.sketches.profile import FILE_NAME, ModelProfile, encode_profile
from runtime.answers import Classification, ClassScore
from runtime.features import Extractor, group_of
from runtime.manifest import FileEntry, load_manifest, to_bytes

MODEL = "a1" * 16
NAMES = ("image.brightness", "image.sharpness", "output.confidence")
GROUPS = (FeatureGroup.INPUT, FeatureGroup.INPUT, FeatureGroup.OUTPUT)
CLASSES = ("cat", "dog")


def make_grid(*, seed: int = 0, step_s: int = 8, outputs: int = 1) -> Grid:
    """Three features at quantiles of a normal; other seeds give other output grids only."""
    inputs, answers = np.random.default_rng(0), np.random.default_rng(seed)
    drawn = [*(inputs.normal(0, 1, 4000) for _ in range(2)), *(answers.normal(0, 1, 4000) for _ in range(outputs))]
    features = [fit_feature(name, group, values, 8) for name, group, values in zip(NAMES, GROUPS, drawn, strict=False)]
    return Grid(tuple(features), CLASSES, step_s, to_unix_ms(START) - 86_400_000)


def make_slot(folder: Path, grid: Grid) -> Path:
    """A slot folder with the profile of that grid."""
    folder.mkdir(parents=True, exist_ok=True)
    sketcher = Sketcher(grid)
    for values in np.random.default_rng(1).normal(0, 1, (50, len(grid.features))):
        sketcher.add(values.astype(np.float32), 0)
    (folder / FILE_NAME).write_bytes(encode_profile(ModelProfile(grid, sketcher.take())))
    return folder


@dataclass
class World:
    """Makes the rows of one pipeline; what is in front of it is for the test to change."""

    grid: Grid
    folder: Path
    pipeline: str = "front"
    model: str = MODEL
    #: Added to every feature.
    shift: float = 0.0
    mean: float = 120.0
    deviation: float = 40.0
    #: None: every picture is another one.
    hash: str | None = None
    size: tuple[int, int] | None = (64, 64)
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    made: int = 0

    def row(self, at_s: float, **changes: object) -> Sampled:
        """One row at that moment of the monotonic clock."""
        self.made += 1
        values = self.chance.normal(self.shift, 1, len(self.grid.features)).astype("<f4")
        given = {
            "pipeline": self.pipeline,
            "line": "pets",
            "release": "1.0",
            "folder": str(self.folder),
            "model": self.model,
            "grid": self.grid.grid_id.hex(),
            "at_s": at_s,
            "step_s": float(self.grid.step_s),
            "values": base64.b64encode(values.tobytes()).decode(),
            "labels": (CLASSES[int(self.chance.integers(2))],),
            "size": self.size,
            "quality": Quality(self.mean, self.deviation, self.hash or f"{self.made:x}"),
        }
        return Sampled(**(given | changes))

    def rows(self, times: Iterator[float]) -> Iterator[Sampled]:
        """A row at each of the moments."""
        yield from map(self.row, times)


def bring_profile(folder: Path, *, step_s: int = 1) -> Grid:
    """Give a slot folder with a model and its manifest a reference profile made of random frames; returns its grid."""
    manifest = load_manifest(folder / "manifest.json")
    extractor, chance = Extractor(manifest), np.random.default_rng(5)
    tensor, rows = manifest.inputs[0], []
    for _ in range(64):
        picture = chance.random(tensor.shape).astype(tensor.dtype)
        rows.append(
            extractor.row(
                picture, Classification((ClassScore("red", 2, 0.9),)), outputs={"scores": chance.random((1, 3)).astype(np.float32)}
            ).copy()
        )
    values = np.array(rows)
    chosen = [place for place in range(values.shape[1]) if np.isfinite(values[:, place]).all()][:12]
    features = [fit_feature(extractor.names[place], group_of(extractor.names[place]), values[:, place], 8) for place in chosen]
    grid = Grid(tuple(features), ("blue", "green", "red"), step_s, 0)
    sketcher = Sketcher(grid)
    for row in values[:, chosen]:
        sketcher.add(row, 2)
    path = folder / FILE_NAME
    path.write_bytes(encode_profile(ModelProfile(grid, sketcher.take())))
    entry = FileEntry(sha256=digest_of_file(path), length=path.stat().st_size)
    (folder / "manifest.json").write_bytes(to_bytes(replace(manifest, files={**manifest.files, FILE_NAME: entry})))
    return grid
