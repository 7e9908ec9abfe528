"""Methods 0 and 1: the whole file as a zstd stream, alone or with the old file as prefix.

Small files (`ONE_STREAM_BYTES`) are one stream over all of the old file. Larger ones are cut in pieces, so that memory does not grow;
each has its own part of the old file as prefix: {u64 offset, u32 bytes in the old file, u32 packed, u32 raw bytes}, then a zstd frame.
"""

import struct

from protocol.delta.container import Header, Method
from protocol.delta.errors import DeltaError
from protocol.delta.files import Mapped, Output
from protocol.delta.frames import decode_pieces

#: Old and new bytes together up to which method 1 is one stream: its decoder holds both.
ONE_STREAM_BYTES = 12 << 20
PIECE = struct.Struct("<QIII")
#: Largest piece of the new file, and of the old one as its prefix.
PIECE_BYTES = 4 << 20


def needed_kib(header: Header) -> int:
    """What the decoder of methods 0 and 1 holds at most, KiB, from the header alone."""
    window = 1 << header.window_log if header.window_log else 0
    if header.method is Method.FULL:
        return (window >> 10) + 2048
    return ((2 * header.old_bytes + window) >> 10) + 2048 if not header.records else (3 * PIECE_BYTES >> 10) + 2048


def write_full(header: Header, payload: memoryview, output: Output) -> None:
    """Method 0. Raises: DeltaError; OSError."""
    if header.window_log == 0:
        if len(payload) != header.new_bytes:
            raise DeltaError(f"The delta stores {len(payload)} bytes; {header.new_bytes} were announced.")
        output.write_at(0, payload)
        return
    _write_frame(header, payload, output, start=0, raw_bytes=header.new_bytes)


def write_patch(header: Header, payload: memoryview, old: Mapped, output: Output) -> None:
    """Method 1. Raises: DeltaError; OSError."""
    if not header.records:
        _write_frame(header, payload, output, start=0, raw_bytes=header.new_bytes, old=old)
        return
    read = written = 0
    for _ in range(header.records):
        if read + PIECE.size > len(payload):
            raise DeltaError("The delta ends inside a piece.")
        offset, old_bytes, packed_bytes, raw_bytes = PIECE.unpack_from(payload, read)
        read += PIECE.size
        if old_bytes > PIECE_BYTES or raw_bytes > PIECE_BYTES or offset + old_bytes > old.size or read + packed_bytes > len(payload):
            raise DeltaError("A piece of the delta lies outside of the old file, of the delta, or of the limits.")
        piece = payload[read : read + packed_bytes]
        _write_frame(header, piece, output, start=written, raw_bytes=raw_bytes, old=old, part=(offset, offset + old_bytes))
        read += packed_bytes
        written += raw_bytes
    if read != len(payload) or written != header.new_bytes:
        raise DeltaError(f"The pieces end at {read} of {len(payload)} bytes and make {written} of {header.new_bytes}.")


def _write_frame(
    header: Header,
    packed: memoryview,
    output: Output,
    *,
    start: int,
    raw_bytes: int,
    old: Mapped | None = None,
    part: tuple[int, int] | None = None,
) -> None:
    if old is None:
        prefix: memoryview | bytes = b""
    else:
        first, last = part or (0, old.size)
        prefix = memoryview(old.data)[first:last]
    for piece in decode_pieces(packed, raw_bytes, prefix=prefix, window_log=header.window_log):
        if old is not None:
            old.let_go()
        output.write_at(start, piece)
        start += len(piece)
