"""What a simulated camera sees, ten minutes by ten minutes: light, weather, what passes, all stationary: no season, no growth.

Pure: everything comes from seeds. A year of seconds is not made here; `stream` draws rows or their means from these numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.bank import Bank

Doubles = npt.NDArray[np.float64]
WINDOWS = 144  # per day
#: Class that is rare by its prior, 1 %, and what "prior x 20" makes of it.
RARE = 9
CLASSES = 11


@dataclass(frozen=True, slots=True)
class Course:
    """Per window: log2 of the light, its spread between things, weather 0..2, chance of each class; things per window."""

    light: Doubles
    flicker: Doubles
    weather: Doubles
    chances: Doubles  # [windows, 11]
    things: int


def weather(days: int, seed: Sequence[int]) -> Doubles:
    """Shared by the cameras of a site: two autoregressions, of 5 hours and of a day and a half; mean 0, deviation 1."""
    rng = np.random.default_rng([*seed, 1])
    count = days * WINDOWS
    return np.sqrt(0.5) * (_autoregression(count, 5 * 6, rng) + _autoregression(count, 36 * 6, rng))


def course(bank: Bank, sky: Doubles, seed: Sequence[int], *, rare_factor: float = 1.0) -> Course:
    """The course of one camera under this weather; its own habits come from the seed."""
    rng = np.random.default_rng([*seed, 2])
    count = len(sky)
    own = rng.uniform(-1, 1, 8)  # habits: how bright, how busy
    hour = (np.arange(count) % WINDOWS) / 6.0
    day = np.arange(count) // WINDOWS
    is_weekend = day % 7 >= 5
    cloud = np.clip(0.5 + 0.45 * sky, 0, 1)
    if bank.kind.name == "outdoor":
        light, empty = (
            _outdoor_light(hour, cloud, own),
            np.clip(0.45 + 0.3 * np.cos(2 * np.pi * (hour - 14) / 24) * -1 + 0.12 * is_weekend, 0.05, 0.9),
        )
        seen_weather = np.clip(0.9 + 0.75 * sky + 0.1 * own[2], 0, 2)
        flicker = 0.05 + 0.3 * cloud * (1 - cloud)
    else:
        lamps = _lamps(hour, day, is_weekend, rng)
        sun = np.clip(np.sin(2 * np.pi * (hour - 6) / 24), 0, None) * (1 - 0.7 * cloud) * (0.35 + 0.15 * own[1])
        light = np.log2(0.37 * np.exp2(0.2 * own[0]) + 0.45 * lamps + sun * 0.6)
        empty = np.where(lamps > 0.5, 0.25 + 0.05 * own[3], 0.75)
        seen_weather = np.clip(0.5 + 0.4 * sky * (sun > 0.02), 0, 1)
        flicker = np.full(count, 0.04)
    light = light + 0.06 * _autoregression(count, 3, rng)
    empty = np.clip(empty + 0.06 * _autoregression(count, 6, rng), 0.02, 0.95)
    return Course(light, flicker, seen_weather, _chances(count, hour, empty, rare_factor, rng), 40 if bank.kind.name == "indoor" else 32)


def _outdoor_light(hour: Doubles, cloud: Doubles, own: Doubles) -> Doubles:
    height = np.sin(2 * np.pi * (hour - 6 - 0.3 * own[0]) / 24)
    sun = 1 / (1 + np.exp(-(height - 0.02) / 0.06)) * (0.25 + 0.75 * np.clip(height, 0, 1)) * np.exp2(-1.5 * cloud)
    lamp = np.exp2(-5.4 + 0.5 * own[1])
    return np.log2(lamp + 1.3 * sun)


def _lamps(hour: Doubles, day: npt.NDArray[np.int64], is_weekend: npt.NDArray[np.bool_], rng: np.random.Generator) -> Doubles:
    """1 when the lamps are on: in working hours that begin and end a little differently each day, and now and then at night."""
    days = day[-1] + 1
    begins, ends = 7 + rng.normal(0, 0.3, days), 19 + rng.normal(0, 0.5, days)
    is_on = (hour >= begins[day]) & (hour < ends[day]) & ~is_weekend
    visits = _autoregression(len(hour), 4, rng) > 2.2
    return (is_on | visits).astype(float)


def _chances(count: int, hour: Doubles, empty: Doubles, rare_factor: float, rng: np.random.Generator) -> Doubles:
    base = rng.gamma(4.0, size=10)
    base[RARE] = 0
    base *= 0.99 / base.sum()
    base[RARE] = 0.01
    waves, swing = rng.uniform(0, 2 * np.pi, 10), rng.uniform(0, 0.3, 10)
    noise = np.stack([_autoregression(count, 24, rng) for _ in range(10)], axis=1)
    weights = base * np.exp(0.25 * noise + swing * np.sin(2 * np.pi * hour[:, None] / 24 + waves))
    weights[:, RARE] *= rare_factor
    weights /= weights.sum(axis=1, keepdims=True)
    return np.column_stack([weights * (1 - empty)[:, None], empty])


def _autoregression(count: int, steps: float, rng: np.random.Generator) -> Doubles:
    """A stationary first-order autoregression with mean 0 and deviation 1 that forgets in so many windows."""
    from scipy.signal import lfilter

    keep = np.exp(-1 / steps)
    noise = rng.standard_normal(count) * np.sqrt(1 - keep**2)
    noise[0] = rng.standard_normal()
    return lfilter([1.0], [1.0, -keep], noise)
