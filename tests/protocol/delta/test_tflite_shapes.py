"""TFLite files as other tools write them: names of a thousand bytes and more, values behind the FlatBuffer."""

from pathlib import Path

import flatbuffers
import numpy as np
import pytest

from fleet.registry.delta_encoder import encode
from protocol.delta.container import Method
from protocol.delta.decoder import apply
from protocol.delta.tensors import MAX_NAME_BYTES, UnknownModelError
from protocol.delta.tflite import scan_tflite

INT8 = 9


def tflite(values: np.ndarray, *, name: str = "weights", is_outside: bool = False, offset: int = 2) -> bytes:
    """A model of one int8 tensor, its values in the FlatBuffer or behind it at `offset`."""
    builder = flatbuffers.Builder(1024)
    data = 0 if is_outside else builder.CreateByteVector(values.tobytes())
    builder.StartObject(3)
    if is_outside:
        builder.PrependUint64Slot(1, offset, 0)
        builder.PrependUint64Slot(2, values.size, 0)
    else:
        builder.PrependUOffsetTRelativeSlot(0, data, 0)
    filled = builder.EndObject()
    builder.StartObject(3)
    buffers = offsets(builder, builder.EndObject(), filled)
    text, shape = builder.CreateString(name), builder.CreateNumpyVector(np.array(values.shape, np.int32))
    builder.StartObject(8)
    builder.PrependUOffsetTRelativeSlot(0, shape, 0)
    builder.PrependInt8Slot(1, INT8, 0)
    builder.PrependUint32Slot(2, 1, 0)
    builder.PrependUOffsetTRelativeSlot(3, text, 0)
    tensors = offsets(builder, builder.EndObject())
    builder.StartObject(5)
    builder.PrependUOffsetTRelativeSlot(0, tensors, 0)
    graphs = offsets(builder, builder.EndObject())
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, graphs, 0)
    builder.PrependUOffsetTRelativeSlot(4, buffers, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
    made = bytes(builder.Output())
    if not is_outside:
        return made
    made += bytes(-len(made) % 16)
    return made + values.tobytes() if offset == len(made) else tflite(values, name=name, is_outside=True, offset=len(made))


def offsets(builder: flatbuffers.Builder, *tables: int) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return builder.EndVector()


def weights(changes: int = 0) -> np.ndarray:
    random = np.random.default_rng(1)
    made = random.integers(-127, 128, (64, 256)).astype(np.int8)
    made.reshape(-1)[random.choice(made.size, changes, replace=False)] ^= 1
    return made


@pytest.mark.parametrize("shape", [{}, {"is_outside": True}, {"name": "n" * MAX_NAME_BYTES}, {"is_outside": True, "name": "n" * 1077}])
def test_values_are_told_as_values_however_the_file_is_laid_out(tmp_path: Path, shape):
    old, new, delta, out = (tmp_path / name for name in ("old", "new", "delta", "out"))
    old.write_bytes(tflite(weights(), **shape))
    new.write_bytes(tflite(weights(3000), **shape))
    made = encode(old, new, delta)
    assert made.method == Method.TFLITE
    assert made.length < 3600
    apply(delta, old, out, max_new_bytes=1 << 20)
    assert out.read_bytes() == new.read_bytes()


def test_values_said_to_lie_behind_the_end_are_refused():
    data = bytearray(tflite(weights(), is_outside=True))
    with pytest.raises(UnknownModelError, match="outside of the file"):
        scan_tflite(bytes(data[:-1]))


def test_a_name_without_end_is_refused():
    with pytest.raises(UnknownModelError, match=str(MAX_NAME_BYTES)):
        scan_tflite(tflite(weights(), name="n" * (MAX_NAME_BYTES + 1)))
