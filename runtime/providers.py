"""Execution providers and delegates: the names used here, which back ends know them, and how each is asked for by its vendor's documents.

A name may carry the device after a dash: `openvino-npu`, `edgetpu-usb`. Settings of a device (`runtime.options.NAME`) are laid over the
options given here. Nothing here loads anything.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_PROVIDER = "cpu"
#: `external` and `external-ANYTHING` are delegates whose library a setting names.
EXTERNAL = "external"
#: Option that names the shared library of an external delegate, or of a provider that ONNX Runtime gets from a library of its own
#: (a plugin, `register_execution_provider_library`); all others are handed to it.
LIBRARY_OPTION = "library"
#: What a provider in a library of its own is named after the dash to get one kind of device only.
DEVICE_KINDS = ("cpu", "gpu", "npu")
EDGETPU_LIBRARY = "libedgetpu.so.1"


@dataclass(frozen=True, slots=True)
class ProviderKind:
    """One way to run a model."""

    name: str
    #: Back ends that know it.
    backends: tuple[str, ...]
    #: What it runs on, for people.
    hardware: str
    #: Where it comes from, when an installation does not have it.
    source: str
    #: ONNX Runtime's name.
    ep: str = ""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    #: Option and its value per device named after the dash.
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    #: Option that takes the number of processor threads.
    threads_option: str = ""
    #: Provider that takes what this one leaves, before the processor.
    helper: str = ""


_TFLITE = ("litert", "tflite")
_KINDS = (
    ProviderKind("cpu", ("onnx", *_TFLITE, "litert-compiled"), "processor", "every installation", ep="CPUExecutionProvider"),
    # --- ONNX Runtime: names and options as in its pages "Execution Providers" ---
    ProviderKind(
        "xnnpack",
        ("onnx", *_TFLITE),
        "processor, XNNPACK's kernels",
        "a build of ONNX Runtime with --use_xnnpack; both TFLite packages have it",
        ep="XnnpackExecutionProvider",
        threads_option="intra_op_num_threads",
    ),
    ProviderKind(
        "openvino",
        ("onnx",),
        "Intel processor, GPU, NPU",
        "the package onnxruntime-openvino",
        ep="OpenVINOExecutionProvider",
        options={"device_type": "CPU"},
        devices={name: {"device_type": name.upper()} for name in ("cpu", "gpu", "npu")},
        threads_option="num_of_threads",
    ),
    ProviderKind(
        "cuda",
        ("onnx",),
        "NVIDIA GPU",
        "the package onnxruntime-gpu, CUDA and cuDNN",
        ep="CUDAExecutionProvider",
        # the arena grows by what is asked for, not by powers of two: memory is shared with the cameras
        options={"arena_extend_strategy": "kSameAsRequested"},
    ),
    ProviderKind(
        "tensorrt",
        ("onnx",),
        "NVIDIA GPU, TensorRT",
        "the package onnxruntime-gpu and TensorRT",
        ep="TensorrtExecutionProvider",
        helper="cuda",
    ),
    ProviderKind(
        "qnn",
        ("onnx",),
        "Qualcomm NPU, GPU",
        "the package onnxruntime-qnn",
        ep="QNNExecutionProvider",
        options={"backend_path": "libQnnHtp.so"},
        devices={
            "htp": {"backend_path": "libQnnHtp.so"},
            "gpu": {"backend_path": "libQnnGpu.so"},
            "cpu": {"backend_path": "libQnnCpu.so"},
        },
    ),
    ProviderKind("acl", ("onnx",), "Arm processor", "a build of ONNX Runtime with --use_acl", ep="ACLExecutionProvider"),
    ProviderKind(
        "coreml",
        ("onnx",),
        "Apple neural engine, GPU",
        "ONNX Runtime for macOS",
        ep="CoreMLExecutionProvider",
        options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
    ),
    ProviderKind("migraphx", ("onnx",), "AMD GPU", "the package onnxruntime-migraphx and ROCm", ep="MIGraphXExecutionProvider"),
    ProviderKind(
        "vitisai", ("onnx",), "AMD and Xilinx NPU, FPGA", "AMD's build of ONNX Runtime for the board", ep="VitisAIExecutionProvider"
    ),
    ProviderKind("dml", ("onnx",), "GPU through DirectML", "the package onnxruntime-directml", ep="DmlExecutionProvider"),
    ProviderKind("cann", ("onnx",), "Huawei Ascend NPU", "the package onnxruntime-cann and CANN", ep="CANNExecutionProvider"),
    ProviderKind("rknpu", ("onnx",), "Rockchip NPU", "a build of ONNX Runtime with --use_rknpu", ep="RknpuExecutionProvider"),
    ProviderKind("dnnl", ("onnx",), "processor, oneDNN's kernels", "a build of ONNX Runtime with --use_dnnl", ep="DnnlExecutionProvider"),
    # --- TFLite: delegates of the interpreter ---
    ProviderKind("builtin", _TFLITE, "processor, the runtime's own kernels without XNNPACK", "every installation"),
    ProviderKind(
        "edgetpu",
        _TFLITE,
        "Coral EdgeTPU",
        f"the library {EDGETPU_LIBRARY} (libedgetpu1-std), a release of the same TensorFlow as the runtime",
        options={LIBRARY_OPTION: EDGETPU_LIBRARY},
        devices={name: {"device": name} for name in ("usb", "pci")},
    ),
    ProviderKind(EXTERNAL, _TFLITE, "whatever the delegate drives", f"the shared library that runtime.options.NAME.{LIBRARY_OPTION} names"),
    # --- TFLite: the compiled model of LiteRT ---
    ProviderKind("gpu", ("litert-compiled",), "GPU", "ai-edge-litert and a driver for WebGPU, OpenCL or OpenGL"),
    ProviderKind("npu", ("litert-compiled",), "NPU", "ai-edge-litert and the vendor's LiteRT plugin"),
)
KINDS: Mapping[str, ProviderKind] = {kind.name: kind for kind in _KINDS}
_BY_EP = {kind.ep: kind.name for kind in _KINDS if kind.ep}


@dataclass(frozen=True, slots=True)
class Asked:
    """A provider as it is asked of one back end."""

    #: As the setting spells it.
    name: str
    #: ONNX Runtime's name; empty for delegates.
    ep: str
    options: Mapping[str, str]


def find_kind(name: str) -> ProviderKind | None:
    """The kind that a name stands for, with or without a device; None: not a name of ours."""
    return KINDS.get(name) or KINDS.get(name.partition("-")[0])


def is_known_to(name: str, backend: str) -> bool:
    """Whether the back end knows the provider. A name that is not ours may be one of ONNX Runtime's own."""
    kind = find_kind(name)
    return backend == "onnx" if kind is None else backend in kind.backends


def ask_for(name: str, *, threads: int = 1, settings: Mapping[str, str] | None = None) -> Asked:
    """How a provider is asked for. A name that is not ours is taken as ONNX Runtime's own, without options but the settings."""
    kind = find_kind(name)
    if kind is None:
        stem, _, device = name.rpartition("-")
        is_device = LIBRARY_OPTION in (settings or {}) and device in DEVICE_KINDS
        return Asked(name, stem if is_device else name, dict(settings or {}))
    options = {**kind.options, **kind.devices.get(name.partition("-")[2], {})}
    if kind.threads_option:
        options[kind.threads_option] = str(threads)
    if kind.name == "tensorrt" and (cache := os.environ.get("CACHE_DIRECTORY")):  # systemd's; engines take minutes to build
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": cache.partition(":")[0]}
    return Asked(name, kind.ep, {**options, **(settings or {})})


def name_of_ep(ep: str) -> str:
    """Our name for one of ONNX Runtime's; itself when there is none."""
    return _BY_EP.get(ep, ep)
