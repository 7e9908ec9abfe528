"""Rows of what drift watches, made in the inference process (DRIFT 1): at random instants, after the prediction went out, within a budget.

An instant lies anywhere inside each step, so that a process of any period is seen at all its phases. What a model was given is copied
while its lock is held, for these frames only; the numbers are made of the copies when the prediction is on its way. Work beyond its
share of the processor is skipped, and counted.
"""

import base64
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.inference.messages import Quality, Sampled
from agent.inference.shadow_budget import CpuBudget
from agent.sources.base import Array
from protocol.clock import Clock, SystemClock
from protocol.errors import InvalidError
from protocol.sketches import PROFILE_NAME
from runtime.answers import Answer

if TYPE_CHECKING:
    from agent.inference.watched import Watched
    from runtime.features import Extractor
    from runtime.manifest import ModelManifest

#: Share of one core that making rows may take, all pipelines together; the rest of the 1 % of drift is the control process's.
CPU_SHARE = 0.008
#: Rows after which it is known what one costs: the first ones are slow.
STEP_ROWS = 64


def find_watched(folder: Path, manifest: "ModelManifest") -> "tuple[Watched | None, str]":
    """What is watched of the slot folder's model, and why nothing is although there is a profile; without a profile neither."""
    if PROFILE_NAME not in manifest.files:
        return None, ""
    from agent.inference.watched import read_watched  # with the first watched model: its docstring says what it weighs

    return read_watched(folder, manifest)


class Instants:
    """A random instant inside each step; seconds of one clock that never falls. Pure, but for the dice."""

    def __init__(self, step_s: float, *, now_s: float, chance: random.Random) -> None:
        self.step_s, self._chance = step_s, chance
        self._step, self._next_s = 0, 0.0
        self._draw(math.floor(now_s / step_s))

    def take(self, now_s: float) -> bool:
        """Whether the instant that waits has been reached; then the next step's is drawn, which may be the one that has begun already."""
        if now_s < self._next_s:
            return False
        self._draw(max(self._step + 1, math.floor(now_s / self.step_s)))
        return True

    def is_due(self, now_s: float) -> bool:
        """Whether `take` would say yes."""
        return now_s >= self._next_s

    def _draw(self, step: int) -> None:
        self._step, self._next_s = step, (step + self._chance.random()) * self.step_s


class Glimpse:
    """Copies of what a model was given and gave, filled by whoever holds its lock."""

    def __init__(self) -> None:
        self.watched: Watched | None = None
        self.tensor: Array = np.empty(0, np.uint8)
        self.readings: Array | None = None
        self.outputs: dict[str, Array] = {}
        self.size: tuple[int, int] | None = None
        self.answer: Answer | None = None

    def take(
        self,
        watched: "Watched",
        tensor: Array,
        *,
        answer: Answer,
        outputs: Mapping[str, Array],
        size: tuple[int, int] | None,
        readings: Array | None,
    ) -> None:
        """Copy what holds only as long as the model's lock does."""
        carried = {one.output for one in watched.manifest.carried}
        self.tensor = _copied(self.tensor, tensor)
        self.outputs = {name: np.array(values) for name, values in outputs.items() if name not in carried}
        self.readings = None if readings is None else np.array(readings)
        self.watched, self.answer, self.size = watched, answer, size


class RowBudget:
    """The processor time that all pipelines of this process may spend on rows; seconds of system time."""

    def __init__(self, share: float = CPU_SHARE) -> None:
        self._now = SystemClock().monotonic
        self._lock = threading.Lock()
        self._budget = CpuBudget(share, now_s=self._now())

    def is_open(self) -> bool:
        """Whether a row may be made."""
        with self._lock:
            return self._budget.is_open(self._now())

    def pay(self, cpu_s: float) -> None:
        """Take what a row took."""
        with self._lock:
            self._budget.pay(cpu_s, self._now())


