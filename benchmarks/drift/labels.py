"""How near estimates without labels come to the truth, and whether the trust flag knows: the product's own code on simulated windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift import bank as banks
from benchmarks.drift.bank import Bank
from benchmarks.drift.numbers import IMAGE
from fleet.monitoring.accuracy import estimate
from fleet.registry.profiles import CONFIDENCE, ENTROPY, Rows, counted, make_profile
from protocol.sketches.profile import ModelProfile
from protocol.sketches.summary import summary

KNOWN = (*(str(digit) for digit in range(10)), "nothing")
NAMES = (*(f"image.{name}" for name in IMAGE), *(f"embedding.{index}" for index in range(8)), CONFIDENCE, ENTROPY)
#: Corruptions that the release tries (family, severity).
TRIED = {"blur": ("blur", 2), "half blur": ("blur", 1), "noise": ("noise", 1), "dirt": ("dirt", 2), "half dirt": ("dirt", 1),
         "jpeg": ("jpeg", 1), "color": ("color", 1), "darkness": ("darkness", 1)}  # fmt: skip
#: Rows of a judged window: an hour.
HOUR = 3600


@dataclass(frozen=True, slots=True)
class Estimated:
    """One window: truth, the three estimates, and whether the shift was like a validated one."""

    scene: str
    shift: str
    truth: float
    estimates: tuple[float, float, float]
    is_matched: bool

    @property
    def error(self) -> float:
        """Distance of the middle of the three from the truth."""
        return abs((min(self.estimates) + max(self.estimates)) / 2 - self.truth)


def profile(study: Sequence[Bank], seed: int = 21) -> ModelProfile:
    """The reference profile of the model version by the study's cameras, as a release would carry it."""
    clean = [_rows(bank, "clean", 1500, (seed, index)) for index, bank in enumerate(study)]
    damaged = {key: _joined([_rows(bank, name, 400, (seed, 9, index)) for index, bank in enumerate(study)]) for name, key in TRIED.items()}
    made, _ = make_profile(_joined(clean), made_at_ms=0, damaged=damaged)
    return made


def estimated(of: ModelProfile, cameras: Sequence[Bank], seed: int = 22) -> list[Estimated]:
    """Two windows of each camera and shift, and of each camera without."""
    accuracy = of.accuracy
    assert accuracy is not None
    valid = [family for family in accuracy.families if family.family in accuracy.validated()]
    result = []
    for index, bank in enumerate(cameras):
        clean = np.stack([summary(counted(_rows(bank, "clean", HOUR, (seed, index, 7, k)), of.grid), of.grid) for k in range(12)])
        center, spread = clean.mean(axis=0), np.maximum(clean.std(axis=0, ddof=1), 1e-2)
        limit = np.quantile((((clean - center) / spread) ** 2).sum(axis=1), 0.99) * 1.5
        for name in bank.rows:
            for take in range(2):
                rows = _rows(bank, name, HOUR, (seed, index, take, len(name)))
                counts = counted(rows, of.grid)
                found = estimate(of, counts)
                assert found is not None
                assert rows.right is not None
                left = [(((summary(counts, of.grid) - np.array(one.shift) - center) / spread) ** 2).sum() for one in valid]
                three = (found["doc"], found["atc"], found["cbpe"])
                result.append(Estimated(bank.scene, name, float(rows.right.mean()), three, bool(left) and min(left) <= limit))
    return result


def _rows(bank: Bank, shift: str, count: int, seed: Sequence[int]) -> Rows:
    rng = np.random.default_rng(list(seed))
    numbers, answers = bank.rows[shift], bank.predicted[shift]
    state = rng.integers(0, answers.size, count)
    truth = np.broadcast_to(bank.things[:, None, None, None], answers.shape).reshape(-1)[state]
    answered = answers.reshape(-1)[state].astype(np.int64)
    values: npt.NDArray[np.float32] = numbers.reshape(-1, banks.FEATURES)[state]
    return Rows(NAMES, values, tuple((KNOWN[place],) for place in answered.tolist()), KNOWN, answered, truth)


def _joined(parts: Sequence[Rows]) -> Rows:
    values = np.concatenate([part.values for part in parts])
    answered, truth = (np.concatenate([getattr(part, name) for part in parts]) for name in ("answered", "truth"))
    return Rows(NAMES, values, tuple(label for part in parts for label in part.labels), KNOWN, answered, truth)
