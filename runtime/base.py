"""The one interface of all inference runtimes, its values, its errors, and the list of runtimes by name.

BackendError (a DeviceError; carries backend, provider, artifact)
├── RuntimeMissing      not installed on this device
├── ProbeFailed         a child process that tried it did not survive or did not answer; `kind` says how
├── LoadFailed          the file is corrupt, of another type, or the runtime refuses it
├── ManifestMismatch    the file's own tensors differ from the signed model manifest
└── InferFailed         one inference did not work

Nothing here imports a runtime: `create` imports the one file that wraps it.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocol.errors import DeviceError, InvalidError
from runtime.providers import DEFAULT_PROVIDER, is_known_to

Array = npt.NDArray[Any]

#: The file's own type, which is also the name of a variant's runtime, by suffix.
FORMATS = {".onnx": "onnx", ".tflite": "tflite"}
#: Backends that read a format, in the order they are tried.
BACKENDS_OF_FORMAT: dict[str, tuple[str, ...]] = {"tflite": ("litert", "tflite"), "onnx": ("onnx",)}
#: Used only when a manifest or a setting names a provider of theirs.
ON_DEMAND_OF_FORMAT: dict[str, tuple[str, ...]] = {"tflite": ("litert-compiled",), "onnx": ()}
BACKEND_NAMES = ("litert", "tflite", "onnx", "litert-compiled")


class BackendError(DeviceError):
    """Base of what a backend can report; becomes a condition, never an exit."""

    code = "backend"

    def __init__(
        self, message: str, *, backend: str, provider: str = "", artifact: str = "", code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.backend = backend
        self.provider = provider
        #: Name of the model file, empty when none was involved.
        self.artifact = artifact


class RuntimeMissing(BackendError):  # noqa: N818 - the name of RUNTIMES
    code = "no_backend"


class ProbeFailed(BackendError):  # noqa: N818 - the name of RUNTIMES
    """A child process died or hung; `kind` is "crashed", "timeout" or "error"."""

    code = "probe_failed"

    def __init__(self, message: str, *, kind: str, backend: str, provider: str = "", artifact: str = "", hint: str | None = None) -> None:
        super().__init__(message, backend=backend, provider=provider, artifact=artifact, code=kind, hint=hint)
        self.kind = kind


class LoadFailed(BackendError):  # noqa: N818 - the name of RUNTIMES
    code = "load_failed"


class ManifestMismatch(BackendError):  # noqa: N818 - the name of RUNTIMES
    code = "manifest_mismatch"


class InferFailed(BackendError):  # noqa: N818 - the name of RUNTIMES
    code = "infer_failed"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the file itself declares it; quantization is None for floating point tensors."""

    name: str
    #: A dimension the file leaves open is -1, except an open batch, which is 1.
    shape: tuple[int, ...]
    #: numpy's name, e.g. "int8", "float32".
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The tensors that a model manifest promises."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """The tensors that a model file has, and who read them."""

    #: "onnx" or "tflite".
    format: str
    backend: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.inputs, self.outputs)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How to load: `providers` in wanted order (empty = CPU), CPU threads, and whether a fallback is a refusal."""

    providers: tuple[str, ...] = ()
    threads: int = 1
    require: bool = False
    #: ONNX Runtime only (`session.x64quantprecision`): int8 that does not saturate, slower; None = where the CPU would saturate.
    exact_int8: bool | None = None
    #: Options of a provider by its name, laid over those of `runtime.providers`.
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Provider:
    """What was asked for and what really runs; they differ when the runtime fell back silently."""

    asked: str
    effective: str
    #: Share of the graph on the accelerator, 0..1, None when the runtime does not say.
    share_accelerated: float | None = None
    #: Why it is not what was asked for, in words; empty when it is.
    reason: str = ""

    @property
    def fell_back(self) -> bool:
        return self.asked != self.effective


class Backend(Protocol):
    """One loaded model on one runtime. Used by one thread at a time."""

    name: str

    @property
    def version(self) -> str:
        """The runtime's version; empty when it does not say."""
        ...

    @property
    def effective_provider(self) -> Provider:
        """What really runs. Raises: RuntimeError before `load`."""
        ...

    def load(self, artifact: Path, spec: ModelSpec | None, options: BackendOptions) -> ModelTensors:
        """Load the file and compare its tensors with `spec` (None: compare nothing); returns its own tensors.

        Raises: RuntimeMissing, LoadFailed, ManifestMismatch.
        """
        ...

    def warm(self, rounds: int) -> None:
        """Infer `rounds` times on zeros of the real shape, so that all lazy work is done. Raises: InferFailed."""
        ...

    def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The outputs by name; the next call may overwrite them. Raises: InferFailed.

        The caller may put another array of the same shape and type in the place of one that it keeps.
        """
        ...

    def close(self) -> None:
        """Free native memory; may be called again."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend with the provider it is asked for, written "backend:provider"."""

    backend: str
    provider: str = DEFAULT_PROVIDER

    def __str__(self) -> str:
        return f"{self.backend}:{self.provider}"


def parse_candidate(text: str) -> Candidate:
    """The candidate of "backend" or "backend:provider". Raises: InvalidError naming the known backends."""
    backend, _, provider = text.partition(":")
    if backend not in BACKEND_NAMES:
        raise InvalidError(
            f"Backend {text[:80]!r} is not known.", hint=f"Wanted one of {', '.join(BACKEND_NAMES)}, optionally with ':provider'."
        )
    return Candidate(backend, provider or DEFAULT_PROVIDER)


