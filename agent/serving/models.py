"""The models that are served: loaded from slot folders, warmed up, as many copies as requests that are inferred at once.

A model that is replaced answers what it has begun and is then closed; nothing is closed under a running inference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from agent.config import RuntimeConfig
from agent.serving.figures import Counter
from agent.serving.tensors import DATATYPES
from protocol.canonical import digest_of
from protocol.errors import DeviceError, InvalidError, MooringError
from protocol.files import read_bounded
from runtime.base import Array, Backend, BackendError, BackendOptions
from runtime.loader import MANIFEST_NAME, check_files, load_first, load_on
from runtime.manifest import MAX_MANIFEST_BYTES, ModelManifest, from_bytes
from runtime.records import ModelRecords

#: `platform` of the model metadata by kind of file.
PLATFORMS = {"onnx": "onnxruntime_onnx", "tflite": "tensorflow_lite"}


class ClosedError(Exception):
    """The model was replaced between the look and the inference: look again."""


@dataclass(frozen=True, slots=True)
class Key:
    """Which bytes of which folder a model came from."""

    folder: Path
    #: Digest of manifest.json, which binds the digests of all files.
    digest: str


class Inferred:
    """One inference on a copy of a model that is free; see `ServedModel.inferred`. A class, because a generator costs each request more."""

    __slots__ = ("_backend", "_free", "_inputs")

    def __init__(self, free: "SimpleQueue[Backend | None]", inputs: Mapping[str, Array]) -> None:
        self._free, self._inputs = free, inputs
        self._backend: Backend | None = None

    def __enter__(self) -> Mapping[str, Array]:
        backend = self._free.get()
        if backend is None:
            self._free.put(None)  # for the next one that comes too late
            raise ClosedError
        try:
            outputs = backend.infer(self._inputs)
        except BaseException:
            self._free.put(backend)
            raise
        self._backend = backend
        return outputs

    def __exit__(self, *_: object) -> None:
        self._free.put(self._backend)


class ServedModel:
    """One release of one line, ready to infer; `inferred` may be used by as many threads as it has copies."""

    def __init__(self, key: Key, manifest: ModelManifest, backends: list[Backend], *, asked: str = "") -> None:
        self.key, self.line, self.release = key, manifest.line, manifest.release
        self.platform = PLATFORMS[manifest.runtime.name]
        self.inputs, self.outputs = manifest.spec.inputs, manifest.spec.outputs
        #: What was asked for, and what really runs: "backend:provider".
        self.asked = asked
        self.provider = f"{backends[0].name}:{backends[0].effective_provider.effective}"
        self._copies = len(backends)
        self._free: SimpleQueue[Backend | None] = SimpleQueue()
        for backend in backends:
            self._free.put(backend)

    def inferred(self, inputs: Mapping[str, Array]) -> "Inferred":
        """For one `with`: the outputs by name, which live until the block ends. Entering it raises: ClosedError; InferFailed."""
        return Inferred(self._free, inputs)

    def close(self) -> None:
        """Wait for running inferences, then free all memory; what comes later is told `ClosedError`."""
        for _ in range(self._copies):
            backend = self._free.get()
            if backend is not None:
                backend.close()
        self._free.put(None)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a line answers with: a model, or why there is none."""

    model: ServedModel | None
    #: Why the line does not answer; empty when it does.
    text: str = ""


class Shelf:
    """The models by line. One thread changes it, any thread reads it: an entry is replaced as a whole."""

    def __init__(self, *, copies: int, runtime: RuntimeConfig, records_dir: Path | None = None) -> None:
        """`records_dir`: where what crashed with which model is remembered, so that it is not tried here either."""
        self._copies, self._runtime = copies, runtime
        self._records = ModelRecords(records_dir, provider_options=runtime.options)
        self._entries: dict[str, Entry] = {}
        #: Figures per line, from its first model on.
        self.counters: dict[str, Counter] = {}

    def entry(self, line: str) -> Entry | None:
        """What the line answers with; None when there is no such line here."""
        return self._entries.get(line)

    def entries(self) -> dict[str, Entry]:
        """All of them by line."""
        return dict(self._entries)

    def put(self, line: str, folder: Path) -> None:
        """Make the folder's model the line's; the one before answers until this one is warm. What does not load is told by the entry."""
        before = self._entries.get(line)
        try:
            key, manifest = read_key(folder)
            if before is not None and before.model is not None and before.model.key == key:
                return
            if manifest.line != line:
                raise InvalidError(f"{folder} holds a model of the line {manifest.line}; wanted one of {line}.")
            skip = self._records.quarantined(key.digest)
            model = load(key, manifest, copies=self._copies, runtime=self._runtime, skip=skip)
        except (MooringError, OSError) as error:
            self._replace(line, Entry(None, f"The active release of {line} does not load: {error}"))
            return
        self._replace(line, Entry(model))

    def take_away(self, line: str, text: str) -> None:
        """The line has no active release; requests are told so."""
        if self._entries.get(line) != (entry := Entry(None, text)):
            self._replace(line, entry)

    def close(self) -> None:
        """Close all models."""
        for line in list(self._entries):
            self._replace(line, Entry(None, "The server ends."))

    def _replace(self, line: str, entry: Entry) -> None:
        before = self._entries.get(line)
        self.counters.setdefault(line, Counter())
        self._entries[line] = entry
        if before is not None and before.model is not None:
            before.model.close()


def read_key(folder: Path) -> tuple[Key, ModelManifest]:
    """The key and the manifest of a slot folder. Raises: InvalidError; OSError when the manifest cannot be read."""
    data = read_bounded(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    return Key(folder, digest_of(data)), from_bytes(data)


def load(key: Key, manifest: ModelManifest, *, copies: int, runtime: RuntimeConfig, skip: tuple[str, ...] = ()) -> ServedModel:
    """The folder's model, warm, `copies` times, on the first back end that takes it and is not among `skip`.

    Raises: InvalidError, BackendError, DeviceError.
    """
    for tensor in (*manifest.spec.inputs, *manifest.spec.outputs):
        if tensor.dtype not in DATATYPES:
            raise DeviceError(f"Tensor {tensor.name!r} is {tensor.dtype}, which the Open Inference Protocol does not carry.")
    check_files(key.folder, manifest)
    options = BackendOptions(
        providers=runtime.providers, threads=runtime.threads, require=runtime.require, provider_options=runtime.options
    )
    first = load_first(key.folder, manifest, options, skip=skip)
    backends = [first.backend]
    try:
        artifact = key.folder / manifest.model_file
        backends += [load_on(first.candidate, artifact, manifest, options, warm_rounds=1) for _ in range(copies - 1)]
    except BackendError:
        for backend in backends:
            backend.close()
        raise
    return ServedModel(key, manifest, backends, asked=str(first.candidate))
