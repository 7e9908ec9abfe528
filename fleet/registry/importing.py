"""From a file that somebody brings to a model version: inspected in a child process, compared with its draft, golden vectors made.

Nothing is kept of a file that is corrupt, of another type, or does not fit what its author wrote about it.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fleet.registry.drafts import ModelDraft, complete
from fleet.registry.profiling import Profiled, make_in_child
from protocol.canonical import canonical_json
from protocol.errors import InvalidError
from runtime.base import BACKENDS_OF_FORMAT, Array, BackendError, ModelTensors, RuntimeMissing, TensorSpec
from runtime.golden import MAX_GOLDEN_BYTES, decode
from runtime.manifest import FileEntry, ModelManifest
from runtime.probe import inspect_model, make_goldens
from runtime.samples import sample_vectors

#: TFLite files carry this at byte 4 (FlatBuffers file identifier).
_TFLITE_MARK = b"TFL3"
#: Names, shapes and keys around the numbers of a golden file, generously.
_GOLDEN_FRAME_BYTES = 64 << 10
_WANTED_VECTORS = 16


@dataclass(frozen=True, slots=True)
class Inspected:
    """A model file that fits its draft."""

    #: "onnx" or "tflite".
    format: str
    tensors: ModelTensors
    golden: bytes
    #: Made from evaluation data; None without any.
    profiled: Profiled | None = None


def inspect_upload(
    path: Path, draft: ModelDraft, *, goldens: bytes | None = None, evaluation: Path | None = None, what: str | None = None
) -> Inspected:
    """Look at a model file in a child process and make its golden vectors, or take those given as they are.

    With `evaluation` data (docs/drift.md) its reference profile is made too, in another child, and golden vectors are made of some of them.

    Raises: InvalidError saying what was seen, what was wanted and what to do: a file that is no model, is cut off, needs a runtime that
    this server lacks, or whose tensors do not fit the draft; evaluation data that do not fit the model or are too little.
    """
    name = what or path.name
    kind = _format_of(path, name)
    with _named(path, kind) as file, _explained(name, kind):
        tensors = inspect_model(file)
        manifest = _checked_draft(draft, tensors, file)
        made_up = [] if goldens is not None else sample_vectors(manifest, count=_vector_count(tensors))
        profiled = None if evaluation is None else make_in_child(file, manifest, evaluation)
        golden = _checked_goldens(goldens) if goldens is not None else make_goldens(file, _golden_inputs(manifest, made_up, profiled))
    return Inspected(kind, tensors, golden, profiled)


def tensors_to_json(tensors: ModelTensors) -> str:
    """The tensors as they are kept."""
    return canonical_json(asdict(tensors)).decode()


def tensors_from_json(text: str) -> ModelTensors:
    """The tensors as they were kept."""
    document = json.loads(text)
    inputs, outputs = (
        tuple(TensorSpec(**{**item, "shape": tuple(item["shape"])}) for item in document[key]) for key in ("inputs", "outputs")
    )
    return ModelTensors(document["format"], document["backend"], document["version"], inputs, outputs)


def _format_of(path: Path, name: str) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise InvalidError(f"{name} is empty.", hint="Wanted an ONNX or TFLite model file; export the model again.")
    if head[4:8] == _TFLITE_MARK:
        return "tflite"
    # an ONNX file is a protobuf message that begins with its IR version (field 1, varint)
    if head[0] == 0x08:
        return "onnx"
    raise InvalidError(
        f"{name} is no model file: it begins with {head[:8].hex(' ')}.",
        hint="Wanted an ONNX file (begins with 08) or a TFLite file (TFL3 at byte 4). Is it packed, or a text file?",
    )


@contextmanager
def _named(path: Path, kind: str) -> Iterator[Path]:
    """The file under a name whose suffix tells its kind, whatever it was uploaded as."""
    with tempfile.TemporaryDirectory(prefix="mooring-import-") as scratch:
        file = Path(scratch) / f"model.{kind}"
        try:
            file.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, file)
        yield file


@contextmanager
def _explained(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except RuntimeMissing as error:
        raise InvalidError(
            f"{name} is a {kind} model, and this server has no runtime to look into it: {error.message}",
            hint=f"Install the runtime on the server: pip install 'mooring[{'onnx' if kind == 'onnx' else 'litert'}]'",
            code="no-runtime",
        ) from error
    except BackendError as error:
        raise InvalidError(
            f"{name} was taken for a {kind} model and cannot be used: {error.message}",
            hint=error.hint or "Is the file complete? Compare its length and digest with the exporter's, or export it again.",
            code=error.code,
        ) from error


def _checked_draft(draft: ModelDraft, tensors: ModelTensors, file: Path) -> ModelManifest:
    unhashed = {file.name: FileEntry(sha256=f"sha256:{'0' * 64}", length=0)}
    any_type = draft if draft.device_types else replace(draft, device_types=("any",))
    return complete(any_type, tensors, line="check", release="0", counter=0, variant="check", files=unhashed)


def _checked_goldens(data: bytes) -> bytes:
    decode(data)
    return data


def _golden_inputs(manifest: ModelManifest, made_up: Sequence[dict[str, Array]], profiled: Profiled | None) -> list[dict[str, Array]]:
    """What golden vectors are made of: pictures or windows of the evaluation data in place of as many made-up ones.

    Kernels of different processors agree better on what a model knows (ADR 0042). States of carried inputs stay as they were made up.
    """
    first = manifest.inputs[0].name
    seen = [] if profiled is None else list(profiled.inputs)
    return [{**vector, first: seen[place]} if place < len(seen) else vector for place, vector in enumerate(made_up)]


def _vector_count(tensors: ModelTensors) -> int:
    """How many vectors a golden file of this model can hold, with outputs of every runtime of its kind. Raises: InvalidError for none."""
    inputs, outputs = (sum(map(_bytes_of, specs)) for specs in (tensors.inputs, tensors.outputs))
    vector = inputs + outputs * len(BACKENDS_OF_FORMAT[tensors.format])
    room = MAX_GOLDEN_BYTES - _GOLDEN_FRAME_BYTES
    if vector > room:
        raise InvalidError(
            f"One golden vector of this model has {vector} bytes (input {inputs}, output {outputs}); a golden file holds {room}.",
            hint="Export the model with a smaller input, or with an int8 or uint8 input, which takes a quarter of float32.",
            code="golden-too-large",
        )
    return min(_WANTED_VECTORS, room // max(vector, 1))


def _bytes_of(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