def format_of(artifact: Path) -> str:
    """The format, onnx or tflite, by the file's suffix. Raises: InvalidError."""
    try:
        return FORMATS[artifact.suffix]
    except KeyError:
        raise InvalidError(
            f"{artifact.name} has the suffix {artifact.suffix!r}.", hint=f"Wanted a file ending in {' or '.join(FORMATS)}."
        ) from None


def candidates_for(artifact: Path, wanted: tuple[str, ...] = (), options: BackendOptions | None = None) -> tuple[Candidate, ...]:
    """Who may run the file, best first: the options' providers, then the manifest's wanted order, then plain CPU of each backend.

    A provider that no backend of the format knows is left out, unless all are: then each is asked, so that its absence is told.
    With `require` nothing but the options' providers is a candidate.

    Raises: InvalidError on an unknown suffix or backend.
    """
    file_format = format_of(artifact)
    backends = BACKENDS_OF_FORMAT[file_format]
    every = (*backends, *ON_DEMAND_OF_FORMAT[file_format])
    named = [candidate for candidate in map(parse_candidate, wanted) if candidate.backend in every]
    providers = options.providers if options else ()
    asked = [Candidate(backend, provider) for provider in providers for backend in every if _may_ask(backend, provider, backends)]
    if providers and not asked:
        asked = [Candidate(backend, provider) for provider in providers for backend in backends]
    if asked and options is not None and options.require:
        return tuple(dict.fromkeys(asked))
    plain = [Candidate(backend) for backend in backends]
    return tuple(dict.fromkeys([*asked, *named, *plain]))


def _may_ask(backend: str, provider: str, usual: tuple[str, ...]) -> bool:
    """Whether the backend knows the provider; one that is there on demand is no second way to the CPU."""
    return is_known_to(provider, backend) and (backend in usual or provider != DEFAULT_PROVIDER)


def create(name: str) -> Backend:
    """A backend by name, not loaded. Raises: InvalidError on an unknown name. The runtime itself is imported by `load`."""
    try:
        return _FACTORIES[name]()
    except KeyError:
        raise InvalidError(f"Backend {name[:80]!r} is not known.", hint=f"Wanted one of {', '.join(BACKEND_NAMES)}.") from None


def check_spec(tensors: ModelTensors, spec: ModelSpec, *, artifact: str) -> None:
    """Returns when the file's tensors are those promised. Raises: ManifestMismatch naming the first that differs, seen and wanted."""
    for kind, seen, wanted in (("input", tensors.inputs, spec.inputs), ("output", tensors.outputs, spec.outputs)):
        _check_names(kind, seen, wanted, tensors, artifact)
        by_name = {tensor.name: tensor for tensor in seen}
        for promise in wanted:
            _check_tensor(kind, by_name[promise.name], promise, tensors, artifact)


def check_inputs(inputs: Mapping[str, Array], tensors: ModelTensors) -> None:
    """Returns when the arrays fit the model's inputs. Raises: InferFailed naming what was seen and wanted."""
    for wanted in tensors.inputs:
        array = inputs.get(wanted.name)
        if array is None:
            raise InferFailed(f"Input {wanted.name!r} is missing; got {sorted(inputs)}.", backend=tensors.backend)
        if array.shape != wanted.shape or array.dtype != _dtype(wanted.dtype):
            raise InferFailed(
                f"Input {wanted.name!r} is {array.dtype.name}{list(array.shape)}; wanted {wanted.dtype}{list(wanted.shape)}.",
                backend=tensors.backend,
            )


@functools.cache
def _dtype(name: str) -> "np.dtype[Any]":
    """The same object each time: comparing it costs a twentieth of asking an array's dtype for its name, which each frame would pay."""
    return np.dtype(name)


def zeros_for(tensors: ModelTensors) -> dict[str, Array]:
    """An array of zeros for every input."""
    return {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in tensors.inputs}


def _check_names(kind: str, seen: tuple[TensorSpec, ...], wanted: tuple[TensorSpec, ...], tensors: ModelTensors, artifact: str) -> None:
    has, promised = sorted(tensor.name for tensor in seen), sorted(tensor.name for tensor in wanted)
    if has != promised:
        raise ManifestMismatch(
            f"{artifact} has the {kind}s {has}; the model manifest says {promised}.",
            backend=tensors.backend,
            artifact=artifact,
            hint="Make the manifest from this very file, or ship the file the manifest was made from.",
        )


def _check_tensor(kind: str, seen: TensorSpec, wanted: TensorSpec, tensors: ModelTensors, artifact: str) -> None:
    for trait in ("shape", "dtype", "scale", "zero_point"):
        has, promised = getattr(seen, trait), getattr(wanted, trait)
        if not _same(has, promised):
            raise ManifestMismatch(
                f"{kind.capitalize()} {seen.name!r} of {artifact} has {trait} {_shown(has)}; the model manifest says {_shown(promised)}.",
                backend=tensors.backend,
                artifact=artifact,
                hint="Make the manifest from this very file, or ship the file the manifest was made from.",
            )


def _same(seen: object, wanted: object) -> bool:
    if isinstance(seen, float) and isinstance(wanted, float):
        return bool(np.float32(seen) == np.float32(wanted))  # files store scales in single precision
    return seen == wanted


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _litert() -> Backend:
    from runtime.tflite import LiteRtBackend

    return LiteRtBackend()


def _tflite() -> Backend:
    from runtime.tflite import TfliteBackend

    return TfliteBackend()


def _onnx() -> Backend:
    from runtime.onnx import OnnxBackend

    return OnnxBackend()


def _compiled() -> Backend:
    from runtime.compiled import CompiledBackend

    return CompiledBackend()


_FACTORIES: dict[str, Callable[[], Backend]] = {"litert": _litert, "tflite": _tflite, "onnx": _onnx, "litert-compiled": _compiled}
