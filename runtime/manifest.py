"""The model manifest: what a model file is, how frames or readings become its input and its output an answer. Plans, never code.

`ModelDraft` is what an author writes; `complete` joins it with what the file itself says; `ModelManifest` is signed and shipped. Each
task has a class of both: classification, detection, anomaly, regression. Nothing here imports a runtime or OpenCV.
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from protocol.canonical import canonical_json
from protocol.errors import InvalidError
from protocol.fields import Count, DigestText, Name, ShortText, Version
from protocol.files import read_bounded
from runtime import roles
from runtime.base import BACKENDS_OF_FORMAT, ModelSpec, ModelTensors, TensorSpec, check_spec, parse_candidate
from runtime.heads import (
    Activation,
    AnomalyOptions,
    AnomalyScore,
    Axes,
    DetectionHead,
    Labels,
    Postprocess,
    RegressionOptions,
    RegressionValue,
    SsdOptions,
    YoloOptions,
    check_classification,
    check_detection,
    check_value,
)
from runtime.inputs import (
    INTEGER_RANGES,
    Carried,
    Layout,
    Preprocess,
    Strict,
    TensorDescription,
    TensorName,
    Window,
    check_frame_input,
    check_has_scale,
    check_window_input,
)

T = TypeVar("T", bound=BaseModel)

SCHEMA = "model-manifest.1"
MAX_MANIFEST_BYTES = 256 * 1024
#: Inputs or outputs of one model.
MAX_TENSORS = 16
#: Numbers of an embedding.
MAX_EMBEDDING = 8192
#: What a state may be kept as.
_STATE_DTYPES = ("int8", "uint8", "int16", "int32", "float32")
#: Key of `budget` for every device type that has no line of its own.
ANY_DEVICE_TYPE = "*"


class Budget(Strict):
    """What a model may use on one device type."""

    latency_p99_ms: Annotated[float, Field(gt=0)] | None = None
    rss_mb: Annotated[float, Field(gt=0)] | None = None
    load_s: Annotated[float, Field(gt=0)] | None = None


class Probe(Strict):
    """What the update's probe asks of this model; each can only make the device's own rule stricter."""

    min_inferences: Count | None = None
    min_seconds: Annotated[float, Field(ge=0)] | None = None
    latency_ratio: Annotated[float, Field(gt=0)] | None = None
    max_top_share: Annotated[float, Field(gt=0, le=1)] | None = None


class Lineage(Strict):
    """Where a model comes from."""

    run: ShortText = ""
    dataset: DigestText | None = None
    parent: Version | None = None
    tools: dict[ShortText, ShortText] = Field(default_factory=dict, max_length=32)
    attestation: DigestText | None = None


class RuntimeNeed(Strict):
    """Which kind of file this is and with which backend versions it was tried."""

    name: Literal["onnx", "tflite"]
    versions: dict[ShortText, ShortText] = Field(default_factory=dict, max_length=16)


class FileEntry(Strict):
    """One file beside the manifest."""

    sha256: DigestText
    #: Bytes.
    length: Annotated[int, Field(ge=0, le=2 << 30)]


class Quantization(Strict):
    """Scale and zero point of one tensor."""

    scale: float
    zero_point: int


class ModelDraft(Strict):
    """What an author writes about any model, as TOML or JSON; everything else is read from the file or said by the release."""

    task: str
    labels: Annotated[tuple[ShortText, ...], Field(max_length=0)] = ()
    #: How frames fill the input; or, for readings of sensors:
    preprocess: Preprocess | None = None
    window: Window | None = None
    #: Inputs that carry on what an output was with the frame before.
    state: Annotated[tuple[Carried, ...], Field(max_length=MAX_TENSORS - 1)] = ()
    #: An output that stands for the picture or window as a whole and is watched for drift; not part of the answer.
    embedding: TensorName | None = None
    device_types: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    #: "backend" or "backend:provider", best first; empty = the usual order of the file's kind.
    backends: Annotated[tuple[ShortText, ...], Field(max_length=8)] = ()
    #: Layout of the input when its shape fits more than one.
    layout: Layout | None = None
    #: Scale and zero point of quantized tensors by name, for files that do not carry them (ONNX).
    quantization: dict[ShortText, Quantization] = Field(default_factory=dict, max_length=16)
    budget: dict[ShortText, Budget] = Field(default_factory=dict, max_length=64)
    probe: Probe = Probe()
    lineage: Lineage = Lineage()

    @field_validator("backends")
    @classmethod
    def _known_backends(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_backends(values)

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        _check_source(self.preprocess, self.window)
        return self


class ClassificationDraft(ModelDraft):
    """A classifier as its author writes it."""

    task: Literal["classification"]
    labels: Labels
    activation: Activation = Activation.NONE
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    top_k: Annotated[int, Field(ge=1, le=32)] = 1
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0


class SsdDraft(SsdOptions):
    """An `ssd` head whose tensors may be left to be found by name and shape."""

    boxes: TensorName | None = None
    classes: TensorName | None = None
    scores: TensorName | None = None
    count: TensorName | None = None


class YoloDraft(YoloOptions):
    """A `yolo` head whose tensor and form may be left to be found by shape."""

    output: TensorName | None = None
    axes: Axes | None = None
    objectness: bool | None = None


class DetectionDraft(ModelDraft):
    """A detector as its author writes it."""

    task: Literal["detection"]
    labels: Labels
    detection: Annotated[SsdDraft | YoloDraft, Field(discriminator="head")]


class AnomalyDraft(ModelDraft):
    """An anomaly detector as its author writes it."""

    task: Literal["anomaly"]
    anomaly: AnomalyOptions
    #: The output with the score or the reconstruction, where there are several.
    output: TensorName | None = None


class RegressionDraft(ModelDraft):
    """A regression as its author writes it."""

    task: Literal["regression"]
    regression: RegressionOptions = RegressionOptions()
    #: The output with the value, where there are several.
    output: TensorName | None = None


_DRAFTS: dict[str, type[ModelDraft]] = {
    "classification": ClassificationDraft,
    "detection": DetectionDraft,
    "anomaly": AnomalyDraft,
    "regression": RegressionDraft,
}


class ModelManifest(Strict):
    """The signed description of any model's files (UPDATES 2), canonical JSON on disk; its task's class says what the answer is."""

    schema_name: Literal["model-manifest.1"] = Field("model-manifest.1", alias="schema")
    line: Name
    release: Version
    counter: Count
    variant: Name
    device_types: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    runtime: RuntimeNeed
    #: "backend" or "backend:provider", best first.
    backends: Annotated[tuple[ShortText, ...], Field(min_length=1, max_length=8)]
    task: str
    #: The one that frames or windows fill, then those of the state.
    inputs: Annotated[tuple[TensorDescription, ...], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[TensorDescription, ...], Field(min_length=1, max_length=MAX_TENSORS)]
    preprocess: Preprocess | None = None
    window: Window | None = None
    state: Annotated[tuple[Carried, ...], Field(min_length=1, max_length=MAX_TENSORS - 1)] | None = None
    #: An output that is watched for drift, brought to eight numbers by fixed signs (`runtime.projection`).
    embedding: TensorName | None = None
    files: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")], FileEntry], Field(min_length=1, max_length=16)
    ]
    card_sha256: DigestText | None = None
    #: Id of the grid in profile.cbor, hexadecimal; None: the release is not watched for drift.
    grid_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None
    budget: dict[ShortText, Budget] = Field(default_factory=dict, max_length=64)
    probe: Probe = Probe()
    lineage: Lineage = Lineage()

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
        defer_build=True,
    )

    @field_validator("backends")
    @classmethod
    def _known_backends(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_backends(values)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _check_source(self.preprocess, self.window)
        if self.preprocess is not None:
            check_frame_input(self.inputs[0], self.preprocess)
        if self.window is not None:
            check_window_input(self.inputs[0], self.window)
        _check_state(self.inputs, self.outputs, self.carried)
        _check_embedding(self.outputs, self.carried, self.embedding)
        if self.model_file not in self.files:
            raise ValueError(f"files {sorted(self.files)} lacks {self.model_file!r}")
        fitting = BACKENDS_OF_FORMAT[self.runtime.name]
        if not any(parse_candidate(text).backend in fitting for text in self.backends):
            raise ValueError(
                f"backends {list(self.backends)} has none that reads {self.runtime.name} files; wanted one of {', '.join(fitting)}"
            )
        self._check_answer({item.name: item for item in self.outputs})
        return self

    def _check_answer(self, outputs: dict[str, TensorDescription]) -> None:
        """Returns when the outputs make the task's answer. Raises: ValueError."""
        raise NotImplementedError

    @property
    def carried(self) -> tuple[Carried, ...]:
        """The state, empty for models without one."""
        return self.state or ()

    @property
    def beside(self) -> frozenset[str]:
        """Names of outputs that are no part of the answer: of state, and the embedding."""
        return frozenset(one.output for one in self.carried) | ({self.embedding} if self.embedding else set())

    @property
    def model_file(self) -> str:
        """Name of the model file in the slot: "model.onnx" or "model.tflite"."""
        return f"model.{self.runtime.name}"

    @property
    def spec(self) -> ModelSpec:
        """The tensors that the file must have."""
        return ModelSpec(tuple(item.spec for item in self.inputs), tuple(item.spec for item in self.outputs))

    def budget_for(self, device_type: str) -> Budget:
        """The budget on a device type; without limits when none is written."""
        return self.budget.get(device_type) or self.budget.get(ANY_DEVICE_TYPE) or Budget()


