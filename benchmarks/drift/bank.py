"""Frames taken once per light, weather and thing, and the numbers the device would make of them: what streams are drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.drift.camera import BATCH, HELD_OUT, SHIFTS, Lens, Shift, Shot, take
from benchmarks.drift.model import CLASSES, Classifier, patches, train
from benchmarks.drift.numbers import embedding, image_numbers
from benchmarks.drift.scenes import FRAME, SCENE, digits, scenes

Array = npt.NDArray[np.float32]
#: How often one state is taken anew, with other noise and tremble.
TAKES = 2
FEATURES = 22


@dataclass(frozen=True, slots=True)
class Kind:
    """A way for cameras to be placed: its light levels (log2), kinds of weather, how many things its bank holds per class."""

    name: str
    lights: tuple[float, ...]
    weathers: tuple[float, ...]
    per_class: int


INDOOR = Kind("indoor", tuple(np.linspace(-1.5, 0, 6)), (0.0, 1.0), 8)
OUTDOOR = Kind("outdoor", tuple(np.linspace(-6.5, 0.5, 12)), (0.0, 1.0, 2.0), 4)
KINDS = {kind.name: kind for kind in (INDOOR, OUTDOOR)}
#: Pictures that no camera would look at for years: a galaxy, a retina, a page.
LEFT_OUT = ("hubble_deep_field", "immunohistochemistry", "retina", "cell", "page", "moon")
#: Where banks, which take minutes, are kept between runs.
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "drift"


@dataclass(frozen=True, slots=True)
class Bank:
    """Rows float32[things, lights, weathers, takes, 22] and predicted classes int8 of the same states, clean and per shift."""

    kind: Kind
    scene: str
    rows: Mapping[str, Array]
    predicted: Mapping[str, npt.NDArray[np.int8]]
    things: npt.NDArray[np.int64]  # class of each thing, 10 = nothing


def lens_of(scene: Array, rng: np.random.Generator) -> Lens:
    """A camera before the scene; dirt falls on other spots of each."""
    y, x = np.mgrid[0:FRAME, 0:FRAME]
    dirt = np.zeros((FRAME, FRAME))
    for _ in range(6):
        cy, cx, size = rng.uniform(0, FRAME), rng.uniform(0, FRAME), rng.uniform(4, 10)
        dirt = np.maximum(dirt, np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * size**2)))
    middle = (SCENE - FRAME) // 2
    return Lens(scene, middle, middle, float(rng.uniform(0.008, 0.016)), dirt.astype(np.float32))


def trained_classifier(seed: int = 11) -> Classifier:
    """Trained on the first 900 digits before scenes of all kinds; the streams use the other digits."""
    rng = np.random.default_rng((seed, 1))
    pictures, labels = digits()
    every = list(scenes().values())
    inputs, wanted = [], []
    for _ in range(8000 // BATCH):
        lens = lens_of(every[rng.integers(len(every))], rng)
        chosen = rng.integers(0, 900, BATCH)
        shown = np.where(rng.random(BATCH) < 0.15, 10, labels[chosen])
        things = np.where((shown == 10)[:, None, None], 0, pictures[chosen])
        shot = Shot(
            rng.uniform(-6, 0.5, BATCH).astype(np.float32), rng.uniform(0, 2, BATCH).astype(np.float32), things, _places(BATCH, rng)
        )
        inputs.append(patches(take(lens, shot, rng), shot.places))
        wanted.append(shown)
    return train(np.concatenate(inputs), np.concatenate(wanted), seed)


def make(kind: Kind, name: str, scene: Array, classifier: Classifier, shifts: Sequence[Shift], seed: Sequence[int]) -> Bank:
    """The bank of one camera: all its states, taken clean and with each shift."""
    rng = np.random.default_rng(list(seed))
    lens, things, classes, places = _before(kind, scene, rng)
    grid = [(t, li, w) for t in range(len(classes)) for li in kind.lights for w in kind.weathers for _ in range(TAKES)]
    index = np.array([item[0] for item in grid])
    light, weather = (np.array([item[k] for item in grid], np.float32) for k in (1, 2))
    shape = (len(classes), len(kind.lights), len(kind.weathers), TAKES)
    rows, predicted = {}, {}
    for shift in (None, *shifts):
        numbers, answers = rows_of(lens, Shot(light, weather, things[index], places[index]), classifier, rng, shift)
        rows[shift.name if shift else "clean"] = numbers.reshape(*shape, FEATURES)
        predicted[shift.name if shift else "clean"] = answers.reshape(shape)
    return Bank(kind, name, rows, predicted, classes)


def rows_of(
    lens: Lens, shot: Shot, classifier: Classifier, rng: np.random.Generator, shift: Shift | None = None
) -> tuple[Array, npt.NDArray[np.int8]]:
    """float32[n, 22] (12 image numbers, 8 of the embedding, confidence, entropy) and int8[n] predicted classes of n frames."""
    numbers, answers = [], []
    for start in range(0, len(shot.light), BATCH):
        part = Shot(*(values[start : start + BATCH] for values in (shot.light, shot.weather, shot.things, shot.places)))
        image = take(lens, part, rng, shift)
        chances = classifier.probabilities(image, part.places)
        entropy = -(chances * np.log(np.maximum(chances, 1e-12))).sum(axis=1)
        numbers.append(np.column_stack([image_numbers(image), embedding(image), chances.max(axis=1), entropy]))
        answers.append(chances.argmax(axis=1))
    assert CLASSES < 128
    return np.concatenate(numbers).astype(np.float32), np.concatenate(answers).astype(np.int8)


def roster(purpose: str) -> list[tuple[str, str]]:
    """(kind, scene) of each camera of `purpose`: every second picture is for the study, the others for the test; no picture is for both."""
    pictures = sorted({name.split("/")[0] for name in scenes()} - set(LEFT_OUT))
    chosen = pictures[{"study": 0, "test": 1}[purpose] :: 2]
    return [(("indoor", "outdoor")[index % 2], f"{picture}/0") for index, picture in enumerate(chosen)]


def load(purpose: str, index: int) -> Bank:
    """The bank of one camera of the roster, made and stored where it is not yet; the held-out shifts are only in the banks of the test."""
    kind, scene = roster(purpose)[index]
    path = CACHE / f"{purpose}-{index}-{kind}-{scene.replace('/', '-')}.npz"
    if path.exists():
        return _read(path, KINDS[kind], scene)
    shifts = SHIFTS if purpose == "study" else (*SHIFTS, *HELD_OUT)
    bank = make(KINDS[kind], scene, scenes()[scene], classifier(), shifts, _seed(purpose, index))
    _store(path, bank)
    return bank


def lens_and_things(purpose: str, index: int) -> tuple[Lens, Array, npt.NDArray[np.int64]]:
    """What the bank of this camera was made with: to take frames that are in no bank."""
    kind, scene = roster(purpose)[index]
    lens, things, _, places = _before(KINDS[kind], scenes()[scene], np.random.default_rng(_seed(purpose, index)))
    return lens, things, places


def _seed(purpose: str, index: int) -> list[int]:
    return [77, {"study": 1, "test": 2}[purpose], index]


def _before(kind: Kind, scene: Array, rng: np.random.Generator) -> tuple[Lens, Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The camera, the things that pass, their classes and places: the first draws of a bank's generator."""
    lens = lens_of(scene, rng)
    pictures, labels = digits()
    things, classes = _things(kind.per_class, pictures, labels, rng)
    return lens, things, classes, _places(len(classes), rng)


