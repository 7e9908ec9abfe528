"""Small grids, profiles and references of plain numbers, the same on every machine; and rows by a seed."""

import numpy as np

from protocol.sketches.counts import Counts, Sketcher
from protocol.sketches.expectations import Kind
from protocol.sketches.grid import OTHER, FeatureGrid, FeatureGroup, Grid, fit_feature
from protocol.sketches.looks import Judges, Look, LookReference, Modes
from protocol.sketches.powers import ClassPowers
from protocol.sketches.profile import AccuracyReference, FamilyReference, ModelProfile
from protocol.sketches.reference import DeviceReference, Grade
from protocol.sketches.scatter import Scatter
from protocol.sketches.shares import ClassShares
from protocol.sketches.tail import Tail

MODEL = bytes(range(16))


def plain_grid() -> Grid:
    """Three features of numbers that are easy to count by hand."""
    quarters = (0.25, 0.25, 0.25, 0.25)
    return Grid(
        (
            FeatureGrid("image.brightness", FeatureGroup.INPUT, (1.0, 2.0, 3.0), 0.0, 4.0, quarters, 2.0, 1.0),
            FeatureGrid("embedding.0", FeatureGroup.EMBEDDING, (), 5.0, 5.0, (1.0,), 5.0, 1.0),
            FeatureGrid("output.confidence", FeatureGroup.OUTPUT, (0.5, 0.75), 0.125, 1.0, (0.5, 0.25, 0.25), 0.5, 0.25),
        ),
        ("cat", "dog", OTHER),
        step_s=1,
        made_at_ms=1_750_000_000_000,
    )


def plain_counts() -> Counts:
    """Six rows on it, one of them without a brightness."""
    sketcher = Sketcher(plain_grid())
    for index, brightness in enumerate((-1.0, 0.0, 1.0, 2.5, 9.0, np.nan)):
        sketcher.add(np.array([brightness, 5.0, index / 8 + 0.125], dtype=np.float32), index % 3)
    sketcher.exclude(2)
    return sketcher.take()


def plain_profile() -> ModelProfile:
    """What a release might carry."""
    families = (FamilyReference("blur", 1, 0.875, 0.03125, (0.5,) * 9), FamilyReference("dirt", 2, 0.5, 0.25, (-0.5,) * 9))
    confusion = ((0.75, 0.25, 0.0), (0.25, 0.5, 0.0), (0.0, 0.25, 0.0))
    accuracy = AccuracyReference(
        confidence="output.confidence",
        entropy="output.confidence",
        acc0=0.9375,
        conf0=0.875,
        confidence_edge=0.5,
        entropy_edge=0.75,
        bin_accuracy=(0.5, 0.75, 1.0),
        confusion=confusion,
        families=families,
        epsilon=0.03125,
    )
    return ModelProfile(plain_grid(), plain_counts(), accuracy)


def plain_reference() -> DeviceReference:
    """What a device might have learned of five of the nine coordinates: two modes of ten minutes, and one class by all that looks at it."""
    factor, unit = np.tril(np.full((5, 5), 0.125)) + np.eye(5), np.array([1.0, 0.5, 0.001953125, 2.0, 1.0])
    clouds = (
        Scatter(np.array([0.0, 0.5, -0.25, 0.0, 0.125]), unit, factor, 0.25),
        Scatter(np.array([1.0, 0.5, -0.25, 0.0, 0.25]), unit, 2 * factor, 0.5),
    )
    tail = Tail(np.arange(200, dtype=np.float32) / 4, q=47.5, xi=0.25, sigma=1.5)
    weights = np.array([0.75, 0.25])
    by_light = np.array([0, 2, 4])
    share = Modes((Scatter(np.array([0.125]), np.array([0.25]), np.array([[1.0]]), 0.0),), np.ones(1))
    return DeviceReference(
        grid_id=plain_grid().grid_id,
        model=MODEL,
        grade=Grade.PROVISIONAL,
        subwindows=144,
        coordinates=np.array([0, 2, 3, 5, 8]),
        usual=np.array([0.5, 0.5, -0.25, np.nan, 0.125]),
        looks=(
            LookReference(Look("all-10min", 1, is_classes=False, modes=2, share=0.5), np.arange(5), Modes(clouds, weights), tail),
            LookReference(Look("classes-1h", 6, is_classes=True, modes=1, share=0.25), np.array([4]), share, tail),
            LookReference(
                Look("powers-2h", 12, is_classes=True, modes=0, share=0.25, judges=Judges.ROWS), by_light, _expecting(ClassPowers), tail
            ),
            LookReference(
                Look("shares-2h", 12, is_classes=True, modes=0, share=0.25, judges=Judges.MEANS), by_light, _expecting(ClassShares), tail
            ),
        ),
        first_w0=2_916_720,
        last_w0=2_918_735,
        windows=2016,
    )


def _expecting(kind: type[Kind]) -> Kind:
    """One class by two coordinates of the light, which are one component."""
    center, components, weights = np.array([0.5, -0.25]), np.array([[1.0, 0.5]]), np.array([[0.0], [0.25], [0.125]])
    return kind(0, center, components, np.array([-2.0]), np.array([2.0]), weights, np.array([0.25]), np.array([0.0625]))


def wide_grid(seed: int = 0, *, features: int = 32, classes: int = 20) -> Grid:
    """As large as grids get, of normal numbers."""
    values = np.random.default_rng(seed).normal(size=(4000, features)).astype(np.float32)
    groups = tuple(FeatureGroup)
    made = tuple(fit_feature(f"f{index}", groups[index % 3], values[:, index]) for index in range(features))
    return Grid(made, tuple(f"c{index}" for index in range(classes)), step_s=1, made_at_ms=0)


def normal_rows(generator: np.random.Generator, rows: int, features: int, *, shift: float = 0.0) -> np.ndarray:
    """float32[rows, features], each row half of what the one before was."""
    noise = generator.normal(size=(rows, features))
    for index in range(1, rows):
        noise[index] = 0.5 * noise[index - 1] + np.sqrt(0.75) * noise[index]
    return (noise + shift).astype(np.float32)


def counted(grid: Grid, rows: np.ndarray, classes: np.ndarray | None = None) -> Counts:
    """The counts of rows float32[n, features]."""
    sketcher = Sketcher(grid)
    for index, row in enumerate(rows):
        sketcher.add(row, None if classes is None else int(classes[index]))
    return sketcher.take()