class ClassificationManifest(ModelManifest):
    """A classifier: one output with a score for each label."""

    task: Literal["classification"]
    postprocess: Postprocess

    def _check_answer(self, outputs: dict[str, TensorDescription]) -> None:
        own = [item for name, item in outputs.items() if name not in self.beside]
        if len(own) != 1:
            raise ValueError(f"a classification wants one output with its scores; there are {len(own)}")
        check_classification(own[0], self.postprocess)

    @property
    def scores(self) -> TensorDescription:
        """The output with a score for each label."""
        return next(item for item in self.outputs if item.name not in self.beside)


class DetectionManifest(ModelManifest):
    """A detector: boxes with classes and scores."""

    task: Literal["detection"]
    postprocess: DetectionHead

    def _check_answer(self, outputs: dict[str, TensorDescription]) -> None:
        if self.preprocess is None:
            raise ValueError("a detection finds objects in frames: it wants preprocess, not window")
        check_detection(outputs, self.postprocess)


class AnomalyManifest(ModelManifest):
    """An anomaly detector: a score and from where on it is an anomaly."""

    task: Literal["anomaly"]
    postprocess: AnomalyScore

    def _check_answer(self, outputs: dict[str, TensorDescription]) -> None:
        check_value(_named(outputs, self.postprocess.output), self.postprocess, self.inputs[0])


