"""What the values of the new file stand in: its skeleton, told on the old one, or the old file with other bytes in some of its gaps."""

from dataclasses import dataclass

from protocol.delta import frames
from protocol.delta.container import MAX_FILE_BYTES, Header, Method
from protocol.delta.errors import DeltaError
from protocol.delta.expect import OldModel
from protocol.delta.onnx import scan_onnx
from protocol.delta.plan import Reader
from protocol.delta.tensors import MAX_TENSORS, Scan, table_of, without_values
from protocol.delta.tflite import Gapped, scan_tflite


@dataclass(frozen=True, slots=True)
class Frame:
    """What the values of the new file stand in: a skeleton with its scan, or (None) the old file with other bytes in some of its gaps."""

    skeleton: bytes | None
    scan: Scan
    gaps: dict[int, bytes]


def frame_of(header: Header, payload: memoryview, old: OldModel) -> Frame:
    """What the values stand in, by table and skeleton of the payload. Raises: DeltaError."""
    table_end = header.table_packed
    end = table_end + header.skeleton_packed
    if end > len(payload):
        raise DeltaError("The skeleton of the delta is cut.")
    if not end:
        if header.skeleton_raw or header.table_raw:
            raise DeltaError("The delta announces a skeleton and has none.")
        return Frame(None, old.scan, {})
    table, packed_ = payload[:table_end], payload[table_end:end]
    if header.method is Method.ONNX and table_end:
        if header.table_raw != table_end:
            raise DeltaError("The table of gaps of the delta is not stored as it is.")
        return Frame(None, old.scan, _gaps(header, bytes(table), packed_, old))
    skeleton = old.skeleton
    if packed_:
        skeleton = frames.decode(packed_, header.skeleton_raw, prefix=old.skeleton, window_log=header.window_log)
    if header.method is Method.ONNX:
        return Frame(skeleton, scan_onnx(skeleton, has_holes=True), {})
    spans = table_of(old.scan)
    if table_end:
        spans = frames.decode(table, header.table_raw, prefix=spans, window_log=header.window_log)
    scan = scan_tflite(Gapped(skeleton, _spans(spans, len(skeleton), header.new_bytes)))
    return Frame(skeleton, without_values(scan), {})


def _gaps(header: Header, table: bytes, packed_: memoryview, old: OldModel) -> dict[int, bytes]:
    """New bytes of gaps: {gap of index - 1, bytes} each, and one frame of them all on the old bytes of the same gaps."""
    tensors, reader, sizes, index = old.scan.tensors, Reader(table), {}, 0
    while not reader.is_done:
        index += 1 + reader.number(len(tensors))
        if index > len(tensors) or (index < len(tensors) and tensors[index].varying):
            raise DeltaError("The delta changes a gap that is not there, or that has lengths which values move.")
        sizes[index] = reader.number(header.skeleton_raw)
    if sum(sizes.values()) != header.skeleton_raw:
        raise DeltaError("The gaps of the delta do not take what it announces.")
    was = old.gaps(sizes)
    data = frames.decode(packed_, header.skeleton_raw, prefix=was, window_log=header.window_log)
    made, at = {}, 0
    for index, size in sizes.items():
        made[index] = data[at : at + size]
        at += size
    return made


def _spans(table: bytes, skeleton_bytes: int, new_bytes: int) -> list[tuple[int, int]]:
    """Where values lie in the new file, by its table."""
    spans: list[tuple[int, int]] = []
    reader, end, sizes = Reader(table), 0, 0
    while not reader.is_done:
        if len(spans) > MAX_TENSORS:
            raise DeltaError(f"The delta has more than {MAX_TENSORS} tensors.")
        start = end + reader.number(MAX_FILE_BYTES)
        size = reader.number(MAX_FILE_BYTES)
        spans.append((start, size))
        end, sizes = start + size, sizes + size
    if end > new_bytes or sizes + skeleton_bytes != new_bytes:
        raise DeltaError("The table of the delta does not fit the new file.")
    return spans
