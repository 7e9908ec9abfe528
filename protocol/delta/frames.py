"""zstd frames from outside: walked to know where they end, decoded to exactly the length that was announced.

zstd's own window limit binds in streaming mode only, so every frame is streamed, into a buffer of known size.
"""

from collections.abc import Iterator
from typing import Any

from protocol.delta.container import CHUNK_BYTES, MAX_WINDOW_LOG, Bytes
from protocol.delta.errors import DeltaError

_MAGIC = b"\x28\xb5\x2f\xfd"
_RLE, _RESERVED = 1, 3


def frame_bytes(view: memoryview) -> int:
    """The length of the zstd frame that begins the view. Raises: DeltaError when none does, or it is cut."""
    import zstandard

    if bytes(view[:4]) != _MAGIC:
        raise DeltaError(f"A zstd frame was wanted; {bytes(view[:4])!r} was found.")
    try:
        position = int(zstandard.frame_header_size(view))
        has_checksum = bool(zstandard.get_frame_parameters(view).has_checksum)
    except zstandard.ZstdError as error:
        raise DeltaError(f"A zstd frame has a broken header: {error}.") from error
    is_last = False
    while not is_last:
        if position + 3 > len(view):
            raise DeltaError("A zstd frame is cut.")
        block = int.from_bytes(view[position : position + 3], "little")
        is_last, kind = bool(block & 1), block >> 1 & 3
        if kind == _RESERVED:
            raise DeltaError("A zstd frame has a block of the reserved kind.")
        position += 3 + (1 if kind == _RLE else block >> 3)
    position += 4 if has_checksum else 0
    if position > len(view):
        raise DeltaError("A zstd frame is cut.")
    return position


def decode_pieces(packed: memoryview, raw_bytes: int, *, prefix: Bytes = b"", window_log: int = MAX_WINDOW_LOG) -> Iterator[memoryview]:
    """The frame `packed` in pieces of up to 1 MiB, each valid until the next; together exactly `raw_bytes`. `packed` is one whole frame.

    Raises: DeltaError when it is no frame, needs a larger window, or has another length.
    """
    import zstandard

    if frame_bytes(packed) != len(packed):
        raise DeltaError("Bytes follow a zstd frame.")
    options: dict[str, Any] = {"max_window_size": 1 << window_log}
    if prefix:
        options["dict_data"] = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    buffer, left = memoryview(bytearray(min(CHUNK_BYTES, raw_bytes + 1))), raw_bytes
    try:
        with zstandard.ZstdDecompressor(**options).stream_reader(packed) as reader:
            while count := reader.readinto(buffer):
                left -= count
                if left < 0:
                    break
                yield buffer[:count]
    except zstandard.ZstdError as error:
        raise DeltaError(f"A zstd frame cannot be decoded: {error}.") from error
    if left:
        raise DeltaError(f"A zstd frame holds {'more' if left < 0 else 'fewer'} than the announced {raw_bytes} bytes.")


def decode_all(packed: memoryview, raw_bytes: int, *, window_log: int) -> bytes:
    """All of the frames that follow one another, together exactly `raw_bytes`. Raises: DeltaError as `decode_pieces`."""
    import zstandard

    made = memoryview(bytearray(raw_bytes + 1))
    at = 0
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << window_log).stream_reader(packed, read_across_frames=True) as reader:
            while at <= raw_bytes and (count := reader.readinto(made[at:])):
                at += count
    except zstandard.ZstdError as error:
        raise DeltaError(f"A zstd frame cannot be decoded: {error}.") from error
    if at != raw_bytes:
        raise DeltaError(f"The zstd frames hold {'more' if at > raw_bytes else 'fewer'} than the announced {raw_bytes} bytes.")
    return bytes(made[:raw_bytes])


def decode(packed: memoryview, raw_bytes: int, *, prefix: Bytes = b"", window_log: int = MAX_WINDOW_LOG) -> bytes:
    """All of the frame. Raises: DeltaError as `decode_pieces`."""
    return b"".join(map(bytes, decode_pieces(packed, raw_bytes, prefix=prefix, window_log=window_log)))
