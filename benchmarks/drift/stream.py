"""Window summaries (DRIFT 5.1) of a course: the mean over what passed of the summaries of its rows, as far as light and weather go.

A summary is linear in the counts, so the mean over rows of each row's summary is the summary of the window. Rows while one thing passes
differ by noise and tremble alone; their mean is taken from the bank, and the noise of so many rows is added.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.bank import Bank
from benchmarks.drift.world import Course
from protocol.sketches.grid import Grid

Doubles = npt.NDArray[np.float64]
ROWS = 600  # per window, at a step of one second
#: Windows that are made at once.
WEEK = 1008


@dataclass(frozen=True, slots=True)
class Means:
    """Summary of each state, float32[things, lights, weathers, d], clean and per shift; variance of one row around it, [d]."""

    by_shift: dict[str, npt.NDArray[np.float32]]
    variance: Doubles


def row_summaries(grid: Grid, rows: npt.NDArray[np.float32], classes: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """float32[n, 2F + L]: a = u, b = u^2 - 1 of each feature's bin, and which class was predicted."""
    from statistics import NormalDist

    place = np.empty((len(rows), len(grid.features)), np.float32)
    spread = np.empty_like(place)
    for index, feature in enumerate(grid.features):
        masses = np.array(feature.masses)
        middle = np.clip(np.cumsum(masses) - masses / 2, 1e-9, 1 - 1e-9)
        u = np.array([NormalDist().inv_cdf(value) for value in middle])
        bins = np.searchsorted(np.array(feature.edges, np.float32), rows[:, index], side="left")
        place[:, index], spread[:, index] = u[bins], (u**2 - 1)[bins]
    shares = np.zeros((len(rows), len(grid.classes)), np.float32)
    shares[np.arange(len(rows)), classes] = 1
    return np.concatenate([place, spread, shares], axis=1)


def means(grid: Grid, bank: Bank, shifts: Sequence[str]) -> Means:
    """What `summaries` draws from, for these shifts and clean."""
    by_shift, variance = {}, None
    for name in ("clean", *shifts):
        rows = bank.rows[name]
        every = row_summaries(grid, rows.reshape(-1, rows.shape[-1]), bank.predicted[name].reshape(-1)).reshape(*rows.shape[:-1], -1)
        if name == "clean":
            variance = every.var(axis=3, ddof=1).mean(axis=(0, 1, 2))
        by_shift[name] = every.mean(axis=3)
    assert variance is not None
    return Means(by_shift, variance)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A shift and which share of the rows has it, per window; `is_bursty`: things as a whole, not single rows."""

    shift: str
    share: Doubles
    is_bursty: bool = False


def summaries(bank: Bank, table: Means, path: Course, seed: Sequence[int], mixtures: Sequence[Mixture] = ()) -> Doubles:
    """float64[windows, d]; the draws of things do not depend on the shift, so clean and shifted streams are pairs."""
    return np.concatenate(list(in_weeks(bank, table, path, seed, mixtures)))


def in_weeks(bank: Bank, table: Means, path: Course, seed: Sequence[int], mixtures: Sequence[Mixture] = ()) -> Iterator[Doubles]:
    """The same week by week, for whoever has no room for all of it: float64[up to `WEEK`, d] each."""
    rng = np.random.default_rng([*seed, 3])
    for start in range(0, len(path.light), WEEK):
        yield _some(bank, table, path, slice(start, start + WEEK), rng, mixtures)


def _some(bank: Bank, table: Means, path: Course, part: slice, rng: np.random.Generator, mixtures: Sequence[Mixture]) -> Doubles:
    passed = draw(bank, path, part, rng)
    states = np.ravel_multi_index((passed.thing, passed.light, passed.weather), table.by_shift["clean"].shape[:-1])
    chance = rng.random(states.shape)
    result = np.zeros((len(states), len(table.variance)))
    if table.variance.any():
        result += rng.standard_normal(result.shape) * np.sqrt(table.variance / ROWS)
    shares = [(table.by_shift[m.shift], _share(m, part, passed.lengths, chance, rng)) for m in mixtures]
    rest = passed.lengths * (1 - sum((share for _, share in shares), start=np.zeros_like(passed.lengths)))
    result += _mixed(table.by_shift["clean"], states, rest)
    for summaries_of_states, share in shares:
        result += _mixed(summaries_of_states, states, passed.lengths * share)
    return result


@dataclass(frozen=True, slots=True)
class Passed:
    """What passes in some windows, arrays [windows, things]: thing, level of light, kind of weather, part of the window."""

    thing: npt.NDArray[np.int64]
    light: npt.NDArray[np.int64]
    weather: npt.NDArray[np.int64]
    lengths: Doubles


def draw(bank: Bank, path: Course, part: slice, rng: np.random.Generator) -> Passed:
    """Things by their chances, exponential lengths; light and weather fall on one of the two levels around, the nearer more often."""
    windows = len(path.light[part])
    shape = (windows, path.things)
    edges = np.cumsum(path.chances[part], axis=1)
    chosen = (rng.random(shape)[..., None] > edges[:, None, :-1]).sum(axis=2)
    per_class = len(bank.things) // (int(bank.things.max()) + 1)
    thing = chosen * per_class + rng.integers(0, per_class, shape)
    lengths = rng.standard_exponential(shape)
    lengths /= lengths.sum(axis=1, keepdims=True)
    light = path.light[part][:, None] + path.flicker[part][:, None] * rng.standard_normal(shape)
    weather = np.repeat(path.weather[part][:, None], path.things, axis=1)
    return Passed(thing, _level(light, bank.kind.lights, rng), _level(weather, bank.kind.weathers, rng), lengths)


def _level(values: Doubles, levels: Sequence[float], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    at = np.clip((values - levels[0]) / (levels[1] - levels[0]), 0, len(levels) - 1)
    return np.minimum(np.floor(at + rng.random(values.shape)), len(levels) - 1).astype(np.int64)


def _share(mixture: Mixture, part: slice, lengths: Doubles, chance: Doubles, rng: np.random.Generator) -> Doubles:
    wanted = mixture.share[part][:, None]
    if mixture.is_bursty:
        return (chance < wanted).astype(float)
    rows = np.maximum(np.rint(lengths * ROWS), 1).astype(np.int64)
    return np.where((wanted > 0) & (wanted < 1), rng.binomial(rows, np.clip(wanted, 0, 1)) / rows, wanted)


def _mixed(table: npt.NDArray[np.float32], states: npt.NDArray[np.int64], weights: Doubles) -> Doubles:
    from scipy.sparse import csr_array

    ends = np.arange(len(states) + 1) * states.shape[1]
    matrix = csr_array((weights.ravel(), states.ravel(), ends), shape=(len(states), table[..., 0].size))
    return np.asarray(matrix @ table.reshape(-1, table.shape[-1]), dtype=np.float64)
