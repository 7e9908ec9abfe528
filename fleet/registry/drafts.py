"""What an author writes about a model, as TOML or JSON, and how that and the file's own tensors become a model manifest.

The server and the tools of authors take this; a device only reads manifests.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fleet.registry import roles
from protocol.decoding import Limits, encode
from protocol.errors import InvalidError
from protocol.files import read_bounded
from runtime.base import BACKENDS_OF_FORMAT, ModelTensors, TensorSpec
from runtime.heads import Activation, AnomalyOptions, Axes, Labels, RegressionOptions, SsdOptions, YoloOptions
from runtime.inputs import Carried, Layout, Preprocess, ShortText, TensorName, Window
from runtime.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_TENSORS,
    SCHEMA,
    Budget,
    FileEntry,
    Lineage,
    ModelManifest,
    Name,
    Probe,
    check_backends,
    check_source,
    class_of,
    json_object,
    manifest_class,
    validated,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Scale and zero point of one tensor."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDraft:
    """What an author writes about any model, as TOML or JSON; everything else is read from the file or said by the release."""

    task: str
    labels: Annotated[tuple[ShortText, ...], Limits(max_length=0)] = ()
    #: How frames fill the input; or, for readings of sensors:
    preprocess: Preprocess | None = None
    window: Window | None = None
    #: Inputs that carry on what an output was with the frame before.
    state: Annotated[tuple[Carried, ...], Limits(max_length=MAX_TENSORS - 1)] = ()
    #: An output that stands for the picture or window as a whole and is watched for drift; not part of the answer.
    embedding: TensorName | None = None
    device_types: Annotated[tuple[Name, ...], Limits(max_length=64)] = ()
    #: "backend" or "backend:provider", best first; empty = the usual order of the file's kind.
    backends: Annotated[tuple[ShortText, ...], Limits(max_length=8)] = ()
    #: Layout of the input when its shape fits more than one.
    layout: Layout | None = None
    #: Scale and zero point of quantized tensors by name, for files that do not carry them (ONNX).
    quantization: Annotated[dict[ShortText, Quantization], Limits(max_length=16)] = field(default_factory=dict)
    budget: Annotated[dict[ShortText, Budget], Limits(max_length=64)] = field(default_factory=dict)
    probe: Probe = field(default_factory=Probe)
    lineage: Lineage = field(default_factory=Lineage)

    def __post_init__(self) -> None:
        check_backends(self.backends)
        check_source(self.preprocess, self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationDraft(ModelDraft):
    """A classifier as its author writes it."""

    task: Literal["classification"]
    labels: Labels
    activation: Activation = Activation.NONE
    threshold: Annotated[float, Limits(ge=0, le=1)] = 0.0
    top_k: Annotated[int, Limits(ge=1, le=32)] = 1
    temperature: Annotated[float, Limits(gt=0, le=1000)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdDraft(SsdOptions):
    """An `ssd` head whose tensors may be left to be found by name and shape."""

    boxes: TensorName | None = None
    classes: TensorName | None = None
    scores: TensorName | None = None
    count: TensorName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloDraft(YoloOptions):
    """A `yolo` head whose tensor and form may be left to be found by shape."""

    output: TensorName | None = None
    axes: Axes | None = None
    objectness: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionDraft(ModelDraft):
    """A detector as its author writes it."""

    task: Literal["detection"]
    labels: Labels
    detection: SsdDraft | YoloDraft


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyDraft(ModelDraft):
    """An anomaly detector as its author writes it."""

    task: Literal["anomaly"]
    anomaly: AnomalyOptions
    #: The output with the score or the reconstruction, where there are several.
    output: TensorName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionDraft(ModelDraft):
    """A regression as its author writes it."""

    task: Literal["regression"]
    regression: RegressionOptions = field(default_factory=RegressionOptions)
    #: The output with the value, where there are several.
    output: TensorName | None = None


_DRAFTS: dict[str, type[ModelDraft]] = {
    "classification": ClassificationDraft,
    "detection": DetectionDraft,
    "anomaly": AnomalyDraft,
    "regression": RegressionDraft,
}


def load_draft(path: Path) -> ModelDraft:
    """The draft in a .toml or .json file; `labels` may name a text file beside it, one label a line.

    Raises: InvalidError naming the field, what was seen and wanted; OSError when a file cannot be read.
    """
    data = read_bounded(path, MAX_MANIFEST_BYTES)
    what = f"The draft {path.name}"
    document = _toml_object(data, what) if path.suffix == ".toml" else json_object(data, what)
    labels = document.get("labels")
    if isinstance(labels, str):
        document["labels"] = _labels_of(path.parent, labels, what)
    return parse_draft(document, what=what)


def parse_draft(document: Mapping[str, Any], *, what: str = "The draft") -> ModelDraft:
    """The draft as a document from a form or file. Raises: InvalidError naming the field, what was seen and wanted."""
    return validated(_draft_class, document, what)


def complete(
    draft: ModelDraft,
    tensors: ModelTensors,
    *,
    line: str,
    release: str,
    counter: int,
    variant: str,
    files: Mapping[str, FileEntry],
    card_sha256: str | None = None,
    grid_id: str | None = None,
) -> ModelManifest:
    """The manifest of a draft and the tensors that `inspect_model` saw in the file. Raises: InvalidError."""
    _check_written_quantization(draft, (*tensors.inputs, *tensors.outputs))
    carried = {one.input: one.output for one in draft.state}
    _check_carried_names(draft, tensors)
    source = _source_of(draft, [tensor for tensor in tensors.inputs if tensor.name not in carried], tensors)
    own = [tensor for tensor in tensors.outputs if tensor.name not in carried.values() and tensor.name != draft.embedding]
    by_name = {tensor.name: tensor for tensor in tensors.inputs}
    states = [by_name[name] for name in carried]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "line": line,
        "release": release,
        "counter": counter,
        "variant": variant,
        "device_types": draft.device_types,
        "runtime": {"name": tensors.format, "versions": {tensors.backend: tensors.version}},
        "backends": draft.backends or BACKENDS_OF_FORMAT[tensors.format],
        "task": draft.task,
        "inputs": [_described(source, draft, _input_layout(source, draft)), *(_described(state, draft, None) for state in states)],
        "outputs": [_described(tensor, draft, _output_layout(draft, tensor, own)) for tensor in tensors.outputs],
        "preprocess": encode(draft.preprocess),
        "window": encode(draft.window),
        "state": encode(draft.state) or None,
        "embedding": draft.embedding,
        "postprocess": _postprocess_of(draft, own),
        "files": encode(dict(files)),
        "card_sha256": card_sha256,
        "grid_id": grid_id,
        "budget": encode(draft.budget),
        "probe": encode(draft.probe),
        "lineage": encode(draft.lineage),
    }
    return validated(manifest_class, document, "The model manifest")


def _source_of(draft: ModelDraft, inputs: list[TensorSpec], tensors: ModelTensors) -> TensorSpec:
    if not inputs or len(inputs) > 1:
        filled = "frames fill" if draft.preprocess is not None else "windows fill"
        raise InvalidError(
            f"The model has {len(tensors.inputs)} inputs and {len(tensors.outputs)} outputs: {roles.shown(tensors.inputs)} in, "
            f"{roles.shown(tensors.outputs)} out; {filled} one input, and the draft says of {len(draft.state)} that they carry state.",
            hint="Write [[state]] with input and output for each input that carries state, or export the model with its single input.",
        )
    return inputs[0]


def _postprocess_of(draft: ModelDraft, outputs: list[TensorSpec]) -> dict[str, Any]:
    match draft:
        case ClassificationDraft():
            remedy = "Export the model with its class scores only, or name outputs that carry state under [[state]]."
            roles.only(outputs, name=None, what="The output of a classification", remedy=remedy)
            return {name: encode(getattr(draft, name)) for name in ("activation", "labels", "threshold", "top_k", "temperature")}
        case DetectionDraft(detection=SsdDraft() as head):
            written = {"boxes": head.boxes, "classes": head.classes, "scores": head.scores, "count": head.count}
            return {**encode(head), **roles.ssd_roles(outputs, written), "labels": draft.labels}
        case DetectionDraft(detection=YoloDraft() as head):
            remedy = "Write its name as output under [detection]; boxes, classes and scores of their own are head = 'ssd'."
            output = roles.only(outputs, name=head.output, what="The output of a raw head", remedy=remedy)
            axes, objectness = roles.yolo_form(output, len(draft.labels), axes=head.axes, objectness=head.objectness)
            return {**encode(head), "output": output.name, "axes": axes, "objectness": objectness, "labels": draft.labels}
        case AnomalyDraft() | RegressionDraft():
            remedy = f"Write its name in the draft: output = {json.dumps(outputs[0].name if outputs else '')}."
            output = roles.only(outputs, name=draft.output, what=f"The output of {draft.task}", remedy=remedy)
            options = draft.anomaly if isinstance(draft, AnomalyDraft) else draft.regression
            return {**encode(options), "output": output.name}
    raise RuntimeError(f"task {draft.task!r} has no rule")


def _check_carried_names(draft: ModelDraft, tensors: ModelTensors) -> None:
    for kind, written, known in (
        ("input", [one.input for one in draft.state], tensors.inputs),
        ("output", [one.output for one in draft.state], tensors.outputs),
    ):
        names = {tensor.name for tensor in known}
        for index, name in enumerate(written):
            if name not in names:
                raise InvalidError(
                    f"state names the {kind} {name!r}; the model has the {kind}s {roles.shown(known)}.", hint="Correct the name."
                )
            if name in written[:index]:
                raise InvalidError(f"state names the {kind} {name!r} twice.", hint="Each state is one input with the output that feeds it.")


def _check_written_quantization(draft: ModelDraft, tensors: tuple[TensorSpec, ...]) -> None:
    """Raises: InvalidError when the draft speaks of a tensor that is not there, or contradicts what the file says of it."""
    carried = {tensor.name: tensor for tensor in tensors}
    for name, written in draft.quantization.items():
        tensor = carried.get(name)
        if tensor is None:
            raise InvalidError(
                f"quantization names the tensor {name!r}; the model has {', '.join(map(repr, carried))}.", hint="Correct the name."
            )
        if tensor.scale is None:
            continue
        if not math.isclose(tensor.scale, written.scale, rel_tol=1e-5) or tensor.zero_point != written.zero_point:
            raise InvalidError(
                f"quantization of {name!r} is written as scale {written.scale:g}, zero point {written.zero_point}; the file says "
                f"scale {tensor.scale:g}, zero point {tensor.zero_point}.",
                hint="Leave it out where the file carries it.",
            )


def _output_layout(draft: ModelDraft, tensor: TensorSpec, own: list[TensorSpec]) -> Layout | None:
    return Layout.NC if isinstance(draft, ClassificationDraft) and tensor in own else None


def _input_layout(tensor: TensorSpec, draft: ModelDraft) -> Layout | None:
    if draft.preprocess is None:
        return None
    if draft.layout is not None:
        return draft.layout
    shape, channels = tensor.shape, draft.preprocess.channels
    fitting = [layout for layout, axis in ((Layout.NHWC, 3), (Layout.NCHW, 1)) if len(shape) == 4 and shape[axis] == channels]
    if len(fitting) != 1:
        raise InvalidError(
            f"Input {tensor.name!r} has the shape {list(shape)}, which does not show where the {channels} channels of "
            f"{draft.preprocess.color.value} are.",
            hint='Check color, or write layout = "NHWC" or "NCHW" in the draft.',
        )
    return fitting[0]


def _described(tensor: TensorSpec, draft: ModelDraft, layout: Layout | None) -> dict[str, Any]:
    written = draft.quantization.get(tensor.name)
    scale, zero_point = tensor.scale, tensor.zero_point
    if scale is None and written is not None:
        scale, zero_point = written.scale, written.zero_point
    shape = (1, math.prod(tensor.shape)) if layout is Layout.NC and len(tensor.shape) == 1 and tensor.shape[0] == 1 else tensor.shape
    return {"name": tensor.name, "shape": shape, "layout": layout, "dtype": tensor.dtype, "scale": scale, "zero_point": zero_point}


def _draft_class(document: Mapping[str, Any]) -> type[ModelDraft]:
    return class_of(_DRAFTS, document, hint="write one of them as task")


def _toml_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} is not TOML: {str(error)[:200]}.") from None


def _labels_of(folder: Path, name: str, what: str) -> list[str]:
    if Path(name).name != name:
        raise InvalidError(f"{what} names the labels file {name[:80]!r}; wanted the plain name of a file beside it.")
    lines = read_bounded(folder / name, MAX_MANIFEST_BYTES).decode(errors="replace").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()  # blank lines at the end; one in between would shift every class behind it and is refused
    return [line.strip() for line in lines]
