"""Twelve simulated cameras of one site under one sky: a shift in 5 % of the rows of all of them, seen by the group's looks.

By the server's own code, as it would run: four weeks for the references of the devices, four more for that of the group, then clean months.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.fleet import camera, grid
from benchmarks.drift.kept import kept
from benchmarks.drift.trial import HORIZON, PURPOSES, REFERENCE_DAYS, Device, alarms, cases, delay
from benchmarks.drift.world import WINDOWS, course, weather
from fleet.monitoring.group_looks import GROUP_LOOKS, HOURS_PER_DAY, Member, member_of, merged
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR
from protocol.sketches.looks import LOOKS
from protocol.sketches.reference import DeviceReference, fit_reference

Doubles = npt.NDArray[np.float64]
MEMBERS, CLEAN_DAYS = 12, 120
#: The first site of the test: earlier seeds were seen while groups were judged otherwise.
FIRST_TEST = 200
#: Of the devices, then of the group.
LEARNING_DAYS = 2 * REFERENCE_DAYS
#: Windows of an hour.
HOUR = 6
_MODEL = bytes(16)
#: Code that decides what a group sees.
_SOURCES = (
    "benchmarks/drift/group.py",
    "fleet/monitoring/group_looks.py",
    *(f"protocol/sketches/{name}.py" for name in ("expectations", "looks", "powers", "reference", "scatter", "stretches", "tail")),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one site: alarms of the group in clean years, delays in windows by case, at one asked per group-year; and of one member alone."""

    alarms: int
    years: float
    together: dict[str, int]
    alone: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Member(Device):
    at: int = 0

    @property
    def onset(self) -> int:
        """The moment of the whole site."""
        return self.at


def sites(purpose: str, cameras: Sequence[int], repeats: Sequence[int]) -> list[Seen]:
    """So many sites; each is kept between runs of the same code."""
    found = []
    for repeat in repeats:

        def make(repeat: int = repeat) -> dict[str, object]:
            return asdict(site(purpose, cameras, repeat))

        found.append(Seen(**kept(f"site-{purpose}-{len(cameras)}-{repeat}", _SOURCES, make)))
    return found


def site(purpose: str, cameras: Sequence[int], repeat: int) -> Seen:
    """Members are cameras in turn, each with its own habits."""
    days = LEARNING_DAYS + CLEAN_DAYS
    sky = weather(days, (PURPOSES[purpose], 5000, repeat))
    onset = _onset(purpose, repeat, len(sky))
    members = []
    for number in range(MEMBERS):
        bank, table = camera(purpose, cameras[number % len(cameras)])
        key = (PURPOSES[purpose], 5001 + number, repeat)
        members.append(_Member(bank, table, key, sky, course(bank, sky, key), onset))
    clean = [member.clean() for member in members]
    references = [_learned(stream, number) for number, stream in enumerate(clean)]
    weighed = [member_of(reference) for reference in references]
    shifts = _merged(weighed, [stream[REFERENCE_DAYS * WINDOWS :] for stream in clean])
    begin, learning = REFERENCE_DAYS * WINDOWS, REFERENCE_DAYS * HOURS_PER_DAY
    places = begin + HOUR * np.arange(learning)
    group = fit_reference(shifts[:learning], places, grid=grid(), model=_MODEL, looks=GROUP_LOOKS, per_day=HOURS_PER_DAY)
    together, alone = {}, {}
    at = (onset - begin) // HOUR
    for case in cases():
        if case.kind in {"5 percent", "small prior"}:
            shifted = [member.shifted(case) for member in members]
            together[case.name] = _delay_together(group, shifts[at - group.longest : at], _merged(weighed, shifted))
            alone[case.name] = _delay_alone(references[0], clean[0][onset - references[0].longest : onset], shifted[0])
    values = group.judged(shifts[learning - group.longest :])[group.longest :]
    crossed = np.repeat(values <= 1 / group.per_year, HOUR)
    return Seen(alarms(crossed), len(crossed) / SUBWINDOWS_PER_YEAR, together, alone)


def _onset(purpose: str, repeat: int, windows: int) -> int:
    rng = np.random.default_rng([PURPOSES[purpose], repeat, 77])
    return HOUR * int(rng.integers((LEARNING_DAYS + 2) * WINDOWS // HOUR, (windows - HORIZON) // HOUR))


def _learned(stream: Doubles, number: int) -> DeviceReference:
    """The device's reference; of all but the first without the looks that a group does not ask for."""
    places = np.arange(REFERENCE_DAYS * WINDOWS)
    asked = tuple(look for look in LOOKS if look.subwindows <= HOUR and not look.is_classes)
    return fit_reference(stream[places], places, grid=grid(), model=_MODEL, looks=asked if number else LOOKS)


def _merged(members: Sequence[Member], streams: Sequence[Doubles]) -> Doubles:
    """The group's hours, float64[hours, d], of all members' windows."""
    hours = np.stack([stream.reshape(len(stream) // HOUR, HOUR, -1).mean(axis=1) for stream in streams], axis=1)
    return np.stack([merged(members, hour, of=len(members)) for hour in hours])


def _delay_together(group: DeviceReference, before: Doubles, shifts: Doubles) -> int:
    """An hour is judged at its end."""
    values = group.judged(np.concatenate([before, shifts]))[len(before) :]
    return min(HORIZON, HOUR * delay(values <= 1 / group.per_year))


def _delay_alone(reference: DeviceReference, before: Doubles, shifted: Doubles) -> int:
    values = reference.judged(np.concatenate([before, shifted]))[len(before) :]
    return delay(values <= 1 / SUBWINDOWS_PER_YEAR)
