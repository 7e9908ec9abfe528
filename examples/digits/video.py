"""Makes an encoded video of held-out scans, one after the other, and writes beside it which digit each frame shows.

python examples/digits/video.py digits.mp4 --fps 10 --seconds 60 --seed 1
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import numpy as np
import scans

#: Codecs of the headless OpenCV wheel, by suffix.
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}


@dataclass(frozen=True, slots=True)
class Truth:
    """What a video shows: per frame the digit and the scan's row in scikit-learn's data set."""

    fps: float
    width: int
    height: int
    digits: tuple[int, ...]
    rows: tuple[int, ...]


def make_video(
    path: Path, *, fps: float = 10.0, frames: int = 300, frames_per_scan: int = 5, width: int = 320, height: int = 240, seed: int = 1
) -> Truth:
    """Write the video and `<name>.json` beside it; returns what the JSON holds. Only held-out scans are shown.

    Raises: ValueError on a suffix other than .mp4 or .avi; RuntimeError when OpenCV cannot encode.
    """
    if path.suffix not in CODECS:
        raise ValueError(f"{path.name}: wanted a name ending in {' or '.join(CODECS)}")
    rng = np.random.default_rng(seed)
    pictures, digits = scans.load()
    held_out = scans.split().held_out
    chosen = [int(row) for row in rng.choice(held_out, -(-frames // frames_per_scan))]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODECS[path.suffix]), fps, (width, height))
    if not writer.isOpened():
        raise RuntimeError(f"OpenCV cannot write {path} as {CODECS[path.suffix]}; try the other of {', '.join(CODECS)}")
    shown: list[int] = []
    for row in chosen:
        frame = scans.draw(pictures[row], rng, width=width, height=height)
        for _ in range(min(frames_per_scan, frames - len(shown))):
            writer.write(frame)
            shown.append(row)
    writer.release()
    truth = Truth(fps, width, height, tuple(digits[row] for row in shown), tuple(shown))
    document = {"fps": fps, "width": width, "height": height, "seed": seed, "digits": truth.digits, "rows": truth.rows}
    path.with_suffix(".json").write_text(json.dumps(document) + "\n")
    return truth


def main() -> int:
    """Make one video from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--frames-per-scan", type=int, default=5)
    parser.add_argument("--size", default="320x240", help="width x height in pixels")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    width, _, height = given.size.partition("x")
    truth = make_video(
        given.path,
        fps=given.fps,
        frames=round(given.seconds * given.fps),
        frames_per_scan=given.frames_per_scan,
        width=int(width),
        height=int(height),
        seed=given.seed,
    )
    print(f"{given.path}: {len(truth.digits)} frames of {len(set(truth.rows))} scans; digits in {given.path.with_suffix('.json').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
