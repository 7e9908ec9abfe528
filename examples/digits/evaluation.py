"""Makes evaluation.npz: every held-out scan as the device sees it in a camera frame, with its digit; what releases are profiled with.

    python examples/digits/evaluation.py        # writes evaluation.npz beside this file, the same each time

The frames are drawn as a camera sees them (320 x 240) and brought to the models' 32 x 32 pixels as a device does it, so that the file
stays small.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import scans

from runtime.inputs import Color, Fit, Layout, Preprocess, TensorDescription
from runtime.preprocess import Preprocessor, plan_for

FILE = Path(__file__).resolve().parent / "evaluation.npz"
SIDE = 32
#: Another one than those of training, golden vectors, accuracy and videos.
SEED = 57


def make() -> dict[str, scans.Pixels]:
    """`frames` uint8 [n, 32, 32] and `labels` uint8 [n]."""
    tensor = TensorDescription(name="x", shape=(1, SIDE, SIDE, 1), layout=Layout.NHWC, dtype="uint8", scale=1 / 255, zero_point=0)
    runner = Preprocessor(plan_for(tensor, Preprocess(color=Color.GRAY, fit=Fit.CROP)))
    pictures, digits = scans.load()
    rows = scans.split().held_out
    frames = [runner.run(frame)[0, :, :, 0].copy() for frame in scans.frames_of(pictures, rows, seed=SEED)]
    return {"frames": np.stack(frames), "labels": np.array([digits[row] for row in rows], np.uint8)}


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")
