"""How many pixels of a frame a model can use: what a smaller picture of the same camera is judged by. Pure."""

from agent.sources.base import Need
from runtime.inputs import Fit, Layout
from runtime.manifest import ModelManifest


def need_of(manifest: ModelManifest) -> Need | None:
    """The size of the model's input, in pixels; None when the model takes readings."""
    if manifest.preprocess is None:
        return None
    tensor = manifest.inputs[0]
    height, width = tensor.shape[2:4] if tensor.layout is Layout.NCHW else tensor.shape[1:3]
    return Need(width, height, is_either=manifest.preprocess.fit is Fit.LETTERBOX)
