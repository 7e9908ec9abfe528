"""Twelve simulated cameras of one site under one sky: a shift in 5 % of the rows of all of them, seen from their mean alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.drift.fleet import camera, grid
from benchmarks.drift.scales import LOOKS, fit_scales, judged
from benchmarks.drift.trial import HORIZON, PURPOSES, REFERENCE_DAYS, Device, alarms, cases, delay
from benchmarks.drift.world import WINDOWS, course, weather
from protocol.sketches.evidence import SUBWINDOWS_PER_YEAR

Doubles = npt.NDArray[np.float64]
MEMBERS, CLEAN_DAYS = 12, 60


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one site: alarms of the mean in clean years, delays in windows by case, at one asked per group-year; and of one member alone."""

    alarms: int
    years: float
    together: dict[str, int]
    alone: dict[str, int]


def site(purpose: str, cameras: Sequence[int], repeat: int) -> Seen:
    """Members are cameras in turn, each with its own habits; a member's mean of the reference is taken off, then all are averaged."""
    days = REFERENCE_DAYS + CLEAN_DAYS
    sky = weather(days, (PURPOSES[purpose], 5000, repeat))
    members = []
    for number in range(MEMBERS):
        bank, table = camera(purpose, cameras[number % len(cameras)])
        key = (PURPOSES[purpose], 5001 + number, repeat)
        members.append(Device(bank, table, key, sky, course(bank, sky, key)))
    start = REFERENCE_DAYS * WINDOWS
    clean = [member.clean() for member in members]
    centers = [stream[:start].mean(axis=0) for stream in clean]
    merged = _mean(clean, centers)
    onset = members[0].onset
    members = [_at(member, onset) for member in members]
    group, one = fit_scales(merged[:start], grid()), fit_scales(clean[0][:start], grid())
    before = max(look.subwindows for look in LOOKS)
    together, alone = {}, {}
    for case in cases():
        if case.kind in {"5 percent", "small prior"}:
            shifted = [member.shifted(case) for member in members]
            stream = np.concatenate([merged[onset - before : onset], _mean(shifted, centers)])
            together[case.name] = delay(judged(group, stream)[before:] <= 1 / SUBWINDOWS_PER_YEAR)
            single = np.concatenate([clean[0][onset - before : onset], shifted[0]])
            alone[case.name] = delay(judged(one, single)[before:] <= 1 / SUBWINDOWS_PER_YEAR)
    values = judged(group, merged)[start:]
    return Seen(alarms(values <= 1 / SUBWINDOWS_PER_YEAR), len(values) / SUBWINDOWS_PER_YEAR, together, alone)


@dataclass(frozen=True, slots=True)
class _Member(Device):
    at: int = 0

    @property
    def onset(self) -> int:
        """The moment of the whole site."""
        return self.at


def _at(member: Device, onset: int) -> Device:
    assert onset + HORIZON <= len(member.sky)
    return _Member(member.bank, member.table, member.key, member.sky, member.path, onset)


def _mean(streams: Sequence[Doubles], centers: Sequence[Doubles]) -> Doubles:
    return np.mean([stream - center for stream, center in zip(streams, centers, strict=True)], axis=0)
