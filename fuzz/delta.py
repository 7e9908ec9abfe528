"""Deltas: the container with all its methods, and the scans of model files that the codec takes apart.

The director signs a delta's digest, but who holds its key chooses the bytes. The first byte of an input says how deep it begins, see
`DOORS`: random bytes alone rarely come past the header's digests and zstd's frames, so those are made right around the input.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

from fuzz.running import ROOT, scratch_folder, start

with atheris.instrument_imports(include=["protocol"]):
    import zstandard

    from fleet.registry.delta_inspecting import inspect
    from protocol.canonical import digest_of
    from protocol.delta.container import HEADER_BYTES, NO_BASE, Header, Method
    from protocol.delta.decoder import apply
    from protocol.delta.errors import DeltaError
    from protocol.delta.expect import scan_model
    from protocol.delta.files import Mapped
    from protocol.delta.tensors import skeleton_of

MAX_BYTES = 24 << 10
#: Bytes of the new file and KiB of memory that a device would allow.
MAX_NEW_BYTES, MEMORY_KIB = 1 << 20, 16 << 10
MODELS = ROOT / "fuzz" / "seeds" / "models"
DIGITS = ROOT / "examples" / "digits" / "models"
FOLDER = scratch_folder("delta")
DELTA, NEW = FOLDER / "delta", FOLDER / "new"


@dataclasses.dataclass(frozen=True)
class Base:
    """A model that a device has, and what a newer one of it would be."""

    path: Path
    method: Method
    header: Header
    skeleton: bytes


def _base(old: Path, new: Path, method: Method) -> Base:
    path = FOLDER / old.name
    shutil.copy(old, path)
    was, now = path.read_bytes(), new.read_bytes()
    header = Header(
        method=method,
        window_log=20,
        old_bytes=len(was),
        new_bytes=len(now),
        old_sha256=digest_of(was),
        new_sha256=digest_of(now),
        memory_kib=MEMORY_KIB,
    )
    file = Mapped(path)
    try:
        skeleton, _ = skeleton_of(lambda at, stop: was[at:stop], len(was), scan_model(method, was))
    finally:
        file.close()
    return Base(path, method, header, skeleton)


#: Old and new files in a fixed order that inputs count on; `make_seeds` makes them.
PAIRS = (
    (MODELS / "old.onnx", MODELS / "recalibrated.onnx", Method.ONNX),
    (MODELS / "old.onnx", MODELS / "tuned.onnx", Method.ONNX),
    (MODELS / "old.onnx", MODELS / "rebuilt.onnx", Method.ONNX),
    (DIGITS / "1.1" / "tflite" / "model.tflite", DIGITS / "1.2" / "tflite" / "model.tflite", Method.TFLITE),
    (MODELS / "rows.onnx", MODELS / "pruned.onnx", Method.ONNX),
    (DIGITS / "1.0" / "onnx" / "model.onnx", DIGITS / "1.1" / "onnx" / "model.onnx", Method.ONNX),
)
BASES = tuple(_base(*pair) for pair in PAIRS)


def container(data: bytes) -> None:
    """The whole file as it comes."""
    DELTA.write_bytes(data)
    if not _is_refused(BASES[0]):
        inspect(DELTA)


def frames(data: bytes) -> None:
    """A right header of method 0 or 1 before these bytes."""
    base = BASES[0]
    if data[0] & 1:
        header = dataclasses.replace(base.header, method=Method.PATCH, records=data[0] >> 1)
    else:
        header = dataclasses.replace(base.header, method=Method.FULL, old_bytes=0, old_sha256=NO_BASE, window_log=data[0] >> 1 & 31)
    _write(header, data[1:])
    _is_refused(base)


def streams(data: bytes) -> None:
    """A right header of the tensor methods before plan, words and bits; the skeleton is the old one."""
    base = BASES[data[0] % len(BASES)]
    _write(base.header, data[1:])
    _is_refused(base)


def places(data: bytes) -> None:
    """As `streams`, of a delta that says where the old tensors lie."""
    base = BASES[data[0] % len(BASES)]
    _write(dataclasses.replace(base.header, has_places=True), data[1:])
    _is_refused(base)


def skeleton(data: bytes) -> None:
    """As `streams`, behind a new skeleton: {u8 base, u16 length, edits of the old skeleton {u16 at, u8 count, u8 length, bytes}…}."""
    base = BASES[data[0] % len(BASES)]
    length = int.from_bytes(data[1:3], "big")
    made = _edited(base.skeleton, data[3 : 3 + length])
    compressor = zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(base.skeleton, dict_type=zstandard.DICT_TYPE_RAWCONTENT))
    packed = compressor.compress(made)
    _write(dataclasses.replace(base.header, skeleton_raw=len(made), skeleton_packed=len(packed)), packed + data[3 + length :])
    _is_refused(base)


def gaps(data: bytes) -> None:
    """As `streams`, behind new bytes for gaps: {u8 base, u8 length, table of gaps, u16 length, bytes}."""
    base, cut = BASES[data[0] % len(BASES)], 2 + data[1]
    end = cut + 2 + int.from_bytes(data[cut : cut + 2], "big")
    table, made = data[2:cut], data[cut + 2 : end]
    packed = zstandard.ZstdCompressor().compress(made)
    header = dataclasses.replace(
        base.header, table_raw=len(table), table_packed=len(table), skeleton_raw=len(made), skeleton_packed=len(packed)
    )
    _write(header, table + packed + data[end:])
    _is_refused(base)


def scan(data: bytes) -> None:
    """A model file, from the first byte after the method."""
    method = (Method.ONNX, Method.TFLITE)[data[0] & 1]
    view = data[1:]
    try:
        found = scan_model(method, view)
        made, normal = skeleton_of(lambda at, stop: view[at:stop], len(view), found)
    except DeltaError:
        return
    at = 0
    for tensor in found.tensors:
        assert at <= tensor.start <= tensor.start + tensor.size <= len(view)
        at = tensor.start + tensor.size
    assert len(normal.tensors) == len(found.tensors)
    assert len(made) <= len(view)


def _edited(old: bytes, edits: bytes) -> bytes:
    made = bytearray(old)
    while len(edits) >= 4:
        at, count, length = int.from_bytes(edits[:2], "big") % (len(made) + 1), edits[2], edits[3]
        made[at : at + count] = edits[4 : 4 + length]
        edits = edits[4 + length :]
    return bytes(made)


def _write(header: Header, payload: bytes) -> None:
    DELTA.write_bytes(header.pack() + payload)


def _is_refused(base: Base) -> bool:
    """Decode on the device's terms; returns whether it was refused. Nothing but the very file that the header names may be there then."""
    NEW.unlink(missing_ok=True)
    before = {path.name for path in FOLDER.iterdir()}
    try:
        with np.errstate(all="ignore"):
            apply(DELTA, base.path, NEW, max_new_bytes=MAX_NEW_BYTES, memory_kib=MEMORY_KIB)
    except DeltaError:
        assert {path.name for path in FOLDER.iterdir()} == before, "a refused delta leaves nothing"
        return True
    made = NEW.read_bytes()
    header = Header.parse(DELTA.read_bytes()[:HEADER_BYTES])
    assert len(made) == header.new_bytes <= MAX_NEW_BYTES
    assert digest_of(made) == header.new_sha256
    return False


DOORS: dict[int, Callable[[bytes], None]] = dict(enumerate((container, frames, streams, skeleton, scan, gaps, places)))


def run(data: bytes) -> None:
    """One input."""
    if len(data) >= 4:
        DOORS[data[0] % len(DOORS)](data[1:])


if __name__ == "__main__":
    start("delta", run, max_bytes=MAX_BYTES)