class RegressionManifest(ModelManifest):
    """A regression: one value."""

    task: Literal["regression"]
    postprocess: RegressionValue

    def _check_answer(self, outputs: dict[str, TensorDescription]) -> None:
        check_value(_named(outputs, self.postprocess.output), self.postprocess, self.inputs[0])


#: What each `task` of a manifest is parsed with. A new task is a new class and a line here.
_TASKS: dict[str, type[ModelManifest]] = {
    "classification": ClassificationManifest,
    "detection": DetectionManifest,
    "anomaly": AnomalyManifest,
    "regression": RegressionManifest,
}
#: Names of the tasks that this version knows.
TASKS = tuple(_TASKS)


def to_bytes(manifest: ModelManifest) -> bytes:
    """The canonical JSON that is signed and shipped. Raises: InvalidError when it would be longer than 256 KiB."""
    data = canonical_json(manifest.model_dump(mode="json", exclude_none=True))
    _check_size(data, "The model manifest")
    return data


def from_bytes(data: bytes) -> ModelManifest:
    """The manifest of `manifest.json`; `from_bytes(to_bytes(x)) == x`. Raises: InvalidError naming what was seen and wanted."""
    _check_size(data, "The model manifest")
    return _validated(_manifest_class, _json_object(data, "The model manifest"), "The model manifest")


def load_manifest(path: Path) -> ModelManifest:
    """The manifest in the file. Raises: InvalidError; OSError when it cannot be read."""
    return from_bytes(read_bounded(path, MAX_MANIFEST_BYTES))


