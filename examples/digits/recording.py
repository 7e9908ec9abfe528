"""Makes a recording of days in front of the camera, from which a device's reference can be learned without waiting for two weeks.

    python examples/digits/recording.py SLOT OUTPUT        # SLOT: folder of a release's files, as a device has it
    mooring drift reference import DEVICE OUTPUT --pipeline front --unsigned --reason "made up of held-out scans"

No device made it, so none signs it: whoever brings it says so and is named in the audit log.

The rows are real: held-out scans, drawn as a camera sees them, or the frames of a video (--video), through the slot's own model with the
device's own code. The days are not: each sub-window shows scans in an order that is drawn, a few frames each, as the example's videos
do, or frames of the video, drawn one by one, as a device meets them that looks at it again and again.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import numpy as np
import scans

from protocol.clock import from_environment
from protocol.sketches.codec import SUBWINDOW_S, SketchWindow, Source, encode
from protocol.sketches.counts import Counts, Sketcher
from protocol.sketches.grid import Grid
from protocol.sketches.profile import FILE_NAME, decode_profile
from protocol.sketches.recording import encode_recording
from runtime.base import Array, BackendOptions
from runtime.features import Extractor
from runtime.loader import load_first, read_slot
from runtime.manifest import ModelManifest
from runtime.postprocess import answerer_for
from runtime.preprocess import Preprocessor, compile_plan

SUBWINDOWS_PER_DAY = 144
#: Frames of one scan that follow each other, and scans whose rows are made.
FRAMES_PER_SCAN, SCANS = 8, 120
SEED = 91


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of scans, [scans, frames, features], and which class of the grid each was read as, [scans, frames].

    The frames of one scan are met one after the other; a video's are all their own.
    """

    values: Array
    classes: Array


def scan_frames(*, seed: int = SEED) -> list[scans.Pixels]:
    """Frames of the first held-out scans, `FRAMES_PER_SCAN` of each after the other."""
    pictures, _ = scans.load()
    return scans.frames_of(pictures, scans.split().held_out[:SCANS], seed=seed, copies=FRAMES_PER_SCAN)


def video_frames(path: Path) -> Iterator[scans.Pixels]:
    """All frames of a video file, decoded as a device does. Raises: OSError when it cannot be read."""
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise OSError(f"{path}: OpenCV cannot open it as a video")
        while True:
            is_read, frame = capture.read()
            if not is_read:
                return
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()


def rows_of(slot: Path, grid: Grid, manifest: ModelManifest, frames: Iterable[scans.Pixels], *, per_scan: int = FRAMES_PER_SCAN) -> Rows:
    """Rows of frames by the slot's model, so many of each scan."""
    backend = load_first(slot, manifest, BackendOptions()).backend
    runner, answerer = Preprocessor(compile_plan(manifest)), answerer_for(manifest)
    extractor = Extractor(manifest, [feature.name for feature in grid.features])
    values, classes = [], []
    for frame in frames:
        tensor = runner.run(frame)
        outputs = backend.infer({manifest.inputs[0].name: tensor})
        row = extractor.row(tensor, answerer.run(outputs, size=frame.shape[:2]), outputs=outputs, size=frame.shape[:2])
        values.append(row.copy())
        classes.append(grid.slot(extractor.labels[0]))
    backend.close()
    shape = (-1, per_scan)
    return Rows(np.array(values).reshape(*shape, len(grid.features)), np.array(classes).reshape(shape))


def sub_window(rows: Rows, grid: Grid, random: np.random.Generator, *, count: int) -> Counts:
    """What a device counts in ten minutes: scans in an order that is drawn, each for a few frames."""
    sketcher = Sketcher(grid)
    number, per_scan, width = rows.values.shape
    order = random.integers(0, number, -(-count // per_scan))
    for row, place in list(zip(rows.values[order].reshape(-1, width), rows.classes[order].ravel(), strict=True))[:count]:
        sketcher.add(row, int(place))
    return sketcher.take()


def record(
    slot: Path, *, pipeline: str = "front", days: int = 14, until: datetime, count: int = 600, seed: int = SEED, video: Path | None = None
) -> bytes:
    """The bytes of a recording of so many whole days before the day of `until`, of scans or of a video's frames. Raises: OSError."""
    manifest = read_slot(slot)
    grid = decode_profile((slot / FILE_NAME).read_bytes()).grid
    if video is None:
        rows = rows_of(slot, grid, manifest, scan_frames(seed=seed))
    else:
        rows = rows_of(slot, grid, manifest, video_frames(video), per_scan=1)
    random = np.random.default_rng(seed)
    model = hashlib.sha256((slot / manifest.model_file).read_bytes()).digest()[:16]
    end = int(until.timestamp()) // (SUBWINDOW_S * SUBWINDOWS_PER_DAY) * SUBWINDOWS_PER_DAY
    none = np.full(1, np.nan, np.float32)

    def window(w0: int) -> bytes:
        counted = sub_window(rows, grid, random, count=count)
        return encode(SketchWindow(pipeline, grid.grid_id, model, Source.ACTIVE, w0, 1, 1, counted, none, None))

    return encode_recording({grid.grid_id.hex(): grid.encoded}, map(window, range(end - days * SUBWINDOWS_PER_DAY, end)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slot", type=Path, help="folder with manifest.json, the model and profile.cbor")
    parser.add_argument("output", type=Path)
    parser.add_argument("--pipeline", default="front")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument(
        "--until", type=datetime.fromisoformat, default=from_environment().now(), help="a day that is not recorded any more"
    )
    parser.add_argument("--video", type=Path, help="draw from the frames of this video in place of the scans")
    parser.add_argument("--rows", type=int, default=600, help="rows in ten minutes: 600 / the step in seconds")
    asked = parser.parse_args(arguments)
    data = record(asked.slot, pipeline=asked.pipeline, days=asked.days, until=asked.until, count=asked.rows, video=asked.video)
    asked.output.write_bytes(data)
    print(f"{asked.output}: {asked.days} days, {len(data)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
