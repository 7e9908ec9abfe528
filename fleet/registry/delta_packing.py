"""The writing side of `protocol.delta.packed`: corrections of 8 bits as bytes of several values, each context a block of one zstd frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from protocol.delta import packed
from protocol.delta.entropy import Array

#: zstd's windows for packed values: all of them fit.
_WINDOW_LOG = 18
#: What zstd is tried with: its matches help where nearly nothing changed, and cost a little elsewhere.
_LEVELS = (1, 3, 19, 22)


@dataclass(frozen=True, slots=True)
class Packing:
    """How each class packs its contexts, and a frame of each: `raw` bytes before they were compressed."""

    ways: list[bytes]
    raw: int
    frames: bytes


@dataclass(frozen=True, slots=True)
class _Context:
    way: int
    raw: int
    frame: bytes
    is_told: Array


def pack_classes(classes: Iterable[Sequence[tuple[Array, Array | None]]], levels: int) -> Packing:
    """Pack these classes {numbers, and where what was expected lay, of each tensor in the order of the decoder}."""
    ways, frames, raw, escaped = [], [], 0, []
    for tensors in classes:
        values, contexts = _mirrored(tensors, levels)
        missed = np.zeros(len(values), np.bool_)
        found = []
        for context in range(packed.contexts_of(levels)):
            places = np.flatnonzero(contexts == context)
            best = _best(values[places])
            missed[places] = ~best.is_told
            found.append(best)
        ways.append(bytes([one.way for one in found]))
        frames += [one.frame for one in found if one.raw]
        raw += sum(one.raw for one in found)
        escaped.append(values[missed].astype(np.uint8).tobytes())
    apart = b"".join(escaped)
    frames += [_frame(apart)] if apart else []
    return Packing(ways, raw + len(apart), b"".join(frames))


def _mirrored(tensors: Sequence[tuple[Array, Array | None]], levels: int) -> tuple[Array, Array]:
    """The values of a class, those above the middle with the other sign, and the context of each."""
    values, contexts = [], []
    for numbers, fine in tensors:
        context, sign = packed.mirrored(fine, levels)
        values.append(np.where(np.asarray(sign) > 0, -numbers, numbers))
        contexts.append(np.broadcast_to(np.asarray(context, np.uint8), numbers.shape))
    return np.concatenate(values), np.concatenate(contexts)


def _best(values: Array) -> _Context:
    """The values of a context in the way that takes the fewest bytes."""
    made = []
    for way in range(len(packed.WAYS)):
        data, is_told = packed.pack(values, way), packed.is_told(values, way)
        made.append(_Context(way, len(data), _frame(data), is_told))
    return min(made, key=lambda one: len(one.frame) + int((~one.is_told).sum()))


def _frame(data: bytes) -> bytes:
    """The smallest frame of these bytes."""
    made = []
    for level in _LEVELS:
        options = zstandard.ZstdCompressionParameters.from_level(
            level, source_size=len(data), window_log=_WINDOW_LOG, write_content_size=False, write_checksum=False
        )
        made.append(zstandard.ZstdCompressor(compression_params=options).compress(data))
    return min(made, key=len)
