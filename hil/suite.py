"""The suite: boot to first inference, update, power cuts inside updates, throughput; against one board and a server of this machine."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from examples.demo.scenario import DIGITS, LINE
from examples.demo.world import World
from examples.digits.video import make_video
from hil.board import Board, BoardError, Installation
from protocol.errors import MooringError

T = TypeVar("T")
DEVICE, GROUP = "board-1", "default"
SLOW, FAST = "slow.mp4", "fast.mp4"
#: Frames a second of the two videos: what a camera gives, and more than a board can take.
SLOW_FPS, FAST_FPS = 15.0, 240.0
SETTINGS = "[update]\nmin_inferences = 20\nmin_seconds = 1.0\nlatency_noise_ms = 1000.0\n[telemetry]\nperf_s = 1.0\nsys_s = 1.0\n"
VERSIONS = ("1.0", "1.1")
#: In which states of an update the power is cut, one update each; and how long one may take in all, seconds.
CUT_STATES = ("installing", "probing", "downloading")
#: How many cuts, in these states in turn.
CUTS = int(os.environ.get("MOORING_TEST_HIL_CUTS", str(len(CUT_STATES))))
OPEN_STATES = {"downloading", "verifying", "installing", "waiting", "activating", "probing", "committing", "rolling_back"}
TIMEOUT_S = 180.0
#: Windows of a second over which throughput is measured.
THROUGHPUT_WINDOWS = 8
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check saw."""

    check: str
    held: bool
    seen: str
    seconds: float


