"""Makes the smallest delta between two files that the device's own decoder turns back into the new file, a simple one where it is near.

Every method is built, decoded and compared; one that fails is dropped. CPU-bound, seconds to minutes: the server runs it in a
child process, `python -m fleet.registry.delta_encoder OLD NEW OUT` ("-" for no old file), which prints one line of JSON.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from fleet.registry import delta_tensors
from protocol.delta import patch, rebuild
from protocol.delta.container import MAX_FILE_BYTES, NO_BASE, Header, Method
from protocol.delta.decoder import apply
from protocol.delta.errors import DeltaError
from protocol.delta.tensors import UnknownModelError
from protocol.errors import InvalidError, MooringError
from protocol.files import digest_of_file, write_atomically
from protocol.ids import Digest

#: zstd's strongest level; a window beyond 2^23 would not fit the decoder's 16 MiB.
LEVEL, WINDOW_LOG = 22, 23
#: From here on that level takes minutes: a lower one, and no patch when a tensor-wise delta saves more than half.
LARGE_BYTES, LARGE_LEVEL = 8 << 20, 15
#: How much smaller a tensor-wise delta has to be than what zstd alone unpacks: that takes the device a tenth of the time.
LEAST_SAVED = 0.02
#: The memory a delta's decoder may take on the device, KiB: UPDATES 3.3.
MEMORY_KIB = 64 << 10


@dataclass(frozen=True, slots=True)
class EncodedDelta:
    """A delta that was made and proven: `length` in bytes and `sha256` are the delta's own."""

    method: int
    length: int
    sha256: Digest
    base_sha256: Digest
    new_sha256: Digest


@dataclass(frozen=True, slots=True)
class _Pair:
    old: bytes
    new: bytes
    old_sha256: Digest
    new_sha256: Digest


def encode(old: Path | None, new: Path, out: Path) -> EncodedDelta:
    """Write the smallest proven delta to `out`; without `old`, or when nothing is smaller, it is method 0, the compressed file.

    A tensor-wise delta that saves less than `LEAST_SAVED` beside the others is not the one.
    Raises: InvalidError when a file is too large; OSError.
    """
    for path in (new, old):
        if path is not None and path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidError(f"{path.name} has {path.stat().st_size} bytes; deltas are made for at most {MAX_FILE_BYTES}.")
    pair = _Pair(old.read_bytes() if old else b"", new.read_bytes(), digest_of_file(old) if old else NO_BASE, digest_of_file(new))
    candidates = [_full(pair)]
    if old is not None:
        candidates += _tensors(pair, old, new)
        if len(pair.new) <= LARGE_BYTES or min(map(len, candidates)) > len(pair.new) // 2:
            candidates.append(_patch(pair))
    for data in sorted(candidates, key=_price):
        if _is_proven(data, old, pair):
            write_atomically(out, data)
            header = Header.parse(data)
            return EncodedDelta(int(header.method), len(data), digest_of_file(out), header.old_sha256, header.new_sha256)
    raise RuntimeError(f"No method rebuilds {new.name}, not even the full one.")


def _price(data: bytes) -> float:
    """Bytes, and what they cost the device."""
    is_simple = Header.parse(data).method in {Method.FULL, Method.PATCH}
    return len(data) if is_simple else len(data) / (1 - LEAST_SAVED)


def _is_proven(data: bytes, old: Path | None, pair: _Pair) -> bool:
    with tempfile.TemporaryDirectory(prefix="mooring-delta-") as folder:
        delta, result = Path(folder, "delta"), Path(folder, "new")
        delta.write_bytes(data)
        base = old if Header.parse(data).method is not Method.FULL else None
        try:
            apply(delta, base, result, max_new_bytes=len(pair.new), memory_kib=MEMORY_KIB, expected_sha256=pair.new_sha256)
        except DeltaError:
            return False
        return result.read_bytes() == pair.new


def _full(pair: _Pair) -> bytes:
    header = Header(
        method=Method.FULL,
        window_log=WINDOW_LOG,
        old_bytes=0,
        new_bytes=len(pair.new),
        old_sha256=NO_BASE,
        new_sha256=pair.new_sha256,
        memory_kib=0,
    )
    packed = _compress(pair.new)
    if len(packed) >= len(pair.new):
        header, packed = dataclasses.replace(header, window_log=0), pair.new
    return _with_memory(header).pack() + packed


def _patch(pair: _Pair) -> bytes:
    header = Header(
        method=Method.PATCH,
        window_log=WINDOW_LOG,
        old_bytes=len(pair.old),
        new_bytes=len(pair.new),
        old_sha256=pair.old_sha256,
        new_sha256=pair.new_sha256,
        memory_kib=0,
    )
    if len(pair.old) + len(pair.new) <= patch.ONE_STREAM_BYTES:
        return _with_memory(header).pack() + _compress(pair.new, pair.old)
    pieces = list(_pieces(pair))
    return _with_memory(dataclasses.replace(header, records=len(pieces))).pack() + b"".join(pieces)


def _tensors(pair: _Pair, old: Path, new: Path) -> Iterator[bytes]:
    """The tensor-wise delta, when both files are models that can be taken apart."""
    for method in (Method.ONNX, Method.TFLITE):
        try:
            parts = delta_tensors.build(method, old, new)
        except UnknownModelError:
            continue
        header = Header(
            method=method,
            window_log=23,
            old_bytes=len(pair.old),
            new_bytes=len(pair.new),
            old_sha256=pair.old_sha256,
            new_sha256=pair.new_sha256,
            memory_kib=0,
            records=parts.records,
            table_raw=parts.table_raw,
            table_packed=len(parts.table),
            skeleton_raw=parts.skeleton_raw,
            skeleton_packed=len(parts.skeleton),
            has_places=parts.has_places,
        )
        header = dataclasses.replace(header, memory_kib=rebuild.needed_kib(header))
        yield b"".join((header.pack(), parts.table, parts.skeleton, parts.streams))


def _pieces(pair: _Pair) -> Iterator[bytes]:
    """Each piece with the better of two parts of the old file: at the same distance from its start, or from its end."""
    size = patch.PIECE_BYTES
    for start in range(0, len(pair.new), size):
        raw = pair.new[start : start + size]
        candidates = []
        for shift in {0, len(pair.old) - len(pair.new)}:
            offset = min(max(0, start + shift - (size - len(raw)) // 2), max(0, len(pair.old) - size))
            prefix = pair.old[offset : offset + size]
            packed = _compress(raw, prefix)
            candidates.append(patch.PIECE.pack(offset, len(prefix), len(packed), len(raw)) + packed)
        yield min(candidates, key=len)


def _compress(data: bytes, prefix: bytes = b"") -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL if len(data) <= LARGE_BYTES else LARGE_LEVEL,
        source_size=len(data),
        dict_size=len(prefix),
        window_log=WINDOW_LOG,
        enable_ldm=bool(prefix),
        write_checksum=False,
        write_content_size=True,
    )
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    return bytes(zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(data))


def _with_memory(header: Header) -> Header:
    return dataclasses.replace(header, memory_kib=patch.needed_kib(header))


def main(arguments: list[str]) -> int:
    """The child process: OLD (or "-"), NEW, OUT."""
    old, new, out = arguments
    try:
        made = encode(None if old == "-" else Path(old), Path(new), Path(out))
    except (MooringError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(dataclasses.asdict(made)) + os.linesep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
