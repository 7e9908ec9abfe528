"""Pictures on demand, in the control process: whether one may be taken, of which pipeline, and not too often. Nothing is stored."""

import base64
import threading
from collections.abc import Callable, Sequence

from agent.config import PipelineConfig
from agent.inference.messages import Answer, Snapshot, ZoneShape
from protocol.clock import Clock
from protocol.errors import ConflictError, DeviceError, NotFoundError
from protocol.snapshots import SnapshotAnswer

#: Seconds between two pictures of one pipeline: looking, not watching.
PAUSE_S = 2.0
#: Seconds that a picture may take: below what the control socket and a request from the server wait for.
TIMEOUT_S = 4.0


class Snapshots:
    """Takes them; any thread."""

    def __init__(
        self,
        ask: Callable[[Callable[[int], Snapshot], float], Answer],
        *,
        pipelines: Callable[[], Sequence[PipelineConfig]],
        clock: Clock,
    ) -> None:
        """`ask`: `InferenceProcess.snapshot`; `pipelines`: those in force, with their zones; `clock`: the system's."""
        self._ask = ask
        self._pipelines = pipelines
        self._clock = clock
        self._lock = threading.Lock()
        self._taken_s: dict[str, float] = {}

    def take(self, name: str, *, with_zones: bool) -> SnapshotAnswer:
        """A picture of the pipeline's next frame with what the model said of it, and with the zones if they are wished.

        Raises: NotFoundError without such a pipeline; ConflictError when it does not allow previews or one was just taken; DeviceError when
        no frame came in time.
        """
        config = self._allowed(name)
        zones = tuple(ZoneShape(zone.name, zone.points, zone.kind == "polygon") for zone in config.zones if with_zones)
        answer = self._ask(lambda number: Snapshot(number, name, zones), TIMEOUT_S)
        if not answer.ok:
            text = "no frame came in time" if answer.code == "timeout" else answer.text
            raise DeviceError(
                f"No picture of {name}: {text}", code="snapshot_failed", hint="See the pipeline's source in `mooring-agent status`."
            )
        return SnapshotAnswer.of(base64.b64decode(answer.data), width=answer.size[0], height=answer.size[1], at=answer.at_ms)

    def _allowed(self, name: str) -> PipelineConfig:
        known = {pipeline.name: pipeline for pipeline in self._pipelines()}
        config = known.get(name)
        if config is None:
            raise NotFoundError(f"There is no pipeline {name[:100]!r}.", hint=f"There are: {', '.join(sorted(known)) or 'none'}.")
        if not config.preview:
            raise ConflictError(
                f"Pipeline {name} does not allow previews.",
                code="preview_not_allowed",
                hint="Set `preview` of the pipeline, here or by configuration.",
            )
        with self._lock:
            now_s = self._clock.monotonic()
            if now_s - self._taken_s.get(name, -PAUSE_S) < PAUSE_S:
                raise ConflictError(f"A picture of {name} was taken less than {PAUSE_S:g} s ago.", code="too_soon", hint="Wait a moment.")
            self._taken_s = {one: taken_s for one, taken_s in self._taken_s.items() if one in known}
            self._taken_s[name] = now_s
        return config
