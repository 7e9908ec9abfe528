"""How near estimates without labels come to the truth, and whether the trust flag knows: the product's own code on simulated windows.

The release is tried on many places before the study's pictures: two parts of each, as a room and as a street. Its profile is made of these
rows as an import makes it, by the same damage done to the same frames; the windows are of the test's cameras, whose pictures are none of
these, and what goes wrong there is the benchmark's own. For each row, of the release
and of the windows, a thing is drawn anew: of 44 things the model is right in a share that is 3 points off what it is right in of all, and
nothing that has no labels can know that (`few_things` are such windows, of the banks of the streams).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.drift import bank as banks
from benchmarks.drift.bank import Bank, Kind
from benchmarks.drift.camera import HELD_OUT, SHIFTS, Lens, Shift, Shot
from benchmarks.drift.kept import kept
from benchmarks.drift.numbers import IMAGE
from benchmarks.drift.scenes import FRAME, digits, scenes
from fleet.monitoring.accuracy import LABEL_BUDGET, Labelled, range_of
from fleet.monitoring.drift_model import Trust
from fleet.monitoring.tried import middle
from fleet.registry.corruptions import SEVERITIES, corrupted, families
from fleet.registry.evaluation import MAX_PLACES, MAX_ROWS
from fleet.registry.profiles import CONFIDENCE, ENTROPY, Rows, counted, make_profile
from fleet.registry.profiling import DAMAGED_OF_PLACE
from protocol.sketches.profile import ModelProfile
from runtime.inputs import Color

KNOWN = (*(str(digit) for digit in range(10)), "nothing")
NAMES = (*(f"image.{name}" for name in IMAGE), *(f"embedding.{index}" for index in range(8)), CONFIDENCE, ENTROPY)
#: What an import tries (family, severity), and of which of its families the benchmark's shifts are.
DAMAGES = {f"{family} {severity}": (family, severity) for family in families(Color.RGB) for severity in SEVERITIES}
FAMILY_OF = {"blur": "blur", "half blur": "blur", "noise": "noise", "dirt": "dirt", "half dirt": "dirt", "jpeg": "jpeg", "color": "color",
             "darkness": "dark"}  # fmt: skip
CLEAN = "clean"
#: Rows of a judged window; and of a place as it is and after each kind of damage: an import takes no more of forty places.
OF_WINDOW, OF_PLACE, OF_DAMAGE = 1100, MAX_ROWS // MAX_PLACES, DAMAGED_OF_PLACE
#: Rows of a window of few things: an hour.
HOUR = 3600
#: Takes of each camera and shift, by which frames and draws differ; ADR 0044, 0052, 0057 and 0061 looked at the first eight of the test.
TAKES = {"study": (0, 1), "test": (8, 9, 10, 11, 12, 13)}
#: Concentrations of the chances of classes, where the study looks at other mixes of things.
MIXES = (200, 20, 5, 2)
#: Rows that are kept between runs. Another form is another name.
_PLACES, _WINDOWS, _DAMAGED = banks.CACHE / "places-3.npz", "windows-2", "damaged-1"
_LABELS_SEED, _DAMAGED_SEED = (77, 9), {"study": 8, "test": 10}
#: Code that decides what is estimated and believed.
_SOURCES = ("benchmarks/drift/labels.py", "fleet/monitoring/accuracy.py", "fleet/monitoring/tried.py", "fleet/monitoring/audited.py",
            "fleet/monitoring/confidence.py", "fleet/registry/profiles.py", "fleet/registry/corruptions.py")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimated:
    """One window: truth, the accuracy to be expected, the middle of the three estimates, and what the product's flag says."""

    scene: str
    shift: str
    truth: float
    accuracy: float
    middle: float
    trust: Trust
    reason: str

    @property
    def error(self) -> float:
        """Distance of the accuracy that was to be expected from the truth."""
        return abs(self.accuracy - self.truth)

    @property
    def is_on(self) -> bool:
        """Whether the flag says that the estimate may be believed."""
        return self.trust is not Trust.NOT_TRUSTED


def profile(without: str = "") -> ModelProfile:
    """The reference profile of the model version, as a release would carry it; without the places of one picture when the study asks so."""
    rows = {name: its for name, its in places().items() if not without or not name.startswith(f"{without}/")}
    clean = _joined([its[CLEAN] for its in rows.values()])
    tried = {key: _joined([its[name] for its in rows.values()]) for name, key in DAMAGES.items()}
    made, _ = make_profile(clean, made_at_ms=0, damaged=tried)
    return made


