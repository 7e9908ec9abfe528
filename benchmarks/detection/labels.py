"""Boxes drawn by hand: `labels.json`. Frames count from 0; boxes are x0, y0, x1, y1 in pixels of the frame.

{"schema": "detection-labels.1",
 "videos": {"car.mp4": {"width": 768, "height": 432, "frames": {"60": [[x0, y0, x1, y1], …]}, "ignore": {"60": [[…]]}}},
 "images": {"one.bmp": [[x0, y0, x1, y1], …]}}

A frame with an empty list was looked at and shows nothing. What is under `ignore` is neither missed nor false: too little of it is seen.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABELS = Path(__file__).resolve().parent / "labels.json"
SCHEMA = "detection-labels.1"
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Labeled:
    """What is to be found in one frame, pixels."""

    #: Name of the video or picture.
    source: str
    #: Of a video; 0 for a picture.
    frame: int
    boxes: tuple[Box, ...]
    ignored: tuple[Box, ...] = ()


def read_labels(path: Path = LABELS) -> list[Labeled]:
    """Every labeled frame, videos first, in order of time. Raises: ValueError naming what is wrong with which frame."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path.name} has the schema {document.get('schema')!r}; wanted {SCHEMA!r}.")
    found = []
    for name, video in document.get("videos", {}).items():
        size, ignored = (video["width"], video["height"]), video.get("ignore", {})
        if strange := set(ignored) - set(video["frames"]):
            raise ValueError(f"{name} ignores boxes of frames that are not labeled: {', '.join(sorted(strange))}.")
        for number in sorted(video["frames"], key=int):
            what = f"{name} frame {number}"
            boxes = _boxes(video["frames"][number], what, size)
            found.append(Labeled(name, int(number), boxes, _boxes(ignored.get(number, []), what, size)))
    found += [Labeled(name, 0, _boxes(boxes, name, None)) for name, boxes in document.get("images", {}).items()]
    return found


def _boxes(rows: list[Any], what: str, size: tuple[int, int] | None) -> tuple[Box, ...]:
    for row in rows:
        if len(row) != 4 or not (0 <= row[0] < row[2] and 0 <= row[1] < row[3]):
            raise ValueError(f"{what} has the box {row}; wanted x0, y0, x1, y1 in pixels, x0 < x1, y0 < y1.")
        if size is not None and (row[2] > size[0] or row[3] > size[1]):
            raise ValueError(f"{what} has the box {row}, which is outside {size[0]} x {size[1]}.")
    return tuple((float(row[0]), float(row[1]), float(row[2]), float(row[3])) for row in rows)
