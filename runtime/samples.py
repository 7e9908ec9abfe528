"""Made-up pictures and windows for golden vectors and self-tests, the same everywhere: smooth shapes with edges, slow waves.

Noise would be easier to make and worse: quantized kernels of different processors agree on pictures and part on noise.
"""

import numpy as np

from runtime.base import Array
from runtime.inputs import INTEGER_RANGES, Preprocess, TensorDescription, Window
from runtime.manifest import ModelManifest
from runtime.preprocess import Filler, Plan, plan_for
from runtime.readings import WindowFiller

_WAVES = 4


def sample_vectors(manifest: ModelManifest, *, count: int, seed: int = 0) -> list[dict[str, Array]]:
    """`count` times all inputs by name, the same for the same manifest and seed; every second time with a state that is not the first."""
    source = manifest.inputs[0]
    if manifest.preprocess is not None:
        vectors = sample_inputs(source, manifest.preprocess, count=count, seed=seed)
    elif manifest.window is not None:
        vectors = _sample_windows(source, manifest.window, count=count, seed=seed)
    else:
        raise RuntimeError("a manifest has preprocess or window")
    random = np.random.default_rng(seed + 1)
    for index, vector in enumerate(vectors):
        for tensor in manifest.inputs[1:]:
            vector[tensor.name] = _sample_state(tensor, random if index % 2 else None)
    return vectors


def sample_inputs(tensor: TensorDescription, preprocess: Preprocess, *, count: int, seed: int = 0) -> list[dict[str, Array]]:
    """`count` input tensors by the input's name, the same for the same plan and seed. Raises: InvalidError when the input has no plan."""
    plan = plan_for(tensor, preprocess)
    filler = Filler(plan)
    random = np.random.default_rng(seed)
    return [{tensor.name: filler.fill(picture(plan, random)).copy()} for _ in range(count)]


def picture(plan: Plan, random: np.random.Generator) -> Array:
    """One picture of the plan's own size, uint8, height x width x channels: slow waves, and a bright or dark ellipse."""
    rows, columns = np.linspace(0, 1, plan.height)[:, None, None], np.linspace(0, 1, plan.width)[None, :, None]
    light = np.zeros((plan.height, plan.width, plan.channels))
    for _ in range(_WAVES):
        speed = random.uniform(-2, 2, (2, plan.channels))
        phase = random.uniform(0, 1, plan.channels)
        light += np.cos(2 * np.pi * (speed[0] * rows + speed[1] * columns + phase))
    light = 0.5 + light / (2 * _WAVES)
    place, size = random.uniform(0.25, 0.75, 2), random.uniform(0.15, 0.4, 2)
    inside = ((rows - place[0]) / size[0]) ** 2 + ((columns - place[1]) / size[1]) ** 2 < 1
    light = np.where(inside, random.uniform(0, 1, plan.channels), light)
    return np.asarray(np.clip(np.rint(light * 255), 0, 255).astype(np.uint8))


def _sample_windows(tensor: TensorDescription, window: Window, *, count: int, seed: int) -> list[dict[str, Array]]:
    filler = WindowFiller(tensor, window)
    random = np.random.default_rng(seed)
    mean, std = np.asarray(window.mean, np.float64), np.asarray(window.std, np.float64)
    moments = np.linspace(0, 1, window.length)[:, None]
    vectors = []
    for _ in range(count):
        waves = np.zeros((window.length, len(window.fields)))
        for _ in range(_WAVES):
            waves += np.cos(2 * np.pi * (random.uniform(-3, 3, waves.shape[1]) * moments + random.uniform(0, 1, waves.shape[1])))
        vectors.append({tensor.name: filler.fill((mean + std * waves / 2).astype(np.float32)).copy()})
    return vectors


def _sample_state(tensor: TensorDescription, random: np.random.Generator | None) -> Array:
    """The first state without `random`, else a slow wave around it, well inside the type."""
    if random is None:
        return np.full(tensor.shape, tensor.zero_point or 0, tensor.dtype)
    wave = np.cos(2 * np.pi * (np.linspace(0, random.uniform(1, 3), tensor.size) + random.uniform(0, 1))).reshape(tensor.shape)
    if tensor.dtype not in INTEGER_RANGES:
        return np.asarray((wave / 2).astype(tensor.dtype))
    low, high = INTEGER_RANGES[tensor.dtype]
    return np.asarray(np.clip(np.rint((tensor.zero_point or 0) + 24 * wave), low, high).astype(tensor.dtype))
