"""ONNX Runtime behind `Backend`; the only file that imports it, and never before its telemetry is switched off.

The wheel reports to its vendor by default; the switch works only when it is in the environment BEFORE the import.
"""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.base import (
    Array,
    BackendOptions,
    InferFailed,
    LoadFailed,
    ModelSpec,
    ModelTensors,
    Provider,
    RuntimeMissing,
    TensorSpec,
    check_inputs,
    check_spec,
    zeros_for,
)
from runtime.cpu import saturates_int8
from runtime.providers import DEFAULT_PROVIDER, DEVICE_KINDS, LIBRARY_OPTION, Asked, ask_for, find_kind, name_of_ep

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
MAX_FILE_BYTES = 2 << 30
_CPU = "CPUExecutionProvider"
#: Options of the built-in provider that choosing a device replaces.
_WITHOUT_A_PLUGIN = ("device_type",)
#: Libraries that this process registered; ONNX Runtime keeps them.
_registered: set[tuple[str, str]] = set()
_REGISTERING = threading.Lock()
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?(\S+\.(cc|h):\d+ .*?\) (?=[A-Z]))?")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxBackend:
    """A model on ONNX Runtime: no memory arena, no spinning threads, no telemetry."""

    name = "onnx"

    def __init__(self) -> None:
        self._session: Any = None
        self._tensors: ModelTensors | None = None
        self._provider: Provider | None = None
        self._version = ""
        self._names: list[str] = []

    @property
    def version(self) -> str:
        return self._version

    @property
    def effective_provider(self) -> Provider:
        if self._provider is None:
            raise RuntimeError("effective_provider was read before load")
        return self._provider

    def load(self, artifact: Path, spec: ModelSpec | None, options: BackendOptions) -> ModelTensors:
        self.close()
        ort = import_onnxruntime()
        self._version = str(ort.__version__)
        _check_file(artifact)
        asked = options.providers or (DEFAULT_PROVIDER,)
        session, provider = self._open(ort, artifact, asked, options)
        if options.require and provider.fell_back:
            raise LoadFailed(
                f"{provider.asked!r} was required; ONNX Runtime runs {artifact.name} on {provider.effective!r}: {provider.reason}",
                backend=self.name,
                provider=provider.asked,
                artifact=artifact.name,
                code="accelerator_fallback",
                hint=f"This installation offers {', '.join(sorted(map(name_of_ep, ort.get_available_providers())))}.",
            )
        tensors = ModelTensors(
            format="onnx",
            backend=self.name,
            version=self._version,
            inputs=tuple(map(_tensor, session.get_inputs())),
            outputs=tuple(map(_tensor, session.get_outputs())),
        )
        if spec is not None:
            check_spec(tensors, _without_quantization(spec), artifact=artifact.name)
        self._session, self._tensors, self._provider = session, tensors, provider
        self._names = [tensor.name for tensor in tensors.outputs]
        return tensors

    def warm(self, rounds: int) -> None:
        zeros = zeros_for(self._loaded())
        for _ in range(rounds):
            self.infer(zeros)

    def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        tensors = self._loaded()
        check_inputs(inputs, tensors)
        if len(inputs) != len(tensors.inputs):  # ONNX Runtime refuses what it does not know
            inputs = {tensor.name: inputs[tensor.name] for tensor in tensors.inputs}
        try:
            values = self._session.run(self._names, inputs)
        except _errors() as error:
            raise InferFailed(
                f"ONNX Runtime failed: {_first_line(error)}", backend=self.name, provider=self.effective_provider.effective
            ) from error
        return {name: np.asarray(value) for name, value in zip(self._names, values, strict=True)}

    def close(self) -> None:
        self._session, self._tensors = None, None

    def _open(self, ort: Any, artifact: Path, wanted: tuple[str, ...], options: BackendOptions) -> tuple[Any, Provider]:
        """A session on the first provider that takes the model, the processor at last."""
        reasons: list[str] = []
        for name in dict.fromkeys((*wanted, DEFAULT_PROVIDER)):
            asked = ask_for(name, threads=options.threads, settings=options.provider_options.get(name))
            try:
                reason = _absence(ort, name, asked)
                if reason:
                    reasons.append(reason)
                    if options.require:  # no session is built only to be refused
                        return None, Provider(wanted[0], DEFAULT_PROVIDER, None, reasons[0])
                    continue
                session = _session(ort, artifact, asked, options)
            except _errors() as error:
                if asked.ep == _CPU:
                    raise _load_failed(artifact, name, error) from error
                reasons.append(f"{name} does not take {artifact.name}: {_first_line(error)}")
                continue
            share, reason = _assignment(session, name, asked)
            if not reason:
                return session, Provider(wanted[0], name, share, " ".join(reasons))
            reasons.append(reason)
        raise RuntimeError("the loop over providers ends with the processor, which is in every build")

    def _loaded(self) -> ModelTensors:
        if self._tensors is None:
            raise RuntimeError("infer was called before load or after close")
        return self._tensors


