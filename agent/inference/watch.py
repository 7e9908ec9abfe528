"""Is the inference process making progress? Pure: beats and moments go in, a verdict comes out.

Progress counts, not liveness: a process that sends beats while its inference stands still is hung.
"""

from dataclasses import dataclass

from agent.inference.messages import Beat, PipelineCount
from agent.sources.states import DropReason

#: What shows that inference took frames up, whatever became of them.
_TAKEN = (DropReason.INFERENCE_ERROR, DropReason.STALE, DropReason.MODEL_UNAVAILABLE)
#: What shows that frames came while inference was not ready for one.
_PRESSING = (DropReason.NOT_WANTED, DropReason.SUPERSEDED, DropReason.NO_BUFFER)
#: A model may take this many times its usual longest inference before it counts as hung.
SLOW_FACTOR = 20.0


@dataclass(frozen=True, slots=True)
class _Progress:
    instance: int
    taken: int
    #: Pressing frames when `taken` moved last.
    pressing: int
    #: When frames began to press since then, or the inference that runs was first seen; None while neither is.
    pressed_s: float | None


class Watch:
    """What was heard of one child; moments are seconds of the monotonic system clock."""

    def __init__(self, *, start_s: float, hang_s: float, now: float) -> None:
        self._start_s = start_s
        self._hang_s = hang_s
        self._heard_s = now
        self._is_ready = False
        self._slowest_ms = 0.0
        self._progress: dict[str, _Progress] = {}

    def ready(self, now: float) -> None:
        """The child answered for the first time."""
        self._is_ready, self._heard_s = True, now

    def heard(self, now: float) -> None:
        """Any message came."""
        self._heard_s = now

    def beat(self, beat: Beat, now: float) -> None:
        """Figures came."""
        self._heard_s = now
        self._slowest_ms = max((line.p99_ms or 0.0 for line in beat.lines), default=0.0)
        self._progress = {count.pipeline: self._moved(count, now) for count in beat.pipelines}

    def verdict(self, now: float, *, loading_s: float = 0.0, expected_ms: float = 0.0, strain: float = 1.0) -> str | None:
        """Why the child counts as hung, in words; None while it does not.

        `loading_s`: seconds that a model which is being loaded may take; a runtime that builds its engine may let nothing else run.
        `expected_ms`: the longest inference of the slowest model when it was tested on this device.
        `strain`: how many times overloaded this machine is.
        """
        hang_s = self._hang_s * strain
        silent_s = now - self._heard_s
        if not self._is_ready:
            return f"did not answer within {silent_s:.1f} s of its start" if silent_s > self._start_s else None
        if silent_s > max(hang_s, loading_s):
            return f"has said nothing for {silent_s:.1f} s"
        deadline_s = max(hang_s, loading_s, max(self._slowest_ms, expected_ms) * SLOW_FACTOR * strain / 1000.0)
        for name, progress in self._progress.items():
            if progress.pressed_s is not None and now - progress.pressed_s > deadline_s:
                return f"has inferred nothing for {now - progress.pressed_s:.1f} s in pipeline {name}, though frames come"
        return None

    def _moved(self, count: PipelineCount, now: float) -> _Progress:
        taken = count.inferred + sum(count.dropped.get(reason, 0) for reason in _TAKEN)
        pressing = sum(count.dropped.get(reason, 0) for reason in _PRESSING)
        before = self._progress.get(count.pipeline)
        if before is None or before.instance != count.instance or before.taken != taken:
            return _Progress(count.instance, taken, pressing, now if count.is_inferring else None)
        is_pressing = count.is_inferring or pressing > before.pressing
        if before.pressed_s is None and is_pressing:
            return _Progress(count.instance, taken, before.pressing, now)
        return before
