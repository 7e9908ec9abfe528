"""What the values of a new model stand in, from the encoder's side: other bytes in some gaps of the old file, or a whole skeleton."""

import zstandard

from protocol.delta.expect import OldModel
from protocol.delta.tensors import Scan, varint


def changed_gaps(old: OldModel, skeleton: bytes, scan: Scan, normal: Scan) -> dict[int, bytes] | None:
    """The gaps before values that have other bytes than in the old file; None when more than that differs."""
    if skeleton == old.skeleton:
        return {}
    was, now = old.normal, normal
    alike = [[(one.name, one.kind, one.dims, one.count, one.varying is None) for one in made.tensors] for made in (was, now)]
    if was.outer is None or now.outer is None or alike[0] != alike[1]:
        return None
    found: dict[int, bytes] = {}
    for index, (before, after) in enumerate(zip(_gaps_of(old.skeleton, was), _gaps_of(skeleton, now), strict=True)):
        if before != after:
            if not index or (index < len(scan.tensors) and scan.tensors[index].varying):
                return None
            found[index] = after
    return found


def gaps_table(gaps: dict[int, bytes]) -> bytes:
    made, before = [], 0
    for index, data in gaps.items():
        made += [varint(index - before - 1), varint(len(data))]
        before = index
    return b"".join(made)


def packed_on(data: bytes, old: bytes) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if old else None
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, source_size=len(data), dict_size=len(old), window_log=23, write_content_size=True
    )
    return bytes(zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(data))


def _gaps_of(skeleton: bytes, scan: Scan) -> list[bytes]:
    """What lies before the values of each tensor, and behind the last, without the outer length."""
    made, at = [], 0
    for tensor in scan.tensors:
        made.append(skeleton[at : tensor.start])
        at = tensor.start + (tensor.size if tensor.varying else 0)
    made.append(skeleton[at:])
    if scan.outer:
        place, length_bytes, _ = scan.outer
        made[0] = made[0][:place] + made[0][place + length_bytes :]
    return made