def import_onnxruntime() -> Any:
    """The module, imported with its telemetry off. Raises: RuntimeMissing when it is absent or does not import."""
    os.environ[TELEMETRY_SWITCH] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(
            f"ONNX Runtime does not import: {_first_line(error)}", backend="onnx", hint="Install the extra: pip install 'mooring[onnx]'."
        ) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own exceptions have no common base below Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (RuntimeError, ValueError, OSError, MemoryError, *own)


def _session(ort: Any, artifact: Path, asked: Asked, options: BackendOptions) -> Any:
    made = _session_options(ort, options, asked)
    if LIBRARY_OPTION not in asked.options:
        return ort.InferenceSession(os.fspath(artifact), sess_options=made, providers=_chain(ort, asked))
    told = {key: value for key, value in asked.options.items() if key not in (LIBRARY_OPTION, *_WITHOUT_A_PLUGIN)}
    made.add_provider_for_devices(_plugin_devices(ort, asked), told)
    return ort.InferenceSession(os.fspath(artifact), sess_options=made)


def _plugin_devices(ort: Any, asked: Asked) -> list[Any]:
    """The devices that a provider in a library of its own drives here, of the kind that is named after the dash."""
    library = asked.options[LIBRARY_OPTION]
    with _REGISTERING:
        if (asked.ep, library) not in _registered:
            ort.register_execution_provider_library(asked.ep, library)  # some take the name that they are registered under
            _registered.add((asked.ep, library))
    kind = asked.name.rpartition("-")[2]
    devices = [one for one in ort.get_ep_devices() if one.ep_name == asked.ep]
    return [one for one in devices if kind not in DEVICE_KINDS or one.device.type.name == kind.upper()]


def _absence(ort: Any, name: str, asked: Asked) -> str:
    """Why this installation does not have a provider, in words; empty when it has."""
    if asked.ep and (library := asked.options.get(LIBRARY_OPTION)):
        if not hasattr(ort, "register_execution_provider_library"):
            return f"{name}: ONNX Runtime {ort.__version__} takes no providers from libraries of their own; wanted 1.23 or later."
        return "" if _plugin_devices(ort, asked) else f"{name}: {library} drives no device of this machine as {asked.ep}."
    if asked.ep in ort.get_available_providers():
        return ""
    kind = find_kind(name)
    if kind is None:
        return f"{name!r} is no provider of ONNX Runtime {ort.__version__}."
    if not asked.ep:
        return f"{name} is a provider of {' and '.join(kind.backends)}, not of ONNX Runtime."
    return f"{name} is not in this ONNX Runtime {ort.__version__}; it comes with {kind.source}."


def _chain(ort: Any, asked: Asked) -> list[tuple[str, dict[str, str]]]:
    """The provider, the one that takes what it leaves, and the processor."""
    kind = find_kind(asked.name)
    chain = [(asked.ep, dict(asked.options))]
    if kind is not None and kind.helper:
        helper = ask_for(kind.helper)
        chain += [(helper.ep, dict(helper.options))] if helper.ep in ort.get_available_providers() else []
    return chain if asked.ep == _CPU else [*chain, (_CPU, {})]


