"""One simulated device: four weeks of reference, clean months, and the same device with something wrong from some moment on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift import bank as banks
from benchmarks.drift.bank import Bank
from benchmarks.drift.numbers import IMAGE
from benchmarks.drift.stream import Means, Mixture, means, summaries
from benchmarks.drift.world import CLASSES, WINDOWS, Course, course, weather
from protocol.sketches.grid import FeatureGroup, Grid, fit_feature

Doubles = npt.NDArray[np.float64]
REFERENCE_DAYS = 28
#: A shift that is not seen within two days counts as this many windows: the horizon of the restricted mean.
HORIZON = 2 * WINDOWS
#: An alarm and what comes within a day of it is one.
HOLD = WINDOWS
#: Purposes never share a seed; the study and the test share no picture either.
PURPOSES = {"study": 1, "test": 2, "validation": 3}
FULL = ("blur", "noise", "dirt", "jpeg", "color", "darkness", "move")
RAMPS = {"ramp dirt": ("half dirt", "dirt"), "ramp blur": ("half blur", "blur")}


@dataclass(frozen=True, slots=True)
class Case:
    """What goes wrong, and where it belongs in the table."""

    name: str
    kind: str  # full, 20 percent, 5 percent, prior, ramp
    mixtures: tuple[Mixture, ...] = ()
    rare_factor: float = 1.0


def cases() -> tuple[Case, ...]:
    """The cases of the study and of the test."""
    whole, fifth, twentieth = (np.full(HORIZON, share) for share in (1.0, 0.2, 0.05))
    found = [Case(name, "full", (Mixture(name, whole),)) for name in FULL]
    found += [Case(name, "20 percent", (Mixture(name, fifth),)) for name in FULL]
    found += [Case(name, "5 percent", (Mixture(name, twentieth),)) for name in FULL]
    found += [Case("prior x 20", "prior", rare_factor=20.0), Case("prior x 2.7", "small prior", rare_factor=2.7)]
    found += [Case(name, "ramp", ramp(half, full)) for name, (half, full) in RAMPS.items()]
    return tuple(found)


def held_out() -> tuple[Case, ...]:
    """A corruption, an intermittent one (whole things at a time), a ramp, a turned camera, another prior: opened once per release."""
    whole, burst = np.full(HORIZON, 1.0), np.full(HORIZON, 0.2)
    return (
        Case("motion blur", "held out full", (Mixture("motion blur", whole),)),
        Case("fog", "held out full", (Mixture("fog", whole),)),
        Case("turn", "held out full", (Mixture("turn", whole),)),
        Case("intermittent fog", "held out 20 percent", (Mixture("fog", burst, is_bursty=True),)),
        Case("ramp fog", "held out ramp", ramp("half fog", "fog")),
        Case("prior x 10", "held out prior", rare_factor=10.0),
    )


def ramp(half: str, full: str) -> tuple[Mixture, Mixture]:
    """From nothing to all of it in a day, by way of its half."""
    way = np.minimum(np.arange(1, HORIZON + 1) / WINDOWS, 1)
    return Mixture(half, np.where(way < 0.5, 2 * way, 2 - 2 * way)), Mixture(full, np.clip(2 * way - 1, 0, 1))


def grid_of(study: Sequence[Bank]) -> Grid:
    """The grid of the model version: on rows of the study's cameras, as evaluation data of a release would be."""
    rng = np.random.default_rng(5)
    chosen = [rng.integers(0, bank.rows["clean"][..., 0].size, 3000) for bank in study]
    rows = np.concatenate([bank.rows["clean"].reshape(-1, banks.FEATURES)[at] for bank, at in zip(study, chosen, strict=True)])
    names = [*(f"image.{name}" for name in IMAGE), *(f"embedding.{index}" for index in range(8)), "confidence", "entropy"]
    groups = [FeatureGroup.INPUT] * 12 + [FeatureGroup.EMBEDDING] * 8 + [FeatureGroup.OUTPUT] * 2
    features = [
        fit_feature(name, group, rows[:, index], 64 if name == "confidence" else 32)
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
    ]
    return Grid(tuple(features), (*tuple(str(digit) for digit in range(CLASSES - 1)), "nothing"), 1, 0)


@dataclass(frozen=True, slots=True)
class Device:
    """A camera of the roster with its own weather, habits and chance."""

    bank: Bank
    table: Means
    key: tuple[int, ...]
    sky: Doubles
    path: Course

    @property
    def onset(self) -> int:
        """The sub-window from which on something is wrong in its cases."""
        return int(np.random.default_rng([*self.key, 9]).integers((REFERENCE_DAYS + 2) * WINDOWS, len(self.sky) - HORIZON))

    def clean(self) -> Doubles:
        """Summaries of all its windows, float64[n, d]."""
        return summaries(self.bank, self.table, self.path, self.key)

    def shifted(self, case: Case) -> Doubles:
        """Summaries of `HORIZON` windows from the onset on, float64[HORIZON, d]."""
        path = course(self.bank, self.sky, self.key, rare_factor=case.rare_factor) if case.rare_factor != 1 else self.path
        part = slice(self.onset, self.onset + HORIZON)
        cut = Course(path.light[part], path.flicker[part], path.weather[part], path.chances[part], path.things)
        return summaries(self.bank, self.table, cut, (*self.key, 7), case.mixtures)


def device(bank: Bank, table: Means, purpose: str, index: int, repeat: int, days: int) -> Device:
    """The repeat-th device before this camera's scene, `days` long in all."""
    key = (PURPOSES[purpose], index, repeat)
    sky = weather(days, key)
    return Device(bank, table, key, sky, course(bank, sky, key))


def tables(grid: Grid, bank: Bank) -> Means:
    """All that the cases need of a bank."""
    return means(grid, bank, [name for name in bank.rows if name != "clean"])


def alarms(crossings: npt.NDArray[np.bool_]) -> int:
    """Alarms of crossings [n]: what comes within a day of one that counts is the same alarm."""
    count, last = 0, -HOLD
    for at in np.flatnonzero(crossings):
        if at - last >= HOLD:
            count, last = count + 1, at
    return count


def delay(crossings: npt.NDArray[np.bool_]) -> int:
    """Windows from the onset to the first crossing, 1 for the very first; `HORIZON` when there is none."""
    at = np.flatnonzero(crossings)
    return int(at[0]) + 1 if at.size else HORIZON


def by_kind(values: Mapping[tuple[str, str], Sequence[float]], kind: str) -> list[float]:
    """All values of the cases of a kind."""
    return [value for (of_kind, _), all_values in values.items() if of_kind == kind for value in all_values]
