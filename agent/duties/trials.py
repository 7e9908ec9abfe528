"""Signed configuration on this device: tried under what the control loop sees, kept or taken back, and told."""

from typing import Any

from agent.conditions import Conditions
from agent.configuration import LineCounts, Observed, SignedConfiguration
from agent.duties.predictions import Predictions
from agent.inference.process import InferenceProcess
from agent.reporting import configuration_body
from agent.twin import Twin
from agent.uplink import Uplink
from protocol.clock import Clock
from protocol.errors import DeviceError

#: A pipeline infers when its last prediction is not older, in seconds of the agent's clock.
FLOWING_S = 60.0
#: Ticks between two messages that prove the link under a trial.
PROOF_TICKS = 20


class Trials:
    """Called by the control loop."""

    def __init__(
        self,
        keeper: SignedConfiguration,
        *,
        conditions: Conditions,
        clock: Clock,
        twin: Twin,
        inference: InferenceProcess,
        predictions: Predictions,
        uplink: Uplink,
    ) -> None:
        self._keeper, self._conditions, self._clock, self._twin = keeper, conditions, clock, twin
        self._inference, self._predictions, self._uplink = inference, predictions, uplink
        self._ticks, self._told = 0, -1
        #: When the broker last acknowledged something, by the uplink and by the agent's clock.
        self._sent_ms: int | None = None
        self._proved_s: float | None = None

    def tick(self) -> bool:
        """Begin, keep or end a trial; returns whether `reported` is due: there is something new, or the link is to be proved by it."""
        self._ticks += 1
        keeper = self._keeper
        observed = self._observe() if keeper.is_busy else None
        if observed is not None:
            self._move(observed)
        is_proof_due = observed is not None and self._ticks % PROOF_TICKS == 0 and keeper.wants_proof(observed)
        if keeper.told == self._told and not is_proof_due:
            return False
        self._told = keeper.told
        self._tell()
        return True

    def body(self) -> dict[str, Any]:
        """The part of `reported` about it."""
        return configuration_body(self._keeper.pointer, self._keeper.in_force, self._twin.in_force)

    def _move(self, observed: Observed) -> None:
        trouble = ""
        try:
            self._keeper.tick(observed)
        except DeviceError as error:  # nothing moved; once more with the next tick
            trouble = str(error)
        self._conditions.replace("configuration disk", [("configuration_waits", trouble, "")] if trouble else [])

    def _tell(self) -> None:
        returned, trouble = self._keeper.pointer.returned, self._keeper.trouble
        text = "" if returned is None else f"{returned.offer.group}/{returned.offer.rev}: {returned.reason}: {returned.text}"[:2000]
        self._conditions.replace("configuration", [("configuration_returned", text, "")] if text else [])
        self._conditions.replace("configuration trouble", [("configuration_waits", trouble, "file")] if trouble else [])

    def _observe(self) -> Observed:
        now, uplink = self._clock.monotonic(), self._uplink
        if uplink.last_sent_ms != self._sent_ms:
            self._sent_ms, self._proved_s = uplink.last_sent_ms, now
        pipelines = self._twin.in_force.config.pipelines
        figures = {one.line: found for one in pipelines if (found := self._inference.figures(one.line)) is not None}
        return Observed(
            now_s=now,
            is_connected=uplink.is_connected,
            proved_s=self._proved_s,
            predictions=dict(self._predictions.counts),
            max_fps={one.name: one.max_fps for one in pipelines},
            flowing=frozenset(name for name, at in self._predictions.last_s.items() if now - at <= FLOWING_S),
            lines={line: LineCounts(found.inferences, found.errors, found.crashes) for line, found in figures.items()},
        )
