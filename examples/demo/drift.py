"""The demo's drift: a camera is told what is normal by a recording, its lens gets dirty, and the alarm says so in words.

Only the days of the recording are made up, by the repository's own script with the device's own code. The rest is what always runs:
sub-windows, check and evidence of the device, verified by the server; the demo's clock makes ten minutes last twenty seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2

from examples.demo.world import World

#: Seconds of the demo's clock between two rows: four rows a second of ours, which is what a small share of one core allows.
STEP_S = 8
ROWS = 600 // STEP_S
SETTINGS = f"[drift]\nstep_s = {STEP_S}\n"
#: Real seconds for two sub-windows of the demo's clock, and as much again for a machine that is busy.
TIMEOUT_S = 120.0
#: What dirt does to a picture: light that is lost, and blur (standard deviation, pixels).
LIGHT, BLUR = 0.7, 2.5


class Told(Protocol):
    """Where a check goes."""

    def add(self, what: str, *, held: bool, seen: str) -> None:
        """Keep a check and print it."""
        ...


@dataclass
class DriftStory:
    """What happens to one camera of the demo."""

    world: World
    report: Told
    device: str
    #: Its one pipeline as wished, and the video file that this looks at.
    pipeline: Mapping[str, Any]
    video: Path
    #: What `mooring-agent status` says of a device.
    status: Callable[[str], dict[str, Any]]

    def teach(self, slot: Path) -> None:
        """Learn a reference from two weeks that are drawn from the camera's own frames, through the release in that slot folder."""
        recording = self.world.root / f"{self.device}.recording"
        self.world.children.run(
            f"{self.device}-recording",
            "examples.digits.recording",
            *(str(slot), str(recording), "--pipeline", self.pipeline["name"], "--video", str(self.video), "--rows", str(ROWS)),
        )
        # a script made it, so no device's key signed it: whoever brings it vouches for it
        fields = {"device": self.device, "pipeline": self.pipeline["name"], "unsigned": "true", "reason": "demo: drawn from its own frames"}
        learned = self.world.people["operator"].upload("/drift/references", fields, {"recording": recording})
        taught = self._await(lambda one: one["grade"] == learned["grade"], what="its reference to reach it")
        self.report.add(
            f"{self.device} learned from a recording what is normal",
            held=taught["grade"] == "provisional" and learned["days"] >= 14,
            seen=f"{learned['days']} days, {learned['windows']} sub-windows, grade {taught['grade']}",
        )

    def stay_quiet(self) -> None:
        """See that what did not change raises nothing."""
        seen = self._await(lambda one: one["score"] is not None, what="ten minutes to be judged")
        alarms = self._alarms()
        self.report.add(
            "while nothing changed no alarm was raised",
            held=seen["state"] == "ok" and not alarms,
            seen=f"score {seen['score']:.1f}, p {seen['p']:.2g}, {len(alarms)} alarms",
        )

    def get_dirty(self) -> None:
        """Put dirt before its lens, and wait for the alarm that the server confirmed."""
        dirty = self.video.with_name(f"{self.video.stem}-dirty.mp4")
        soil(self.video, dirty)
        self.world.set_pipelines(self.device, [{**self.pipeline, "source": {**self.pipeline["source"], "path": str(dirty)}}])
        (alarm,) = self.world.await_(self._alarms, timeout_s=TIMEOUT_S, what="the alarm about the dirty lens")
        features = [one["feature"] for one in alarm["features"]]
        self.report.add(
            f"dirt on the lens of {self.device} became an alarm that the server confirmed",
            held=alarm["name"] == self.device and any(name.startswith("image.") for name in features),
            seen=alarm["words"],
        )

    def _alarms(self) -> list[dict[str, Any]]:
        return list(self.world.people["operator"].get("/alarms")["items"])

    def _await(self, is_so: Callable[[dict[str, Any]], bool], *, what: str) -> dict[str, Any]:
        """What the device says of its drift once it is so."""

        def found() -> dict[str, Any] | None:
            (one,) = self.status(self.device)["drift"]["pipelines"]
            return one if is_so(one) else None

        return self.world.await_(found, timeout_s=TIMEOUT_S, what=f"{what} ({self.device})") or {}


def soil(video: Path, into: Path) -> None:
    """Write the video as a dirty lens would show it: darker and blurred. Raises: RuntimeError when OpenCV cannot read or write it."""
    capture = cv2.VideoCapture(str(video))
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    writer = cv2.VideoWriter(str(into), cv2.VideoWriter.fourcc(*"mp4v"), capture.get(cv2.CAP_PROP_FPS), size)
    try:
        if not capture.isOpened() or not writer.isOpened():
            raise RuntimeError(f"OpenCV cannot turn {video} into {into}.")
        while True:
            is_read, frame = capture.read()
            if not is_read:
                return
            writer.write(cv2.convertScaleAbs(cv2.GaussianBlur(frame, (0, 0), BLUR), alpha=LIGHT))
    finally:
        capture.release()
        writer.release()
