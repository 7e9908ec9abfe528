"""TensorFlow Lite files as compiled models of LiteRT (`CompiledModel`): GPU and NPU, and the processor for comparison.

Beside `runtime.tflite` the only file that imports ai_edge_litert. The tensors are read by its interpreter, which alone tells scales.
"""

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
    check_inputs,
    check_spec,
    zeros_for,
)
from runtime.providers import DEFAULT_PROVIDER, ask_for
from runtime.tflite import check_tflite_file, in_one_line, tensor_of

#: `HardwareAccelerator` by our provider.
_ACCELERATORS = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
_FAULTS = (RuntimeError, ValueError, OSError, TypeError, MemoryError, SystemError)


class CompiledBackend:
    """A model that LiteRT compiled for one accelerator, all of it.

    A model of which the accelerator takes a part only is refused: asked with the processor beside it, LiteRT 2.3 runs on the processor
    alone and calls it fully accelerated.
    """

    name = "litert-compiled"

    def __init__(self) -> None:
        self._model: Any = None
        self._tensors: ModelTensors | None = None
        self._provider: Provider | None = None
        self._version = ""
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, tuple[Any, Array]] = {}
        self._run: tuple[list[Any], list[Any]] = ([], [])

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
        module, interpreter = self._import()
        check_tflite_file(artifact, self.name)
        try:
            reader = interpreter.Interpreter(model_path=os.fspath(artifact))
            inputs, outputs = reader.get_input_details(), reader.get_output_details()
        except _FAULTS as error:
            raise self._load_failed(artifact, DEFAULT_PROVIDER, error) from error
        tensors = ModelTensors("tflite", self.name, self._version, tuple(map(tensor_of, inputs)), tuple(map(tensor_of, outputs)))
        if spec is not None:
            check_spec(tensors, spec, artifact=artifact.name)
        model, provider = self._compile(module, artifact, options)
        self._bind(model, inputs, outputs)
        self._model, self._tensors, self._provider = model, tensors, provider
        return tensors

    def warm(self, rounds: int) -> None:
        zeros = zeros_for(self._loaded())
        for _ in range(rounds):
            self.infer(zeros)

    def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        tensors = self._loaded()
        check_inputs(inputs, tensors)
        try:
            for name, buffer in self._inputs.items():
                buffer.write(inputs[name])
            self._model.run_by_index(0, *self._run)
            for buffer, out in self._outputs.values():
                np.copyto(out, buffer.read(out.size, out.dtype.type).reshape(out.shape))
        except _FAULTS as error:
            raise InferFailed(
                f"{self.name} failed: {in_one_line(error)}", backend=self.name, provider=self.effective_provider.effective
            ) from error
        return {name: out for name, (_, out) in self._outputs.items()}

    def close(self) -> None:
        self._inputs, self._outputs, self._run = {}, {}, ([], [])
        self._model, self._tensors = None, None

    def _loaded(self) -> ModelTensors:
        if self._tensors is None:
            raise RuntimeError("infer was called before load or after close")
        return self._tensors

    def _import(self) -> tuple[Any, Any]:
        try:
            module, interpreter = import_module("ai_edge_litert.compiled_model"), import_module("ai_edge_litert.interpreter")
            self._version = metadata.version("ai-edge-litert")
        except (ImportError, SystemError, AttributeError) as error:
            raise RuntimeMissing(
                f"ai-edge-litert has no compiled models: {in_one_line(error)}",
                backend=self.name,
                hint="Install the extra: pip install 'mooring[litert]', version 2.1 or later.",
            ) from error
        return module, interpreter

    def _compile(self, module: Any, artifact: Path, options: BackendOptions) -> tuple[Any, Provider]:
        asked = (options.providers or (DEFAULT_PROVIDER,))[0]
        refused: list[str] = []
        for name in dict.fromkeys([*options.providers, DEFAULT_PROVIDER]):
            try:
                model = module.CompiledModel.from_file(os.fspath(artifact), options=_options(module, name, options))
            except _FAULTS as error:
                if name == DEFAULT_PROVIDER:
                    raise self._load_failed(artifact, name, error) from error
                refused.append(f"{name}: {last_line(error)}")
                if options.require:
                    raise LoadFailed(
                        f"{asked!r} was required and is not usable: {' '.join(refused)}",
                        backend=self.name,
                        provider=asked,
                        artifact=artifact.name,
                        code="accelerator_fallback",
                        hint="Install the accelerator's driver, ship a model whose every operator it takes, or allow the CPU.",
                    ) from error
                continue
            share = None if name == DEFAULT_PROVIDER else 1.0
            return model, Provider(asked, name, share, " ".join(refused))
        raise RuntimeError("the loop over providers ends with cpu")

    def _bind(self, model: Any, inputs: list[Any], outputs: list[Any]) -> None:
        """Buffers of the first signature, by the names that the interpreter gives the same tensors."""
        key = next(iter(model.get_signature_list()))
        signature = model.get_signature_list()[key]
        into, out = model.create_input_buffers(0), model.create_output_buffers(0)
        told_in, told_out = model.get_input_tensor_details(key), model.get_output_tensor_details(key)
        names = {int(details["index"]): tensor_of(details) for details in (*inputs, *outputs)}
        self._inputs = {names[told_in[name]["index"]].name: buffer for name, buffer in zip(signature["inputs"], into, strict=True)}
        specs = [(names[told_out[name]["index"]], buffer) for name, buffer in zip(signature["outputs"], out, strict=True)]
        self._outputs = {spec.name: (buffer, np.empty(spec.shape, spec.dtype)) for spec, buffer in specs}
        self._run = (into, out)

    def _load_failed(self, artifact: Path, provider: str, error: BaseException) -> LoadFailed:
        return LoadFailed(
            f"{self.name} cannot load {artifact.name}: {in_one_line(error)}",
            backend=self.name,
            provider=provider,
            artifact=artifact.name,
            hint="The file is damaged, cut short, or uses operators this version does not know.",
        )


def _options(module: Any, provider: str, options: BackendOptions) -> Any:
    """LiteRT's options for one provider. Raises: ValueError on a provider or an option that it does not have."""
    if provider not in _ACCELERATORS:
        raise ValueError(f"no provider of litert-compiled; wanted one of {', '.join(_ACCELERATORS)}")
    made = module.Options(hardware_accelerators=getattr(module.HardwareAccelerator, _ACCELERATORS[provider]))
    settings = ask_for(provider, settings=options.provider_options.get(provider)).options
    if provider == "cpu":
        made.cpu_options.num_threads = options.threads
    elif provider == "gpu":
        for name, value in settings.items():
            if not hasattr(made.gpu_options, name):
                raise ValueError(f"no option {name!r} of the GPU; see LiteRT's GpuOptions")
            setattr(made.gpu_options, name, value.lower() in ("1", "true"))
    return made


def last_line(error: BaseException) -> str:
    """Where LiteRT's errors say the cause, the lines before name its own source files."""
    lines = [line.strip(" └") for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]
