"""When autotune runs on this device, and what it chose; the measuring itself is `agent.inference.autotune`, in processes of its own."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config import RuntimeConfig
from agent.inference.messages import Choice
from agent.inference.pressure import read_pressure
from agent.inference.tuning import Tuning, Tunings
from protocol.canonical import digest_of
from protocol.errors import MooringError
from protocol.files import read_bounded

if TYPE_CHECKING:
    from agent.inference.autotune import Wishes

log = logging.getLogger("mooring.autotune")

#: Frames per second that a pipeline without `max_fps` is taken to want: a usual camera.
USUAL_FPS = 25.0


class Tuner:
    """The choices of this device; without a folder to keep them in there are none."""

    def __init__(self, runtime: RuntimeConfig, records_dir: Path | None, *, pressure_root: Path = Path("/")) -> None:
        self._runtime, self._records_dir, self._pressure_root = runtime, records_dir, pressure_root
        self._tunings = Tunings(records_dir, provider_options=runtime.options, threads=runtime.threads)

    def choice(self, artifact: str) -> Choice | None:
        """What runs the model better than the default; None: nothing does, or nothing was measured."""
        found = self._tunings.find(artifact) if self._runtime.autotune else None
        if found is None or found.is_default:
            return None
        return Choice(found.setup.candidate, found.default.candidate, found.setup.threads)

    def tune_when_worth_it(self, folder: Path, p99_ms: float, frame_ms: Callable[[str], float]) -> None:
        """Measure a release that passed its self-test, when something may be gained and nothing is known yet; never raises."""
        if not self._runtime.autotune or self._records_dir is None:
            return
        from agent.inference.autotune import Wishes, has_something_to_gain, usable_candidates
        from agent.inference.options import backend_options
        from runtime.loader import MANIFEST_NAME, read_slot
        from runtime.manifest import MAX_MANIFEST_BYTES

        try:
            options = backend_options(self._runtime)
            line_ms = frame_ms(read_slot(folder).line)
            artifact = digest_of(read_bounded(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))
            candidates = usable_candidates(folder, options)
            if self._tunings.find(artifact) is None and has_something_to_gain(candidates, p99_ms=p99_ms, frame_ms=line_ms):
                self.tune(folder, Wishes(line_ms, self._runtime.autotune_s, self._may_not))
        except (MooringError, OSError) as error:
            log.info("autotune.given-up text=%s", error)

    def tune(self, folder: Path, wishes: "Wishes") -> Tuning:
        """Measure. Raises: MooringError, OSError."""
        from agent.inference.autotune import tune
        from agent.inference.options import backend_options

        found = tune(folder, backend_options(self._runtime), wishes=wishes, records_dir=self._records_dir)
        log.info("autotune.done wall_s=%.1f cpu_s=%.1f text=%s", found.wall_s, found.cpu_s, found.text)
        return found

    def wishes(self, frame_ms: float, budget_s: float) -> "Wishes":
        """To tune by command."""
        from agent.inference.autotune import Wishes

        return Wishes(frame_ms, budget_s, self._may_not)

    def _may_not(self) -> str:
        felt = read_pressure(self._pressure_root)
        if felt.is_hot:
            return f"{felt.zone} has {felt.temperature_c:.0f} °C; measured is on a cool device."
        return "Memory is short; two models do not fit." if felt.is_short else ""