def benign(of: ModelProfile) -> frozenset[str]:
    """Shifts that the release tried and validated (DRIFT 6), and none: decided before a window of the test is seen."""
    assert of.accuracy is not None
    validated = of.accuracy.validated()
    return frozenset({CLEAN, *(name for name, family in FAMILY_OF.items() if family in validated)})


def places() -> dict[str, dict[str, Rows]]:
    """Rows of each place, as it is and after each damage; made and stored where they are not yet."""
    if not _PLACES.exists():
        _store(_PLACES, {f"{place}|{shift}": rows for place, its in _taken().items() for shift, rows in its.items()})
    found: dict[str, dict[str, Rows]] = {}
    with np.load(_PLACES) as stored:
        for name in stored.files:
            place, _, shift = name.rpartition("|")
            found.setdefault(place, {})[shift] = _split(stored[name], place)
    return found


def windows(purpose: str, index: int) -> dict[str, list[Rows]]:
    """Rows of the windows of a camera by shift: each of new things, in even shares, at any light and weather of its kind."""
    scene = banks.roster(purpose)[index][1]
    found: dict[str, list[Rows]] = {}
    for take in TAKES[purpose]:
        path = banks.CACHE / f"{_WINDOWS}-{purpose}-{index}-{take}.npz"
        if not path.exists():
            _store(path, _take(purpose, index, take))
        with np.load(path) as stored:
            for name in stored.files:
                found.setdefault(name, []).append(_split(stored[name], scene))
    return found


def damaged(purpose: str, index: int) -> dict[str, Rows]:
    """Rows of one window of a camera after each damage of an import, in all three severities."""
    kind, scene = banks.roster(purpose)[index]
    path = banks.CACHE / f"{_DAMAGED}-{purpose}-{index}.npz"
    if not path.exists():
        lens, _, _ = banks.lens_and_things(purpose, index)
        rngs = {name: np.random.default_rng([77, _DAMAGED_SEED[purpose], index, number]) for number, name in enumerate(DAMAGES)}
        _store(path, {name: _frames(lens, banks.KINDS[kind], OF_WINDOW, rng, _damage(name)) for name, rng in rngs.items()})
    with np.load(path) as stored:
        return {name: _split(stored[name], scene) for name in stored.files}


def judged(cameras: Sequence[int]) -> list[Estimated]:
    """Windows of these cameras of the test, by the profile of all places; each camera is kept between runs of the same code."""

    def make(index: int) -> list[Estimated]:
        return [_estimated(_released(), rows, shift) for shift, takes in windows("test", index).items() for rows in takes]

    return _each("labels", make, cameras)


def judged_damaged(cameras: Sequence[int]) -> list[Estimated]:
    """Windows of these cameras of the test after each damage of an import: where the flag is needed most."""

    def make(index: int) -> list[Estimated]:
        return [_estimated(_released(), rows, name) for name, rows in damaged("test", index).items()]

    return _each("labels-damaged-test", make, cameras)


def judged_with_labels(cameras: Sequence[int]) -> list[Estimated]:
    """As `judged`, by who has labels of random rows of the same camera, of its other take as it is: as many as one alarm may cost."""

    def make(index: int) -> list[Estimated]:
        return _with_labels(_released(), windows("test", index), index)

    return _each("labels-audited", make, cameras)


def study_with_labels(cameras: Sequence[int]) -> list[Estimated]:
    """As `study` and `study_damaged`, with labels as in `judged_with_labels`."""

    def make(index: int) -> list[Estimated]:
        its = windows("study", index)
        its |= {name: [rows] * len(its[CLEAN]) for name, rows in damaged("study", index).items()}
        return _with_labels(profile(without=_picture(index)), its, index)

    return _each("labels-audited-study", make, cameras)


def study(cameras: Sequence[int]) -> list[Estimated]:
    """Windows of these cameras of the study, by profiles without the places before their pictures: what is chosen is chosen on."""

    def make(index: int) -> list[Estimated]:
        left_out = profile(without=_picture(index))
        return [_estimated(left_out, rows, shift) for shift, takes in windows("study", index).items() for rows in takes]

    return _each("labels-study", make, cameras)


