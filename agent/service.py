"""The device's control process: wires sources, models, outbox, uplink and updates together, and keeps them going.

Threads: this control loop; the uplink; the update machine, its poller and the reporter; the handle on the inference process; the
control socket. They meet in the store. The loop never waits for a camera, a network or a model: what is missing is a condition.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agent.budgets import Budgets
from agent.comparing import Comparing
from agent.conditions import KINDS, Conditions
from agent.config import AgentConfig, Keep, PipelineConfig
from agent.configuration import ConfigurationOffer, LineCounts, Observed, SignedConfiguration, TrialRules
from agent.control import Command, ControlServer
from agent.database.outbox import Draft, OutboxCounts
from agent.drift.desk import DriftDesk
from agent.events.bodies import event_body, prediction_body
from agent.events.detector import EventDetector
from agent.identity import Identity, describe_hardware, load_identity, open_client, read_answer
from agent.importing import Importer, ImportState, sole_use
from agent.inference.messages import PipelineStats, Prediction
from agent.inference.process import InferenceProcess
from agent.inference.snapshots import Snapshots
from agent.notify import Notifier
from agent.reporting import CANDIDATE, Reporter, configuration_body, find_conflicts, info_body, model_body, reported_body
from agent.serving.messages import Task
from agent.serving.process import ServingProcess
from agent.serving.windows import ServingWindows
from agent.slots import Slots
from agent.store import Store
from agent.telemetry import UnitMeter, merge_windows, perf_drafts, read_machine, read_temperature_c, sys_draft
from agent.traffic import Traffic
from agent.twin import Twin
from agent.update.applier import ChildApplier
from agent.update.bandwidth import TokenBucket
from agent.update.bundle import CANDIDATE_DOWNLOADS, DOWNLOADS, find_imported
from agent.update.candidates import Candidates, CandidateStore
from agent.update.check import CheckWish
from agent.update.fetch import Downloads
from agent.update.installers import ModelInstaller
from agent.update.journal import JournalStore
from agent.update.machine import UpdateMachine
from agent.update.policy import Consents, UpdatePolicy
from agent.update.poller import CheckState, Poller, run_child, run_stick_child
from agent.update.probe import ProbeRules
from agent.update.site_time import SiteTime
from agent.update.store import UpdateStore
from agent.uplink import Inbox, Uplink
from protocol.clock import Clock, SystemClock, from_unix_ms, to_unix_ms
from protocol.errors import DeviceError, InvalidError, TrustError
from protocol.ids import LineName, check_name
from protocol.messages import ClockState, Desired, LineState, RuntimeInfo
from protocol.snapshots import SnapshotRequest

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("mooring.service")

#: Pause of the control loop in seconds of system time: short enough for events to feel live, 10 wake-ups a second at most.
TICK_S = 0.1
#: Predictions that wait for the control loop; more are lost, counted.
MAX_PREDICTIONS = 4096
#: Ticks between two looks for an identity while the device is not enrolled.
ENROLLMENT_LOOK_TICKS = 10
#: A pipeline infers when its last prediction is not older, in seconds of the agent's clock.
FLOWING_S = 60.0
#: Ticks between two messages that prove the link under a trial.
PROOF_TICKS = 20
#: Seconds of system time before a thread that failed starts again.
THREAD_PAUSE_S = 5.0
#: No device of this code runs earlier, in Unix milliseconds: an earlier clock is not set.
BUILD_TIME_MS = 1_772_323_200_000
#: Condition of trouble with the store, by error code.
_STORE_CONDITIONS = {"disk-full": "disk_full", "store-failed": "store_failed"}
#: Type of the event that tells that somebody looked.
PREVIEW_TAKEN = "mooring.preview.taken.v1"
#: States of an update that ended without success.
_BAD_ENDS = frozenset({"failed", "rolled_back", "inconsistent"})
#: Which model files a back end reads (`runtime.base.BACKENDS_OF_FORMAT`, which would bring numpy along).
_FILE_KINDS = {"litert": "tflite", "tflite": "tflite", "onnx": "onnx"}


@dataclass(frozen=True, slots=True)
class Joined:
    """What runs only on an enrolled device."""

    identity: Identity
    uplink: Uplink
    poller: Poller
    reporter: Reporter
    importer: Importer


@dataclass(slots=True)
class Windows:
    """When the telemetry windows began, in seconds of the agent's clock, and which pipelines watch for events."""

    perf_at: float
    sys_at: float
    meter: UnitMeter = field(default_factory=UnitMeter)
    detectors: dict[str, EventDetector] = field(default_factory=dict)
    #: Rows given up when the last window ended.
    lost: int = 0


