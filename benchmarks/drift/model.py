"""A small classifier of what passes: ten digits and "nothing", trained on digits that no stream uses."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier

Array = npt.NDArray[np.float32]
CLASSES = 11


@dataclass(frozen=True, slots=True)
class Classifier:
    """Weights of an input, a hidden and an output layer."""

    weights: tuple[Array, Array]
    biases: tuple[Array, Array]

    def probabilities(self, image: Array, places: npt.NDArray[np.int64]) -> Array:
        """float32[n, 11] of frames [3, 64, 64, n] and where the thing lies."""
        hidden = np.maximum(patches(image, places) @ self.weights[0] + self.biases[0], 0)
        scores = hidden @ self.weights[1] + self.biases[1]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def patches(image: Array, places: npt.NDArray[np.int64]) -> Array:
    """float32[n, 144]: the gray 24x24 part at each place as 12x12, with mean 0 and deviation 1."""
    gray = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    parts = [cv2.resize(gray[y : y + 24, x : x + 24, index], (12, 12), interpolation=cv2.INTER_AREA) for index, (y, x) in enumerate(places)]
    flat = np.stack(parts).reshape(len(parts), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return (flat / (flat.std(axis=1, keepdims=True) + 2)).astype(np.float32)


def train(inputs: Array, labels: npt.NDArray[np.int64], seed: int) -> Classifier:
    """The classifier after at most 60 passes."""
    network = MLPClassifier((64,), alpha=1e-3, max_iter=60, early_stopping=True, random_state=seed)
    network.fit(inputs, labels)
    return Classifier(
        tuple(weight.astype(np.float32) for weight in network.coefs_), tuple(bias.astype(np.float32) for bias in network.intercepts_)
    )  # type: ignore[arg-type]