def study_damaged(cameras: Sequence[int]) -> list[Estimated]:
    """Windows of these cameras of the study after each damage of an import, also where answers pile up; profiles as in `study`."""

    def make(index: int) -> list[Estimated]:
        left_out = profile(without=_picture(index))
        return [_estimated(left_out, rows, name) for name, rows in damaged("study", index).items()]

    return _each("labels-damaged", make, cameras)


def study_mixes(cameras: Sequence[int]) -> list[Estimated]:
    """As `study`, with other chances of the classes in each window: "mix 20" is of a Dirichlet distribution with 20 for each class."""

    def make(index: int) -> list[Estimated]:
        left_out, rng, found = profile(without=_picture(index)), np.random.default_rng([77, 5, index]), []
        for takes in windows("study", index).values():
            for concentration in MIXES:
                weights = rng.dirichlet(np.full(len(KNOWN), concentration))[takes[0].truth]
                chosen = rng.choice(len(weights), OF_WINDOW, p=weights / weights.sum())
                found.append(_estimated(left_out, _some(takes[0], chosen), f"mix {concentration}"))
        return found

    return _each("labels-mixes", make, cameras)


def few_things(cameras: Sequence[int]) -> list[Estimated]:
    """Hours of these cameras of the test in which the 44 or 88 things of their banks pass again and again, each row drawn alone."""

    def make(index: int) -> list[Estimated]:
        bank = banks.load("test", index)
        drawn = [(name, _drawn(bank, name, HOUR, (23, index, take, len(name)))) for name in bank.rows for take in TAKES["test"]]
        return [_estimated(_released(), rows, name) for name, rows in drawn]

    return _each("labels-few", make, cameras)


@cache
def _released() -> ModelProfile:
    return profile()


def _picture(index: int) -> str:
    return banks.roster("study")[index][1].partition("/")[0]


def _each(name: str, make: Callable[[int], list[Estimated]], cameras: Sequence[int]) -> list[Estimated]:
    found: list[Estimated] = []
    for index in cameras:
        its = kept(f"{name}-{index}", _SOURCES, lambda index=index: [asdict(one) for one in make(index)])  # type: ignore[misc]  # a default
        found += [Estimated(**{**one, "trust": Trust(one["trust"])}) for one in its]
    return found


def _with_labels(of: ModelProfile, its: Mapping[str, Sequence[Rows]], index: int) -> list[Estimated]:
    """Each take by labels of the take before it."""
    audits = [_labelled(of, rows, (*_LABELS_SEED, index, take)) for take, rows in enumerate(its[CLEAN])]
    return [_estimated(of, rows, shift, audits[take - 1]) for shift, takes in its.items() for take, rows in enumerate(takes)]


def _labelled(of: ModelProfile, rows: Rows, seed: Sequence[int]) -> Labelled:
    assert rows.right is not None
    drawn = np.random.default_rng(list(seed)).choice(len(rows.right), LABEL_BUDGET, replace=False)
    return Labelled(counted(rows, of.grid), int(rows.right[drawn].sum()), LABEL_BUDGET)


def _estimated(of: ModelProfile, rows: Rows, shift: str, *labelled: Labelled) -> Estimated:
    """An open alarm would turn "trusted" to "matched", nothing else."""
    found = range_of(of, counted(rows, of.grid), alarms=[], match=None, labelled=labelled)
    assert found is not None
    assert rows.right is not None
    assert rows.places is not None
    three = [found.estimates[name] for name in ("doc", "atc", "cbpe")]
    expected = found.estimates["labels" if labelled else "places"]
    return Estimated(rows.places[0], shift, float(rows.right.mean()), expected, middle(three), found.trust, found.reason)


