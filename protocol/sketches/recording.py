"""A recording: sub-windows of one device in a file, from which a reference can be learned elsewhere (DRIFT 5.2); pure.

`mooring-agent drift record` writes it, `mooring drift reference import` reads it. Each sub-window is as it would travel, so a recording
says nothing that the device would not have sent; which device it was says the signature around it (protocol.recordings).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import InvalidError
from protocol.sketches import cbor
from protocol.sketches.codec import MAX_BYTES, SketchWindow, open_head, read_head
from protocol.sketches.grid import MAX_GRID_BYTES, Grid, decode_grid

FORMAT = 1
#: Longest file, bytes: a hundred days of one pipeline.
MAX_RECORDING_BYTES = 32 << 20
MAX_GRIDS, MAX_WINDOWS = 64, 20_000


@dataclass(frozen=True, slots=True)
class Recorded:
    """One sub-window of a recording, with the grid it was counted on."""

    window: SketchWindow
    grid: Grid


def encode_recording(grids: Mapping[str, bytes], bodies: Iterable[bytes]) -> bytes:
    """The file of these sub-windows, encoded as `codec` does, and their grids by id. Raises: InvalidError (too-large)."""
    windows = list(bodies)
    data = cbor.encode({0: FORMAT, 1: [grids[name] for name in sorted(grids)], 2: windows})
    if len(data) > MAX_RECORDING_BYTES or len(windows) > MAX_WINDOWS or len(grids) > MAX_GRIDS:
        raise InvalidError(
            f"A recording of {len(windows)} sub-windows in {len(data)} bytes; at most {MAX_WINDOWS} in {MAX_RECORDING_BYTES} are allowed.",
            code="too-large",
            hint="Record fewer days, or one pipeline.",
        )
    return data


def decode_recording(data: bytes) -> list[Recorded]:
    """The sub-windows of the file, in its order.

    Raises: InvalidError (too-large, malformed, unknown-version, unknown-grid, bad-window, and all that a grid or a window is refused for).
    """
    document = cbor.decode(data, max_bytes=MAX_RECORDING_BYTES, what="A recording")
    if not isinstance(document, dict) or document.get(0) != FORMAT:
        raise InvalidError("This is no recording of sub-windows that this program reads.", code="unknown-version")
    grids = {grid.grid_id: grid for grid in map(decode_grid, _blobs(document.get(1), MAX_GRIDS, MAX_GRID_BYTES))}
    found = []
    for body in _blobs(document.get(2), MAX_WINDOWS, MAX_BYTES):
        head = read_head(body)
        grid = grids.get(head.grid_id)
        if grid is None:
            raise InvalidError(f"A sub-window on grid {head.grid_id.hex()}, which the recording does not bring.", code="unknown-grid")
        if head.nsub != 1:
            raise InvalidError(f"Window {head.window_id} in a recording; wanted sub-windows.", code="bad-window")
        found.append(Recorded(open_head(head, grid), grid))
    return found


def _blobs(value: object, most: int, longest: int) -> Sequence[bytes]:
    if not isinstance(value, list) or len(value) > most or not all(isinstance(one, bytes) and len(one) <= longest for one in value):
        raise InvalidError(f"A part of the recording is no list of at most {most} byte strings of {longest} bytes.", code="malformed")
    return value