@cache
def classifier() -> Classifier:
    """The one classifier of all cameras, trained where it is not stored yet."""
    path = CACHE / "classifier.npz"
    if path.exists():
        with np.load(path) as stored:
            return Classifier((stored["w0"], stored["w1"]), (stored["b0"], stored["b1"]))
    made = trained_classifier()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, w0=made.weights[0], w1=made.weights[1], b0=made.biases[0], b1=made.biases[1])
    return made


def _store(path: Path, bank: Bank) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"rows {name}": rows for name, rows in bank.rows.items()} | {f"predicted {name}": p for name, p in bank.predicted.items()}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, things=bank.things, **arrays)  # type: ignore[arg-type]  # stub: allow_pickle
    partial.rename(path)


def _read(path: Path, kind: Kind, scene: str) -> Bank:
    with np.load(path) as stored:
        by_shift = {what: {n.removeprefix(what): stored[n] for n in stored.files if n.startswith(what)} for what in ("rows ", "predicted ")}
        return Bank(kind, scene, by_shift["rows "], by_shift["predicted "], stored["things"])


def _things(
    per_class: int, pictures: Array, labels: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[Array, npt.NDArray[np.int64]]:
    chosen = np.concatenate([rng.choice(np.flatnonzero(labels[900:] == digit) + 900, per_class, replace=False) for digit in range(10)])
    things = np.concatenate([pictures[chosen], np.zeros((per_class, 24, 24), np.float32)])
    return things, np.concatenate([labels[chosen], np.full(per_class, 10)])


def _places(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rng.integers(4, FRAME - 28, (count, 2))