def load_draft(path: Path) -> ModelDraft:
    """The draft in a .toml or .json file; `labels` may name a text file beside it, one label a line.

    Raises: InvalidError naming the field, what was seen and wanted; OSError when a file cannot be read.
    """
    data = read_bounded(path, MAX_MANIFEST_BYTES)
    what = f"The draft {path.name}"
    document = _toml_object(data, what) if path.suffix == ".toml" else _json_object(data, what)
    labels = document.get("labels")
    if isinstance(labels, str):
        document["labels"] = _labels_of(path.parent, labels, what)
    return parse_draft(document, what=what)


def parse_draft(document: Mapping[str, Any], *, what: str = "The draft") -> ModelDraft:
    """The draft as a document from a form or file. Raises: InvalidError naming the field, what was seen and wanted."""
    return _validated(_draft_class, document, what)


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
        "preprocess": None if draft.preprocess is None else draft.preprocess.model_dump(),
        "window": None if draft.window is None else draft.window.model_dump(),
        "state": [one.model_dump() for one in draft.state] or None,
        "embedding": draft.embedding,
        "postprocess": _postprocess_of(draft, own),
        "files": {name: entry.model_dump() for name, entry in files.items()},
        "card_sha256": card_sha256,
        "grid_id": grid_id,
        "budget": {key: value.model_dump() for key, value in draft.budget.items()},
        "probe": draft.probe.model_dump(),
        "lineage": draft.lineage.model_dump(),
    }
    return _validated(_manifest_class, document, "The model manifest")


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
            return draft.model_dump(include={"activation", "labels", "threshold", "top_k", "temperature"})
        case DetectionDraft(detection=SsdDraft() as head):
            written = {"boxes": head.boxes, "classes": head.classes, "scores": head.scores, "count": head.count}
            return {**head.model_dump(), **roles.ssd_roles(outputs, written), "labels": draft.labels}
        case DetectionDraft(detection=YoloDraft() as head):
            remedy = "Write its name as output under [detection]; boxes, classes and scores of their own are head = 'ssd'."
            output = roles.only(outputs, name=head.output, what="The output of a raw head", remedy=remedy)
            axes, objectness = roles.yolo_form(output, len(draft.labels), axes=head.axes, objectness=head.objectness)
            return {**head.model_dump(), "output": output.name, "axes": axes, "objectness": objectness, "labels": draft.labels}
        case AnomalyDraft() | RegressionDraft():
            remedy = f"Write its name in the draft: output = {json.dumps(outputs[0].name if outputs else '')}."
            output = roles.only(outputs, name=draft.output, what=f"The output of {draft.task}", remedy=remedy)
            options = draft.anomaly if isinstance(draft, AnomalyDraft) else draft.regression
            return {**options.model_dump(), "output": output.name}
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


def check_against_tensors(manifest: ModelManifest, tensors: ModelTensors) -> None:
    """Returns when the file is the one described. Raises: ManifestMismatch naming the tensor, what was seen and wanted."""
    spec = manifest.spec
    if tensors.format == "onnx":  # declares no scale at its border
        spec = ModelSpec(tuple(map(_plain, spec.inputs)), tuple(map(_plain, spec.outputs)))
    check_spec(tensors, spec, artifact=manifest.model_file)


def _plain(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.shape, tensor.dtype)


def _check_source(preprocess: Preprocess | None, window: Window | None) -> None:
    if (preprocess is None) == (window is None):
        seen = "neither" if preprocess is None else "both"
        raise ValueError(f"there is {seen} of preprocess and window; wanted preprocess for frames or window for readings of sensors")


