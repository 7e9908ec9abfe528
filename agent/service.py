"""The device's control process: starts its parts (`agent/wiring.py`), keeps them going, and brings what they say together in one loop.

Threads: this control loop; the uplink; the update machine, its poller and the reporter; the handle on the inference process; the
control socket. They meet in the store. The loop never waits for a camera, a network or a model: what is missing is a condition.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from agent.conditions import KINDS
from agent.config import AgentConfig
from agent.control import Command, ControlServer
from agent.events.bodies import prediction_body
from agent.importing import Importer, ImportState, sole_use
from agent.inference.messages import Prediction
from agent.leftovers import Leftovers
from agent.notify import Notifier
from agent.telling import Telling
from agent.wiring import Joined, Parts
from protocol.clock import Clock, SystemClock
from protocol.errors import DeviceError
from protocol.ids import LineName, check_name
from protocol.messages import ClockState, RuntimeInfo

log = logging.getLogger("mooring.service")

#: Pause of the control loop in seconds of system time: short enough for events to feel live, 10 wake-ups a second at most.
TICK_S = 0.1
#: Ticks between two looks for an identity while the device is not enrolled.
ENROLLMENT_LOOK_TICKS = 10
#: Seconds of system time before a thread that failed starts again.
THREAD_PAUSE_S = 5.0
#: Condition of trouble with the store, by error code.
_STORE_CONDITIONS = {"disk-full": "disk_full", "store-failed": "store_failed"}


class Service:
    """The agent on one state folder. `run` returns when `stop` is called, or when an identity appeared and all is to be wired anew."""

    def __init__(self, config: AgentConfig, *, clock: Clock, version: str, probe: Callable[[], list[RuntimeInfo]]) -> None:
        """Open the store. Raises: DeviceError when there is no place for it."""
        self._stop, self._ticks = threading.Event(), 0
        self._notifier, self._threads = Notifier(), Threads(self._stop)
        self.parts = Parts(config, clock=clock, version=version, probe=probe, stop=self._stop)
        self._leftovers = Leftovers(SystemClock().monotonic)
        #: Held while what is in force becomes another: the status is asked for by other threads.
        self._configuring = threading.RLock()
        self._telling = Telling(self.parts, self._configuring)
        commands: dict[str, Command] = {
            "status": self.status,
            "conditions": self.parts.condition_rows,
            "outbox": self._telling.outbox,
            "drift": self.parts.drift.figures,
            "consent": self._take_consent,
            "import": self._import_stick,
            "import-status": self._import_status,
            "snapshot": self.parts.pictures.take,
        }
        self._control = ControlServer(config.control_socket, commands)

    def run(self) -> None:
        """Run until the end is asked for. Raises: DeviceError when another agent runs on the same folders."""
        parts = self.parts
        with ExitStack() as stack:
            stack.callback(parts.store.close)
            self._control.start()
            stack.callback(self._control.stop)
            stack.enter_context(sole_use(parts.config.state_dir, stop=self._stop))  # an import that began before goes first
            if parts.store.moved_aside is not None:
                parts.conditions.set("outbox_recreated", f"The unreadable file lies at {parts.store.moved_aside}.")
            self._start_models(stack)
            stack.callback(self._end_threads)
            self._start_updates()
            if parts.joined is not None:
                self._start_joined(parts.joined, stack)
            self._notifier.ready()
            log.info("service.ready epoch=%s state=%s", parts.store.epoch, parts.config.state_dir)
            while not self._stop.wait(TICK_S):
                self._tick()
            self._notifier.stopping()
            with suppress(DeviceError):
                parts.budgets.keep()
            parts.keep(parts.predictions.close())

    def stop(self) -> None:
        """Ask for the end; may be called from any thread and from a signal handler."""
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """What `mooring-agent status` shows."""
        return self._telling.status()

    def import_stopped(self, folder: Path) -> ImportState:
        """Take a stick over while the agent is not to run: what it assigns is installed at the next start. Raises: DeviceError."""
        try:
            importer = self._importer()
            self.parts.runtimes.learn(self._stop)
            return importer.take(folder)
        finally:
            self.parts.store.close()

    # --- start and end ---

    def _start_models(self, stack: ExitStack) -> None:
        """The processes that run models; what is stopped first stands last."""
        parts = self.parts
        parts.inference.start()
        stack.callback(parts.drift.stop)
        stack.callback(parts.inference.stop)
        stack.callback(lambda: parts.keep(parts.comparing.stop(source=parts.source)))
        if parts.serving is not None:
            parts.serving.start()
            stack.callback(parts.serving.stop)

    def _start_updates(self) -> None:
        parts = self.parts
        if parts.joined is not None:
            with suppress(OSError):  # of the disk, which the update machine meets and tells
                parts.joined.importer.tidy()
        self._threads.start("update", parts.machine.run)
        self._threads.start("candidates", parts.candidates.machine.run)
        self._threads.start("probe", parts.runtimes.learn)

    def _start_joined(self, joined: Joined, stack: ExitStack) -> None:
        joined.uplink.start()
        stack.callback(joined.uplink.stop)
        if joined.configuration.is_lost:
            joined.poller.forget()
        self._threads.start("poller", joined.poller.run)
        self._threads.start("configuration", self.parts.bring_configuration)
        self._threads.start("reporter", joined.reporter.run)

    def _end_threads(self) -> None:
        """Wake whoever waits, so that each sees the end."""
        self._stop.set()
        self.parts.machine.wake()
        self.parts.candidates.machine.wake()
        if (joined := self.parts.joined) is not None:
            joined.configuration.wake()
            joined.poller.hint()
            joined.reporter.request("")
            joined.importer.join()  # not for ever: a stick may hang
        self._threads.join()

    # --- the control loop ---

    def _tick(self) -> None:
        self._ticks += 1
        parts = self.parts
        if parts.joined is None and self._ticks % ENROLLMENT_LOOK_TICKS == 0 and parts.find_identity() is not None:
            self.stop()  # to be wired anew, with the identity
        with suppress(DeviceError):  # of the store, which remembers it as its trouble: `_watch` tells
            with self._configuring:  # who asks meanwhile hears of both or of neither
                if parts.joined is not None and parts.joined.trials.tick():
                    self._telling.tell_settings()
                self._apply_desired()
            self._take_predictions()
            parts.keep(parts.measuring.tick(parts.twin.in_force.config.telemetry, parts.config.state_dir))
            self._compare()
            self._watch_drift()
        self._watch()
        parts.keep(self._telling.tick())
        self._notifier.alive(self._telling.in_words())
        self._leftovers.tend()

    def _apply_desired(self) -> None:
        """Bring the parts in line with what is in force from now on."""
        parts = self.parts
        signed = parts.joined.configuration.in_force if parts.joined is not None else None
        before = parts.twin.in_force.config
        if (found := parts.twin.apply(signed)) is None:
            return
        if found.config.log_level != before.log_level:
            logging.getLogger().setLevel(found.config.log_level.upper())
        parts.budgets.limits = found.config.budget
        if found.config.update != before.update:
            parts.policy.replace(found.config.update)
        parts.keep(parts.predictions.watch(found.config.pipelines, found.config.update.time_zone))
        parts.inference.configure([one.for_inference() for one in found.pipelines])
        with suppress(DeviceError):  # of the store, told by `_watch`
            parts.drift.configure(found.config.drift, found.config.pipelines)
        text = "; ".join(f"{key}: {why}" for key, why in sorted(found.errors.items()))
        parts.conditions.replace("desired", [("desired_invalid", text[:2000], "")] if text else [])
        self._telling.tell_settings()

    def _take_predictions(self) -> None:
        """Keep what comes of the predictions that wait, and offer them to whoever listens now."""
        parts = self.parts
        parts.keep(parts.predictions.tick(compare=parts.comparing.observe, offer=self._offer))

    def _offer(self, prediction: Prediction) -> None:
        parts = self.parts
        if parts.joined is not None and not parts.budgets.is_frugal:
            body = {**parts.store.envelope(), "ts": prediction.at_ms, **prediction_body(prediction)}
            parts.joined.uplink.offer("inf", (prediction.pipeline,), body)

    def _compare(self) -> None:
        """Run the candidates that are assigned beside what their lines have; what came of it is told."""
        parts = self.parts
        may_act = parts.policy.config.consent == "none"
        with suppress(OSError):  # of a disk that does not answer: the next look finds the candidates again
            parts.keep(parts.comparing.tick(parts.twin.in_force.config.pipelines, source=parts.source, may_act=may_act))
        parts.conditions.replace("candidates", parts.comparing.conditions())

    def _watch_drift(self) -> None:
        """Count the rows that came, judge and send what is due."""
        self.parts.drift.tick(is_clock_set=self.parts.store.clock_state is ClockState.OK)
        self.parts.inference.sample_rows(self.parts.drift.steps())

    def _watch(self) -> None:
        """Turn what the parts found wrong into declared conditions."""
        parts, replace = self.parts, self.parts.conditions.replace
        replace("inference", [(one.code, one.text, one.subject) for one in parts.inference.findings() if one.code in KINDS])
        replace("serving", parts.serving.findings() if parts.serving else [])
        replace("drift", parts.drift.findings())
        replace("update", [(one.code, one.text, line) for line, one in parts.machine.problems().items() if one.code in KINDS])
        trouble = parts.store.trouble
        replace("store", [] if trouble is None else [(_STORE_CONDITIONS[trouble.code], str(trouble), "")])
        now, floor = parts.clock.now(), parts.time_floor()
        text = f"The clock shows {now:%Y-%m-%d}; it is at least {floor:%Y-%m-%d}."
        replace("clock", [("clock_unset", text, "")] if now < floor else [])
        parts.store.clock_state = ClockState.UNSET if now < floor else ClockState.OK

    # --- what somebody at the device asks for ---

    def _take_consent(self, line: str, *, given: bool) -> dict[str, Any]:
        """What somebody on this device says about the release that the line is getting."""
        offer = self.parts.machine.consent(LineName(check_name(str(line), what="Line")), is_given=given is True)
        log.info("update.consent line=%s release=%s assignment=%s given=%s", line, offer.release, offer.assignment, given is True)
        return {"line": line, "release": offer.release, "assignment": offer.assignment, "given": given is True}

    def _import_stick(self, folder: str) -> dict[str, Any]:
        return self._importer().start(folder)

    def _import_status(self) -> dict[str, Any]:
        return self._importer().status()

    def _importer(self) -> Importer:
        if self.parts.joined is None:
            raise DeviceError("This device is not enrolled.", code="not-enrolled")
        return self.parts.joined.importer


class Threads:
    """They go on until `stop` is set; whoever waits must be woken by then. What ends one unexpectedly is logged, and it starts again."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._threads = stop, list[threading.Thread]()

    def start(self, name: str, run: Callable[[threading.Event], None]) -> None:
        """Run it on a thread of its own; it returns once the event it is given is set."""
        thread = threading.Thread(target=self._keep_running, args=(name, run), name=name)
        thread.start()
        self._threads.append(thread)

    def join(self) -> None:
        """Wait for the end of all."""
        for thread in self._threads:
            thread.join()

    def _keep_running(self, name: str, run: Callable[[threading.Event], None]) -> None:
        """The outermost loop of a thread; what it starts again goes on from what the store remembers."""
        while not self._stop.is_set():
            try:
                run(self._stop)
            except Exception:
                log.exception("service.thread-failed name=%s", name)
                self._stop.wait(THREAD_PAUSE_S)
            else:
                return
