"""A second model of a line that answers in some time blocks in place of the first: interleaved A/B."""

from collections.abc import Sequence
from pathlib import Path

from agent.inference.arms import block_of, is_candidates_turn
from agent.inference.messages import ArmOrder
from agent.inference.model import Model


class Turns:
    """The candidate's model and whose turn it is, per pipeline. Each pipeline asks from its own thread."""

    def __init__(self, model: Model, orders: Sequence[ArmOrder]) -> None:
        self.model = model
        self._orders = {order.pipeline: order for order in orders}
        #: The block drawn last per pipeline, and whether it is the candidate's.
        self._drawn: dict[str, tuple[int, bool]] = {}

    @property
    def folder(self) -> Path:
        """Where the candidate lies."""
        return self.model.key.folder

    def is_candidates(self, pipeline: str, at_ms: int) -> bool:
        """Whether the candidate answers a frame of this moment."""
        order = self._orders.get(pipeline)
        if order is None:
            return False
        block = block_of(at_ms)
        drawn = self._drawn.get(pipeline)
        if drawn is None or drawn[0] != block:
            turn = is_candidates_turn(salt=order.salt, device=order.device, pipeline=pipeline, block=block, share=order.share)
            drawn = self._drawn[pipeline] = block, turn
        return drawn[1]