def _taken() -> Mapping[str, Mapping[str, npt.NDArray[np.float32]]]:
    """float32[n, numbers + answer + truth] by place ("picture/part kind": what is before the slash is the site) and damage."""
    every = scenes()
    found: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for number, picture in enumerate(sorted({scene.split("/")[0] for _, scene in banks.roster("study")})):
        for part in (0, 1):
            for kind in banks.KINDS.values():
                seed = [77, 6, number, part, kind.name == "outdoor"]
                lens = banks.lens_of(every[f"{picture}/{part}"], np.random.default_rng([*seed, 0]))
                its = found.setdefault(f"{picture}/{part} {kind.name}", {})
                for name, shift in {CLEAN: None, **{name: _damage(name) for name in DAMAGES}}.items():
                    rows = _frames(lens, kind, OF_PLACE, np.random.default_rng([*seed, 1]), shift)  # the same frames each time
                    its[name] = rows if shift is None else rows[np.arange(OF_DAMAGE) * OF_PLACE // OF_DAMAGE]
    return found


def _damage(name: str) -> Shift:
    """Damage of an import, done to finished frames."""
    family, severity = DAMAGES[name]

    def after(image: npt.NDArray[np.float32], _lens: Lens, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        frames = np.ascontiguousarray(image.transpose(3, 1, 2, 0)).astype(np.uint8)
        seeds = rng.integers(0, 2**31, len(frames)).tolist()
        after_it = [corrupted(frame, family, severity, seed=seed, color=Color.RGB) for frame, seed in zip(frames, seeds, strict=True)]
        return np.stack(after_it).transpose(3, 1, 2, 0).astype(np.float32)

    return Shift(name, after=after)


def _take(purpose: str, index: int, take: int) -> dict[str, npt.NDArray[np.float32]]:
    """float32[n, numbers + answer + truth] of one window of a camera by shift."""
    kind, _ = banks.roster(purpose)[index]
    lens, _, _ = banks.lens_and_things(purpose, index)
    arrays = {}
    for number, shift in enumerate((None, *SHIFTS, *(HELD_OUT if purpose == "test" else ()))):
        rng = np.random.default_rng([77, 4, purpose == "test", index, number, take])
        arrays[shift.name if shift else CLEAN] = _frames(lens, banks.KINDS[kind], OF_WINDOW, rng, shift)
    return arrays


def _frames(lens: Lens, kind: Kind, count: int, rng: np.random.Generator, shift: Shift | None) -> npt.NDArray[np.float32]:
    """float32[n, numbers + answer + truth] of frames, for each of which thing and position are drawn anew, classes in even shares."""
    pictures, labels = digits()
    classes = rng.permutation(np.arange(count) % len(KNOWN))
    things = np.zeros((count, 24, 24), np.float32)
    for digit in range(10):
        at = np.flatnonzero(classes == digit)
        things[at] = pictures[rng.choice(np.flatnonzero(labels[900:] == digit) + 900, len(at))]
    light, weather = rng.choice(kind.lights, count).astype(np.float32), rng.choice(kind.weathers, count).astype(np.float32)
    shot = Shot(light, weather, things, rng.integers(4, FRAME - 28, (count, 2)))
    numbers, answers = banks.rows_of(lens, shot, banks.classifier(), rng, shift)
    return np.column_stack([numbers, answers, classes]).astype(np.float32)


def _drawn(bank: Bank, shift: str, count: int, seed: Sequence[int]) -> Rows:
    rng = np.random.default_rng(list(seed))
    numbers, answers = bank.rows[shift], bank.predicted[shift]
    state = rng.integers(0, answers.size, count)
    truth = np.broadcast_to(bank.things[:, None, None, None], answers.shape).reshape(-1)[state]
    return _rows_of(numbers.reshape(-1, banks.FEATURES)[state], answers.reshape(-1)[state], truth, bank.scene)


def _store(path: Path, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]  # stub: allow_pickle
    partial.rename(path)


def _split(rows: npt.NDArray[np.float32], place: str) -> Rows:
    numbers, answered, truth = np.split(rows, [banks.FEATURES, banks.FEATURES + 1], axis=1)
    return _rows_of(numbers, answered[:, 0], truth[:, 0], place)


def _rows_of(numbers: npt.NDArray[np.float32], answers: npt.NDArray[np.generic], truth: npt.NDArray[np.generic], place: str) -> Rows:
    answered = answers.astype(np.int64)
    labels = tuple((KNOWN[answer],) for answer in answered.tolist())
    return Rows(NAMES, numbers, labels, KNOWN, answered, truth.astype(np.int64), places=(place,) * len(answered))


def _some(rows: Rows, chosen: npt.NDArray[np.int64]) -> Rows:
    assert rows.answered is not None
    assert rows.truth is not None
    assert rows.places is not None
    return _rows_of(rows.values[chosen], rows.answered[chosen], rows.truth[chosen], rows.places[0])


def _joined(parts: Sequence[Rows]) -> Rows:
    values = np.concatenate([part.values for part in parts])
    answered, truth = (np.concatenate([getattr(part, name) for part in parts]) for name in ("answered", "truth"))
    where = tuple(place for part in parts for place in part.places or ())
    return Rows(NAMES, values, tuple(label for part in parts for label in part.labels), KNOWN, answered, truth, places=where)
