"""Precision and recall of the traffic detector on frames labeled by hand: `python -m benchmarks.detection.evaluate`.

Every frame of the video goes through the agent's own line and model, state carried on, as from a camera; the labeled ones are counted.
The device's answer is taken as it is: boxes in shares of the frame.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.agent.slots import DATA
from benchmarks.detection.labels import Labeled, read_labels
from benchmarks.detection.matching import OVERLAP, Found, Tally, match
from benchmarks.record import measure, write

DRAFT = Path(__file__).resolve().parents[2] / "examples" / "traffic" / "traffic.toml"
MODEL = "models/traffic_model.tflite"
#: Lowest score that is kept, so that one run serves all thresholds.
FLOOR = 0.05
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


def make_slot(folder: Path, *, threshold: float | None = None) -> Path:
    """A slot folder of the traffic model by the example's draft. Raises: FileNotFoundError without the shared data."""
    from fleet.registry.drafts import DetectionDraft, complete, load_draft
    from protocol.files import digest_of_file
    from runtime.manifest import FileEntry, to_bytes
    from runtime.probe import inspect_model

    folder.mkdir(parents=True)
    target = folder / "model.tflite"
    shutil.copyfile(DATA / MODEL, target)
    draft = load_draft(DRAFT)
    if threshold is not None and isinstance(draft, DetectionDraft):
        draft = replace(draft, detection=replace(draft.detection, threshold=threshold))
    files = {target.name: FileEntry(sha256=digest_of_file(target), length=target.stat().st_size)}
    manifest = complete(draft, inspect_model(target), line="traffic", release="1.0", counter=1, variant="tflite", files=files)
    (folder / "manifest.json").write_bytes(to_bytes(manifest))
    return folder


def find(slot: Path, labeled: list[Labeled]) -> Iterator[tuple[Labeled, list[Found]]]:
    """What the agent's model finds in each labeled frame. Raises: RuntimeError when the model does not load or a frame cannot be read."""
    from agent.config import RuntimeConfig
    from agent.inference.engine import Line
    from agent.inference.marks import Marks, new_memory
    from agent.inference.memory import Memory
    from protocol.clock import SystemClock

    fd = new_memory()
    marks = Marks(fd)
    os.close(fd)
    line = Line("traffic", marks=marks, now=SystemClock().monotonic)
    swap = line.activate(slot, RuntimeConfig())
    if not swap.ok:
        raise RuntimeError(swap.text)
    try:
        memory = Memory()
        for session, source in enumerate(dict.fromkeys(one.source for one in labeled)):
            wanted = {one.frame: one for one in labeled if one.source == source}
            for number, frame in frames_of(source):
                answer = line.infer(frame, memory=memory, session=session)
                if answer is None:
                    raise RuntimeError(f"{source} frame {number} has no answer")
                if number in wanted:
                    height, width = frame.shape[:2]
                    boxes = [Found(one.score, (one.x0 * width, one.y0 * height, one.x1 * width, one.y1 * height)) for one in answer.boxes]
                    yield wanted[number], boxes
                if number >= max(wanted):
                    break
    finally:
        line.deactivate()
        marks.close()


def tally(results: list[tuple[Labeled, list[Found]]], threshold: float, *, overlap: float = OVERLAP) -> Tally:
    """All frames together, findings below the threshold left out."""
    total = Tally()
    for labeled, found in results:
        total += match([one for one in found if one.score >= threshold], labeled.boxes, labeled.ignored, overlap=overlap)
    return total


def frames_of(source: str) -> Iterator[tuple[int, Any]]:
    """Frames of a video or picture of the shared data, with their numbers."""
    import cv2

    picture = DATA / "images" / source
    if picture.exists():
        yield 0, cv2.imread(str(picture))
        return
    capture = cv2.VideoCapture(str(DATA / "video" / source))
    number = 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        yield number, frame
        number += 1
    capture.release()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.detection.evaluate", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/detection.json")
    options = parser.parse_args()
    labeled = read_labels()
    with tempfile.TemporaryDirectory(prefix="mooring-detection-") as scratch:
        results = list(find(make_slot(Path(scratch) / "slot", threshold=FLOOR), labeled))
    if len(results) != len(labeled):
        raise SystemExit(f"{len(labeled)} frames are labeled, {len(results)} were read.")
    groups = {"video": [r for r in results if not _is_picture(r[0])], "pictures": [r for r in results if _is_picture(r[0])]}
    print(f"{len(labeled)} frames, {sum(len(one.boxes) for one in labeled)} objects, overlap {OVERLAP}")
    for threshold in THRESHOLDS:
        parts = [f"{name} P {made.precision:.2f} R {made.recall:.2f}" for name, rows in groups.items() for made in [tally(rows, threshold)]]
        print(f"score >= {threshold:.2f}: {'; '.join(parts)}")
    if options.keep:
        used = _threshold()
        figures = {name: tally(rows, used) for name, rows in groups.items()}
        write(
            "detection",
            [
                measure(f"{kind} at IoU 0.5, {name}", ours=[getattr(made, kind)], unit="", target=">= 0.8")
                for name, made in figures.items()
                for kind in ("precision", "recall")
            ],
            details={
                "frames": len(labeled),
                "objects": sum(len(one.boxes) for one in labeled),
                "threshold": used,
                "by_threshold": {str(t): {name: asdict(tally(rows, t)) for name, rows in groups.items()} for t in THRESHOLDS},
                "recall at IoU 0.3": {name: tally(rows, used, overlap=0.3).recall for name, rows in groups.items()},
            },
        )


def _threshold() -> float:
    from fleet.registry.drafts import DetectionDraft, load_draft

    draft = load_draft(DRAFT)
    if not isinstance(draft, DetectionDraft):
        raise SystemExit(f"{DRAFT} is no draft of a detection.")
    return draft.detection.threshold


def _is_picture(labeled: Labeled) -> bool:
    return not labeled.source.endswith(".mp4")


if __name__ == "__main__":
    main()
