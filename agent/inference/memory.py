"""What a stateful model carries on from frame to frame, kept per pipeline: two cameras on one line never share it."""

from collections.abc import Mapping

import numpy as np

from agent.sources.base import Array
from runtime.inputs import Carried
from runtime.manifest import ModelManifest


class StateInputs:
    """The state inputs of one model: what they are at first, and which output feeds which."""

    def __init__(self, manifest: ModelManifest) -> None:
        #: Stands for the loaded model without keeping it alive.
        self.owner = object()
        self.carried: tuple[Carried, ...] = manifest.carried
        by_name = {tensor.name: tensor for tensor in manifest.inputs}
        self._first = {
            name: np.full(by_name[name].shape, by_name[name].zero_point or 0, by_name[name].dtype)
            for name in (one.input for one in self.carried)
        }

    def first(self) -> dict[str, Array]:
        """The arrays of a session's first frame, new ones."""
        return {name: array.copy() for name, array in self._first.items()}


class Memory:
    """The state of one pipeline; used by one thread. It begins anew with another session and with another loaded model."""

    def __init__(self) -> None:
        self._owner: object | None = None
        self._session = 0
        self._tensors: dict[str, Array] = {}

    def recall(self, state: StateInputs, session: int) -> dict[str, Array]:
        """The state inputs for the next frame of the session."""
        if self._owner is not state.owner or self._session != session:
            self._owner, self._session, self._tensors = state.owner, session, state.first()
        return self._tensors

    def keep(self, state: StateInputs, outputs: Mapping[str, Array]) -> None:
        """Carry the state in the outputs on to the next frame.

        Arrays change places, so that nothing is copied: a back end that answers with the same dictionary writes its next outputs into those
        that were inputs (`Backend.infer`).
        """
        for one in state.carried:
            if isinstance(outputs, dict):
                self._tensors[one.input], outputs[one.output] = outputs[one.output], self._tensors[one.input]
            else:
                np.copyto(self._tensors[one.input], outputs[one.output])

    def forget(self) -> None:
        """Begin anew with the next frame."""
        self._owner = None
