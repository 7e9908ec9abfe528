"""Draws on a picture what was found in it, and makes it a JPEG of bounded size. OpenCV is reached through `opencv`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from agent.sources.base import Pixels
from agent.sources.opencv import load_cv2

#: Widest picture, in pixels, and what is tried, in turns, until it is small enough.
WIDTHS = (1280, 960, 640, 480, 320, 160)
QUALITIES = (85, 65, 45)
#: BGR of boxes and their labels, of zones, and of what is written at the top.
_BOX, _ZONE, _TEXT = (0, 200, 0), (0, 200, 255), (255, 255, 255)
_FONT_HEIGHT = 28


@dataclass(frozen=True, slots=True)
class Shape:
    """A line or, closed, a polygon: points x, y in shares of the picture."""

    points: tuple[tuple[float, float], ...]
    is_closed: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A picture and its size in pixels."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Marked:
    """A box with what is written at it: corners in shares of the picture."""

    corners: tuple[float, float, float, float]
    text: str


def annotated_jpeg(pixels: Pixels, *, lines: Sequence[str], boxes: Iterable[Marked], shapes: Iterable[Shape], max_bytes: int) -> Jpeg:
    """The picture (height x width x 3 BGR, not changed) with shapes, boxes and lines of text, at most 1280 pixels wide.

    Raises: ValueError when it cannot be made as small as `max_bytes`.
    """
    marked, outlines = tuple(boxes), tuple(shapes)
    for width in sorted({min(width, pixels.shape[1]) for width in WIDTHS}, reverse=True):
        picture = _drawn(_scaled(pixels, width), lines, marked, outlines)
        for quality in QUALITIES:
            data = _encoded(picture, quality)
            if len(data) <= max_bytes:
                return Jpeg(data, picture.shape[1], picture.shape[0])
    raise ValueError(f"the picture does not fit {max_bytes} bytes")


def _scaled(pixels: Pixels, width: int) -> Pixels:
    if pixels.shape[1] <= width:
        return pixels.copy()
    cv2 = load_cv2()
    height = max(1, round(pixels.shape[0] * width / pixels.shape[1]))
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _drawn(picture: Pixels, lines: Sequence[str], boxes: Sequence[Marked], shapes: Sequence[Shape]) -> Pixels:
    cv2 = load_cv2()
    height, width = picture.shape[:2]
    for shape in shapes:
        points = np.rint(np.array(shape.points) * (width - 1, height - 1)).astype(np.int32)
        cv2.polylines(picture, [points], shape.is_closed, _ZONE, 2)
        if shape.name:
            _write(picture, shape.name, (int(points[0][0]), int(points[0][1])), _ZONE)
    for box in boxes:
        x0, y0, x1, y1 = (round(share * side) for share, side in zip(box.corners, (width - 1, height - 1) * 2, strict=True))
        cv2.rectangle(picture, (x0, y0), (x1, y1), _BOX, 2)
        _write(picture, box.text, (x0, y0), _BOX)
    for index, line in enumerate(lines):
        _write(picture, line, (4, (index + 1) * _FONT_HEIGHT), _TEXT)
    return picture


def _write(picture: Pixels, text: str, at: tuple[int, int], color: tuple[int, int, int]) -> None:
    """Text above the point, inside the picture, on a dark edge so that it can be read on anything."""
    cv2 = load_cv2()
    origin = max(0, at[0]), max(_FONT_HEIGHT - 8, at[1] - 4)
    ascii_text = text.encode("ascii", "replace").decode()
    cv2.putText(picture, ascii_text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(picture, ascii_text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, color, 1, cv2.LINE_AA)


def _encoded(picture: Pixels, quality: int) -> bytes:
    cv2 = load_cv2()
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)
