"""The control process's handle on the inference process: start, configure, swap models, supervise. Never raises for what the child does.

A child that dies is started again after a back-off, gets its pipelines again and the active models are activated again; whom its death
is to blame on is read from `Marks`, and `Quarantine` says what is not to be tried again.
"""

import itertools
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.config import RuntimeConfig
from agent.inference.child import Child, Ending
from agent.inference.marks import CANDIDATE_MARK, LINES
from agent.inference.messages import (
    Activate,
    Answer,
    ArmOrder,
    Beat,
    Commit,
    Configure,
    Deactivate,
    Ease,
    Finding,
    FromWorker,
    LineCount,
    PipelineStats,
    Prediction,
    Ready,
    Rollback,
    Sampled,
    SampleRows,
    Snapshot,
    Stop,
    TakeTurns,
    WorkerState,
)
from agent.inference.pressure import Easing, read_pressure
from agent.inference.quarantine import Quarantine
from agent.inference.rates import Rate
from agent.inference.trial import Trial, run_trial
from agent.inference.tuner import USUAL_FPS, Tuner
from agent.inference.watch import Watch
from agent.inference.windows import Window
from agent.orders import PipelineOrder
from agent.sources.backoff import full_jitter_s
from agent.sources.states import SourceState
from protocol.canonical import digest_of
from protocol.clock import Clock, SystemClock
from protocol.errors import MooringError
from protocol.files import read_bounded
from runtime.records import ModelRecords
from runtime.selftest import Activation, Figures, SelfTest

log = logging.getLogger("mooring.inference")
#: Times that one request is sent when the child dies over it.
MAX_ATTEMPTS = 3
#: Sessions left free after a restart, for those that the dead child opened and could not report.
SESSION_GAP = 1000
MAX_MANIFEST_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Timings:
    """How patient supervision is; seconds of system time."""

    #: Pause between two beats of the worker.
    beat_s: float = 0.5
    #: A worker that has not said anything this long after its start is killed; imports are slow on small boards.
    start_s: float = 60.0
    #: Loading and warming a model may build an engine.
    activate_s: float = 300.0
    #: A self-test in a child of its own.
    self_test_s: float = 180.0
    #: First and longest pause before a restart; full jitter below it.
    restart_first_s: float = 0.2
    restart_max_s: float = 60.0
    #: A worker that lived this long starts again with the first pause, and its last death is no finding any more.
    settled_s: float = 60.0
    #: Draining at stop.
    stop_s: float = 8.0
    #: After a commit, until memory is compared with the budgets: what was freed has to be gone.
    weigh_s: float = 5.0
    #: Between two looks at heat and memory, and where the kernel tells of them.
    feel_s: float = 2.0
    pressure_root: Path = Path("/")


@dataclass(slots=True)
class _Active:
    """A line's model as the child is to run it, over restarts."""

    folder: Path
    #: The folder to roll back to, until the commit.
    previous: Path | None = None
    #: Counts of children that died since the activation.
    inferences: int = 0
    errors: int = 0
    #: Deaths of the child by its own doing, inside this model or inside none that is known.
    crashes: int = 0
    rate: Rate = field(default_factory=Rate)
    #: MiB that the release allows the process; None: it does not say.
    rss_budget_mb: float | None = None
    #: Milliseconds of the longest inference in its self-test on the back end that it runs on; 0: not known.
    expected_ms: float = 0.0


@dataclass(slots=True)
class _Request:
    """One question to the child; sent again when the child dies over it."""

    #: The message under a request number.
    make: Callable[[int], Activate | Commit | Rollback | Deactivate | Snapshot]
    #: Called with the answer, under the lock, before anybody else sees it.
    on_answer: Callable[[Answer], None]
    #: Line and folder that it loads, if any.
    line: str = ""
    folder: Path | None = None
    #: Made by supervision for one child; dies with it.
    is_internal: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    attempts: int = 0