def _check_state(inputs: tuple[TensorDescription, ...], outputs: tuple[TensorDescription, ...], carried: tuple[Carried, ...]) -> None:
    """Every input but the first is fed by one output just like it, and no output feeds two."""
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError(f"{kind} name one tensor twice: {', '.join(tensor.name for tensor in tensors)}")
    if [one.input for one in carried] != [tensor.name for tensor in inputs[1:]] or len({one.output for one in carried}) != len(carried):
        raise ValueError(
            f"inputs {', '.join(tensor.name for tensor in inputs)} and state {', '.join(one.input for one in carried) or 'none'} differ; "
            "wanted the filled input first, then one state with an output of its own for every further one"
        )
    by_name = {tensor.name: tensor for tensor in outputs}
    for tensor, one in zip(inputs[1:], carried, strict=True):
        output = by_name.get(one.output)
        if output is None:
            raise ValueError(f"state {one.input!r} is fed by {one.output!r}, which is no output; there are {', '.join(by_name)}")
        seen, wanted = (
            (item.shape, item.dtype, item.zero_point, None if item.scale is None else round(item.scale, 7)) for item in (output, tensor)
        )
        if seen != wanted:
            raise ValueError(
                f"state {tensor.name!r} is {tensor.dtype}{list(tensor.shape)} with scale {tensor.scale}, zero point {tensor.zero_point}; "
                f"its output {output.name!r} is {output.dtype}{list(output.shape)} with {output.scale}, {output.zero_point}"
            )
        if tensor.dtype not in _STATE_DTYPES:
            raise ValueError(f"state {tensor.name!r} has dtype {tensor.dtype!r}; wanted one of {', '.join(_STATE_DTYPES)}")


def _check_embedding(outputs: tuple[TensorDescription, ...], carried: tuple[Carried, ...], name: str | None) -> None:
    if name is None:
        return
    tensor = next((one for one in outputs if one.name == name), None)
    if tensor is None:
        raise ValueError(f"embedding names the output {name!r}; there are {', '.join(one.name for one in outputs)}")
    if name in {one.output for one in carried}:
        raise ValueError(f"embedding names {name!r}, which carries state; wanted an output of its own")
    if tensor.dtype not in ("float32", *INTEGER_RANGES) or not 2 <= tensor.size <= MAX_EMBEDDING:
        raise ValueError(
            f"embedding {name!r} is {tensor.dtype}{list(tensor.shape)}; wanted 2 to {MAX_EMBEDDING} numbers, float32, int8 or uint8"
        )
    check_has_scale(tensor)


def _named(outputs: Mapping[str, TensorDescription], name: str) -> TensorDescription:
    if name not in outputs:
        raise ValueError(f"postprocess names the output {name!r}; there are {', '.join(outputs)}")
    return outputs[name]


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


def _checked_backends(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            parse_candidate(value)
        except InvalidError as error:
            raise ValueError(str(error)) from None
    return values


def _manifest_class(document: Mapping[str, Any]) -> type[ModelManifest]:
    return _class_of(_TASKS, document, hint="update the agent")


def _draft_class(document: Mapping[str, Any]) -> type[ModelDraft]:
    return _class_of(_DRAFTS, document, hint="write one of them as task")


def _class_of(known: Mapping[str, type[T]], document: Mapping[str, Any], *, hint: str) -> type[T]:
    task = document.get("task")
    if not isinstance(task, str) or task not in known:
        raise InvalidError(f"task {str(task)[:80]!r} is not known to this version.", hint=f"Wanted one of {', '.join(known)}; {hint}.")
    return known[task]


def _validated(choose: Callable[[Mapping[str, Any]], type[T]], document: Mapping[str, Any], what: str) -> T:
    model = choose(document)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or 'document'}: {_problem(dict(item))}" for item in error.errors(include_url=False)[:5]
        ]
        more = f" (and {error.error_count() - 5} more)" if error.error_count() > 5 else ""
        raise InvalidError(f"{what} is not valid: {'; '.join(problems)}{more}.") from None


def _problem(item: Mapping[str, Any]) -> str:
    text = str(item["msg"]).removeprefix("Value error, ")
    seen = item.get("input")
    return text if isinstance(seen, dict | BaseModel) or item["type"] == "value_error" else f"{text}, seen {repr(seen)[:80]}"


def _check_size(data: bytes, what: str) -> None:
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidError(f"{what} has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed.")


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} is not JSON: {str(error)[:200]}.") from None
    return _object(document, what)


def _toml_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} is not TOML: {str(error)[:200]}.") from None


def _object(document: object, what: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidError(f"{what} is a {type(document).__name__}; wanted an object with fields.")
    return document


def _labels_of(folder: Path, name: str, what: str) -> list[str]:
    if Path(name).name != name:
        raise InvalidError(f"{what} names the labels file {name[:80]!r}; wanted the plain name of a file beside it.")
    lines = read_bounded(folder / name, MAX_MANIFEST_BYTES).decode(errors="replace").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()  # blank lines at the end; one in between would shift every class behind it and is refused
    return [line.strip() for line in lines]
