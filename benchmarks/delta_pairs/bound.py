"""What no byte-wise coder of plain differences can beat: the order-0 entropy of the int8 weights' differences between two files.

The files are read with the formats' own libraries (onnx, the FlatBuffer schema of LiteRT), not with the codec's scanner.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def entropy_bytes(old: Path, new: Path) -> float:
    """Bytes that the differences of all int8 and uint8 tensors of equal name and shape hold at least, coded one by one."""
    before, after = _tensors(old), _tensors(new)
    pairs = [(before[name], value) for name, value in after.items() if name in before and before[name].shape == value.shape]
    if not pairs:
        return 0.0
    differences = np.concatenate([(value.view(np.uint8) - start.view(np.uint8)).ravel() for start, value in pairs])
    return _entropy_bits(differences) / 8


def changed_share(old: Path, new: Path) -> float:
    """Share of the int8 and uint8 weights that differ."""
    before, after = _tensors(old), _tensors(new)
    pairs = [(before[name], value) for name, value in after.items() if name in before and before[name].shape == value.shape]
    total = sum(value.size for _, value in pairs)
    return sum(int(np.count_nonzero(start != value)) for start, value in pairs) / total if total else 0.0


def _entropy_bits(values: NDArray[np.uint8]) -> float:
    """Bits of all values together under their own frequencies."""
    counts = np.bincount(values)
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(len(values) / counts)))


def _tensors(path: Path) -> dict[str, NDArray[np.int8]]:
    return _of_tflite(path.read_bytes()) if path.suffix == ".tflite" else _of_onnx(path)


def _of_onnx(path: Path) -> dict[str, NDArray[np.int8]]:
    import onnx
    from onnx import TensorProto, numpy_helper

    kinds = (TensorProto.INT8, TensorProto.UINT8)
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer if item.data_type in kinds}


def _of_tflite(data: bytes) -> dict[str, NDArray[np.int8]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(data, 0)
    graph, tensors = model.Subgraphs(0), {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        buffer = model.Buffers(tensor.Buffer())
        # A larger file keeps its weights behind the FlatBuffer and only says where.
        length = buffer.DataLength() or buffer.Size()
        if tensor.Type() in {schema.TensorType.INT8, schema.TensorType.UINT8} and length:
            place = data[buffer.Offset() : buffer.Offset() + length] if buffer.Offset() else buffer.DataAsNumpy().tobytes()
            tensors[f"{tensor.Name().decode()}#{length}"] = np.frombuffer(place, np.int8)
    return tensors
