"""A device whose pictures became darker six hours ago, as real windows, a real reference and a real alarm in a server's database."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import cache

import numpy as np
from simulators import sketches
from simulators.sketches import SketchDevice

from fleet.audit import Actor, ActorKind
from fleet.db import Database
from fleet.monitoring import drift_references, drift_service, drift_tick
from fleet.monitoring.drift_model import Alarm, ReferenceSource
from fleet.monitoring.drift_rules import DriftRules
from protocol.clock import to_unix_ms
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.sketches.codec import SUBWINDOW_MS, SketchWindow
from protocol.sketches.counts import Counts
from protocol.sketches.profile import ModelProfile
from protocol.sketches.reference import DeviceReference, fit_reference
from protocol.sketches.summary import summarizer

#: Hours of windows, and how many of them after the onset.
HOURS, SHIFTED_HOURS = 48, 6
SHIFT = (-1.5, 0.0, 0.0, 0.0)
_LEARNER = Actor(ActorKind.PERSON, "root-of-tests")


@cache
def release_profile() -> ModelProfile:
    """What the release carries; its grid is older than any clock of a test."""
    made = sketches.profile()
    return ModelProfile(replace(made.grid, made_at_ms=1), made.reference, made.accuracy)


@cache
def _clean(count: int = 60) -> tuple[Counts, ...]:
    rng = np.random.default_rng(11)
    return tuple(sketches.counts(rng) for _ in range(count))


@cache
def _shifted() -> tuple[Counts, ...]:
    rng = np.random.default_rng(12)
    return tuple(sketches.counts(rng, shift=SHIFT) for _ in range(6))


def _summaries(counted: tuple[Counts, ...]) -> np.ndarray:
    made = summarizer(release_profile().grid)
    return made.summarize(np.stack([one.cells for one in counted]), np.stack([one.classes for one in counted]))


def reference_until(end: int) -> DeviceReference:
    """A calibrated reference of 28 days that end at a sub-window: windows drawn like the clean ones, by their mean and covariance."""
    clean = _summaries(_clean())
    rng = np.random.default_rng(13)
    days = 28
    first = (end // 144 - days) * 144
    drawn = rng.multivariate_normal(clean.mean(axis=0), np.cov(clean.T) + 1e-6 * np.eye(clean.shape[1]), size=days * 144)
    return fit_reference(drawn, np.arange(first, first + days * 144), grid=release_profile().grid, model=sketches.MODEL)


def add_drift(database: Database, ingest: Callable[..., None], device: str, *, now: datetime, pipeline: str = "front") -> Alarm:
    """Give the device a reference and two days of windows, and judge them as the server does; returns the alarm that this raises."""
    sketches.add_profile(database, release_profile())
    end = to_unix_ms(now) // SUBWINDOW_MS // 6 * 6
    start = end - 6 * HOURS
    reference = reference_until(start)
    drift_references.add_reference(
        database,
        tenant=DEFAULT_TENANT,
        device=DeviceId(device),
        pipeline=pipeline,
        body=reference.encoded,
        source=ReferenceSource.RECORDING,
        by=_LEARNER,
        now=now,
        reason="test",
    )
    sender = SketchDevice(device, pipeline, grid=release_profile().grid)
    hours = [_parts(sender, reference, w0, is_shifted=w0 >= end - 6 * SHIFTED_HOURS) for w0 in range(start, end, 6)]
    crossing = hours[-SHIFTED_HOURS][0]  # the check of the device fires at once: its evidence
    ingest(*(sender.message(sender.hour(parts[0].w0, sub_windows=parts)) for parts in hours), sender.message(crossing))
    while drift_tick.tick(database, rules=DriftRules(), now=now):
        pass
    return drift_service.list_alarms(database, DEFAULT_TENANT, device=DeviceId(device))[0]


def _parts(sender: SketchDevice, reference: DeviceReference, w0: int, *, is_shifted: bool) -> list[SketchWindow]:
    """The six sub-windows of an hour."""
    counted = _shifted() if is_shifted else tuple(_clean()[(w0 + index) % len(_clean())] for index in range(6))
    scores = reference.scores(_summaries(counted))
    return [
        sender.sub_window(w0 + index, one, score=float(scores[index]), reference_id=reference.reference_id)
        for index, one in enumerate(counted)
    ]
