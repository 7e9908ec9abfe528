"""How near estimates without labels come to the truth, and whether the trust flag knows: the product's own code on simulated windows.

The release is tried on many places before the study's pictures: two parts of each, as a room and as a street. Its profile is made of these
rows as an import would make it; the windows are of the test's cameras, whose pictures are none of these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from benchmarks.drift import bank as banks
from benchmarks.drift.bank import Bank
from benchmarks.drift.camera import SHIFTS, Shot
from benchmarks.drift.kept import kept
from benchmarks.drift.numbers import IMAGE
from benchmarks.drift.scenes import FRAME, digits, scenes
from fleet.monitoring.accuracy import range_of
from fleet.monitoring.drift_model import Trust
from fleet.monitoring.tried import middle
from fleet.registry.profiles import CONFIDENCE, ENTROPY, Rows, counted, make_profile
from protocol.sketches.profile import ModelProfile

KNOWN = (*(str(digit) for digit in range(10)), "nothing")
NAMES = (*(f"image.{name}" for name in IMAGE), *(f"embedding.{index}" for index in range(8)), CONFIDENCE, ENTROPY)
#: Corruptions that the release tries (family, severity).
TRIED = {"blur": ("blur", 2), "half blur": ("blur", 1), "noise": ("noise", 1), "dirt": ("dirt", 2), "half dirt": ("dirt", 1),
         "jpeg": ("jpeg", 1), "color": ("color", 1), "darkness": ("darkness", 1)}  # fmt: skip
#: Rows of a judged window: an hour. Rows of a place as it is, and of those after each kind of damage.
HOUR, OF_PLACE, OF_DAMAGE = 3600, 400, 200
#: Things per class that pass a place.
_PER_CLASS = 8
#: Labelled data of the release: where they are kept between runs. Another form is another name.
_KEPT = banks.CACHE / "places-1.npz"
#: Code that decides what is estimated and believed.
_SOURCES = ("benchmarks/drift/labels.py", "fleet/monitoring/accuracy.py", "fleet/monitoring/tried.py", "fleet/registry/profiles.py")


@dataclass(frozen=True, slots=True)
class Estimated:
    """One window: truth, the three estimates, and what the product's flag says of them."""

    scene: str
    shift: str
    truth: float
    estimates: tuple[float, float, float]
    trust: Trust
    reason: str

    @property
    def error(self) -> float:
        """Distance of the middle of the three from the truth."""
        return abs(middle(self.estimates) - self.truth)

    @property
    def is_on(self) -> bool:
        """Whether the flag says that the estimate may be believed."""
        return self.trust is not Trust.NOT_TRUSTED


def profile(without: str = "") -> ModelProfile:
    """The reference profile of the model version, as a release would carry it; without the places of one picture when the study asks so."""
    rows = {name: its for name, its in places().items() if not without or not name.startswith(without)}
    clean = _joined([its["clean"] for its in rows.values()])
    damaged = {key: _joined([its[name] for its in rows.values()]) for name, key in TRIED.items()}
    made, _ = make_profile(clean, made_at_ms=0, damaged=damaged)
    return made


def places() -> dict[str, dict[str, Rows]]:
    """Rows of each place, as it is and after each damage; made and stored where they are not yet."""
    if not _KEPT.exists():
        arrays = {f"{place}|{shift}": rows for place, its in _taken().items() for shift, rows in its.items()}
        np.savez(_KEPT, **arrays)  # type: ignore[arg-type]  # stub: allow_pickle
    found: dict[str, dict[str, Rows]] = {}
    with np.load(_KEPT) as stored:
        for name in stored.files:
            place, _, shift = name.rpartition("|")
            numbers, answered, truth = np.split(stored[name], [banks.FEATURES, banks.FEATURES + 1], axis=1)
            found.setdefault(place, {})[shift] = _rows_of(numbers, answered[:, 0], truth[:, 0], place)
    return found


def judged(cameras: Sequence[int]) -> list[Estimated]:
    """Windows of these cameras of the test, by the profile of all places; each camera is kept between runs of the same code."""
    found: list[Estimated] = []
    for index in cameras:

        def make(index: int = index) -> list[dict[str, object]]:
            return [asdict(one) for one in estimated(_released(), banks.load("test", index), index)]

        its = kept(f"labels-{index}", _SOURCES, make)
        found += [Estimated(**{**one, "estimates": tuple(one["estimates"]), "trust": Trust(one["trust"])}) for one in its]
    return found


