"""What each simulated device came to, one line of JSON each: a run that was cut short goes on where it was.

Lines are kept with the digest of the code that made them; other code begins a file of its own, so that figures never mix.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.drift.bank import CACHE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ("bank", "camera", "model", "numbers", "ours", "scenes", "singles", "stream", "trial", "world")
#: What judges on devices too.
SKETCHES = ("expectations", "looks", "powers", "scatter", "stretches", "tail")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one device and one detector: clean years, false alarms per rate asked, delays in windows per rate, kind and case."""

    detector: str
    purpose: str
    kind: str
    scene: str
    index: int
    repeat: int
    years: float
    alarms: dict[float, int]
    delays: dict[float, dict[tuple[str, str], int]]
    #: What else was seen, by name.
    notes: dict[str, list[float]]

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What makes it the same device and detector."""
        return self.detector, self.purpose, self.index, self.repeat


@cache
def path() -> Path:
    """The file of this code's outcomes."""
    digest = hashlib.sha256()
    for source in [*(HERE / f"{name}.py" for name in SOURCES), *(ROOT / "protocol" / "sketches" / f"{name}.py" for name in SKETCHES)]:
        digest.update(source.read_bytes())
    return CACHE / f"outcomes-{digest.hexdigest()[:12]}.jsonl"


def stored() -> dict[tuple[str, str, int, int], Outcome]:
    """All outcomes of this code so far."""
    lines = path().read_text().splitlines() if path().exists() else []
    return {outcome.key: outcome for outcome in map(_read, lines)}


def ensure(wanted: Iterable[tuple[tuple[str, str, int, int], Callable[[], Outcome]]]) -> list[Outcome]:
    """The outcome of each key, made and stored where it is not yet."""
    known = stored()
    found = []
    for key, make in wanted:
        if key not in known:
            known[key] = make()
            path().parent.mkdir(parents=True, exist_ok=True)
            with path().open("a") as file:
                file.write(_line(known[key]) + "\n")
        found.append(known[key])
    return found


def _line(outcome: Outcome) -> str:
    delays = {str(rate): {"|".join(case): value for case, value in cases.items()} for rate, cases in outcome.delays.items()}
    fields = {name: getattr(outcome, name) for name in Outcome.__slots__}
    return json.dumps(fields | {"alarms": {str(rate): count for rate, count in outcome.alarms.items()}, "delays": delays})


def _read(line: str) -> Outcome:
    fields = json.loads(line)
    fields["alarms"] = {float(rate): count for rate, count in fields["alarms"].items()}
    fields["delays"] = {
        float(rate): {(kind, name): value for (kind, _, name), value in ((case.partition("|"), value) for case, value in cases.items())}
        for rate, cases in fields["delays"].items()
    }
    return Outcome(**fields)
