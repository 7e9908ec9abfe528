"""Rows as the inference process sends them, and what conditions are judged by."""

import base64
import binascii
from typing import Any, Protocol

import numpy as np

from agent.drift import conditions
from protocol.sketches.grid import Grid


class QualitySeen(Protocol):
    """As `agent.inference.messages.Quality`."""

    @property
    def mean(self) -> float: ...
    @property
    def deviation(self) -> float: ...
    @property
    def hash(self) -> str: ...
    @property
    def not_finite(self) -> int: ...
    @property
    def out_of_range(self) -> int: ...


class SampledRow(Protocol):
    """One row as the inference process sends it: `agent.inference.messages.Sampled`."""

    @property
    def pipeline(self) -> str: ...
    @property
    def line(self) -> str: ...
    @property
    def release(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def grid(self) -> str: ...
    @property
    def at_s(self) -> float: ...
    @property
    def step_s(self) -> float: ...
    @property
    def values(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def quality(self) -> QualitySeen | None: ...
    @property
    def fault(self) -> str: ...
    @property
    def fitting_step_s(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def src(self) -> int: ...


def values_of(row: SampledRow, grid: Grid) -> Any:
    """float32[features]; None when the row has none, or not as many."""
    try:
        data = base64.b64decode(row.values, validate=True)
    except binascii.Error:
        return None
    return np.frombuffer(data, "<f4") if len(data) == 4 * len(grid.features) else None


def seen_of(row: SampledRow, values: Any, grid: Grid) -> conditions.Seen:
    """What conditions are judged by."""
    fault = row.fault.partition(":")[0]
    quality = row.quality
    if fault or quality is None or values is None:
        return conditions.Seen(row.size, 0.0, 0.0, "", 0, 0, fault=fault or "extractor_failed")
    channels, is_blurred = [], False
    for feature, value in zip(grid.features, values.tolist(), strict=True):
        if feature.name.startswith("sensor.") and feature.name.endswith(".value") and feature.bins > 1:
            channels.append(value)
        elif feature.name == "image.sharpness":
            is_blurred = value < feature.low
    not_finite = quality.not_finite + int(np.count_nonzero(~np.isfinite(values)))
    return conditions.Seen(
        row.size,
        quality.mean,
        quality.deviation,
        quality.hash,
        not_finite,
        quality.out_of_range,
        channels=tuple(channels),
        is_blurred=is_blurred,
    )
