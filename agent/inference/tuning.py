"""What autotune found for a model on this device: values, the rule by which a setup replaces the default, and where results are kept.

Without numpy: the control process reads it at every activation.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.records import TUNING_FILE, Kept, environment_key

#: Least gain in processor time that is worth another setup than the default, and in wall clock when the frame budget is missed either way.
LEAST_GAIN, LEAST_SPEEDUP = 0.95, 0.9
#: How much the slowest of some hundred inferences differs between two measurements of one thing.
TAIL_NOISE = 1.1
_MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run a model."""

    #: "backend:provider".
    candidate: str
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.candidate} on {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Speed:
    """What one inference costs: least processor time over the rounds, median and 99th percentile of wall clock, milliseconds."""

    cpu_ms: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Match:
    """One challenger beside the default, measured in turns."""

    setup: Setup
    #: None: it does not run, answers its golden vectors otherwise, or the budget was used up; the text says.
    speed: Speed | None
    default: Speed | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is to be run here."""

    artifact: str
    setup: Setup
    default: Setup
    #: For people: what was gained, or why the default stays.
    text: str
    #: Wall clock and processor time that it took, seconds.
    wall_s: float = 0.0
    cpu_s: float = 0.0
    matches: tuple[Match, ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing changes."""
        return self.setup == self.default


def is_better(challenger: Speed, default: Speed, *, frame_ms: float) -> bool:
    """Whether the challenger is to replace the default: never a slower one, in the middle or at the slow end.

    The default meets the frame budget: the challenger must cost less processor time and meet it too. It misses it: the challenger must
    meet it, or come clearly nearer.
    """
    if challenger.p50_ms > default.p50_ms or challenger.p99_ms > TAIL_NOISE * default.p99_ms:
        return False
    if default.p99_ms <= frame_ms:
        return challenger.p99_ms <= frame_ms and challenger.cpu_ms <= LEAST_GAIN * default.cpu_ms
    return challenger.p99_ms <= frame_ms or challenger.p50_ms <= LEAST_SPEEDUP * default.p50_ms


class Tunings:
    """The results in `tuning.json`; one that was found with other runtimes, drivers, kernel, processors or settings is none."""

    def __init__(self, folder: Path | None, *, provider_options: Mapping[str, Mapping[str, str]] | None = None, threads: int = 1) -> None:
        self._kept = Kept(folder, TUNING_FILE)
        self._provider_options = provider_options or {}
        self._threads = threads

    def find(self, artifact: str) -> Tuning | None:
        """What was found for the model."""
        value = self._kept.all().get(artifact)
        found = None if value is None else _tuning_of(value)
        return found if found is not None and value is not None and value.get("hardware") == self._hardware(found) else None

    def keep(self, tuning: Tuning) -> None:
        """Remember a result, in place of the model's one before."""
        self._kept.put(tuning.artifact, {**asdict(tuning), "text": tuning.text[:_MAX_TEXT], "hardware": self._hardware(tuning)})

    def _hardware(self, tuning: Tuning) -> str:
        """What the result depends on, besides the model."""
        parts = [str(os.cpu_count()), str(self._threads)]
        for setup in dict.fromkeys((tuning.default, tuning.setup)):
            backend, _, provider = setup.candidate.partition(":")
            parts.append(environment_key(backend, provider, self._provider_options.get(provider)))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tuning_of(value: Mapping[str, Any]) -> Tuning | None:
    """A kept result without its matches, which only people read."""
    try:
        setup, default = (Setup(str(value[key]["candidate"]), int(value[key]["threads"])) for key in ("setup", "default"))
        wall_s, cpu_s = float(value["wall_s"]), float(value["cpu_s"])
        found = Tuning(str(value["artifact"]), setup, default, str(value["text"]), wall_s, cpu_s)
    except (KeyError, TypeError, ValueError):
        return None
    return found if all(":" in one.candidate and 1 <= one.threads <= 64 for one in (setup, default)) else None
