"""A frame with a pixel grid to draw labels by: `python -m benchmarks.detection.show car-detection.mp4 60 66 …`.

Writes /tmp/detection-<name>-<frame>.png, twice as large as the frame, with a line every 20 pixels, the labels so far in green and
(`--found`) what the model finds in red. The pictures are looked at and thrown away.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.detection.evaluate import FLOOR, find, frames_of, make_slot
from benchmarks.detection.labels import Labeled, read_labels
from benchmarks.detection.matching import Found

ZOOM, GRID = 2, 20


def draw(frame: Any, labeled: Labeled | None, found: list[Found]) -> Any:
    """The enlarged frame with its grid, labels and findings."""
    import cv2

    big = cv2.resize(frame, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
    height, width = frame.shape[:2]
    for at in range(0, max(width, height), GRID):
        cv2.line(big, (at * ZOOM, 0), (at * ZOOM, height * ZOOM), (90, 90, 90), 1)
        cv2.line(big, (0, at * ZOOM), (width * ZOOM, at * ZOOM), (90, 90, 90), 1)
        if at % (GRID * 5) == 0:
            cv2.putText(big, str(at), (at * ZOOM + 2, 12), 0, 0.4, (0, 255, 255), 1)
            cv2.putText(big, str(at), (2, at * ZOOM + 12), 0, 0.4, (0, 255, 255), 1)
    rows = [(box, (0, 220, 0), "") for box in (labeled.boxes if labeled else ())]
    rows += [(one.box, (0, 0, 255), f"{one.score:.2f}") for one in found]
    for (x0, y0, x1, y1), color, text in rows:
        cv2.rectangle(big, (round(x0 * ZOOM), round(y0 * ZOOM)), (round(x1 * ZOOM), round(y1 * ZOOM)), color, 2)
        cv2.putText(big, text, (round(x0 * ZOOM) + 3, round(y0 * ZOOM) + 14), 0, 0.5, color, 1)
    return big


def main() -> None:
    import cv2

    parser = argparse.ArgumentParser(prog="benchmarks.detection.show", description=__doc__)
    parser.add_argument("source", help="name of a video or picture of the shared data")
    parser.add_argument("frames", nargs="*", type=int, default=[0])
    parser.add_argument("--found", action="store_true", help="draw what the model finds, score and all")
    options = parser.parse_args()
    known = {one.frame: one for one in read_labels() if one.source == options.source}
    wanted = [known.get(number, Labeled(options.source, number, ())) for number in options.frames]
    found: dict[int, list[Found]] = {}
    if options.found:
        with tempfile.TemporaryDirectory(prefix="mooring-detection-") as scratch:
            found = {one.frame: boxes for one, boxes in find(make_slot(Path(scratch) / "slot", threshold=FLOOR), wanted)}
    for number, frame in frames_of(options.source):
        if number in options.frames:
            path = Path(tempfile.gettempdir()) / f"detection-{Path(options.source).stem}-{number}.png"
            cv2.imwrite(str(path), draw(frame, known.get(number), found.get(number, [])))
            print(path)


if __name__ == "__main__":
    main()