class InferenceProcess:
    """Runs `python -m agent.inference` and keeps it running. All methods may be called from any thread."""

    def __init__(
        self,
        *,
        runtime: RuntimeConfig,
        clock: Clock,
        on_prediction: Callable[[Prediction], None],
        on_row: Callable[[Sampled], None] = lambda _: None,
        timings: Timings | None = None,
        records_dir: Path | None = None,
    ) -> None:
        self._runtime = runtime
        self._clock = clock
        self._on_prediction, self._on_row = on_prediction, on_row
        self._timings = timings or Timings()
        self._system = SystemClock()
        self._lock = threading.RLock()
        self._has_work = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._child: Child | None = None
        self._state = WorkerState.STOPPED
        self._pipelines: tuple[PipelineOrder, ...] = ()
        self._active: dict[str, _Active] = {}
        self._marks: dict[str, int] = {}
        #: Of which pipelines rows are made, and the seconds between two.
        self._steps: dict[str, float] = {}
        #: Candidates that take turns, and per line why its candidate does not any more.
        self._arms: tuple[ArmOrder, ...] = ()
        self._lost_arms: dict[str, str] = {}
        self._requests: dict[int, _Request] = {}
        self._request_ids = itertools.count(1)
        self._records_dir = records_dir
        self._records = ModelRecords(records_dir, provider_options=runtime.options)
        self._quarantine = Quarantine(self._records)
        self._tuner = Tuner(runtime, records_dir, pressure_root=self._timings.pressure_root)
        self._easing = Easing()
        self._felt_s = 0.0
        self._findings: dict[tuple[str, str], tuple[Finding, float]] = {}
        self._windows: dict[str, Window] = {}
        self._window_began_s = clock.monotonic()
        self._window_began_system_s = self._system.monotonic()
        self._last_session = 0
        self._first_session = 1
        #: When the child's memory is to be compared with the budgets; None: it was.
        self._weigh_at_s: float | None = None

    # --- what the service calls ---

    def start(self) -> None:
        """Start the child, as soon as there is something to run, and its supervision; returns at once."""
        with self._lock:
            if self._supervisor is None:
                self._supervisor = threading.Thread(target=self._supervise, name="inference-supervisor", daemon=True)
                self._supervisor.start()

    def stop(self) -> None:
        """Drain, end the child, join the threads. May be called twice."""
        with self._lock:
            self._stopping.set()
            self._has_work.notify_all()
            supervisor = self._supervisor
        if supervisor is not None:
            supervisor.join()

    def configure(self, pipelines: Sequence[PipelineOrder]) -> None:
        """Run exactly these pipelines (credentials already inside the URLs); unchanged ones go on undisturbed."""
        with self._lock:
            self._pipelines = tuple(pipelines)
            names = {pipeline.name for pipeline in self._pipelines}
            self._windows = {name: self._windows.get(name) or Window() for name in names}
            self._has_work.notify_all()
            child = self._child if self._state is WorkerState.RUNNING else None
            message = self._configure_message()
        if child is not None:
            child.send(message)

    def sample_rows(self, steps: Mapping[str, float]) -> None:
        """Make rows of exactly these pipelines, of models that are watched; pipeline -> seconds between two, 0: as the profile says."""
        with self._lock:
            if steps == self._steps:
                return
            self._steps = dict(steps)
            child = self._child if self._state is WorkerState.RUNNING else None
            message = SampleRows(dict(steps))
        if child is not None:
            child.send(message)

    def self_test(self, folder: Path, *, provider: str = "") -> SelfTest:
        """Load the slot's model in a child process of its own and run its golden vectors, on any candidate back end or on one only.

        Autotune follows, where something may be gained.
        """
        trial = Trial(
            folder,
            self._runtime,
            self._records_dir,
            provider=provider,
            timeout_s=self._timings.self_test_s,
            rates=self._rates(),
            pressure_root=self._timings.pressure_root,
        )
        try:
            return run_trial(trial)
        except OSError as error:
            return SelfTest(ok=False, code="crashed", text=f"The self-test cannot be started: {error}.")

    def _rates(self) -> dict[str, float]:
        """Frames per second of each line's fastest pipeline."""
        with self._lock:
            rates = [(pipeline.line, pipeline.max_fps or USUAL_FPS) for pipeline in self._pipelines]
        return {line: max(rate for other, rate in rates if other == line) for line, _ in rates}

    def activate(self, line: str, folder: Path) -> Activation:
        """Load and warm the slot's model beside the running one, then flip; on failure the old model keeps running."""
        answer = self._ask(self._activation(line, folder), self._timings.activate_s)
        if answer.code == "timeout":
            self._restart(f"did not activate {folder} of line {line} within {self._timings.activate_s:g} s")
        return Activation(ok=answer.ok, code=answer.code, text=answer.text, provider=answer.provider)

    def commit(self, line: str, *, rss_budget_mb: float | None = None) -> None:
        """Close the model before the active one; there is no way back without loading it again.

        A child that is then still above the budgets of all its models, MiB, is started again once, in a gap between swaps: allocators
        keep memory over many swaps.
        """
        with self._lock:
            active = self._active.get(line)
            if active is None:
                return
            active.rss_budget_mb = rss_budget_mb
            self._weigh_at_s = self._system.monotonic() + self._timings.weigh_s
            if active.previous is None:
                return
            active.previous = None
        self._ask_if_running(lambda number: Commit(number, line))

    def rollback(self, line: str) -> Activation:
        """Flip back to the model before the active one (loaded again when the child restarted in between)."""
        with self._lock:
            active = self._active.get(line)
            previous = None if active is None else active.previous
        if previous is None:
            return Activation(ok=False, code="no_previous", text=f"Line {line} has no model before the active one.")
        request = _Request(lambda number: Rollback(number, line), lambda answer: self._activated(answer, line, previous))
        answer = self._ask(request, self._timings.activate_s)
        if answer.code == "no_previous":
            return self.activate(line, previous)
        return Activation(ok=answer.ok, code=answer.code, text=answer.text, provider=answer.provider)

    def snapshot(self, make: Callable[[int], Snapshot], timeout_s: float) -> Answer:
        """The next frame of a pipeline as an annotated JPEG in `data`, or why there is none; code "timeout" when no frame came in time."""
        return self._ask(_Request(make, lambda _: None), timeout_s)

    def deactivate(self, line: str) -> None:
        """Run no model for the line; its pipelines keep capturing and count `model_unavailable`."""
        with self._lock:
            self._active.pop(line, None)
            self._findings.pop(("inference_down", line), None)
        self._ask_if_running(lambda number: Deactivate(number, line))

    def take_turns(self, arms: tuple[ArmOrder, ...]) -> None:
        """Let exactly these candidates answer in turn with their lines' models; one that crashed or failed stays out."""
        with self._lock:
            if arms == self._arms:
                return
            kept = {(arm.line, arm.folder) for arm in self._arms} & {(arm.line, arm.folder) for arm in arms}
            self._lost_arms = {line: text for line, text in self._lost_arms.items() if any(line == name for name, _ in kept)}
            self._arms = arms
            child = self._child if self._state is WorkerState.RUNNING else None
            message = self._turns_message()
        if child is not None:
            child.send(message)

    def lost_arms(self) -> dict[str, str]:
        """Per line why its candidate takes no turns any more."""
        with self._lock:
            return dict(self._lost_arms)

    def errors_of(self, line: str, folder: str) -> int:
        """Failed inferences of the line's model from that folder since the child loaded it."""
        with self._lock:
            count = self._count_of(line, Path(folder))
        return 0 if count is None else count.errors

    def bring_shadow(self, document: bytes, feed: socket.socket, memory: int) -> bool:
        """Let the child feed a shadow process over this socket and memory; False while it does not run."""
        child = self._child if self._state is WorkerState.RUNNING else None
        return child is not None and child.bring_shadow(document, feed, memory)

    def figures(self, line: str) -> Figures | None:
        """Live figures since the line's model was activated, at most one beat old; None when no model is active."""
        with self._lock:
            active = self._active.get(line)
            if active is None:
                return None
            count, beat = self._count_of(line, active.folder), self._beat()
            inferences, errors, crashes, fps = active.inferences, active.errors, active.crashes, active.rate.per_s
        if count is not None:
            inferences, errors = inferences + count.inferences, errors + count.errors
        return Figures(
            inferences=inferences,
            errors=errors,
            p99_ms=(count.p99_ms if count else None) or 0.0,
            rss_mb=beat.rss_mb if beat else 0.0,
            top_share=(count.top_share if count else None) or 0.0,
            healthy=max(0, inferences - errors),
            crashes=crashes,
            fps=fps,
            provider=count.effective if count else "",
            p99_low_ms=count.p99_low_ms if count else None,
        )

    def stats(self) -> list[PipelineStats]:
        """One entry per configured pipeline for the time since the last call."""
        with self._lock:
            now, now_system = self._clock.monotonic(), self._system.monotonic()
            window_s = max(1e-3, now - self._window_began_s)
            system_s = max(1e-3, now_system - self._window_began_system_s)
            self._window_began_s, self._window_began_system_s = now, now_system
            made = [self._stats_of(pipeline, window_s, system_s) for pipeline in self._pipelines]
            for window in self._windows.values():
                window.begin()
            return made

    def findings(self) -> list[Finding]:
        """What is wrong now."""
        with self._lock:
            now = self._system.monotonic()
            self._findings = {key: value for key, value in self._findings.items() if value[1] > now}
            beat = self._beat()
            noted = (finding for finding, _ in self._findings.values())
            return [*noted, *self._easing.findings(), *(beat.findings if beat else ())]

    @property
    def state(self) -> WorkerState:
        """Where the child is."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        child = self._child
        return None if child is None else child.pid

    @property
    def rss_mb(self) -> float:
        """Resident memory of the child at its last beat, MiB; 0 when it does not run."""
        with self._lock:
            beat = self._beat()
            return beat.rss_mb if beat else 0.0

    # --- supervision: one thread ---

    def _supervise(self) -> None:
        failures = 0
        while self._wait_for_work():
            born_s = self._system.monotonic()
            try:
                child = self._spawn()
            except OSError as error:
                ending = Ending(f"it cannot be started: {error}", is_fault=True)
            else:
                ending = self._attend(child)
                self._bury(child, ending)
            if self._stopping.is_set():
                break
            if ending.is_planned:
                continue
            failures = 1 if self._system.monotonic() - born_s > self._timings.settled_s else failures + 1
            self._note_ending(ending, failures)
            if failures > 1:  # the first time at once: frames are coming
                pause_s = full_jitter_s(failures - 2, first_s=self._timings.restart_first_s, max_s=self._timings.restart_max_s)
                self._system.wait(self._stopping, pause_s)
        with self._lock:
            self._state = WorkerState.STOPPED
            for number in list(self._requests):
                self._settle(number, Answer(number, ok=False, code="stopped", text="The agent is stopping."))

    def _wait_for_work(self) -> bool:
        with self._lock:
            self._has_work.wait_for(lambda: self._stopping.is_set() or self._pipelines or self._active or self._requests)
        return not self._stopping.is_set()

    def _spawn(self) -> Child:
        with self._lock:
            watch = Watch(start_s=self._timings.start_s, hang_s=self._runtime.hang_s, now=self._system.monotonic())
            self._state = WorkerState.STARTING
            self._child = Child(beat_s=self._timings.beat_s, watch=watch, on_message=self._heard)
            return self._child

    def _attend(self, child: Child) -> Ending:
        """Watch the child until it ends, by itself or because it stood still."""
        hang: str | None = None
        stop_by_s: float | None = None
        while not child.closed.wait(self._timings.beat_s / 2):
            now = self._system.monotonic()
            if self._stopping.is_set():
                if stop_by_s is None:
                    stop_by_s = now + self._timings.stop_s
                    child.send(Stop())
                elif now > stop_by_s:
                    child.kill()
            elif hang is None:
                self._feel(child, now)
                hang = child.hang_text(loading_s=self._loading_s(), expected_ms=self._expected_ms())
                if hang is not None:
                    child.kill()
        return child.ending(hang)

    def _loading_s(self) -> float:
        """Seconds that a model which is being loaded may take; 0 when none is."""
        with self._lock:
            return self._timings.activate_s if any(request.folder is not None for request in self._requests.values()) else 0.0

    def _expected_ms(self) -> float:
        """The longest inference that the self-tests of the active models saw."""
        with self._lock:
            return max((active.expected_ms for active in self._active.values()), default=0.0)

    def _feel(self, child: Child, now: float) -> None:
        """Look now and then how hot and how short of memory the device is, and slow the child down or let it go on."""
        if not self._runtime.slow_down or now - self._felt_s < self._timings.feel_s:
            return
        self._felt_s = now
        with self._lock:
            is_changed = self._easing.feel(read_pressure(self._timings.pressure_root), now)
        if is_changed:
            child.send(Ease(self._easing.stride))

    def _restart(self, reason: str) -> None:
        """Kill the child because a request was never answered; supervision starts it again."""
        with self._lock:
            child = self._child
            self._note("inference_hung", "error", f"The inference process {reason}; it is started again.")
        if child is not None:
            child.kill()

    def _bury(self, child: Child, ending: Ending) -> None:
        """Remember what the dead child counted, blame its back ends, and prepare the open requests for its successor."""
        with self._lock:
            self._child = None
            self._state = WorkerState.WAITING
            self._first_session = self._last_session + SESSION_GAP
            blamed = self._blame(child, ending) if ending.is_crash or ending.is_hang else set()
            for count in child.beat.lines if child.beat else ():
                active = self._active.get(count.line)
                if active is not None and count.folder == str(active.folder):
                    active.inferences += count.inferences
                    active.errors += count.errors
            if ending.is_fault and not self._blame_arms(child, ending):
                for line in blamed or self._active.keys():
                    self._active[line].crashes += 1
            for window in self._windows.values():
                window.restarted()
            for number, request in list(self._requests.items()):
                if request.is_internal:
                    del self._requests[number]
                elif request.attempts >= MAX_ATTEMPTS:
                    self._settle(
                        number, Answer(number, ok=False, code="crashed", text=f"The inference process died over it: {ending.text}.")
                    )
        child.marks.close()

    def _blame(self, child: Child, ending: Ending) -> set[str]:
        """Count the death against the back ends that were inside a call; returns the lines whose active model was."""
        now, blamed = self._system.monotonic(), set()
        loading_folders = {request.line: request.folder for request in self._requests.values() if request.folder is not None}
        for line, mark in self._marks.items():
            active = self._active.get(line)
            loading, inferring = child.marks.read(mark)
            if CANDIDATE_MARK in loading[:1] + inferring[:1]:
                continue
            if loading and line in loading_folders:
                self._count_death(line, loading_folders[line], loading, ending, now)
            if inferring and active is not None:
                self._count_death(line, active.folder, inferring, ending, now)
                blamed.add(line)
        return blamed

    def _blame_arms(self, child: Child, ending: Ending) -> bool:
        """Whether the child died inside a candidate that takes turns. Once is enough: that one gets none any more."""
        lines = {line for line, mark in self._marks.items() if any(name.startswith(CANDIDATE_MARK) for name in child.marks.read(mark))}
        for line in lines:
            self._lost_arms[line] = f"The inference process ended inside the candidate: {ending.text}."
        return bool(lines)

    def _count_death(self, line: str, folder: Path | None, candidate: str, ending: Ending, now: float) -> None:
        artifact = _artifact_of(folder)
        if ending.is_hang:
            self._quarantine.hung(artifact, candidate, now)
            return
        self._quarantine.crashed(artifact, candidate, now)
        if candidate in self._quarantine.quarantined(artifact, now):
            self._note(
                "backend_quarantined", "error", f"{candidate} crashed twice with the model of line {line} and is not used for it.", line
            )

    def _note_ending(self, ending: Ending, failures: int) -> None:
        with self._lock:
            code = "inference_hung" if ending.is_hang else "inference_crashed"
            times = "once" if failures == 1 else f"{failures} times in a row"
            self._note(code, "warning" if failures < 3 else "error", f"The inference process was restarted {times}: {ending.text}.")
        log.warning("inference.ended code=%s times=%d text=%s", code, failures, ending.text)  # the condition goes; what was stays here

    def _note(self, code: str, severity: Literal["info", "warning", "error"], text: str, subject: str = "") -> None:
        lasting_s = float("inf") if subject else self._timings.settled_s
        finding = Finding(code, severity, text[:1000], subject)
        self._findings[(code, subject)] = finding, self._system.monotonic() + lasting_s

    # --- what the child says: its reader thread ---

    def _heard(self, child: Child, message: FromWorker) -> None:
        match message:
            case Prediction():
                self._on_prediction(message)
            case Sampled():
                self._on_row(message)
            case Beat():
                self._take_beat(child, message)
            case Ready():
                self._brief(child)
            case Answer():
                with self._lock:
                    self._settle(message.request, message)

    def _brief(self, child: Child) -> None:
        """Tell a new child everything: pipelines, active models, open requests, in this order."""
        with self._lock:
            if self._child is not child:
                return
            child.send(self._configure_message())
            child.send(Ease(self._easing.stride))
            child.send(self._turns_message())
            child.send(SampleRows(dict(self._steps)))
            waiting = list(self._requests.items())
            for line, active in self._active.items():
                number, request = next(self._request_ids), self._activation(line, active.folder)
                request.is_internal = True
                self._requests[number] = request
                self._send(child, number, request)
            for number, request in waiting:
                self._send(child, number, request)
            self._state = WorkerState.RUNNING

    def _take_beat(self, child: Child, beat: Beat) -> None:
        with self._lock:
            if self._child is not child:
                return
            for count in beat.pipelines:
                self._last_session = max(self._last_session, count.session)
                if count.pipeline in self._windows:
                    self._windows[count.pipeline].add(count)
            for line in beat.lines:
                active = self._active.get(line.line)
                if active is not None and line.folder == str(active.folder):
                    active.rate.add(self._system.monotonic(), active.inferences + line.inferences)
            lost = {one.subject: one.text for one in beat.findings if one.code == "turns_lost"}
            self._lost_arms |= {arm.line: lost[arm.folder] for arm in self._arms if arm.folder in lost}
            self._weigh(child, beat)

    def _weigh(self, child: Child, beat: Beat) -> None:
        """Start a child again that grew beyond the budgets; not while a model is being swapped or waits for its commit."""
        if self._weigh_at_s is None or self._system.monotonic() < self._weigh_at_s or self._requests:
            return
        if any(active.previous is not None for active in self._active.values()):
            return
        self._weigh_at_s = None
        budgets = [active.rss_budget_mb for active in self._active.values()]
        allowed_mb = sum(budget for budget in budgets if budget is not None)
        if budgets and None not in budgets and beat.rss_mb > allowed_mb:
            text = (
                f"The inference process used {beat.rss_mb:.0f} MiB after swaps where its models may use {allowed_mb:.0f}; it starts again."
            )
            self._note("inference_trimmed", "info", text)
            child.retire()

    def _settle(self, number: int, answer: Answer) -> None:
        request = self._requests.pop(number, None)
        if request is not None:
            request.on_answer(answer)
            request.answer = answer
            request.done.set()

    # --- requests: any thread ---

    def _ask(self, request: _Request, timeout_s: float) -> Answer:
        """The answer, also from a child that has yet to start; code "timeout" when none came, "stopped" when the agent stops."""
        with self._lock:
            number = next(self._request_ids)
            if self._supervisor is None or self._stopping.is_set():
                return Answer(number, ok=False, code="stopped", text="The inference process is not started.")
            self._requests[number] = request
            self._has_work.notify_all()
            if self._child is not None and self._state is WorkerState.RUNNING:
                self._send(self._child, number, request)
        request.done.wait(timeout_s)
        with self._lock:
            self._requests.pop(number, None)
            return request.answer or Answer(number, ok=False, code="timeout", text=f"No answer within {timeout_s:g} s.")

    def _ask_if_running(self, make: Callable[[int], Commit | Deactivate]) -> None:
        """Ask a child that runs; one that does not learns the same from `_brief`."""
        if self._state is WorkerState.RUNNING:
            self._ask(_Request(make, lambda _: None), self._timings.stop_s)

    def _send(self, child: Child, number: int, request: _Request) -> None:
        request.attempts += 1
        child.send(request.make(number))

    def _activation(self, line: str, folder: Path) -> _Request:
        def make(number: int) -> Activate:
            artifact, now = _artifact_of(folder), self._system.monotonic()
            mark = self._marks.setdefault(line, min(len(self._marks) + 1, LINES - 1))
            quarantined, demoted = self._quarantine.quarantined(artifact, now), self._quarantine.demoted(artifact, now)
            return Activate(number, line, str(folder), mark, quarantined, demoted, self._tuner.choice(artifact))

        return _Request(make, lambda answer: self._activated(answer, line, folder), line, folder)

    def _activated(self, answer: Answer, line: str, folder: Path) -> None:
        """Remember which model runs; called under the lock."""
        active = self._active.get(line)
        if not answer.ok:
            if active is not None and active.folder == folder and answer.code != "crashed":
                self._note("inference_down", "error", f"Line {line} has no model that runs: {answer.text}", line)
            return
        self._findings.pop(("inference_down", line), None)
        if active is None:
            self._active[line] = _Active(folder)
        elif active.folder != folder:
            self._findings.pop(("backend_quarantined", line), None)
            self._active[line] = _Active(folder, None if folder == active.previous else active.folder)
        record = self._records.find(_artifact_of(folder), answer.provider)
        self._active[line].expected_ms = record.infer_ms_p99 if record else 0.0

    # --- views ---

    def _turns_message(self) -> TakeTurns:
        return TakeTurns(tuple(arm for arm in self._arms if arm.line not in self._lost_arms))

    def _configure_message(self) -> Configure:
        return Configure(self._pipelines, self._runtime.for_inference(), self._first_session)

    def _beat(self) -> Beat | None:
        return self._child.beat if self._child is not None else None

    def _count_of(self, line: str, folder: Path | None = None) -> LineCount | None:
        beat = self._beat()
        counts = beat.lines if beat else ()
        return next((count for count in counts if count.line == line and (folder is None or count.folder == str(folder))), None)

    def _stats_of(self, pipeline: PipelineOrder, window_s: float, system_s: float) -> PipelineStats:
        window, line, beat = self._windows[pipeline.name], self._count_of(pipeline.line), self._beat()
        count = next((count for count in (beat.pipelines if beat else ()) if count.pipeline == pipeline.name), None)
        return PipelineStats(
            pipeline=pipeline.name,
            line=pipeline.line,
            release=line.release if line else None,
            window_s=window_s,
            grabbed=window.grabbed,
            inferred=window.inferred,
            dropped={reason: total for reason, total in window.dropped.items() if total},
            errors=window.errors,
            fps=window.inferred / system_s,
            lat_ms_p50=window.percentile_ms(0.50),
            lat_ms_p95=window.percentile_ms(0.95),
            lat_ms_p99=window.percentile_ms(0.99),
            asked=line.asked if line else "",
            effective=line.effective if line else "",
            threads=line.threads if line else 0,
            share=line.share if line else None,
            source_state=count.source_state if count else SourceState.STOPPED,
            source_text=count.source_text if count else f"The inference process is {self._state}.",
            unsent=window.unsent,
            channels=dict(window.channels),
            decoder=count.decoder if count else "",
        )


def _artifact_of(folder: Path | None) -> str:
    """Digest of the folder's model manifest, which binds all its files; empty when it cannot be read."""
    try:
        return "" if folder is None else digest_of(read_bounded(folder / "manifest.json", MAX_MANIFEST_BYTES))
    except (OSError, MooringError):
        return ""
