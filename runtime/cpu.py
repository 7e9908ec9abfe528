"""Which instruction set this machine computes with, as far as it changes what quantized models answer."""

import functools
import platform
from collections.abc import Collection
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@functools.cache
def instruction_set() -> str:
    """This machine's: x86_64-vnni, x86_64-avx2, x86_64, or the machine's own name such as aarch64."""
    return name_of(platform.machine(), _flags())


def name_of(machine: str, flags: Collection[str]) -> str:
    """The instruction set of a machine name and the processor flags that Linux reports."""
    machine = machine.lower()
    if machine not in ("x86_64", "amd64"):
        return machine
    if not _VNNI.isdisjoint(flags):
        return "x86_64-vnni"
    return "x86_64-avx2" if "avx2" in flags else "x86_64"


def saturates_int8() -> bool:
    """Whether full-range int8 kernels of ONNX Runtime saturate here: x86 without VNNI."""
    return instruction_set() in ("x86_64-avx2", "x86_64")


def _flags() -> frozenset[str]:
    try:
        with _CPUINFO.open(encoding="ascii", errors="replace") as file:
            for _, line in zip(range(200), file, strict=False):
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
