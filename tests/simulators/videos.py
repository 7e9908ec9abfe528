"""Real encoded videos and pictures, made where a test needs them."""

from pathlib import Path

import cv2
import numpy as np

BLUE, GREEN, RED = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write_video(
    path: Path, colors: list[tuple[int, int, int]], *, fps: float = 30.0, size: tuple[int, int] = (64, 48), codec: str = "MJPG"
) -> Path:
    """A video with one plain frame per color (BGR), width x height."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
    assert writer.isOpened()
    for color in colors:
        writer.write(np.full((size[1], size[0], 3), color, np.uint8))
    writer.release()
    return path


def write_picture(path: Path, color: tuple[int, int, int], *, size: tuple[int, int] = (64, 48)) -> Path:
    """A plain picture, width x height, in the format of the suffix."""
    assert cv2.imwrite(str(path), np.full((size[1], size[0], 3), color, np.uint8))
    return path