def _assignment(session: Any, name: str, asked: Asked) -> tuple[float | None, str]:
    """(share of the graph's nodes on the provider, why it does not run there); share None: this version does not tell."""
    if asked.ep == _CPU:
        return None, ""
    if session.get_providers()[0] != asked.ep:  # ONNX Runtime went on without it and said nothing
        return None, f"{name} did not start: its driver, device or libraries are missing or of another version."
    counts = assigned_nodes(session)
    total = sum(counts.values())
    if not total:
        return None, ""
    share = counts.get(asked.ep, 0) / total
    return share, "" if share else f"{name} took none of the model's {total} nodes."


def assigned_nodes(session: Any) -> dict[str, int]:
    """Nodes of a session's graph by the name of their provider; empty when this ONNX Runtime does not tell (before 1.24)."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    counts: dict[str, int] = {}
    if tell is not None:
        with contextlib.suppress(*_errors()):  # an optional figure
            for part in tell():
                counts[str(part.ep_name)] = counts.get(str(part.ep_name), 0) + len(part.get_nodes())
    return counts


def _session_options(ort: Any, options: BackendOptions, asked: Asked) -> Any:
    made = ort.SessionOptions()
    made.enable_cpu_mem_arena = False
    # a provider with a thread pool of its own gets the threads; two pools would fight
    kind = find_kind(asked.name)
    made.intra_op_num_threads = 1 if kind is not None and kind.threads_option else options.threads
    if asked.ep != _CPU:
        made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if asked.name == "dml":
        made.enable_mem_pattern = False  # DirectML refuses it
    made.inter_op_num_threads = 1
    made.log_severity_level = 4  # fatal only: every error reaches us as an exception
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if saturates_int8() if options.exact_int8 is None else options.exact_int8:
        made.add_session_config_entry("session.x64quantprecision", "1")
    return made


def _check_file(artifact: Path) -> None:
    try:
        size = artifact.stat().st_size
        with artifact.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise LoadFailed(f"{artifact.name} cannot be read: {error.strerror}.", backend="onnx", artifact=artifact.name) from error
    if size > MAX_FILE_BYTES:
        raise LoadFailed(f"{artifact.name} has {size} bytes; at most {MAX_FILE_BYTES} are allowed.", backend="onnx", artifact=artifact.name)
    if head[4:8] == b"TFL3":
        raise LoadFailed(
            f"{artifact.name} is a TFLite file, not ONNX.",
            backend="onnx",
            artifact=artifact.name,
            hint="Name it model.tflite and release it as tflite.",
        )
    if not head or head[0] not in _FIRST_BYTES:
        raise LoadFailed(
            f"{artifact.name} is not an ONNX file: it begins with {head.hex() or 'nothing'}.", backend="onnx", artifact=artifact.name
        )


#: Tags of the fields of onnx.ModelProto, any of which may come first.
_FIRST_BYTES = frozenset({0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA, 0xD2})


def _tensor(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else (1 if index == 0 else -1) for index, size in enumerate(node.shape))
    return TensorSpec(name=str(node.name), shape=shape, dtype=_DTYPES.get(node.type, str(node.type)))


def _without_quantization(spec: ModelSpec) -> ModelSpec:
    """ONNX declares no scale at its border, so a manifest's cannot be compared with the file."""

    def plain(tensor: TensorSpec) -> TensorSpec:
        return TensorSpec(tensor.name, tensor.shape, tensor.dtype)

    return ModelSpec(tuple(map(plain, spec.inputs)), tuple(map(plain, spec.outputs)))


def _load_failed(artifact: Path, provider: str, error: Exception) -> LoadFailed:
    return LoadFailed(
        f"ONNX Runtime cannot load {artifact.name}: {_first_line(error)}",
        backend="onnx",
        provider=provider,
        artifact=artifact.name,
        hint="The file is damaged, cut short, or uses operators this version does not know.",
    )


def _first_line(error: Exception) -> str:
    """What ONNX Runtime says, without its code, the path and the place in its own sources."""
    text = _PREFIX.sub("", (str(error).splitlines() or [""])[0])
    return (text or type(error).__name__)[:300]