@dataclass(slots=True)
class Flow:
    """Predictions per pipeline since the start, when the last one came, and when the broker last acknowledged; the agent's clock."""

    counts: dict[str, int] = field(default_factory=dict)
    last_s: dict[str, float] = field(default_factory=dict)
    sent_ms: int | None = None
    proved_s: float | None = None


class Service:
    """The agent on one state folder. `run` returns when `stop` is called, or when an identity appeared and all is to be wired anew."""

    def __init__(self, config: AgentConfig, *, clock: Clock, version: str, probe: Callable[[], list[RuntimeInfo]]) -> None:
        """Open the store. Raises: DeviceError when there is no place for it."""
        self._local, self._clock, self._version, self._probe = config, clock, version, probe
        self._stop, self._ticks, self._started = threading.Event(), 0, clock.monotonic()
        self._notifier = Notifier()
        self.conditions = Conditions(clock)
        self.store = Store(config.store_path, clock=clock, budget_mb=config.outbox.budget_mb, merge=merge_windows)
        self._predictions, self._lost_predictions = deque[Prediction](), 0
        self._changed_lines, self._told_conditions = set[str](), -1
        self._reported_lines: dict[str, LineState] = {}
        self._stats: list[PipelineStats] = []
        self._runtimes: list[RuntimeInfo] | None = None
        self._hardware, self._told_info = describe_hardware(), dict[str, Any]()
        self.traffic = Traffic()
        self.budgets = Budgets(load=self.store.get_value, save=self.store.set_value, clock=clock, limits=config.budget)
        self._windows = Windows(clock.monotonic(), clock.monotonic())
        self._threads: list[threading.Thread] = []
        identity = self._find_identity()
        self._twin = Twin(self.store, config, identity)
        self._flow, self._told_configuration = Flow(), -1
        self._told_drift = -1
        #: Held while what is in force becomes another: the status is asked for by other threads.
        self._configuring = threading.RLock()
        self.configuration = self._open_configuration(identity)
        self._device_type = config.device_type or (identity.enrollment.device_type if identity else "")
        slots, beside = Slots(config.slots_dir), Slots(config.candidates_dir)
        self.drift = DriftDesk(
            self.store,
            clock=clock,
            device=identity.device if identity else "",
            source=_source_of(identity),
            has_profile=partial(_has_profile, slots),
        )
        self.inference = InferenceProcess(
            runtime=config.runtime,
            clock=clock,
            on_prediction=self._take_prediction,
            on_row=self.drift.add,
            records_dir=config.state_dir / "probe",
        )
        self.snapshots = Snapshots(self.inference.snapshot, pipelines=lambda: self._twin.in_force.config.pipelines, clock=SystemClock())
        task = Task(
            serving=config.serving,
            runtime=config.runtime,
            slots_dir=config.slots_dir,
            records_dir=config.state_dir / "probe",
            version=version,
        )
        self.serving, self._served = ServingProcess(task) if config.serving.listen else None, ServingWindows()
        #: The settings `update` in force; `replace` changes them while all runs.
        self._site_time = SiteTime(clock, floor=self._time_floor)
        self.policy = UpdatePolicy(config.update, Consents(self.store), site_time=self._site_time, on_change=self._on_policy_change)
        self._bucket = TokenBucket(config.update.bandwidth_kib_s * 1024, clock=SystemClock())  # bytes on a real link take real time
        self.machine = self._make_machine(identity, slots, beside, UpdateStore(self.store), DOWNLOADS, self._on_line_change)
        candidate_store = CandidateStore(self.store)
        machine = self._make_machine(identity, beside, slots, candidate_store, CANDIDATE_DOWNLOADS, self._on_candidate_change)
        self.candidates = Candidates(machine, beside, self.store, clock=clock, is_busy=self.machine.is_open, lines=slots)
        device = identity.device if identity else ""
        self.comparing = Comparing(
            self.candidates,
            self.inference,
            runtime=config.runtime,
            device=device,
            clock=clock,
            on_row=self.drift.add,
            row_step=self.drift.wished_step,
        )
        self._joined = None if identity is None else self._join(identity)
        commands: dict[str, Command] = {
            "status": self.status,
            "conditions": self.condition_rows,
            "outbox": self._outbox_figures,
            "drift": self.drift.figures,
            "consent": self._take_consent,
            "import": self._import_stick,
            "import-status": self._import_status,
            "snapshot": self._snapshot,
        }
        self._control = ControlServer(config.control_socket, commands)

    def run(self) -> None:
        """Run until the end is asked for. Raises: DeviceError when another agent runs on the same folders."""
        with ExitStack() as stack:
            stack.callback(self.store.close)
            self._control.start()
            stack.callback(self._control.stop)
            stack.enter_context(sole_use(self._local.state_dir, stop=self._stop))  # an import that began before goes first
            if self.store.moved_aside is not None:
                self.conditions.set("outbox_recreated", f"The unreadable file lies at {self.store.moved_aside}.")
            self.inference.start()
            stack.callback(self.drift.stop)
            stack.callback(self.inference.stop)
            stack.callback(lambda: self._keep(self.comparing.stop(source=self._source())))
            if self.serving is not None:
                self.serving.start()
                stack.callback(self.serving.stop)
            stack.callback(self._end_threads)
            if self._joined is not None:
                with suppress(OSError):  # of the disk, which the update machine meets and tells
                    self._joined.importer.tidy()
            self._start("update", self.machine.run)
            self._start("candidates", self.candidates.machine.run)
            self._start("probe", self._learn_runtimes)
            if self._joined is not None:
                self._joined.uplink.start()
                stack.callback(self._joined.uplink.stop)
                if self.configuration is not None and self.configuration.is_lost:
                    self._joined.poller.forget()
                self._start("poller", self._joined.poller.run)
                self._start("configuration", self._bring_configuration)
                self._start("reporter", self._joined.reporter.run)
            self._notifier.ready()
            log.info("service.ready epoch=%s state=%s", self.store.epoch, self._local.state_dir)
            while not self._stop.wait(TICK_S):
                self._tick()
            self._notifier.stopping()
            with suppress(DeviceError):
                self.budgets.keep()
            now_ms = to_unix_ms(self._clock.now())
            self._keep([draft for one in self._windows.detectors.values() for draft in one.close(now_ms, "stopped")])

    def stop(self) -> None:
        """Ask for the end; may be called from any thread and from a signal handler."""
        self._stop.set()

    # --- the control loop ---

    def _tick(self) -> None:
        self._ticks += 1
        if self._joined is None and self._ticks % ENROLLMENT_LOOK_TICKS == 0 and self._find_identity() is not None:
            self.stop()  # to be wired anew, with the identity
        with suppress(DeviceError):  # of the store, which remembers it as its trouble: `_watch` tells
            with self._configuring:  # who asks meanwhile hears of both or of neither
                self._try_configuration()
                self._apply_desired()
            self._take_predictions()
            self._send_windows()
            self._compare()
            self._watch_drift()
        self._watch()
        self._tell_states()
        self._notifier.alive(self._in_words())

    def _take_predictions(self) -> None:
        """Make events of the predictions, keep what the pipelines say, offer all to whoever listens now."""
        drafts: list[Draft] = []
        for _ in range(len(self._predictions)):
            prediction = self._predictions.popleft()
            self._flow.counts[prediction.pipeline] = self._flow.counts.get(prediction.pipeline, 0) + 1
            self._flow.last_s[prediction.pipeline] = self._clock.monotonic()
            self.comparing.observe(prediction)
            detector = self._windows.detectors.get(prediction.pipeline)
            if detector is None:
                continue
            drafts += detector.observe(prediction)
            if detector.config.keep is Keep.ALL:
                drafts.append(detector.record(prediction))
            if self._joined is not None and not self.budgets.is_frugal:
                body = {**self.store.envelope(), "ts": prediction.at_ms, **prediction_body(prediction)}
                self._joined.uplink.offer("inf", (prediction.pipeline,), body)
        now_ms = to_unix_ms(self._clock.now())
        for detector in self._windows.detectors.values():
            drafts += detector.rest(now_ms)
        self._keep(drafts)

    def _detect_events(self, wanted: Sequence[PipelineConfig], time_zone: str) -> None:
        """Watch these pipelines from now on. Those that stay as they are go on; what lasts on the others ends."""
        old, source, now_ms = self._windows.detectors, self._source(), to_unix_ms(self._clock.now())
        kept = {name: one for name, one in old.items() if one.config in wanted and one.time_zone == time_zone}
        self._windows.detectors = {
            one.name: kept.get(one.name) or EventDetector(one, source, time_zone=time_zone, site_time=self._site_time) for one in wanted
        }
        self._keep([draft for name, one in old.items() if name not in kept for draft in one.close(now_ms, "configuration")])

    def _compare(self) -> None:
        """Run the candidates that are assigned beside what their lines have; what came of it is told."""
        may_act = self.policy.config.consent == "none"
        with suppress(OSError):  # of a disk that does not answer: the next look finds the candidates again
            self._keep(self.comparing.tick(self._twin.in_force.config.pipelines, source=self._source(), may_act=may_act))
        self.conditions.replace("candidates", self.comparing.conditions())

    def _watch_drift(self) -> None:
        """Count the rows that came, judge and send what is due."""
        self.drift.tick(is_clock_set=self.store.clock_state is ClockState.OK)
        self.inference.sample_rows(self.drift.steps())

    def _send_windows(self) -> None:
        now, drafts = self._clock.monotonic(), list[Draft]()
        window_s = now - self._windows.perf_at
        if window_s >= self._twin.in_force.config.telemetry.perf_s * self.budgets.stretch:
            self._windows.perf_at = now
            self._stats = self.inference.stats()
            drafts += perf_drafts(self._stats)
            drafts += self._served.drafts(self.serving.totals() if self.serving else [], window_s=window_s)
        window_s = now - self._windows.sys_at
        if window_s >= self._twin.in_force.config.telemetry.sys_s * self.budgets.stretch:
            self._windows.sys_at = now
            usage = self._windows.meter.measure(window_s / self._clock.speed)
            day = self._account(usage.written)
            machine = read_machine(self._local.state_dir)
            counts, ring_dropped = self.store.counts(), self._joined.uplink.ring_dropped if self._joined else 0
            drafts.append(sys_draft(window_s=window_s, usage=usage, machine=machine, counts=counts, ring_dropped=ring_dropped, day=day))
            self._watch_losses(counts)
        self._keep(drafts)

    def _account(self, written: int | None) -> dict[str, Any]:
        """Take in what was exchanged and written; returns the day's figures for `tel/sys`. Raises: DeviceError of the store."""
        sent, received = self.traffic.totals()
        is_time_known = self.store.clock_state is ClockState.OK
        self.budgets.observe(sent=sent, received=received, written=written, is_time_known=is_time_known)
        self.conditions.replace("budgets", self.budgets.findings())
        today = self.budgets.today
        return {"day_sent": today.sent, "day_received": today.received, "day_written": None if written is None else today.written}

    def _watch_losses(self, counts: OutboxCounts) -> None:
        """What was given up since the window before is a condition until a window passes without loss."""
        lost = sum(counts.dropped.values())
        before, self._windows.lost = self._windows.lost, lost
        text = f"{lost} rows were given up so far: {', '.join(f'{rows} {kind}' for kind, rows in sorted(counts.dropped.items()))}."
        found = [("outbox_dropping", text, "")] if lost > before else []
        predictions, self._lost_predictions = self._lost_predictions, 0
        found += [("predictions_lost", f"{predictions} predictions found no room.", "")] if predictions else []
        self.conditions.replace("losses", found)

    def _watch(self) -> None:
        """Turn what the parts found wrong into declared conditions."""
        findings = [(one.code, one.text, one.subject) for one in self.inference.findings() if one.code in KINDS]
        self.conditions.replace("inference", findings)
        self.conditions.replace("serving", self.serving.findings() if self.serving else [])
        self.conditions.replace("drift", self.drift.findings())
        problems = [(one.code, one.text, line) for line, one in self.machine.problems().items() if one.code in KINDS]
        self.conditions.replace("update", problems)
        trouble = self.store.trouble
        self.conditions.replace("store", [] if trouble is None else [(_STORE_CONDITIONS[trouble.code], str(trouble), "")])
        floor = self._time_floor()
        is_unset = self._clock.now() < floor
        text = f"The clock shows {self._clock.now():%Y-%m-%d}; it is at least {floor:%Y-%m-%d}."
        self.conditions.replace("clock", [("clock_unset", text, "")] if is_unset else [])
        self.store.clock_state = ClockState.UNSET if is_unset else ClockState.OK

    def _tell_states(self) -> None:
        """Put changed states into the outbox; the newest of each is all that counts."""
        drafts = []
        changed, self._changed_lines = self._changed_lines, set()
        if changed:
            drafts.append(Draft("model", (), model_body(self.machine)))
        if self.conditions.revision != self._told_conditions:
            self._told_conditions = self.conditions.revision
            told, signed = self._twin.in_force, self._configuration_body()
            active = self.conditions.active()
            body = reported_body(desired_rev=told.rev, config=told.config, errors=told.errors, conditions=active, configuration=signed)
            drafts.append(Draft("reported", (), body))
        if self.drift.revision != self._told_drift:
            self._told_drift = self.drift.revision
            drafts.append(Draft("drift", (), self.drift.body()))
        if (info := self._info()) != self._told_info:
            self._told_info = info
            drafts.append(Draft("info", (), info))
        self._keep(drafts)

    def _keep(self, drafts: Sequence[Draft]) -> None:
        """Store the rows. A disk that does not take them is a condition (`_watch`); the store counts them as lost."""
        if drafts:
            with suppress(DeviceError):
                self.store.add_all(drafts)

    # --- the twin ---

    def _take_desired(self, desired: Desired) -> None:
        for consent in desired.consents:
            self.machine.hear_consent(LineName(consent.line), consent.assignment, is_given=consent.given)
        if self._twin.take(desired) and self._joined is not None:
            hint = desired.manifest
            self._joined.poller.hint(spread_s=hint.spread_s if hint else 0.0, about=hint.sha256 if hint else "")

    def _apply_desired(self) -> None:
        signed = self.configuration.in_force if self.configuration is not None else None
        before = self._twin.in_force.config
        if (found := self._twin.apply(signed)) is None:
            return
        if found.config.log_level != before.log_level:
            logging.getLogger().setLevel(found.config.log_level.upper())
        self.budgets.limits = found.config.budget
        if found.config.update != before.update:
            self.policy.replace(found.config.update)
        self._detect_events(found.config.pipelines, found.config.update.time_zone)
        self.inference.configure([one.for_inference() for one in found.pipelines])
        with suppress(DeviceError):  # of the store, told by `_watch`
            self.drift.configure(found.config.drift, found.config.pipelines)
        text = "; ".join(f"{key}: {why}" for key, why in sorted(found.errors.items()))
        self.conditions.replace("desired", [("desired_invalid", text[:2000], "")] if text else [])
        self._told_conditions = -1

    # --- signed configuration ---

    def _open_configuration(self, identity: Identity | None) -> SignedConfiguration | None:
        if identity is None:
            return None
        wished = self._local.configuration
        rules = TrialRules(settle_s=wished.settle_s, trial_s=max(wished.trial_s, wished.settle_s))
        folder = self._local.state_dir / "configuration"
        return SignedConfiguration(folder, clock=self._clock, tenant=identity.tenant, device=identity.device, rules=rules)

    def _bring_configuration(self, stop: threading.Event) -> None:
        if self.configuration is not None:
            self.configuration.run(stop, self._fetch_configuration)

    def _fetch_configuration(self, offer: ConfigurationOffer) -> bytes:
        if (brought := find_imported(self._local.state_dir, offer)) is not None:
            return brought
        identity = self._joined.identity if self._joined else None
        with self._open_client(identity) as client:
            return read_answer(client, "GET", offer.url, limit=offer.length)

    def _try_configuration(self) -> None:
        """Begin, keep or end the trial of a configuration; what is new is told."""
        keeper = self.configuration
        if keeper is None:
            return
        observed = self._observe() if keeper.is_busy else None
        if observed is not None:
            trouble = ""
            try:
                keeper.tick(observed)
            except DeviceError as error:  # nothing moved; once more with the next tick
                trouble = str(error)
            self.conditions.replace("configuration disk", [("configuration_waits", trouble, "")] if trouble else [])
        is_proof_due = observed is not None and self._ticks % PROOF_TICKS == 0 and keeper.wants_proof(observed)
        if keeper.told != self._told_configuration or is_proof_due:
            self._told_configuration, self._told_conditions = keeper.told, -1
            returned = keeper.pointer.returned
            text = "" if returned is None else f"{returned.offer.group}/{returned.offer.rev}: {returned.reason}: {returned.text}"[:2000]
            self.conditions.replace("configuration", [("configuration_returned", text, "")] if text else [])
            self.conditions.replace("configuration trouble", [("configuration_waits", keeper.trouble, "file")] if keeper.trouble else [])

    def _observe(self) -> Observed:
        now, flow, uplink = self._clock.monotonic(), self._flow, self._joined.uplink if self._joined else None
        if uplink is not None and uplink.last_sent_ms != flow.sent_ms:
            flow.sent_ms, flow.proved_s = uplink.last_sent_ms, now
        pipelines = self._twin.in_force.config.pipelines
        figures = {one.line: found for one in pipelines if (found := self.inference.figures(one.line)) is not None}
        return Observed(
            now_s=now,
            is_connected=bool(uplink and uplink.is_connected),
            proved_s=flow.proved_s,
            predictions=dict(flow.counts),
            max_fps={one.name: one.max_fps for one in pipelines},
            flowing=frozenset(name for name, at in flow.last_s.items() if now - at <= FLOWING_S),
            lines={line: LineCounts(found.inferences, found.errors, found.crashes) for line, found in figures.items()},
        )

    def _configuration_body(self) -> dict[str, Any] | None:
        keeper = self.configuration
        if keeper is None:
            return None
        with self._configuring:
            return configuration_body(keeper.pointer, keeper.in_force, self._twin.in_force)

    # --- what is said about this device ---

    def status(self) -> dict[str, Any]:
        """What `mooring-agent status` shows."""
        joined = self._joined
        return {
            "device": joined.identity.device if joined else None,
            "tenant": joined.identity.tenant if joined else None,
            "version": self._version,
            "uptime_s": round(self._clock.monotonic() - self._started, 1),
            "connected": bool(joined and joined.uplink.is_connected),
            "inference": self.inference.state.value,
            "desired_rev": self._twin.in_force.rev,
            "configuration": self._configuration_body(),
            "pipelines": [asdict(one) for one in self._stats],
            "lines": [self.machine.state_of(line).model_dump() for line in self.machine.lines()],
            "slots": [slot.model_dump() for slot in (*self.machine.slot_reports(), *self.candidates.slot_reports())],
            "candidates": self.candidates.rows(),
            "conditions": self.condition_rows(),
            "serving": self._serving_figures(),
            "drift": self.drift.figures(),
            "budget": self.budgets.figures(),
            "outbox": self._outbox_figures(),
            "reports_sent": joined.reporter.sent if joined else 0,
        }

    def condition_rows(self) -> list[dict[str, Any]]:
        """What is wrong now, worst first, each with what to do."""
        return [condition.report().model_dump() | {"advice": condition.advice} for condition in self.conditions.active()]

    def _serving_figures(self) -> dict[str, Any] | None:
        """None: nothing is to be served."""
        if self.serving is None:
            return None
        lines = [
            {"line": one.line, "release": one.release, "text": one.text, **one.counts(), "lat_ms_p99": one.percentile_ms(0.99)}
            for one in self.serving.totals()
        ]
        return {"address": self.serving.address, "lines": lines}

    def _outbox_figures(self) -> dict[str, Any]:
        ring_dropped = self._joined.uplink.ring_dropped if self._joined else 0
        return {"epoch": self.store.epoch, "ring_dropped": ring_dropped, **asdict(self.store.counts())}

    def _info(self) -> dict[str, Any]:
        return info_body(
            device_type=self._device_type or "unknown",
            hardware=self._hardware,
            agent_version=self._version,
            runtimes=self._runtimes or [],
            stats=self._stats,
        )

    def _in_words(self) -> str:
        active = self.conditions.active()
        link = "connected" if self._joined and self._joined.uplink.is_connected else "not connected"
        wrong = f"; {active[0].code}: {active[0].text[:80]}" if active else ""
        return f"{len(self._twin.in_force.config.pipelines)} pipelines, inference {self.inference.state.value}, {link}{wrong}"

    def _source(self) -> str:
        return _source_of(self._joined.identity if self._joined else None)

    def _time_floor(self) -> datetime:
        """It is not earlier than this."""
        check = self._joined.poller.state if self._joined else CheckState()
        return from_unix_ms(max(BUILD_TIME_MS, check.time_floor_ms))

    def _take_consent(self, line: str, *, given: bool) -> dict[str, Any]:
        """What somebody on this device says about the release that the line is getting."""
        offer = self.machine.consent(LineName(check_name(str(line), what="Line")), is_given=given is True)
        log.info("update.consent line=%s release=%s assignment=%s given=%s", line, offer.release, offer.assignment, given is True)
        return {"line": line, "release": offer.release, "assignment": offer.assignment, "given": given is True}

    # --- pictures ---

    def _snapshot(self, pipeline: str, *, by_server: bool = False) -> dict[str, Any]:
        """A picture of the pipeline, if it allows previews; that one was taken is told to the server, the picture is kept nowhere."""
        taken = self.snapshots.take(str(pipeline), with_zones=not by_server)  # the console draws them itself
        asked_by, size = "the server" if by_server else "somebody at the device", len(taken.picture())
        log.info("preview.taken pipeline=%s asked_by=%s bytes=%d", pipeline, asked_by, size)
        data = {"pipeline": pipeline, "asked_by": asked_by, "bytes": size}
        self._keep([Draft("event", (), event_body(PREVIEW_TAKEN, source=self._source(), data=data, subject=pipeline))])
        return taken.model_dump(mode="json")

    def _snapshot_for_server(self, args: dict[str, Any]) -> dict[str, Any]:
        try:
            request = SnapshotRequest.model_validate(args)
        except ValidationError as error:
            raise InvalidError(f"The request names no pipeline: {error.errors(include_url=False)[0]['msg']}.") from None
        return self._snapshot(request.pipeline, by_server=True)

    # --- sticks ---

    def _import_stick(self, folder: str) -> dict[str, Any]:
        return self._importer().start(folder)

    def _import_status(self) -> dict[str, Any]:
        return self._importer().status()

    def _importer(self) -> Importer:
        if self._joined is None:
            raise DeviceError("This device is not enrolled.", code="not-enrolled")
        return self._joined.importer

    def import_stopped(self, folder: Path) -> ImportState:
        """Take a stick over while the agent is not to run: what it assigns is installed at the next start. Raises: DeviceError."""
        try:
            importer = self._importer()
            self._learn_runtimes(self._stop)
            return importer.take(folder)
        finally:
            self.store.close()

    # --- callbacks ---

    def _take_prediction(self, prediction: Prediction) -> None:
        """On a thread of the inference process's handle: never waits."""
        if len(self._predictions) >= MAX_PREDICTIONS:
            self._lost_predictions += 1
        else:
            self._predictions.append(prediction)

    def _on_line_change(self, line: str) -> None:
        """On the update thread: tell the server, for display; and signed, when it is more than progress of a download."""
        self._changed_lines.add(line)
        state = self.machine.state_of(LineName(line)).model_copy(update={"progress": 0})
        if self._joined is not None and self._reported_lines.get(line) != state:
            self._reported_lines[line] = state
            self._joined.reporter.request(line)
        text, found = f"{state.desired}: {state.reason}: {state.text}", []
        if state.state in _BAD_ENDS:
            found = [("update_failed", text[:2000], line)]
        elif state.reason == "full_download_refused":
            found = [("full_download_refused", state.text, line)]
        self.conditions.replace(f"line {line}", found)

    def _on_candidate_change(self, line: LineName) -> None:
        """On the candidates' thread: tell the server, signed, when it is more than progress of a download."""
        state = self.candidates.machine.state_of(line).model_copy(update={"progress": 0})
        key = f"{CANDIDATE}{line}"
        if self._joined is not None and self._reported_lines.get(key) != state:
            self._reported_lines[key] = state
            self._joined.reporter.request(key)

    def _on_policy_change(self) -> None:
        """What was forbidden may be allowed now: whoever waits looks again."""
        self._bucket.limit_to(self.policy.config.bandwidth_kib_s * 1024)
        self.machine.wake()
        self.candidates.machine.wake()

    def _on_check(self, state: CheckState) -> None:
        """On the poller's thread: a check that failed is a condition until one succeeds."""
        error, code = state.error, "update_check_failed"
        if error is not None and error.family == TrustError.__name__:
            code = "metadata_stale" if error.code == "freeze" else "trust_refused"
        self.conditions.replace("check", [] if error is None else [(code, error.text, "")])

    def _take_configuration(self, offer: ConfigurationOffer | None) -> None:
        if self.configuration is not None:
            self.configuration.offer(offer)

    def _take_job(self, _body: bytes) -> None:
        """A wake-up only: the truth is what the director says."""
        self._hint()

    def _hint(self) -> None:
        if self._joined is not None:
            self._joined.poller.hint()

    def _learn_runtimes(self, _stop: threading.Event) -> None:
        runtimes = self._probe()
        missing = "; ".join(f"{one.name} {one.state} {one.text}".strip() for one in runtimes)
        found = [] if any(one.state == "ok" for one in runtimes) else [("runtime_missing", f"No runtime works: {missing}"[:2000], "")]
        found += [("runtime_conflict", f"Installed side by side: {', '.join(names)}.", names[0]) for names in find_conflicts()]
        self.conditions.replace("runtimes", found)
        self._runtimes = runtimes
        self._hint()

    def _check_wish(self, identity: Identity) -> CheckWish | None:
        """What the update check needs to know; None while the runtimes are not known."""
        if self._runtimes is None:
            return None
        kinds = {_FILE_KINDS[one.name] for one in self._runtimes if one.state == "ok" and one.name in _FILE_KINDS}
        return CheckWish(
            server=self._server(identity),
            device_type=self._device_type,
            runtimes=tuple(sorted(kinds)),
            agent_version=self._version,
            proxy=self._local.server.proxy,
            timeout_s=self._local.server.timeout_s,
            min_bytes_per_s=self._local.update.min_bytes_per_s,
            wants_time=(self.policy.has_windows or self._has_schedules()) and self._site_time.wants_signed,
            configurations=tuple(sorted(self.configuration.floors().items())) if self.configuration is not None else (),
            group=self._local.configuration.group or "",
        )

    def _has_schedules(self) -> bool:
        return any(rule.schedule for one in self._twin.in_force.config.pipelines for rule in one.rules)

    # --- wiring ---

    def _find_identity(self) -> Identity | None:
        try:
            identity = load_identity(self._local.identity_dir)
            identity.tls_context()
        except DeviceError as error:
            self.conditions.set("not_enrolled", str(error))
            return None
        return identity

    def _server(self, identity: Identity) -> str:
        return self._local.server.url or identity.enrollment.server

    def _make_machine(
        self,
        identity: Identity | None,
        slots: Slots,
        beside: Slots,
        store: JournalStore,
        downloads: str,
        on_change: Callable[[LineName], None],
    ) -> UpdateMachine:
        """What brings releases into the slots; files that lie in the ones beside them are not fetched again."""
        config, rules = self._local, self._local.update
        installer = ModelInstaller(
            slots,
            self.inference,
            device_type=self._device_type,
            spare_bytes=int(rules.spare_disk_mb * 2**20),
            temperature_c=read_temperature_c,
            beside=beside,
        )
        opener = partial(self._open_client, identity)
        fetcher = Downloads(
            config.state_dir / downloads, opener, clock=self._clock, min_bytes_per_s=rules.min_bytes_per_s, bucket=self._bucket
        )
        probe = ProbeRules(
            min_inferences=rules.min_inferences,
            min_seconds=rules.min_seconds,
            max_seconds=rules.max_seconds,
            p99_noise_ms=rules.latency_noise_ms,
            max_temperature_c=rules.max_temperature_c,
        )
        return UpdateMachine(
            store,
            slots,
            installer,
            fetcher,
            clock=self._clock,
            rules=probe,
            on_change=on_change,
            policy=self.policy,
            applier=ChildApplier(memory_mb=lambda: self.policy.config.memory_mb),
        )

    def _join(self, identity: Identity) -> Joined:
        config = self._local
        uplink = Uplink(
            store=self.store,
            identity=identity,
            settings=config.broker,
            proxy=config.broker.proxy or config.server.proxy,
            resend_s=config.outbox.resend_s,
            ring_rows=config.outbox.ring_rows,
            conditions=self.conditions,
            clock=self._clock,
            traffic=self.traffic,
            held=lambda: self.budgets.held_streams,
            inbox=Inbox(
                self._take_desired,
                self._take_job,
                {"ping": lambda _: {"version": self._version}, "conditions": lambda _: {"conditions": self.condition_rows()}},
                {"snapshot": self._snapshot_for_server},
            ),
        )
        poller = Poller(
            self.machine,
            self.store,
            state_dir=config.state_dir,
            clock=self._clock,
            wish=partial(self._check_wish, identity),
            poll_s=lambda: self._twin.in_force.config.update.poll_s,
            on_check=self._on_check,
            on_traffic=self.traffic.add,
            name=identity.device,
            on_signed_time=self._site_time.hear,
            take_configuration=self._take_configuration,
            take_candidates=self.candidates.offer,
            ask=partial(run_child, stop=self._stop),
            ask_stick=partial(run_stick_child, stop=self._stop),
        )
        reporter = Reporter(
            identity=identity,
            store=self.store,
            conditions=self.conditions,
            clock=self._clock,
            report_s=config.update.report_s,
            machine=self.machine,
            candidates=self.candidates,
            check=lambda: poller.state,
            open_client=partial(self._open_client, identity),
        )
        self.store.on_added = uplink.wake
        importer = Importer(identity=identity, poller=poller, machine=self.machine, reporter=reporter, clock=self._clock, stop=self._stop)
        return Joined(identity, uplink, poller, reporter, importer)

    def _open_client(self, identity: Identity | None) -> AbstractContextManager["httpx.Client"]:
        if identity is None:
            raise DeviceError("This device is not enrolled.", code="not-enrolled")
        server = self._local.server
        address = self._server(identity)
        return open_client(identity.tls_context(), base_url=address, proxy=server.proxy, timeout_s=server.timeout_s, traffic=self.traffic)

    def _start(self, name: str, run: Callable[[threading.Event], None]) -> None:
        thread = threading.Thread(target=self._keep_running, args=(name, run), name=name)
        thread.start()
        self._threads.append(thread)

    def _keep_running(self, name: str, run: Callable[[threading.Event], None]) -> None:
        """The outermost loop of a thread: what ends it unexpectedly is logged, and it starts again, from what the store remembers."""
        while not self._stop.is_set():
            try:
                run(self._stop)
            except Exception:
                log.exception("service.thread-failed name=%s", name)
                self._stop.wait(THREAD_PAUSE_S)
            else:
                return

    def _end_threads(self) -> None:
        """Wake whoever waits, so that each sees the end."""
        self._stop.set()
        self.machine.wake()
        self.candidates.machine.wake()
        if self.configuration is not None:
            self.configuration.wake()
        if self._joined is not None:
            self._joined.poller.hint()
            self._joined.reporter.request("")
            self._joined.importer.join()  # not for ever: a stick may hang
        for thread in self._threads:
            thread.join()


def _source_of(identity: Identity | None) -> str:
    """What events of this device name as their source."""
    return f"/mooring/{identity.tenant}/{identity.device}" if identity else "/mooring/unenrolled"


def _has_profile(slots: Slots, line: str) -> bool:
    """Whether the release that the line runs came with a reference profile."""
    slot = slots.active(LineName(line))
    return slot is not None and any(file.name == "profile.cbor" for file in slot.content.files)
