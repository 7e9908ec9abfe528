"""Many simulated devices, one after the other: who is judged by what, and how the outcomes add up. Simulated."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from benchmarks.drift import bank, ours, singles
from benchmarks.drift.outcomes import Outcome, ensure
from benchmarks.drift.stream import Means
from benchmarks.drift.trial import HORIZON, Device, alarms, cases, delay, device, grid_of, held_out, tables
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR
from protocol.sketches.grid import Grid

Doubles = npt.NDArray[np.float64]
#: Clean days after the four weeks of reference: a year of each device.
CLEAN_DAYS = 365
#: Repeats of which the delays are measured too; later ones are judged for false alarms alone.
WITH_DELAYS = 12
#: The first repeat of the test. Earlier ones were seen while a detector was still changed: they are spent.
FIRST_TEST = 532
#: Cases that single features are compared on.
SINGLE_KINDS = ("full", "20 percent", "prior", "ramp")
#: p of single features that are tried as thresholds.
LEVELS = tuple(float(level) for level in np.logspace(-9, -2, 57))


@cache
def grid() -> Grid:
    """The grid of the model version."""
    return grid_of([bank.load("study", index) for index in range(len(bank.roster("study")))])


@cache
def camera(purpose: str, index: int) -> tuple[bank.Bank, Means]:
    """A bank, and what its streams are drawn from."""
    found = bank.load(purpose, index)
    return found, tables(grid(), found)


@lru_cache(maxsize=2)
def cells(purpose: str, index: int) -> singles.Cells:
    """What the bins of a camera's streams are drawn from."""
    wanted = (case for case in cases() if case.kind in SINGLE_KINDS)
    return singles.cells(grid(), camera(purpose, index)[0], sorted({mixture.shift for case in wanted for mixture in case.mixtures}))


def one(purpose: str, index: int, repeat: int, days: int) -> Device:
    """A device of the fleet, with four weeks of reference and so many clean days."""
    return device(*camera(purpose, index), purpose, index, repeat, days + 28)


def run(detector: str, purpose: str, cameras: int, repeats: int, *, with_held_out: bool = False, days: int = CLEAN_DAYS) -> list[Outcome]:
    """Outcomes of a detector ("looks", "blocks") on so many devices: every camera once, then every camera again."""
    first = FIRST_TEST if purpose == "test" else 0
    chosen = [(index, repeat) for repeat in range(first, first + repeats) for index in range(cameras)]
    return ensure(
        ((detector, purpose, index, repeat), _job(detector, purpose, index, repeat, days, with_held_out)) for index, repeat in chosen
    )


def run_singles(purpose: str, cameras: int, repeats: int, *, days: int = CLEAN_DAYS) -> list[Outcome]:
    """Outcomes of PSI, KS, JS and W1, `alarms` and `delays` keyed by the level of p instead of a rate."""
    found = []
    first = FIRST_TEST if purpose == "test" else 0
    for index, repeat in ((index, repeat) for repeat in range(first, first + repeats) for index in range(cameras)):
        made: dict[str, Outcome] = {}

        def make(name: str, index: int = index, repeat: int = repeat, made: dict[str, Outcome] = made) -> Outcome:
            if not made:
                made.update({outcome.detector: outcome for outcome in _singles(purpose, index, repeat, days)})
            return made[name]

        found += ensure(((name, purpose, index, repeat), lambda name=name, make=make: make(name)) for name in singles.NAMES)
    return found


def bound(count: int, years: float) -> float:
    """The one-sided 95 % upper bound of a rate by Poisson's law: chi-square(0.95; 2k + 2) / 2T."""
    return float(chi2.ppf(0.95, 2 * count + 2) / 2 / years)


def total(outcomes: Sequence[Outcome], rate: float) -> tuple[int, float]:
    """Alarms at this asked rate, and clean years."""
    return sum(outcome.alarms[rate] for outcome in outcomes), sum(outcome.years for outcome in outcomes)


def delays(outcomes: Sequence[Outcome], rate: float, kind: str) -> list[int]:
    """All delays of the cases of a kind, windows; `HORIZON` stands for never."""
    return [value for outcome in outcomes for (of_kind, _), value in outcome.delays.get(rate, {}).items() if of_kind == kind]


def matched_level(outcomes: Sequence[Outcome], rate: float) -> float:
    """The largest level of p at which single-feature outcomes raise at most `rate` alarms a year."""
    years = sum(outcome.years for outcome in outcomes)
    kept = [level for level in LEVELS if sum(outcome.alarms[level] for outcome in outcomes) <= rate * years]
    return max(kept, default=LEVELS[0])


def _job(detector: str, purpose: str, index: int, repeat: int, days: int, with_held_out: bool) -> Callable[[], Outcome]:  # noqa: FBT001
    def make() -> Outcome:
        judged_by = one(purpose, index, repeat, days)
        wanted = cases() + (held_out() if with_held_out else ()) if repeat % FIRST_TEST < WITH_DELAYS else ()
        found = ours.looks(judged_by, grid(), wanted) if detector == "looks" else ours.blocks(judged_by, wanted)
        kind = judged_by.bank.kind.name
        return Outcome(detector, purpose, kind, judged_by.bank.scene, index, repeat, found.years, found.alarms, found.delays, found.notes)

    return make


def _singles(purpose: str, index: int, repeat: int, days: int) -> list[Outcome]:
    wanted = [case for case in cases() if case.kind in SINGLE_KINDS]
    judged_by = one(purpose, index, repeat, days)
    clean, seen = singles.p_values(judged_by, cells(purpose, index), wanted)
    return [
        Outcome(
            name,
            purpose,
            judged_by.bank.kind.name,
            judged_by.bank.scene,
            index,
            repeat,
            len(clean) / SUBWINDOWS_PER_YEAR,
            {level: alarms(clean[:, column] <= level) for level in LEVELS},
            {level: {case: min(delay(p[:, column] <= level), HORIZON) for case, p in seen.items()} for level in LEVELS},
            {},
        )
        for column, name in enumerate(singles.NAMES)
    ]
