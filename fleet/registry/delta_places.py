"""The writing side of `protocol.delta.places`: the columns that say where the tensors of the old file lie."""

from dataclasses import replace

from protocol.delta.errors import DeltaError
from protocol.delta.places import DIMS_SHIFT, HAS_VARYING, MAX_PLACES_BYTES, NO_AXIS, read_places
from protocol.delta.tensors import MAX_DIMS, Kind, Links, Scan, varint


def places_of(scan: Scan, file: bytes) -> bytes | None:
    """The columns, and before them their length; None when the device would understand something else."""
    columns = write_places(scan)
    if len(columns) > MAX_PLACES_BYTES or not _says_the_same(columns, scan, file):
        return None
    return varint(len(columns)) + columns


def write_places(scan: Scan) -> bytes:
    """The columns of this scan of an ONNX file."""
    tensors, links = scan.tensors, scan.links
    varying = [(tensor, tensor.varying) for tensor in tensors if tensor.varying]
    ends = [0, *(tensor.start + tensor.size for tensor in tensors)]
    columns: list[list[int]] = [
        [len(tensors), scan.outer[0] if scan.outer else 0],
        [tensor.kind + HAS_VARYING * (tensor.varying is not None) + (len(tensor.dims) << DIMS_SHIFT) for tensor in tensors],
        *([tensor.dims[axis] for tensor in tensors if len(tensor.dims) > axis] for axis in range(MAX_DIMS)),
        [tensor.start - end for tensor, end in zip(tensors, ends, strict=False)],
        [tensor.size for tensor in tensors if tensor.kind is Kind.OTHER],
        [tensor.size - tensor.count for tensor, _ in varying],
        [tensor.start - one.message_at for tensor, one in varying],
        [_zigzag(links.scale_of.get(index, index) - index) for index in range(len(tensors))],
        [min(links.scale_axis[index], NO_AXIS) for index in sorted(links.scale_of)],
    ]
    products = sorted((bias, *pair) for bias, pair in links.product_of.items())
    before = [(-1, 0, 0), *products]
    columns += [
        [now[0] - was[0] for was, now in zip(before, products, strict=False)],
        [_zigzag(now[1] - was[1]) for was, now in zip(before, products, strict=False)],
        [_zigzag(weight - source) for _, source, weight in products],
    ]
    return b"".join(varint(number) for column in columns for number in column)


def _says_the_same(columns: bytes, scan: Scan, file: bytes) -> bool:
    """Whether the device finds in these columns what it would find in the file, but for names."""
    try:
        made = read_places(columns, file, len(file))
    except DeltaError:
        return False
    links = scan.links
    axes = {index: min(axis, NO_AXIS) for index, axis in links.scale_axis.items()}
    wanted = [replace(tensor, name=b"") for tensor in scan.tensors]
    return (made.tensors, made.links, made.outer) == (wanted, Links(links.scale_of, axes, links.product_of), scan.outer)


def _zigzag(number: int) -> int:
    return 2 * number if number >= 0 else -2 * number - 1
