"""Real pictures as the scenes that simulated cameras look at, and real digits as the things that pass in front of them."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.datasets import load_digits

Array = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MOORING_DATA", ROOT.parent / "shared" / "data"))
#: Pictures of scikit-image that `benchmarks/drift/install-peers` leaves here; without them there are fewer scenes.
SKIMAGE = ROOT / ".cache" / "drift" / "skimage.npz"
#: A scene is wider than the frame, so that a camera can move.
SCENE, FRAME = 96, 64


@cache
def scenes() -> dict[str, Array]:
    """Linear RGB, float32[96, 96, 3] in 0..1, by name; the order never changes for the same pictures.

    Raises: FileNotFoundError where not even scikit-learn's two photographs are readable.
    """
    found: dict[str, Array] = {}
    for name, picture in _pictures():
        for number, part in enumerate(_crops(picture)):
            found[f"{name}/{number}"] = part
    if not found:
        raise FileNotFoundError("no scenes: scikit-learn's sample images were not found, nor the shared data folder (MOORING_DATA)")
    return found


def digits() -> tuple[Array, npt.NDArray[np.int64]]:
    """scikit-learn's 1,797 digits, float32[n, 24, 24] in 0..1 with smooth edges, and which digit each is."""
    data = load_digits()
    big = [cv2.resize((image / 16).astype(np.float32), (24, 24), interpolation=cv2.INTER_CUBIC) for image in data.images]
    return np.clip(np.stack(big), 0, 1).astype(np.float32), data.target.astype(np.int64)


def _pictures() -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    for path in [folder / "china.jpg", folder / "flower.jpg", *sorted((DATA / "images").glob("*.bmp"))]:
        picture = cv2.imread(str(path))
        if picture is not None:
            yield path.stem, picture[:, :, ::-1]
    for path in sorted((DATA / "video").glob("*.mp4")):
        yield path.stem, _background(path)
    if SKIMAGE.exists():
        with np.load(SKIMAGE) as stored:
            yield from ((name, stored[name]) for name in sorted(stored.files))


def _background(path: Path) -> npt.NDArray[np.uint8]:
    """The median of 15 frames over the whole recording: the place without what passes."""
    video = cv2.VideoCapture(str(path))
    frames = []
    for at in np.linspace(0, video.get(cv2.CAP_PROP_FRAME_COUNT) - 2, 15).astype(int):
        video.set(cv2.CAP_PROP_POS_FRAMES, float(at))
        is_read, frame = video.read()
        if is_read:
            frames.append(frame[:, :, ::-1])
    return np.median(np.stack(frames), axis=0).astype(np.uint8)


def _crops(picture: npt.NDArray[np.uint8]) -> Iterator[Array]:
    """Two squares of a picture, left and right, at half of its height or all of it."""
    height, width = picture.shape[:2]
    side = min(height, int(width * 0.6))
    top = (height - side) // 2
    for left in (0, width - side):
        part = cv2.resize(picture[top : top + side, left : left + side], (SCENE, SCENE), interpolation=cv2.INTER_AREA)
        yield ((part.astype(np.float32) / 255) ** 2.2).astype(np.float32)
