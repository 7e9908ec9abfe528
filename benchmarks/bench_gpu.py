"""CUDA through ONNX Runtime beside its own processor provider, where there is one; elsewhere it says that it was skipped, never passed.

Needs `onnxruntime-gpu` in the environment, a CUDA device and the shared data folder (MOORING_DATA).
"""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.agent.slots import DATA, RN_ONNX, make_slot
from benchmarks.record import compare, interleave, write
from runtime.base import Backend, BackendError, BackendOptions, zeros_for
from runtime.onnx import OnnxBackend, import_onnxruntime

ROUNDS, CALLS = 9, 200


def loaded(artifact: Path, provider: str) -> Backend:
    """The model on exactly this provider. Raises: BackendError when it runs elsewhere."""
    backend = OnnxBackend()
    backend.load(artifact, None, BackendOptions(providers=(provider,), require=True))
    backend.warm(20)
    return backend


def milliseconds(backend: Backend, artifact: Path) -> float:
    """Wall milliseconds of one inference, the mean of many."""
    inputs = zeros_for(OnnxBackend().load(artifact, None, BackendOptions()))
    began_s = time.monotonic()
    for _ in range(CALLS):
        backend.infer(inputs)
    return (time.monotonic() - began_s) / CALLS * 1000.0


def main() -> int:
    if not RN_ONNX.file.exists():
        print(f"bench-gpu: skipped, {DATA} is missing; set MOORING_DATA to the folder with models.")
        return 0
    if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
        print("bench-gpu: skipped, this ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu, instead of onnxruntime).")
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        artifact = make_slot(Path(folder) / "slot", RN_ONNX) / "model.onnx"
        try:
            cuda, cpu = loaded(artifact, "cuda"), loaded(artifact, "cpu")
        except BackendError as error:
            print(f"bench-gpu: skipped, {error}")
            return 0
        ours, peer = interleave(ROUNDS, lambda: milliseconds(cuda, artifact), lambda: milliseconds(cpu, artifact))
        write("gpu", [compare("latency on CUDA", ours=ours, peer=peer, peer_name="one core", unit="ms", target="<= 1")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
