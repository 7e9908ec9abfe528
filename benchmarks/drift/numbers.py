"""The 12 image numbers of DRIFT 1, an embedding of 8 and the classifier's outputs, for a batch of frames at once."""

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
IMAGE = (
    "brightness", "contrast", "sharpness", "red", "blue", "saturation", "noise", "dark", "glaring", "edges", "blockiness", "entropy",
)  # fmt: skip
_LAPLACE = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)
_GRAIN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6  # Immerkaer 1996: noise by a kernel that lines do not excite


def image_numbers(image: Array) -> Array:
    """float32[n, 12] of float32[3, rows, columns, n] in 0..255."""
    red, green, blue = image / 255
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    over = (0, 1)
    high, low = image.max(axis=0) / 255, image.min(axis=0) / 255
    laplace = cv2.filter2D(gray, -1, _LAPLACE).reshape(gray.shape)[1:-1, 1:-1]
    grain = np.abs(cv2.filter2D(gray, -1, _GRAIN).reshape(gray.shape)[1:-1, 1:-1])
    across, down = np.abs(np.diff(gray, axis=1)), np.abs(np.diff(gray, axis=0))
    return np.stack(
        [
            gray.mean(over),
            gray.std(over),
            np.log(laplace.var(over) + 1e-6),
            (red - gray).mean(over),
            (blue - gray).mean(over),
            ((high - low) / np.maximum(high, 1 / 255)).mean(over),
            np.log(grain.mean(over) + 1e-4),
            (gray < 0.08).mean(over),
            (gray > 0.95).mean(over),
            (across > 0.08).mean(over),
            np.log((across[:, 7::8].mean(over) + down[7::8].mean(over) + 1e-4) / (across.mean(over) + down.mean(over) + 1e-4)),
            _entropy(gray),
        ],
        axis=1,
    ).astype(np.float32)


def embedding(image: Array) -> Array:
    """float32[n, 8]: strength of the answers of 16 fixed 5x5 filters, projected by a fixed matrix (DRIFT 1)."""
    filters, projection = _fixed()
    gray = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]) / 255
    answers = [np.abs(cv2.filter2D(gray, -1, kernel).reshape(gray.shape)).mean(axis=(0, 1)) for kernel in filters]
    return (np.log(np.stack(answers, axis=1) + 1e-3) @ projection).astype(np.float32)


def _fixed() -> tuple[Array, Array]:
    rng = np.random.default_rng(20240501)
    filters = rng.standard_normal((16, 5, 5)).astype(np.float32)
    filters -= filters.mean(axis=(1, 2), keepdims=True)
    filters /= np.abs(filters).sum(axis=(1, 2), keepdims=True)
    projection = np.linalg.qr(rng.standard_normal((16, 8)))[0].astype(np.float32)
    return filters, projection


def _entropy(gray: Array) -> Array:
    levels = np.minimum((gray * 32).astype(np.int64), 31)
    count = gray.shape[-1]
    cells = np.bincount((levels + 32 * np.arange(count)).ravel(), minlength=32 * count).reshape(count, 32) / (gray.shape[0] * gray.shape[1])
    return -(cells * np.log(np.maximum(cells, 1e-12))).sum(axis=1).astype(np.float32)
