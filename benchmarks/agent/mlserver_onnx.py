"""The custom runtime that MLServer's documentation tells to write for a model kind it has none for: ONNX. Read by MLServer, not by us."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """One session with one thread, as the agent has it."""

    async def load(self) -> bool:
        """Whether it is ready."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The answer."""
        inputs = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        values = self._session.run(self._names, inputs)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(self._names, values, strict=True)]
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=outputs)
