"""What the demo shows, in order, and what it verifies on the way.

Every check reads what a user could read: REST, or the agent's own status.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.demo.drift import SETTINGS as DRIFT_SETTINGS
from examples.demo.drift import DriftStory
from examples.demo.world import World

DIGITS = Path(__file__).resolve().parent.parent / "digits"
LINE = "digits"
FPS = 15.0
#: Frames each scan is shown: about two a second, so that a person can follow and events do not flood the page.
FRAMES_PER_SCAN = 8
#: Healthy inferences that agents and campaigns of the demo ask for: about fourteen seconds of video.
MIN_INFERENCES = 200
#: Real seconds that a release may take to reach the agents.
RELEASE_TIMEOUT_S = 120.0
VIDEO_SECONDS = 20.0
#: Share of the video's frames over which the accuracy on the devices is measured.
ACCURACY_SHARE = 0.9
_STARTED = time.monotonic()
#: The two kinds of devices of the demo, and the runtime each uses.
TYPES = {"camera": "tflite", "gateway": "onnx"}
#: Telemetry windows are minutes of the demo's clock: two real seconds, over which frames per second mean something.
AGENT_SETTINGS = f"[update]\nmin_inferences = {MIN_INFERENCES}\nlatency_noise_ms = 1000\n[telemetry]\nperf_s = 60\nsys_s = 60\n"


@dataclass
class Report:
    """What was verified, with what was seen."""

    rows: list[tuple[str, bool, str]] = field(default_factory=list)

    def add(self, what: str, *, held: bool, seen: str) -> None:
        """Keep a check and print it."""
        self.rows.append((what, held, seen))
        print(f"  {'ok  ' if held else 'FAIL'} {what}: {seen}", flush=True)

    @property
    def is_good(self) -> bool:
        """Whether there were checks and all of them held."""
        return bool(self.rows) and all(held for _, held, _ in self.rows)


@dataclass
class Scenario:
    """The demo's story in one world."""

    world: World
    videos: Mapping[str, Path]
    truth: Mapping[str, tuple[int, ...]]
    report: Report = field(default_factory=Report)
    models: dict[str, dict[str, str]] = field(default_factory=dict)

    def run(self) -> None:
        """All steps. Raises: RuntimeError, MooringError when one cannot go on."""
        self.import_models()
        self.enroll()
        first = self.release_to_all("1.0", "first model")
        self.cut_and_release(first)
        drift = DriftStory(self.world, self.report, "cam-1", self.pipeline_of("cam-1"), self.videos["cam-1"], self.status)
        say("Teaching cam-1 what is normal: two weeks are drawn from its own frames by the device's code")
        drift.teach(self.world.agents["cam-1"].state_dir / "slots" / LINE / self.active_slot("cam-1")["slot"])
        self.refuse()
        drift.stay_quiet()
        say("Dirt on the lens of cam-1: darker and blurred")
        drift.get_dirty()
        self.check_audit()

    def import_models(self) -> None:
        """Bring three versions, each for both runtimes, into the registry."""
        say("Importing the digit models (int8 ONNX and int8 TFLite, versions 1.0, 1.1 and a broken 1.2)")
        for version in ("1.0", "1.1", "1.2"):
            self.models[version] = {runtime: self.import_model(version, runtime) for runtime in TYPES.values()}

    def import_model(self, version: str, runtime: str) -> str:
        """Bring one version for one runtime into the registry, watched for drift by held-out scans; returns its id."""
        folder = DIGITS / "models" / version / runtime
        return self.world.import_model(
            folder / f"model.{runtime}",
            DIGITS / f"{runtime}.toml",
            name=f"{LINE}-{runtime}",
            golden=folder / "golden.cbor",
            evaluation=DIGITS / "evaluation.npz",
        )

    def enroll(self) -> None:
        """Start three agents: two cameras (TFLite), one of them behind a link that will be cut, and a gateway (ONNX)."""
        say("Enrolling three agents: cam-1 and cam-2 (TFLite), gate-1 (ONNX); cam-2 is behind a link that will be cut")
        for name, device_type in (("cam-1", "camera"), ("cam-2", "camera"), ("gate-1", "gateway")):
            self.world.add_agent(
                name,
                device_type=device_type,
                is_linked=name == "cam-2",
                settings=AGENT_SETTINGS + DRIFT_SETTINGS,
                pipelines=[self.pipeline_of(name)],
            )
            self.world.start_agent(name)
        self.world.await_(
            lambda: all(self.world.device(name)["presence"] == "online" for name in self.world.agents),
            timeout_s=60,
            what="all agents online",
        )
        self.report.add("agents enrolled and online", held=True, seen=", ".join(self.world.agents))

    def release_to_all(self, version: str, note: str) -> dict[str, float]:
        """Release a version and wait for every device's signed report; returns the accuracy seen on each device."""
        self.publish(version, note)
        campaign = self.world.campaign(LINE, version, group="default", min_inferences=MIN_INFERENCES)
        self.await_state(campaign, "updated", list(self.world.agents))
        on = {name: self.await_slot(name, version) for name in self.world.agents}
        seen = ", ".join(f"{name} slot {slot['slot']}" for name, slot in on.items())
        held = all(slot["release"] == version for slot in on.values())
        self.report.add(f"release {version} active and committed on all, by signed reports", held=held, seen=seen)
        backends = {name: self.world.device(name)["pipelines"][0].get("effective", "") for name in self.world.agents}
        held = all(("onnx" in used) == (name == "gate-1") and used for name, used in backends.items())
        self.report.add("effective back ends", held=held, seen=", ".join(f"{name} {used}" for name, used in backends.items()))
        accuracy = self.accuracy(version)
        self.report.add(
            f"accuracy of {version} on the devices, on real held-out scans", held=min(accuracy.values()) > 0.7, seen=shares(accuracy)
        )
        return accuracy

    def cut_and_release(self, before: Mapping[str, float]) -> None:
        """Cut one device off, release 1.1 to the rest, let the cut one work offline, and let it catch up."""
        cam = self.world.agents["cam-2"]
        say("Cutting the link of cam-2, then releasing 1.1")
        cam.cut()
        self.publish("1.1", "learned from more scans")
        campaign = self.world.campaign(LINE, "1.1", group="default", min_inferences=MIN_INFERENCES)
        self.await_state(campaign, "updated", ["cam-1", "gate-1"])
        status = self.status("cam-2")
        on = {
            name: self.await_slot(name, version)["release"] for name, version in {"cam-1": "1.1", "gate-1": "1.1", "cam-2": "1.0"}.items()
        }
        held = (on["cam-1"], on["gate-1"], on["cam-2"]) == ("1.1", "1.1", "1.0") and not status["connected"]
        self.report.add("1.1 reached the connected devices only", held=held, seen=", ".join(f"{name} {one}" for name, one in on.items()))
        inferred = self.inferred("cam-2")
        waiting = int(status["outbox"]["by_stream"].get("event", 0))
        self.report.add(
            "cut off, cam-2 goes on inferring and keeps its events",
            held=inferred > 0 and waiting > 0,
            seen=f"{inferred} frames in its last window, {waiting} events wait on its disk",
        )
        say("Restoring the link of cam-2")
        cam.restore()
        self.await_state(campaign, "updated", ["cam-2"])
        slot = self.await_slot("cam-2", "1.1")
        self.report.add("after the cut cam-2 caught up", held=slot["release"] == "1.1", seen=f"{slot['release']} committed")
        self.world.await_(lambda: self.stored_rows("cam-2") <= 2, timeout_s=60, what="cam-2's events to be acknowledged")
        missing = self.missing_events("cam-2")
        self.report.add("no event of cam-2 was lost", held=not missing, seen=f"{len(missing)} missing of its numbered events")
        after = self.accuracy("1.1")
        held = sum(after.values()) > sum(before.values())
        self.report.add("1.1 is better than 1.0 on the devices", held=held, seen=f"{shares(before)} → {shares(after)}")

    def refuse(self) -> None:
        """Publish a release that does not answer as its golden vectors say; every device must refuse it and say why."""
        say("Publishing 1.2, whose golden vectors it does not meet: the devices must refuse it")
        self.publish("1.2", "a broken export")
        # every device shall show its refusal: with the usual threshold the campaign stops at the first one
        campaign = self.world.campaign(LINE, "1.2", group="default", min_inferences=MIN_INFERENCES, failure_threshold=1.0)
        self.await_state(campaign, "failed", list(self.world.agents))
        updates = self.world.updates_of(campaign)
        reasons = {name: updates[name]["reason"] for name in self.world.agents}
        self.report.add(
            "1.2 refused by its self-test on all", held=set(reasons.values()) == {"golden_mismatch"}, seen=updates["cam-1"]["text"][:110]
        )
        on = {name: self.active_slot(name) for name in self.world.agents}
        held = all(one["release"] == "1.1" and one["committed"] for one in on.values())
        self.report.add("all still run 1.1", held=held, seen=", ".join(f"{name} {one['release']}" for name, one in on.items()))

    def check_audit(self) -> None:
        """Have the server verify the chain of the audit log; a broken one is answered with an error."""
        found = self.world.people["auditor"].get("/audit/verify")
        self.report.add("the audit log's chain holds", held=found["number"] > 0, seen=f"{found['number']} entries")

    # --- steps ---

    def publish(self, version: str, note: str) -> None:
        """Compose, approve, sign and publish a release of both runtimes."""
        say(f"Release {version}: composed by operator, approved by approver, signed by the signer's own process, published")
        models = {self.models[version][runtime]: [device_type] for device_type, runtime in TYPES.items()}
        self.world.release(LINE, version, models, note=note)

    def await_state(self, campaign: str, state: str, names: list[str]) -> None:
        """Wait until the devices are in that state of the campaign, printing each arrow as the server sees it."""
        seen: dict[str, str] = {}

        def arrived() -> bool:
            for name in names:
                now = self.world.line_of(name, LINE).get("state", "")
                if now and seen.get(name) != now:
                    seen[name] = now
                    print(f"       {name}: {now}", flush=True)
            updates = self.world.updates_of(campaign)
            return all(updates.get(name, {}).get("state") == state for name in names)

        self.world.await_(arrived, timeout_s=RELEASE_TIMEOUT_S, what=f"{', '.join(names)} to be {state} in campaign {campaign}")

    # --- what is read ---

    def pipeline_of(self, name: str) -> dict[str, Any]:
        """The device's pipeline as wished."""
        source = {"kind": "video", "path": str(self.videos[name]), "loop": True}
        return {"name": "front", "line": LINE, "source": source, "keep": "events"}

    def active_slot(self, name: str) -> dict[str, Any]:
        """The active slot of the device, as the server knows it; empty values when there is none."""
        none = {"slot": "", "release": "", "committed": False}
        return next((slot for slot in self.world.device(name)["slots"] if slot["active"]), none)

    def await_slot(self, name: str, version: str) -> dict[str, Any]:
        """The device's active, committed slot, once it is the version's.

        The signed report that a campaign counts may come before the message that pages show.
        Raises: RuntimeError when it does not become so.
        """
        wanted = {"active": True, "committed": True, "release": version}
        return self.world.await_(
            lambda: next((slot for slot in self.world.device(name)["slots"] if wanted.items() <= slot.items()), {}),
            timeout_s=60,
            what=f"{version} in the active slot of {name}",
        )

    def status(self, name: str) -> dict[str, Any]:
        """What the agent says of itself on its own machine."""
        text = self.world.children.run(f"{name}-status", "agent.cli", "status", "--json", "--config", str(self.world.agents[name].config))
        return dict(json.loads(text))

    def inferred(self, name: str) -> int:
        """Frames that the device inferred in its last telemetry window."""
        return int(sum(one["inferred"] for one in self.status(name)["pipelines"]))

    def stored_rows(self, name: str) -> int:
        """Events of the device that the server has not acknowledged as stored."""
        return int(self.status(name)["outbox"]["by_stream"].get("event", 0))

    def missing_events(self, name: str) -> set[int]:
        """Numbers of events that the server should have and has not."""
        rows = self.world.people["operator"].get(f"/devices/{name}/events", limit=500)["items"]
        numbers = {int(row["body"]["seq"]) for row in rows}
        return set(range(min(numbers), max(numbers) + 1)) - numbers if numbers else {-1}

    def accuracy(self, version: str) -> dict[str, float]:
        """Per device the share of right answers of that release over the frames of its video, as the devices publish them."""
        right: dict[str, dict[int, bool]] = {name: {} for name in self.world.agents}

        def enough() -> bool:
            for name, seen in right.items():
                truth = self.truth[name]
                for answer in self.world.people["operator"].get(f"/devices/{name}/predictions").get("front", []):
                    if answer["release"] == version and answer["top"] and answer["frame"] < len(truth):
                        seen[answer["frame"]] = answer["top"][0]["index"] == truth[answer["frame"]]
            return all(len(seen) >= ACCURACY_SHARE * len(self.truth[name]) for name, seen in right.items())

        self.world.await_(enough, timeout_s=90, what="predictions of most frames")
        return {name: sum(seen.values()) / len(seen) for name, seen in right.items()}


def make_videos(folder: Path, names: list[str], *, seconds: float = VIDEO_SECONDS) -> tuple[dict[str, Path], dict[str, tuple[int, ...]]]:
    """An encoded video of held-out scans per agent, and which digit each of its frames shows."""
    from examples.digits.video import make_video

    videos, truth = {}, {}
    for index, name in enumerate(names):
        videos[name] = folder / f"{name}.mp4"
        truth[name] = make_video(videos[name], fps=FPS, frames=int(seconds * FPS), frames_per_scan=FRAMES_PER_SCAN, seed=100 + index).digits
    return videos, truth


def shares(values: Mapping[str, float]) -> str:
    """Percentages by name."""
    return ", ".join(f"{name} {value:.0%}" for name, value in values.items())


def say(text: str) -> None:
    """A step of the story."""
    print(f"\n▸ {text}  [{time.monotonic() - _STARTED:.0f} s]", flush=True)


def stay(stop: threading.Event, check: Callable[[], None]) -> None:
    """Wait for Ctrl-C while the processes run. Raises: RuntimeError when one ends."""
    while not stop.wait(1.0):
        check()