class RowSampler:
    """The rows of one pipeline; used by its inference thread, but for `watch`."""

    def __init__(
        self,
        pipeline: str,
        line: str,
        *,
        clock: Clock,
        budget: RowBudget,
        send: Callable[[Sampled], bool],
        chance: random.Random | None = None,
        src: int = 0,
    ) -> None:
        """`src`: who answers, as in `Sampled`."""
        self._pipeline, self._line, self._clock, self._budget, self._send, self._src = pipeline, line, clock, budget, send, src
        self._chance = chance or random.Random()  # noqa: S311 - seeded by the system, anew in each process; guards nothing
        #: Seconds between two rows, 0: as the profile says; None: there are none. Set by another thread.
        self.step_s: float | None = None
        self._instants: Instants | None = None
        self._glimpse = Glimpse()
        self._watched: Watched | None = None
        self._extractor: Extractor | None = None
        self._session = -1
        self._skipped = 0
        #: Processor seconds of rows, and how many: what the step is chosen by.
        self._cost_s, self._rows = 0.0, 0

    def watch(self, step_s: float | None) -> None:
        """Make a row each so many seconds of the agent's clock, 0: as the model's profile says; None: make none."""
        self.step_s = step_s

    def begin(self, watched: "Watched | None") -> Glimpse | None:
        """Where the next inference leaves copies; None when its frame is not to be a row, or nothing is watched of the model."""
        wished_s = self.step_s
        if watched is None or wished_s is None:
            return None
        step_s, now_s = wished_s or float(watched.grid.step_s), self._clock.monotonic()
        instants = self._instants
        if instants is None or instants.step_s != step_s:
            instants = self._instants = Instants(step_s, now_s=now_s, chance=self._chance)
        if not instants.is_due(now_s):
            return None
        if not self._budget.is_open():
            instants.take(now_s)
            self._skipped += 1
            return None
        self._glimpse.watched = None
        return self._glimpse

    def finish(self, glimpse: Glimpse, *, session: int) -> None:
        """Make the row of what the inference left, if its model is watched, and send it."""
        watched, answer = glimpse.watched, glimpse.answer
        if watched is None or answer is None:
            return
        began_s = time.thread_time()
        extractor = self._extractor_of(watched, session)
        try:
            values = extractor.row(glimpse.tensor, answer, outputs=glimpse.outputs, size=glimpse.size, readings=glimpse.readings)
            labels, fault, data = extractor.labels, "", base64.b64encode(values.astype("<f4").tobytes()).decode()
        except Exception as error:  # noqa: BLE001 - inference goes on whatever a number does; control counts it as `extractor_failed`
            labels, fault, data = (), f"extractor_failed: {error!r}"[:500], ""
        self._tell(watched, glimpse.size, extractor, data=data, labels=labels, fault=fault, began_s=began_s)

    def refused(self, watched: "Watched | None", shape: tuple[int, ...], error: InvalidError) -> None:
        """A frame of that shape did not fit the model: told in place of a row."""
        if watched is not None:
            size = (shape[0], shape[1]) if len(shape) == 3 else None
            self._tell(watched, size, None, fault=f"shape_mismatch: {error.message}"[:500], began_s=time.thread_time())

    def _extractor_of(self, watched: "Watched", session: int) -> "Extractor":
        if self._extractor is None or self._watched is not watched:
            self._watched, self._extractor = watched, watched.make_extractor()
            self._cost_s, self._rows = 0.0, 0
        elif self._session != session:
            self._extractor.forget()
        self._session = session
        return self._extractor

    def _tell(
        self,
        watched: "Watched",
        size: tuple[int, int] | None,
        extractor: "Extractor | None",
        *,
        data: str = "",
        labels: tuple[str, ...] = (),
        fault: str,
        began_s: float,
    ) -> None:
        now_s = self._clock.monotonic()
        if self._instants is not None:
            self._instants.take(now_s)
        cost_s = time.thread_time() - began_s
        self._budget.pay(cost_s)
        self._cost_s, self._rows = self._cost_s + cost_s, self._rows + 1
        fitting_step_s = watched.fitting_step(self._cost_s / self._rows) if self._rows >= STEP_ROWS else 0
        seen = None if extractor is None else extractor.quality
        quality = None
        if seen is not None:
            quality = Quality(seen.mean, seen.deviation, f"{seen.hash:x}", seen.not_finite, seen.out_of_range)
        skipped, self._skipped = self._skipped, 0
        is_sent = self._send(
            Sampled(
                pipeline=self._pipeline,
                line=self._line,
                release=watched.manifest.release,
                folder=str(watched.folder),
                model=watched.model,
                grid=watched.grid.grid_id.hex(),
                at_s=now_s,
                step_s=self._instants.step_s if self._instants is not None else 0.0,
                values=data,
                labels=labels,
                size=size,
                quality=quality,
                fault=fault,
                fitting_step_s=fitting_step_s,
                skipped=skipped,
                src=self._src,
            )
        )
        if not is_sent:
            self._skipped += skipped + 1


def _copied(target: Array, source: Array) -> Array:
    """The source's values, in the target's memory when it fits."""
    if target.shape != source.shape or target.dtype != source.dtype:
        return np.array(source)
    np.copyto(target, source)
    return target
