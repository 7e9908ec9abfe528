"""The container `MDL1`: its header, its limits, and what may be allocated because of it.

Everything here is checked before a byte is allocated for it. The signed thing is the RESULT; the header only repeats its digest.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from protocol.delta.errors import DeltaError
from protocol.ids import Digest

#: What functions here take as bytes.
Bytes = bytes | bytearray | memoryview

MAGIC = b"MDL1"
HEADER_BYTES = 112
_HEADER = struct.Struct("<4sBBHQQ32s32s6I")
NO_BASE = Digest("sha256:" + "0" * 64)

#: Bytes of the old and of the new file.
MAX_FILE_BYTES = 2 << 30
#: zstd windows: 2^27 bytes.
MAX_WINDOW_LOG = 27
#: Bytes of the table of tensors, and of all that is not tensor data.
MAX_TABLE_BYTES = MAX_SKELETON_BYTES = 64 << 20
#: Tensors, pieces or groups of a delta.
MAX_RECORDS = 65_536
#: What a device lets a decoder use when nobody says otherwise, KiB.
DEFAULT_MEMORY_KIB = 64 << 10
#: Decoded, hashed and written at a time.
CHUNK_BYTES = 1 << 20


class Method(IntEnum):
    """How the new file is told; stored and sent, never renumbered."""

    #: The new file, compressed by zstd, or stored as it is when the window log is 0.
    FULL = 0
    #: zstd with the old file as prefix.
    PATCH = 1
    #: Tensor by tensor, ONNX.
    ONNX = 2
    #: Tensor by tensor, TFLite.
    TFLITE = 3


_METHODS = frozenset(map(int, Method))
#: Flag of a delta that says where the tensors of the old file lie: `protocol.delta.places`.
_HAS_PLACES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 112 bytes of a delta. Sizes are bytes; `memory_kib` is what its decoder needs."""

    method: Method
    window_log: int
    old_bytes: int
    new_bytes: int
    old_sha256: Digest
    new_sha256: Digest
    memory_kib: int
    records: int = 0
    table_raw: int = 0
    table_packed: int = 0
    skeleton_raw: int = 0
    skeleton_packed: int = 0
    #: Whether it is told where the tensors of the old file lie; only by method 2.
    has_places: bool = False

    def pack(self) -> bytes:
        """The 112 bytes."""
        return _HEADER.pack(
            MAGIC,
            self.method,
            self.window_log,
            _HAS_PLACES if self.has_places else 0,
            self.old_bytes,
            self.new_bytes,
            bytes.fromhex(self.old_sha256.removeprefix("sha256:")),
            bytes.fromhex(self.new_sha256.removeprefix("sha256:")),
            self.memory_kib,
            self.records,
            self.table_raw,
            self.table_packed,
            self.skeleton_raw,
            self.skeleton_packed,
        )

    @classmethod
    def parse(cls, data: Bytes) -> "Header":
        """The header that begins `data`. Raises: DeltaError when there is none, or it declares something outside the limits."""
        view = memoryview(data)
        if len(view) < HEADER_BYTES:
            raise DeltaError(f"The delta ends after {len(view)} bytes; its header has {HEADER_BYTES}.")
        magic, method, window_log, flags, old, new, old_hash, new_hash, memory, *counts = _HEADER.unpack_from(view)
        if magic != MAGIC:
            raise DeltaError(f"The file begins with {magic!r}; a delta begins with {MAGIC!r}.")
        if method not in _METHODS or flags not in {0, _HAS_PLACES}:
            raise DeltaError(f"The delta has method {method} and flags {flags}; this decoder knows methods 0 to 3, and flags 0 and 1.")
        header = cls(
            method=Method(method),
            window_log=window_log,
            old_bytes=old,
            new_bytes=new,
            old_sha256=Digest(f"sha256:{old_hash.hex()}"),
            new_sha256=Digest(f"sha256:{new_hash.hex()}"),
            memory_kib=memory,
            records=counts[0],
            table_raw=counts[1],
            table_packed=counts[2],
            skeleton_raw=counts[3],
            skeleton_packed=counts[4],
            has_places=flags == _HAS_PLACES,
        )
        header._check()
        return header

    def _check(self) -> None:
        for what, seen, most in (
            ("window log", self.window_log, MAX_WINDOW_LOG),
            ("old size", self.old_bytes, MAX_FILE_BYTES),
            ("new size", self.new_bytes, MAX_FILE_BYTES),
            ("record count", self.records, MAX_RECORDS),
            ("table", max(self.table_raw, self.table_packed), MAX_TABLE_BYTES),
            ("skeleton", max(self.skeleton_raw, self.skeleton_packed), MAX_SKELETON_BYTES),
        ):
            if seen > most:
                raise DeltaError(f"The delta declares {what} {seen}; at most {most} is allowed.")
        if self.has_places and self.method is not Method.ONNX:
            raise DeltaError(f"The delta of method {self.method} says where tensors of the old file lie; only method 2 does.")
        has_base = self.method is not Method.FULL
        if has_base == (self.old_sha256 == NO_BASE):
            raise DeltaError(f"The delta has method {self.method} and old digest {self.old_sha256}; only method 0 has none.")
        if not has_base and self.old_bytes:
            raise DeltaError(f"The delta of method 0 declares an old file of {self.old_bytes} bytes; it has none.")
        if self.method in (Method.FULL, Method.PATCH) and (
            self.table_raw or self.table_packed or self.skeleton_raw or self.skeleton_packed
        ):
            raise DeltaError(f"The delta of method {self.method} declares a table or a skeleton; it has none.")
