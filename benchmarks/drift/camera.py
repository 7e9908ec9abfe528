"""What a simulated camera hands to the model: scene, light, weather and things; exposure, noise, eight bits; and what may go wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.drift.scenes import FRAME, SCENE

Array = npt.NDArray[np.float32]
#: cv2 filters up to 128 channels at once: frames are worked on in such batches, as [rows, columns, frames].
BATCH = 128
#: Mean linear brightness that auto-exposure aims at, and the largest gain it has.
TARGET, LARGEST_GAIN = 0.20, 24.0


@dataclass(frozen=True, slots=True)
class Lens:
    """What is fixed for one camera: the picture it looks at, where the things pass, its noise."""

    scene: Array
    left: int
    top: int
    noise: float
    dirt: Array


@dataclass(frozen=True, slots=True)
class Shot:
    """n frames to be taken: log2 of the light, weather 0..2 (clear, overcast, haze), things float32[n, 24, 24], their places, tint."""

    light: Array
    weather: Array
    things: Array
    places: npt.NDArray[np.int64]


#: linear RGB [3, rows, columns, frames] → the same; then, on the finished picture 0..255, the same again.
Before = Callable[[Array, Lens, np.random.Generator], Array]
After = Callable[[Array, Lens, np.random.Generator], Array]


@dataclass(frozen=True, slots=True)
class Shift:
    """One thing that changes in front of or inside a camera; `severity` scales it: 1 is the mild full shift of the benchmark."""

    name: str
    before: Before | None = None
    after: After | None = None
    #: The camera moved by so many pixels.
    move: tuple[int, int] = (0, 0)


def take(lens: Lens, shot: Shot, rng: np.random.Generator, shift: Shift | None = None) -> Array:
    """float32[3, 64, 64, n] in 0..255, whole numbers."""
    light = np.exp2(shot.light).astype(np.float32)
    move = shift.move if shift else (0, 0)
    image = _scene(lens, len(light), rng, move)
    _put(image, shot, lens)
    image *= light
    warm = np.clip(-shot.light / 6, 0, 1).astype(np.float32)  # lamps at night
    image[0] *= 1 + 0.25 * warm
    image[2] *= 1 - 0.25 * warm
    mean = image.mean(axis=(0, 1, 2))
    haze = np.clip(shot.weather - 1, 0, 1) * 0.35
    flat = np.clip(shot.weather, 0, 1) * 0.25
    image = image * (1 - flat - haze * (1 - flat)) + mean * (flat + haze * (1 - flat))
    gain = np.clip(TARGET / np.maximum(mean, 1e-4), 0.25, LARGEST_GAIN).astype(np.float32)
    image *= gain
    if shift and shift.before:
        image = shift.before(image, lens, rng)
    spread = np.sqrt(gain) * lens.noise
    image += rng.standard_normal(image.shape, dtype=np.float32) * spread * np.sqrt(0.1 + np.clip(image, 0, 1))
    picture = np.rint(255 * np.clip(image, 0, 1) ** np.float32(1 / 2.2)).astype(np.float32)
    return shift.after(picture, lens, rng) if shift and shift.after else picture


def _scene(lens: Lens, count: int, rng: np.random.Generator, move: tuple[int, int]) -> Array:
    """The camera trembles by up to a pixel."""
    top, left = lens.top + move[0], lens.left + move[1]
    image = np.empty((3, FRAME, FRAME, count), np.float32)
    tremble = rng.integers(-1, 2, (count, 2))
    for index, (down, right) in enumerate(tremble):
        y, x = np.clip((top + down, left + right), 0, SCENE - FRAME)
        image[..., index] = lens.scene[y : y + FRAME, x : x + FRAME].transpose(2, 0, 1)
    return image


def _put(image: Array, shot: Shot, lens: Lens) -> None:
    ink = np.float32(0.9 if lens.scene.mean() < 0.3 else 0.02)
    for index, (thing, (y, x)) in enumerate(zip(shot.things, shot.places, strict=True)):
        part = image[:, y : y + 24, x : x + 24, index]
        part += thing * (ink - part)


def _blurred(sigma: float) -> Callable[[Array, Lens, np.random.Generator], Array]:
    def apply(image: Array, _lens: Lens, _rng: np.random.Generator) -> Array:
        return np.stack([cv2.GaussianBlur(plane, (0, 0), sigma).reshape(plane.shape) for plane in image])

    return apply


def _smeared(length: int) -> Callable[[Array, Lens, np.random.Generator], Array]:
    kernel = np.full((1, length), 1 / length, np.float32)

    def apply(image: Array, _lens: Lens, _rng: np.random.Generator) -> Array:
        return np.stack([cv2.filter2D(plane, -1, kernel).reshape(plane.shape) for plane in image])

    return apply


def _noisy(spread: float) -> Callable[[Array, Lens, np.random.Generator], Array]:
    return lambda image, _lens, rng: np.clip(np.rint(image + rng.standard_normal(image.shape, dtype=np.float32) * spread), 0, 255)


def _dirty(share: float) -> Callable[[Array, Lens, np.random.Generator], Array]:
    return lambda image, lens, _rng: image * (1 - share * lens.dirt[None, :, :, None]) + 0.1 * share * lens.dirt[None, :, :, None]


def _tinted(red: float, blue: float) -> Callable[[Array, Lens, np.random.Generator], Array]:
    factors = np.array([red, 1, blue], np.float32)[:, None, None, None]
    return lambda image, _lens, _rng: image * factors


def _compressed(quality: int) -> Callable[[Array, Lens, np.random.Generator], Array]:
    def apply(image: Array, _lens: Lens, _rng: np.random.Generator) -> Array:
        result = np.empty_like(image)
        for index in range(image.shape[-1]):
            _, data = cv2.imencode(
                ".jpg", np.ascontiguousarray(image[..., index].transpose(1, 2, 0)).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality]
            )
            result[..., index] = cv2.imdecode(data, cv2.IMREAD_COLOR).transpose(2, 0, 1)
        return result

    return apply


def _fogged(share: float) -> Callable[[Array, Lens, np.random.Generator], Array]:
    return lambda image, _lens, _rng: image * (1 - share) + share * np.float32(0.5)


#: Halves are what a ramp passes through.
#: The shifts that the study and the tests use. "Mild": seen when two pictures lie side by side, set before anything was measured.
SHIFTS = (
    Shift("blur", before=_blurred(0.7)),
    Shift("noise", after=_noisy(6)),
    Shift("dirt", before=_dirty(0.35)),
    Shift("jpeg", after=_compressed(40)),
    Shift("color", before=_tinted(1.10, 0.90)),
    Shift("darkness", before=lambda image, _lens, _rng: image * np.float32(0.75)),
    Shift("move", move=(6, -6)),
    Shift("half dirt", before=_dirty(0.175)),
    Shift("half blur", before=_blurred(0.45)),
)
#: Opened once per release, after everything is decided.
HELD_OUT = (
    Shift("motion blur", before=_smeared(3)),
    Shift("fog", before=_fogged(0.12)),
    Shift("turn", move=(-7, 5)),
    Shift("half fog", before=_fogged(0.06)),
)
