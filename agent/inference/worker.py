"""The inference process: `python -m agent.inference LINK MARKS DOOR BEAT_S`, started and supervised by `process`.

The main thread listens to the control process and ends when that hangs up; one thread writes beats, answers and predictions; each
pipeline has two threads, each swap one. An error that nobody foresaw in any thread ends the process: the control process starts it again.
"""

import contextlib
import faulthandler
import itertools
import os
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from agent.inference.captures import Captures
from agent.inference.engine import Line, Swap
from agent.inference.link import Link, LinkClosedError
from agent.inference.marks import Marks
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
    Prediction,
    Ready,
    Rollback,
    Sampled,
    SampleRows,
    Snapshot,
    Stop,
    TakeTurns,
    ToWorker,
)
from agent.inference.model import plan_key, read_key
from agent.inference.pipeline import Pipeline
from agent.inference.rows import RowBudget, RowSampler
from agent.inference.shadow_feed import ShadowPort
from agent.inference.shadow_messages import MAX_NOTE_BYTES, read_brief
from agent.inference.writing import read_order, write
from agent.leftovers import Leftovers, keep_what_repeats
from agent.orders import PipelineOrder, RuntimeOrder
from protocol.clock import Clock, SystemClock, from_environment
from protocol.errors import MooringError

#: Predictions that wait for the control process; more are lost for telemetry and counted.
MAX_PREDICTIONS = 1024
#: Rows of what drift watches that wait for it likewise: some seconds of many pipelines.
MAX_ROWS = 256
#: Seconds for which predictions are gathered after others were sent.
GATHER_S = 0.05
#: Number of what nobody waits for an answer to.
NO_REQUEST = 0
#: Exit status when a thread died of an error that nobody foresaw (EX_SOFTWARE of sysexits.h).
EXIT_SOFTWARE = 70
#: The kernel kills this process for memory before the control process (0 to 1000, added to its own).
OOM_SCORE = 200
#: Seconds for the last words at the end.
JOIN_S = 2.0
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Sender:
    """The only writer on the link: answers first, then predictions, of which a bounded number waits, then rows, then beats when due.

    A prediction that comes alone is sent at once; those that follow within `GATHER_S` go together, because waking a thread for each would
    cost more than a small model does.
    """

    def __init__(self, link: Link, *, beat_s: float, make_beat: Callable[[], Beat]) -> None:
        self._link = link
        self._beat_s = beat_s
        self._make_beat = make_beat
        self._clock = SystemClock()
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._urgent: deque[Answer | Ready] = deque()
        self._predictions: deque[Prediction] = deque()
        self._rows: deque[Sampled] = deque()
        self._is_closing = False
        #: The writer waits for whatever comes, not for the end of a gathering.
        self._is_idle = False

    def answer(self, message: Answer | Ready) -> None:
        """Send soon; there are as many as requests, so none is ever lost."""
        with self._condition:
            self._urgent.append(message)
            self._condition.notify_all()

    def predict(self, prediction: Prediction) -> bool:
        """Send when it fits the queue; returns whether it does."""
        with self._lock:
            if len(self._predictions) >= MAX_PREDICTIONS:
                return False
            self._predictions.append(prediction)
            if self._is_idle:
                self._is_idle = False
                self._condition.notify_all()
            return True

    def add_row(self, row: Sampled) -> bool:
        """Send with what is sent next, at the latest with a beat, when it fits the queue; returns whether it does."""
        with self._condition:
            if len(self._rows) >= MAX_ROWS:
                return False
            self._rows.append(row)
            return True

    def close(self) -> None:
        """Let `run` send what waits and a last beat, then return."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()

    def run(self) -> None:
        """Send until closed. Raises: LinkClosedError when the control process is gone."""
        due_s = self._clock.monotonic()
        while True:
            urgent, others, is_last = self._take(due_s)
            if urgent or others:
                self._link.send(*map(write, (*urgent, *others)))
            if is_last or self._clock.monotonic() >= due_s:
                due_s = self._clock.monotonic() + self._beat_s
                self._link.send(write(self._make_beat()))
            if is_last:
                return

    def _take(self, due_s: float) -> tuple[list[Answer | Ready], list[Prediction | Sampled], bool]:
        """What is to be sent now, after waiting for it: until the next beat is due, at most."""
        with self._condition:
            gather_s = min(GATHER_S, due_s - self._clock.monotonic())
            if not self._condition.wait_for(self._is_pressing, max(0.0, gather_s)):
                self._is_idle = not self._predictions
                self._condition.wait_for(self._has_work, max(0.0, due_s - self._clock.monotonic()))
                self._is_idle = False
            urgent = list(self._urgent)
            others: list[Prediction | Sampled] = [*self._predictions, *self._rows]
            self._urgent.clear()
            self._predictions.clear()
            self._rows.clear()
            return urgent, others, self._is_closing

    def _is_pressing(self) -> bool:
        return bool(self._urgent or self._is_closing)

    def _has_work(self) -> bool:
        return bool(self._urgent or self._predictions or self._is_closing)


class Worker:
    """Pipelines and lines of this process; `handle` is called by the main thread only."""

    def __init__(self, link: Link, marks: Marks, *, beat_s: float, clock: Clock) -> None:
        self._marks = marks
        self._monotonic = SystemClock().monotonic
        self._clock, self._row_budget = clock, RowBudget()
        #: Pipelines of which rows are made, with the seconds between two.
        self._steps: dict[str, float] = {}
        self._sessions = itertools.count(1)
        self._session_lock = threading.Lock()
        self._runtime = RuntimeOrder()
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}
        #: Swaps of a line happen in the order in which they were asked for.
        self._swaps: dict[str, SimpleQueue[tuple[int, Callable[[], Swap]]]] = {}
        self._pipelines: dict[str, Pipeline] = {}
        #: Of so many due frames one is inferred.
        self._stride = 1
        self._captures = Captures(clock=clock, next_session=self._next_session)
        self._shadow = ShadowPort()
        self._leftovers = Leftovers(self._monotonic)
        #: Lines in which a candidate takes turns.
        self._turning: set[str] = set()
        self._statm = Path("/proc/self/statm").open("rb", buffering=0)  # noqa: SIM115 - kept open: read twice a second
        self.sender = Sender(link, beat_s=beat_s, make_beat=self._beat)

    def handle(self, message: ToWorker) -> bool:
        """Do what the control process asks, slow things in a thread; returns False when this was the stop."""
        match message:
            case Configure():
                self._configure(message)
            case Activate():
                line = self._line(message.line, mark=message.mark)
                runtime = self._runtime
                self._answer_later(
                    message.line,
                    message.request,
                    lambda: line.activate(
                        Path(message.folder),
                        runtime,
                        quarantined=message.quarantined,
                        demoted=message.demoted,
                        choice=message.choice,
                    ),
                )
            case Commit():
                self._answer_later(message.line, message.request, self._line(message.line).commit)
            case Rollback():
                self._answer_later(message.line, message.request, self._line(message.line).rollback)
            case Snapshot():
                self._snapshot(message)
            case Deactivate():
                self._answer_later(message.line, message.request, self._line(message.line).deactivate)
            case Ease():
                self._ease(message.stride)
            case TakeTurns():
                self._take_turns(message)
            case SampleRows():
                self._sample_rows(message.steps)
            case Stop():
                return False
        return True

    def listen_at_door(self, door: socket.socket) -> None:
        """Feed each shadow that the control process brings to the door; returns when that hangs up."""
        while True:
            try:
                document, fds, _, _ = socket.recv_fds(door, MAX_NOTE_BYTES, 2)
            except OSError:
                return
            if not document:
                return
            if len(fds) != 2:  # the kernel had no file descriptors left for us: this shadow starves, and is started again
                for fd in fds:
                    os.close(fd)
                continue
            plans: dict[str, str] = {}
            for candidate in read_brief(document).candidates:
                with contextlib.suppress(MooringError):  # the shadow itself says why it cannot run
                    plans |= dict.fromkeys(candidate.pipelines, plan_key(read_key(Path(candidate.folder))[1]))
            self._shadow.open(socket.socket(fileno=fds[0]), fds[1], plans)
            os.close(fds[1])  # mapped by now

    def stop(self) -> None:
        """Drain all pipelines."""
        with self._lock:
            pipelines = list(self._pipelines.values())
        for pipeline in pipelines:
            pipeline.stop()

    def _configure(self, message: Configure) -> None:
        self._runtime = message.runtime
        with self._session_lock:
            self._sessions = itertools.count(max(message.first_session, next(self._sessions)))
        wanted = {config.name: config for config in message.pipelines}
        with self._lock:
            gone = [pipeline for name, pipeline in self._pipelines.items() if pipeline.config != wanted.get(name)]
            for pipeline in gone:
                del self._pipelines[pipeline.config.name]
        with self._captures.kept_open():
            for pipeline in gone:
                pipeline.stop()
            for name, config in wanted.items():
                if name not in self._pipelines:
                    self._start(config, message.runtime)

    def _start(self, config: PipelineOrder, runtime: RuntimeOrder) -> None:
        pipeline = Pipeline(
            config,
            self._line(config.line),
            captures=self._captures,
            runtime=runtime,
            on_prediction=self.sender.predict,
            on_snapshot=self.sender.answer,
            shadow=self._shadow,
            rows=RowSampler(config.name, config.line, clock=self._clock, budget=self._row_budget, send=self.sender.add_row),
        )
        with self._lock:
            self._pipelines[config.name] = pipeline
            pipeline.ease(self._stride)
            pipeline.watch(self._steps.get(config.name))
        pipeline.start()

    def _ease(self, stride: int) -> None:
        with self._lock:
            self._stride = stride
            for pipeline in self._pipelines.values():
                pipeline.ease(stride)

    def _sample_rows(self, steps: dict[str, float]) -> None:
        with self._lock:
            self._steps = steps
            for name, pipeline in self._pipelines.items():
                pipeline.watch(steps.get(name))

    def _take_turns(self, message: TakeTurns) -> None:
        orders: dict[str, list[ArmOrder]] = {}
        for arm in message.arms:
            orders.setdefault(arm.line, []).append(arm)
        runtime = self._runtime
        for name in {*orders, *self._turning}:
            self._answer_later(name, NO_REQUEST, partial(self._line(name).take_turns, tuple(orders.get(name, ())), runtime))
        self._turning = set(orders)

    def _snapshot(self, message: Snapshot) -> None:
        with self._lock:
            pipeline = self._pipelines.get(message.pipeline)
        if pipeline is None:
            self.sender.answer(Answer(message.request, ok=False, code="no_pipeline", text=f"{message.pipeline} does not run."))
        else:
            pipeline.show(message)

    def _line(self, name: str, *, mark: int = 0) -> Line:
        with self._lock:
            line = self._lines.get(name)
            if line is None:
                line = self._lines[name] = Line(name, marks=self._marks, now=self._monotonic)
            line.mark = mark or line.mark
            return line

    def _next_session(self) -> int:
        self._leftovers.changed()  # a source is being opened
        with self._session_lock:
            return next(self._sessions)

    def _answer_later(self, line: str, request: int, swap: Callable[[], Swap]) -> None:
        queue = self._swaps.get(line)
        if queue is None:
            queue = self._swaps[line] = SimpleQueue()
            threading.Thread(target=self._work, args=(queue,), name=f"swap-{line}", daemon=True).start()
        queue.put((request, swap))

    def _work(self, queue: "SimpleQueue[tuple[int, Callable[[], Swap]]]") -> None:
        while True:
            request, swap = queue.get()
            result = swap()
            self._leftovers.changed()
            if request != NO_REQUEST:
                self.sender.answer(Answer(request, result.ok, result.code, result.text[:4000], result.provider))

    def _beat(self) -> Beat:
        with self._lock:
            pipelines, lines = list(self._pipelines.values()), list(self._lines.values())
        self._captures.tend()
        self._leftovers.tend()
        findings = [finding for pipeline in pipelines for finding in pipeline.findings()]
        counts = [count for line in lines if (count := line.count()) is not None]
        for count in counts:
            if count.asked != count.effective:
                text = f"Asked for {count.asked}, runs on {count.effective}. {' '.join(count.refused)}".strip()
                findings.append(Finding("accelerator_fallback", "warning", text[:1000], count.line))
        faults = [(line.name, line.watch_fault) for line in lines if line.watch_fault]
        findings += [Finding("profile_invalid", "warning", text[:1000], name) for name, text in faults]
        lost = [line.lost_turns for line in lines if line.lost_turns is not None]
        findings += [Finding("turns_lost", "warning", text[:1000], folder) for folder, text in lost]
        counts += [count for line in lines if (count := line.turns_count()) is not None]
        return Beat(tuple(pipeline.count() for pipeline in pipelines), tuple(counts), tuple(findings), self._rss_mb())

    def _rss_mb(self) -> float:
        self._statm.seek(0)
        return round(int(self._statm.read(256).split()[1]) * _PAGE_MB, 2)


def main(arguments: list[str]) -> int:
    """Run until the control process says stop or hangs up; returns the exit status."""
    fd, marks, door, beat_s = arguments
    _prepare_process()
    link = Link(socket.socket(fileno=int(fd)))
    worker = Worker(link, Marks(int(marks)), beat_s=float(beat_s), clock=from_environment())
    worker.sender.answer(Ready(os.getpid()))
    sending = threading.Thread(target=_send, args=(worker.sender,), name="send", daemon=True)
    sending.start()
    threading.Thread(target=worker.listen_at_door, args=(socket.socket(fileno=int(door)),), name="shadow-door", daemon=True).start()
    try:
        while worker.handle(read_order(link.receive())):
            pass
    except LinkClosedError:
        return 0  # the control process is gone; nobody would hear a goodbye
    worker.stop()
    worker.sender.close()
    sending.join(JOIN_S)
    return 0


def _send(sender: Sender) -> None:
    try:
        sender.run()
    except LinkClosedError:
        return  # the main thread sees the same end


def _prepare_process() -> None:
    keep_what_repeats()
    faulthandler.enable()  # of all threads: the supervisor sends SIGABRT to a hung process
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # for people who want to know what it does
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the control process says when to stop
    threading.excepthook = _die
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg would log URLs with their passwords
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    with contextlib.suppress(OSError):  # a container may hide it
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text(encoding="ascii")) + OOM_SCORE)), encoding="ascii")


def _die(arguments: threading.ExceptHookArgs) -> None:
    """A thread met what nobody foresaw: say where and end, so that the supervisor starts afresh."""
    traceback.print_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    sys.stderr.flush()
    os._exit(EXIT_SOFTWARE)