@dataclass
class Suite:
    """The checks on one board, in order: each builds on those before."""

    board: Board
    world: World
    device_type: str
    media: Path
    outcomes: list[Outcome] = field(default_factory=list)
    _pause: threading.Event = field(default_factory=threading.Event)

    def run(self, checks: Sequence[str] = ()) -> list[Outcome]:
        """All checks, or those named (and what they need before them); what failed is an outcome, never an exception of the board's."""
        known: dict[str, Callable[[], str]] = {
            "boot": self.boot,
            "update": self.update,
            "power-cut": self.power_cuts,
            "throughput": self.throughput,
        }
        for name, check in known.items():
            if checks and name not in checks and name != "boot":
                continue
            began = time.monotonic()
            try:
                seen, held = check(), True
            except (BoardError, MooringError, RuntimeError) as error:
                seen, held = f"{error}\n{self.board.log()}", False
            self.outcomes.append(Outcome(name, held, seen, time.monotonic() - began))
            if name == "boot" and not held:
                break
        return self.outcomes

    # --- checks: each returns what it saw, or raises ---

    def boot(self) -> str:
        """Enroll, bring the first release, then start from nothing: seconds until the first inference."""
        self._prepare()
        self.board.boot()
        self._await(self.board.status, "the agent to answer")
        self._update_to(VERSIONS[0])
        self.board.power_cut()
        began = time.monotonic()
        self.board.boot()
        self._await(lambda: self._inferred() > 0, "the first inference")
        return f"{time.monotonic() - began:.1f} s to the first inference in telemetry"

    def update(self) -> str:
        """Bring the next release; active, committed and whole."""
        began = time.monotonic()
        self._update_to(VERSIONS[1])
        return f"{VERSIONS[1]} in slot {self._active()['slot']} after {time.monotonic() - began:.1f} s"

    def power_cuts(self) -> str:
        """Cut the power in several states of an update: the active slot is whole each time, and the update ends well."""
        seen: list[str] = []
        for number, wanted in zip(range(CUTS), itertools.cycle(CUT_STATES), strict=False):
            version = VERSIONS[number % len(VERSIONS)]
            campaign = self.world.campaign(LINE, version, group=GROUP, min_inferences=20)
            seen.append(self._await(partial(self._state_for, wanted), f"an open update ({wanted})"))
            self.board.power_cut()
            self._check_whole()
            self.board.boot()
            self._await_updated(campaign, version)
            self._check_whole()
        counts = ", ".join(f"{state} ({seen.count(state)})" for state in sorted(set(seen)))
        return f"{len(seen)} cuts, in {counts}: slots whole, updates ended well"

    def throughput(self) -> str:
        """Frames a second that the board infers when there are more than it can take."""
        self._set_source(FAST)
        rates: list[float] = []
        last: float = -1.0
        while len(rates) < THROUGHPUT_WINDOWS:
            last, fps = self._await(partial(self._new_window, last), "a window of telemetry")
            rates.append(fps)
        self._set_source(SLOW)
        rates.sort()
        return f"{rates[len(rates) // 2]:.0f} frames/s (median of {len(rates)} windows of 1 s; the video has {FAST_FPS:g})"

    # --- steps ---

    def _prepare(self) -> None:
        for name, fps in ((SLOW, SLOW_FPS), (FAST, FAST_FPS)):
            make_video(self.media / name, fps=fps, frames=int(fps * 10), frames_per_scan=max(1, int(fps / 2)))
        self.world.ensure_device_type(self.device_type)
        for version in VERSIONS:
            folder = DIGITS / "models" / version / "tflite"
            made = self.world.import_model(
                folder / "model.tflite", DIGITS / "tflite.toml", name="digits-tflite", golden=folder / "golden.cbor"
            )
            self.world.release(LINE, version, {made: [self.device_type]})
        body = {"group": GROUP, "device_type": self.device_type, "device": DEVICE, "reason": "hil"}
        token = str(self.world.people["admin"].send("POST", "/invites", body)["token"])
        ports = self.world.ports
        media = (self.media / SLOW, self.media / FAST)
        self.board.install(Installation(DEVICE, self.device_type, token, ports.device, ports.broker, SETTINGS, media))
        self._set_source(SLOW)

    def _set_source(self, name: str) -> None:
        source = {"kind": "video", "path": self.board.media_path(name), "loop": True}
        self.world.set_pipelines(DEVICE, [{"name": "front", "line": LINE, "source": source}])

    def _update_to(self, version: str) -> None:
        self._await_updated(self.world.campaign(LINE, version, group=GROUP, min_inferences=20), version)
        self._check_whole()

    def _await_updated(self, campaign: str, version: str) -> None:
        update = self._await(
            lambda: next(
                (one for one in self.world.updates_of(campaign).values() if one["state"] in {"updated", "failed", "timed-out"}), None
            ),
            f"a verdict on {version}",
        )
        active = self._await(lambda: found if (found := self._active())["slot"] != "none" else None, "the agent to say what runs")
        if update["state"] != "updated" or active["release"] != version or not active["committed"]:
            raise BoardError(f"{version}: {update['state']} {update['reason']} {update['text']}; active is {active}")

    def _check_whole(self) -> None:
        damaged = self.board.damaged(LINE)
        if damaged:
            raise BoardError(f"Damaged in the slots of {LINE}: {', '.join(damaged)}")

    # --- looking ---

    def _status(self) -> dict[str, Any]:
        return self.board.status() or {"pipelines": [], "lines": [], "slots": [], "uptime_s": 0.0}

    def _inferred(self) -> int:
        return int(sum(one["inferred"] for one in self._status()["pipelines"]))

    def _new_window(self, last: float) -> tuple[float, float] | None:
        """Uptime and frames a second, a second after the window before."""
        status = self._status()
        rates = [one["fps"] for one in status["pipelines"] if one["fps"]]
        return (status["uptime_s"], rates[0]) if rates and status["uptime_s"] >= last + 1.0 else None

    def _active(self) -> dict[str, Any]:
        none = {"slot": "none", "release": "", "committed": False}
        return next((one for one in self._status()["slots"] if one["active"]), none)

    def _state_for(self, wanted: str) -> str | None:
        """The state of the update, once it is the wanted one or, when that was too short to be seen, a later one."""
        state = next((str(one["state"]) for one in self._status()["lines"] if one["line"] == LINE), "")
        order = sorted(OPEN_STATES, key=_order)
        return state if state in OPEN_STATES and order.index(state) >= order.index(wanted) else None

    def _await(self, predicate: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            self.world.children.check()
            value = predicate()
            if value:
                return value
            if time.monotonic() > deadline:
                raise BoardError(f"Waited {TIMEOUT_S:g} s for {what}.")
            self._pause.wait(LOOK_S)


def _order(state: str) -> int:
    return ("downloading", "verifying", "installing", "waiting", "activating", "probing", "committing", "rolling_back").index(state)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes for people."""
    rows = [f"{'check':<12}{'held':<6}{'seconds':>8}  seen"]
    return "\n".join(
        rows + [f"{one.check:<12}{'yes' if one.held else 'NO':<6}{one.seconds:>8.1f}  {one.seen.splitlines()[0]}" for one in outcomes]
    )
