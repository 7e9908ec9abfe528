"""The model manifest: what a model file is, how frames or readings become its input and its output an answer. Plans, never code.

It is signed and shipped; each task has a class of it: classification, detection, anomaly, regression. What an author writes, and how the
file itself completes it: `fleet.registry.drafts`. Nothing here imports a runtime or OpenCV.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from protocol.canonical import MAX_SAFE_INTEGER, canonical_json
from protocol.decoding import Limits, MisfitError, decode, encode, without_none
from protocol.errors import InvalidError
from protocol.files import read_bounded
from protocol.ids import DIGEST_PATTERN, NAME_PATTERN, VERSION_PATTERN
from runtime.base import BACKENDS_OF_FORMAT, ModelSpec, ModelTensors, TensorSpec, check_spec, parse_candidate
from runtime.heads import (
    AnomalyScore,
    DetectionHead,
    Postprocess,
    RegressionValue,
    check_classification,
    check_detection,
    check_value,
)
from runtime.inputs import (
    INTEGER_RANGES,
    Carried,
    Preprocess,
    ShortText,
    TensorDescription,
    TensorName,
    Window,
    check_frame_input,
    check_has_scale,
    check_window_input,
)

T = TypeVar("T")

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

Name = Annotated[str, Limits(pattern=NAME_PATTERN)]
Version = Annotated[str, Limits(pattern=VERSION_PATTERN)]
DigestText = Annotated[str, Limits(pattern=DIGEST_PATTERN)]
Count = Annotated[int, Limits(ge=0, le=MAX_SAFE_INTEGER)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a model may use on one device type."""

    latency_p99_ms: Annotated[float, Limits(gt=0)] | None = None
    rss_mb: Annotated[float, Limits(gt=0)] | None = None
    load_s: Annotated[float, Limits(gt=0)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What the update's probe asks of this model; each can only make the device's own rule stricter."""

    min_inferences: Count | None = None
    min_seconds: Annotated[float, Limits(ge=0)] | None = None
    latency_ratio: Annotated[float, Limits(gt=0)] | None = None
    max_top_share: Annotated[float, Limits(gt=0, le=1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a model comes from."""

    run: ShortText = ""
    dataset: DigestText | None = None
    parent: Version | None = None
    tools: Annotated[dict[ShortText, ShortText], Limits(max_length=32)] = field(default_factory=dict)
    attestation: DigestText | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeNeed:
    """Which kind of file this is and with which backend versions it was tried."""

    name: Literal["onnx", "tflite"]
    versions: Annotated[dict[ShortText, ShortText], Limits(max_length=16)] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file beside the manifest."""

    sha256: DigestText
    #: Bytes.
    length: Annotated[int, Limits(ge=0, le=2 << 30)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """The signed description of any model's files (UPDATES 2), canonical JSON on disk; its task's class says what the answer is."""

    schema: Literal["model-manifest.1"] = "model-manifest.1"
    line: Name
    release: Version
    counter: Count
    variant: Name
    device_types: Annotated[tuple[Name, ...], Limits(min_length=1, max_length=64)]
    runtime: RuntimeNeed
    #: "backend" or "backend:provider", best first.
    backends: Annotated[tuple[ShortText, ...], Limits(min_length=1, max_length=8)]
    task: str
    #: The one that frames or windows fill, then those of the state.
    inputs: Annotated[tuple[TensorDescription, ...], Limits(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[TensorDescription, ...], Limits(min_length=1, max_length=MAX_TENSORS)]
    preprocess: Preprocess | None = None
    window: Window | None = None
    state: Annotated[tuple[Carried, ...], Limits(min_length=1, max_length=MAX_TENSORS - 1)] | None = None
    #: An output that is watched for drift, brought to eight numbers by fixed signs (`runtime.projection`).
    embedding: TensorName | None = None
    files: Annotated[dict[Annotated[str, Limits(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")], FileEntry], Limits(min_length=1, max_length=16)]
    card_sha256: DigestText | None = None
    #: Id of the grid in profile.cbor, hexadecimal; None: the release is not watched for drift.
    grid_id: Annotated[str, Limits(pattern=r"^[0-9a-f]{32}$")] | None = None
    budget: Annotated[dict[ShortText, Budget], Limits(max_length=64)] = field(default_factory=dict)
    probe: Probe = field(default_factory=Probe)
    lineage: Lineage = field(default_factory=Lineage)

    def __post_init__(self) -> None:
        check_backends(self.backends)
        check_source(self.preprocess, self.window)
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


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionManifest(ModelManifest):
    """A detector: boxes with classes and scores."""

    task: Literal["detection"]
    postprocess: DetectionHead

    def _check_answer(self, outputs: dict[str, TensorDescription]) -> None:
        if self.preprocess is None:
            raise ValueError("a detection finds objects in frames: it wants preprocess, not window")
        check_detection(outputs, self.postprocess)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyManifest(ModelManifest):
    """An anomaly detector: a score and from where on it is an anomaly."""

    task: Literal["anomaly"]
    postprocess: AnomalyScore

    def _check_answer(self, outputs: dict[str, TensorDescription]) -> None:
        check_value(_named(outputs, self.postprocess.output), self.postprocess, self.inputs[0])


@dataclass(frozen=True, slots=True, kw_only=True)
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
    data = canonical_json(without_none(encode(manifest)))
    _check_size(data, "The model manifest")
    return data


def from_bytes(data: bytes) -> ModelManifest:
    """The manifest of `manifest.json`; `from_bytes(to_bytes(x)) == x`. Raises: InvalidError naming what was seen and wanted."""
    _check_size(data, "The model manifest")
    return validated(manifest_class, json_object(data, "The model manifest"), "The model manifest")


def load_manifest(path: Path) -> ModelManifest:
    """The manifest in the file. Raises: InvalidError; OSError when it cannot be read."""
    return from_bytes(read_bounded(path, MAX_MANIFEST_BYTES))


def check_against_tensors(manifest: ModelManifest, tensors: ModelTensors) -> None:
    """Returns when the file is the one described. Raises: ManifestMismatch naming the tensor, what was seen and wanted."""
    spec = manifest.spec
    if tensors.format == "onnx":  # declares no scale at its border
        spec = ModelSpec(tuple(map(_plain, spec.inputs)), tuple(map(_plain, spec.outputs)))
    check_spec(tensors, spec, artifact=manifest.model_file)


def _plain(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.shape, tensor.dtype)


def check_source(preprocess: Preprocess | None, window: Window | None) -> None:
    """Returns when it is said in one way what fills the input. Raises: ValueError."""
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


def check_backends(values: tuple[str, ...]) -> None:
    """Returns when each is "backend" or "backend:provider". Raises: MisfitError."""
    for value in values:
        try:
            parse_candidate(value)
        except InvalidError as error:
            raise MisfitError([("backends", str(error))]) from None


def manifest_class(document: Mapping[str, Any]) -> type[ModelManifest]:
    """What the document is parsed with. Raises: InvalidError when its task is not known."""
    return class_of(_TASKS, document, hint="update the agent")


def class_of(known: Mapping[str, type[T]], document: Mapping[str, Any], *, hint: str) -> type[T]:
    """The class of the document's task. Raises: InvalidError when there is none."""
    task = document.get("task")
    if not isinstance(task, str) or task not in known:
        raise InvalidError(f"task {str(task)[:80]!r} is not known to this version.", hint=f"Wanted one of {', '.join(known)}; {hint}.")
    return known[task]


def validated(choose: Callable[[Mapping[str, Any]], type[T]], document: Mapping[str, Any], what: str) -> T:
    """The document as a value of the class that is chosen for it. Raises: InvalidError naming the fields, what was seen and wanted."""
    try:
        return decode(choose(document), document)
    except MisfitError as error:
        problems = [f"{path or 'document'}: {text}" for path, text in error.problems]
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise InvalidError(f"{what} is not valid: {'; '.join(problems[:5])}{more}.") from None


def _check_size(data: bytes, what: str) -> None:
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidError(f"{what} has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed.")


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The object that the bytes hold. Raises: InvalidError."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} is not JSON: {str(error)[:200]}.") from None
    return object_of(document, what)


def object_of(document: object, what: str) -> dict[str, Any]:
    """The document, which is an object. Raises: InvalidError when it is none."""
    if not isinstance(document, dict):
        raise InvalidError(f"{what} is a {type(document).__name__}; wanted an object with fields.")
    return document