def estimated(of: ModelProfile, bank: Bank, index: int, seed: int = 22) -> list[Estimated]:
    """Two windows of each shift of a camera, and two without. An open alarm would turn "trusted" to "matched", nothing else."""
    result = []
    for name in bank.rows:
        for take in range(2):
            rows = _drawn(bank, name, HOUR, (seed, index, take, len(name)))
            found = range_of(of, counted(rows, of.grid), alarms=[], match=None)
            assert found is not None
            assert rows.right is not None
            three = (found.estimates["doc"], found.estimates["atc"], found.estimates["cbpe"])
            result.append(Estimated(bank.scene, name, float(rows.right.mean()), three, found.trust, found.reason))
    return result


@cache
def _released() -> ModelProfile:
    return profile()


def _taken() -> Mapping[str, Mapping[str, npt.NDArray[np.float32]]]:
    """float32[n, numbers + answer + truth] by place and shift."""
    every, (pictures, labels) = scenes(), digits()
    shifts = [None, *(shift for shift in SHIFTS if shift.name in TRIED)]
    found: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for number, picture in enumerate(sorted({scene.split("/")[0] for _, scene in banks.roster("study")})):
        for part in (0, 1):
            for kind in banks.KINDS.values():
                rng = np.random.default_rng([77, 3, number, part, kind.name == "outdoor"])
                lens = banks.lens_of(every[f"{picture}/{part}"], rng)
                classes = np.repeat(np.arange(11), _PER_CLASS)
                passing = [rng.choice(np.flatnonzero(labels[900:] == digit) + 900, _PER_CLASS, replace=False) for digit in range(10)]
                things = np.concatenate([*(pictures[chosen] for chosen in passing), np.zeros((_PER_CLASS, 24, 24), np.float32)])
                where = rng.integers(4, FRAME - 28, (len(classes), 2))
                chosen = rng.integers(0, len(classes), OF_PLACE)
                light, weather = rng.choice(kind.lights, OF_PLACE), rng.choice(kind.weathers, OF_PLACE)
                its = found.setdefault(f"{picture}/{part} {kind.name}", {})
                for shift in shifts:
                    some = slice(0, OF_DAMAGE if shift else OF_PLACE)
                    at = chosen[some]
                    shot = Shot(light[some].astype(np.float32), weather[some].astype(np.float32), things[at], where[at])
                    numbers, answers = banks.rows_of(lens, shot, banks.classifier(), rng, shift)
                    its[shift.name if shift else "clean"] = np.column_stack([numbers, answers, classes[at]]).astype(np.float32)
    return found


def _drawn(bank: Bank, shift: str, count: int, seed: Sequence[int]) -> Rows:
    rng = np.random.default_rng(list(seed))
    numbers, answers = bank.rows[shift], bank.predicted[shift]
    state = rng.integers(0, answers.size, count)
    truth = np.broadcast_to(bank.things[:, None, None, None], answers.shape).reshape(-1)[state]
    return _rows_of(numbers.reshape(-1, banks.FEATURES)[state], answers.reshape(-1)[state], truth, bank.scene)


def _rows_of(numbers: npt.NDArray[np.float32], answers: npt.NDArray[np.generic], truth: npt.NDArray[np.generic], place: str) -> Rows:
    answered = answers.astype(np.int64)
    labels = tuple((KNOWN[answer],) for answer in answered.tolist())
    return Rows(NAMES, numbers, labels, KNOWN, answered, truth.astype(np.int64), places=(place,) * len(answered))


def _joined(parts: Sequence[Rows]) -> Rows:
    values = np.concatenate([part.values for part in parts])
    answered, truth = (np.concatenate([getattr(part, name) for part in parts]) for name in ("answered", "truth"))
    where = tuple(place for part in parts for place in part.places or ())
    return Rows(NAMES, values, tuple(label for part in parts for label in part.labels), KNOWN, answered, truth, places=where)
