"""The least that a script does for its first answer, and what that costs: numpy and one runtime, load, set, invoke, get.

`python first.py SLOT` imports no line of ours, or the peer would carry our libraries and look heavier than it is. It prints JSON: seconds
of CPU since the process began, and MiB of memory by proportional set size.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def infer_once(slot: Path) -> object:
    """Load the model of the slot and infer zeros; returns the interpreter or session, which must live until memory is looked at."""
    tflite = slot / "model.tflite"
    return _tflite(tflite) if tflite.exists() else _onnx(slot / "model.onnx")


def _tflite(model: Path) -> object:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    (details,) = interpreter.get_input_details()
    interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    interpreter.invoke()
    interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return interpreter


def _onnx(model: Path) -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    inputs = {one.name: [size if isinstance(size, int) else 1 for size in one.shape] for one in session.get_inputs()}  # an open batch is 1
    session.run(None, {name: np.zeros(shape, np.float32) for name, shape in inputs.items()})
    return session


def pss_mib() -> float:
    """Proportional set size of this process: shared pages count by how many share them."""
    found = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")]
    return int(found[0].split()[1]) / 1024


if __name__ == "__main__":
    held = infer_once(Path(sys.argv[1]))
    print(json.dumps({"cpu_s": time.process_time(), "pss_mib": pss_mib()}))
