"""What can run models on this device, learned once after the start, off the control loop."""

import threading
from collections.abc import Callable

from agent.conditions import Conditions
from agent.reporting import find_conflicts
from protocol.messages import RuntimeInfo

#: Which model files a back end reads (`runtime.base.BACKENDS_OF_FORMAT`, which would bring numpy along).
_FILE_KINDS = {"litert": "tflite", "tflite": "tflite", "onnx": "onnx"}


class Runtimes:
    """`learn` has a thread of its own; the rest may be asked from any."""

    def __init__(self, probe: Callable[[], list[RuntimeInfo]], conditions: Conditions, *, on_learned: Callable[[], None]) -> None:
        self._probe, self._conditions, self._on_learned = probe, conditions, on_learned
        #: None: not known yet.
        self.found: list[RuntimeInfo] | None = None

    def learn(self, _stop: threading.Event) -> None:
        """Try them all; what is missing, or in each other's way, is a condition."""
        runtimes = self._probe()
        missing = "; ".join(f"{one.name} {one.state} {one.text}".strip() for one in runtimes)
        found = [] if any(one.state == "ok" for one in runtimes) else [("runtime_missing", f"No runtime works: {missing}"[:2000], "")]
        found += [("runtime_conflict", f"Installed side by side: {', '.join(names)}.", names[0]) for names in find_conflicts()]
        self._conditions.replace("runtimes", found)
        self.found = runtimes
        self._on_learned()

    def file_kinds(self) -> tuple[str, ...] | None:
        """The kinds of model files that run here; None while that is not known."""
        if self.found is None:
            return None
        return tuple(sorted({_FILE_KINDS[one.name] for one in self.found if one.state == "ok" and one.name in _FILE_KINDS}))
