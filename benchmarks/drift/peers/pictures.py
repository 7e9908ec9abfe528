"""Write scikit-image's pictures that come with the package into one file; run in the environment of whylogs."""

import sys

import numpy as np
from skimage import data

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "brick", "grass", "gravel")
pictures = {}
for name in NAMES:
    picture = getattr(data, name)()
    pictures[name] = (np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture[..., :3]).astype(np.uint8)
np.savez_compressed(sys.argv[1], **pictures)
