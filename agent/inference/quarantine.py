"""Which back ends not to use for a model because they crashed or hung with it.

Crashes are kept on disk too, where those of self-tests are: an accelerator that crashed twice with a model is not used for it until
runtime, driver library, kernel or model change, also after a restart of the agent.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.records import ModelRecords

#: After this many crashes with one model a back end is not used for it again, after the first one it is tried last.
CRASHES_TO_QUARANTINE = 2
#: After this many hangs it is tried last.
HANGS_TO_DEMOTE = 2
#: Seconds after which a crash or hang is forgotten here: a processor that fails once a day beats nothing that runs.
FORGET_S = 6 * 3600.0


@dataclass(slots=True)
class _Record:
    crashes: list[float] = field(default_factory=list)
    hangs: list[float] = field(default_factory=list)


class Quarantine:
    """Crashes and hangs by (artifact, back end); moments are seconds of a monotonic clock."""

    def __init__(self, kept: ModelRecords | None = None) -> None:
        self._kept = ModelRecords(None) if kept is None else kept
        self._records: dict[str, dict[str, _Record]] = defaultdict(lambda: defaultdict(_Record))

    def crashed(self, artifact: str, candidate: str, now: float) -> None:
        """The process died inside the back end."""
        self._records[artifact][candidate].crashes.append(now)
        self._kept.crashed(artifact, candidate)

    def hung(self, artifact: str, candidate: str, now: float) -> None:
        """The process was killed while it stood still inside the back end."""
        self._records[artifact][candidate].hangs.append(now)

    def quarantined(self, artifact: str, now: float) -> tuple[str, ...]:
        """Back ends not to use for the artifact."""
        recent = self._names(artifact, lambda record: _recent(record.crashes, now) >= CRASHES_TO_QUARANTINE)
        return tuple(dict.fromkeys([*recent, *self._kept.quarantined(artifact)]))

    def demoted(self, artifact: str, now: float) -> tuple[str, ...]:
        """Back ends to try last."""
        return self._names(artifact, lambda record: _recent(record.crashes, now) >= 1 or _recent(record.hangs, now) >= HANGS_TO_DEMOTE)

    def _names(self, artifact: str, applies: Callable[[_Record], bool]) -> tuple[str, ...]:
        return tuple(name for name, record in self._records.get(artifact, {}).items() if applies(record))


def _recent(moments: list[float], now: float) -> int:
    return sum(now - moment < FORGET_S for moment in moments)
