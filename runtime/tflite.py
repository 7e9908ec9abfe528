"""TensorFlow Lite files on LiteRT (ai-edge-litert) or tflite-runtime through one wrapper; the only file that imports either."""

import ctypes
import os
from collections.abc import Mapping
from importlib import import_module, metadata
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
from runtime.providers import DEFAULT_PROVIDER, EXTERNAL, KINDS, LIBRARY_OPTION, ask_for, find_kind

MAX_FILE_BYTES = 2 << 30
_MAGIC = b"TFL3"
#: What a delegate's library has to have (tensorflow/lite/delegates/external/external_delegate_interface.h).
_DELEGATE_SYMBOLS = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")


class _InterpreterBackend:
    """A model on an `Interpreter`, whichever package it comes from."""

    name = ""
    _module = ""
    _package = ""
    _extra = ""

    def __init__(self) -> None:
        self._interpreter: Any = None
        self._tensors: ModelTensors | None = None
        self._provider: Provider | None = None
        self._version = ""
        self._indices: dict[str, int] = {}
        self._outputs: list[str] = []

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
        module = self._import()
        check_tflite_file(artifact, self.name)
        interpreter, provider = self._open(module, artifact, options)
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        tensors = ModelTensors(
            format="tflite",
            backend=self.name,
            version=self._version,
            inputs=tuple(map(tensor_of, inputs)),
            outputs=tuple(map(tensor_of, outputs)),
        )
        if spec is not None:
            check_spec(tensors, spec, artifact=artifact.name)
        self._indices = {str(details["name"]): int(details["index"]) for details in (*inputs, *outputs)}
        self._outputs = [tensor.name for tensor in tensors.outputs if min(tensor.shape, default=0) >= 0]
        self._interpreter, self._tensors, self._provider = interpreter, tensors, provider
        return tensors

    def warm(self, rounds: int) -> None:
        zeros = zeros_for(self._loaded())
        for _ in range(rounds):
            self.infer(zeros)

    def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        tensors, interpreter, indices, outputs = self._tensors or self._loaded(), self._interpreter, self._indices, {}
        check_inputs(inputs, tensors)
        try:
            for tensor in tensors.inputs:
                interpreter.set_tensor(indices[tensor.name], inputs[tensor.name])
            interpreter.invoke()
            for name in self._outputs:
                # copies that the runtime makes: into arrays of our own takes four times as long behind a model, for a view and numpy's code
                outputs[name] = interpreter.get_tensor(indices[name])
        except (RuntimeError, ValueError) as error:
            raise InferFailed(
                f"{self.name} failed: {in_one_line(error)}", backend=self.name, provider=self.effective_provider.effective
            ) from error
        return outputs

    def close(self) -> None:
        self._interpreter, self._tensors, self._outputs = None, None, []

    def _loaded(self) -> ModelTensors:
        if self._tensors is None:
            raise RuntimeError("infer was called before load or after close")
        return self._tensors

    def _import(self) -> Any:
        try:
            module = import_module(self._module)
            self._version = metadata.version(self._package)
        except (ImportError, SystemError, AttributeError) as error:  # a numpy of another ABI shows up as any of the three
            raise RuntimeMissing(
                f"{self._package} does not import: {in_one_line(error)}",
                backend=self.name,
                hint=f"Install the extra: pip install 'mooring[{self._extra}]'.",
            ) from error
        return module

    def _open(self, module: Any, artifact: Path, options: BackendOptions) -> tuple[Any, Provider]:
        asked = (options.providers or (DEFAULT_PROVIDER,))[0]
        refused: list[str] = []
        for name in dict.fromkeys([*options.providers, DEFAULT_PROVIDER]):
            try:
                interpreter = self._interpreter_on(module, artifact, name, options)
            except (RuntimeError, ValueError, OSError, SystemError, MemoryError) as error:
                if name == DEFAULT_PROVIDER:
                    raise self._load_failed(artifact, name, error) from error
                refused.append(f"{name}: {in_one_line(error)}")
                if not options.require:
                    continue
                raise LoadFailed(
                    f"{asked!r} was required and is not usable: {' '.join(refused)}",
                    backend=self.name,
                    provider=asked,
                    artifact=artifact.name,
                    code="accelerator_fallback",
                    hint="Attach the accelerator, or allow the CPU.",
                ) from error
            return interpreter, Provider(asked, name, None, " ".join(refused))
        raise RuntimeError("the loop over providers ends with cpu")

    def _interpreter_on(self, module: Any, artifact: Path, provider: str, options: BackendOptions) -> Any:
        arguments: dict[str, Any] = {"model_path": os.fspath(artifact), "num_threads": options.threads}
        asked, kind = ask_for(provider, settings=options.provider_options.get(provider)), find_kind(provider)
        if kind is None or self.name not in kind.backends:
            raise ValueError(f"no provider of {self.name}; wanted one of {', '.join(_known_to(self.name))}")
        if kind.name == "builtin":
            arguments["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        elif kind.name in ("edgetpu", EXTERNAL):
            arguments["experimental_delegates"] = [_delegate(module, asked.options)]
        interpreter = module.Interpreter(**arguments)
        interpreter.allocate_tensors()
        return interpreter

    def _load_failed(self, artifact: Path, provider: str, error: BaseException) -> LoadFailed:
        return LoadFailed(
            f"{self.name} cannot load {artifact.name}: {in_one_line(error)}",
            backend=self.name,
            provider=provider,
            artifact=artifact.name,
            hint="The file is damaged, cut short, or uses operators this version does not know.",
        )


class LiteRtBackend(_InterpreterBackend):
    """ai-edge-litert: the current runtime for TFLite files."""

    name = "litert"
    _module = "ai_edge_litert.interpreter"
    _package = "ai-edge-litert"
    _extra = "litert"


class TfliteBackend(_InterpreterBackend):
    """tflite-runtime: the last of its line, for 32-bit ARM and old systems; needs numpy below 2."""

    name = "tflite"
    _module = "tflite_runtime.interpreter"
    _package = "tflite-runtime"
    _extra = "tflite"


def _delegate(module: Any, options: Mapping[str, str]) -> Any:
    """The delegate of the library that the options name. Raises: OSError, ValueError in words, before the runtime touches the library."""
    path = options.get(LIBRARY_OPTION)
    if not path:
        raise ValueError(f"no library is named; set runtime.options.NAME.{LIBRARY_OPTION}")
    library = ctypes.CDLL(path)  # OSError when absent: load_delegate would leave a half-made object behind
    for symbol in _DELEGATE_SYMBOLS:
        if not hasattr(library, symbol):
            raise ValueError(f"{path} is no TFLite delegate: it has no {symbol}")
    return module.load_delegate(path, {key: value for key, value in options.items() if key != LIBRARY_OPTION})


def _known_to(backend: str) -> list[str]:
    return [name for name, kind in KINDS.items() if backend in kind.backends]


def check_tflite_file(artifact: Path, backend: str) -> None:
    """Returns when the file is a TFLite file of allowed size. Raises: LoadFailed."""
    try:
        size = artifact.stat().st_size
        with artifact.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise LoadFailed(f"{artifact.name} cannot be read: {error.strerror}.", backend=backend, artifact=artifact.name) from error
    if size > MAX_FILE_BYTES:
        raise LoadFailed(
            f"{artifact.name} has {size} bytes; at most {MAX_FILE_BYTES} are allowed.", backend=backend, artifact=artifact.name
        )
    if head[4:8] != _MAGIC:
        raise LoadFailed(
            f"{artifact.name} is not a TFLite file: bytes 4 to 8 are {head[4:8].hex() or 'missing'}, wanted 'TFL3'.",
            backend=backend,
            artifact=artifact.name,
            hint="Name an ONNX file model.onnx; export a .tflite file again.",
        )


def tensor_of(details: Mapping[str, Any]) -> TensorSpec:
    """What an interpreter says about one of its tensors."""
    shape = tuple(int(size) for size in details["shape"])
    quantization = details["quantization_parameters"]
    scales, zero_points = quantization["scales"], quantization["zero_points"]
    is_quantized = len(scales) == 1 and len(zero_points) == 1
    return TensorSpec(
        name=str(details["name"]),
        shape=shape,
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scales[0]) if is_quantized else None,
        zero_point=int(zero_points[0]) if is_quantized else None,
    )


def in_one_line(error: BaseException) -> str:
    """What the error says, on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
