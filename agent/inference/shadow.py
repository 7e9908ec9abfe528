"""The shadow process: `python -m agent.inference.shadow --fd N --feed F --memory M --marks K`, started and supervised by `shadow_process`.

It answers the frames that the inference process offers, with candidates that nobody acts on, and counts how they compare. One thread, of
the lowest priority there is; frames are asked for only while the CPU budget allows. It ends when either of its two sockets is closed.
"""

import argparse
import contextlib
import faulthandler
import mmap
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from agent.inference.link import Link, LinkClosedError
from agent.inference.marks import Marks
from agent.inference.memory import Memory
from agent.inference.messages import Prediction, Sampled
from agent.inference.model import Model, load_model
from agent.inference.rows import RowBudget, RowSampler
from agent.inference.shadow_budget import CpuBudget
from agent.inference.shadow_feed import FREE
from agent.inference.shadow_messages import (
    EXIT_NO_FEED,
    MAX_FRAME_BYTES,
    MAX_NOTE_BYTES,
    Candidate,
    Layout,
    Offered,
    ShadowBrief,
    read_brief,
)
from agent.inference.shadow_pairs import PairTally
from agent.inference.shadow_reports import OFFERED, SAID, Compared, Said, ShadowBeat, ShadowFault, ShadowReady
from agent.leftovers import Leftovers, keep_what_repeats
from agent.orders import RuntimeOrder
from agent.sources.base import Array
from protocol.clock import SystemClock, from_environment
from protocol.errors import InvalidError, MooringError
from protocol.sketches.codec import Source
from runtime.base import BackendError

#: The kernel kills this process for memory before all others of the unit (1000 is the most there is).
OOM_SCORE = 1000
#: Where SCHED_IDLE is refused, and for reads and writes, which follow it.
NICENESS = 19
#: Rows of what drift watches that wait for a beat; more are skipped, counted.
MAX_ROWS = 64
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class _Pair:
    """What came of one pipeline beside one champion since the last beat."""

    line: str
    candidate: str
    tally: PairTally = field(default_factory=PairTally)
    skipped: int = 0
    too_large: int = 0
    cpu_s: float = 0.0


class Shadow:
    """The candidates of this process and what they cost."""

    def __init__(self, brief: ShadowBrief, *, link: Link, feed: socket.socket, memory: int, marks: Marks) -> None:
        self._brief, self._link, self._feed, self._marks = brief, link, feed, marks
        self._buffer = np.frombuffer(mmap.mmap(memory, MAX_FRAME_BYTES, prot=mmap.PROT_READ), np.uint8)
        self._models: dict[str, Model] = {}
        self._indexes = {candidate.line: index for index, candidate in enumerate(brief.candidates)}
        self._monotonic, self._clock = SystemClock().monotonic, from_environment(os.environ)
        self._pairs: dict[tuple[str, str], _Pair] = {}
        #: By pipeline, for stateful candidates: they see fewer frames than the champion, in the same order.
        self._memories: dict[str, Memory] = {}
        #: Rows of what drift watches, by pipeline, within the shadow's own budget; those that were made since the last beat.
        self._samplers: dict[str, RowSampler] = {}
        self._rows: list[Sampled] = []
        self._row_budget = RowBudget()
        self._leftovers = Leftovers(self._monotonic)
        self._told_s = self._paid_s = 0.0

    def load(self) -> None:
        """Load and warm every candidate; one that cannot run is a fault that is told. Raises: LinkClosedError."""
        for candidate in self._brief.candidates:
            try:
                self._models[candidate.line] = self._load(candidate)
            except MooringError as error:
                self._say(ShadowFault(candidate.line, error.code, str(error)[:2000]))
        self._leftovers.changed()
        self._say(ShadowReady(os.getpid()))

    def run(self) -> int:
        """Answer frames until a socket is closed; returns the exit status."""
        now_s = self._told_s = self._monotonic()
        self._paid_s = time.process_time()
        budget = CpuBudget(self._brief.cpu_share, now_s=now_s)
        is_asked = False
        while True:
            now_s = self._monotonic()
            if now_s - self._told_s >= self._brief.beat_s:
                self._beat(now_s)
                budget.pay(self._spent(None), now_s)
            if not is_asked and budget.is_open(now_s):
                self._feed.send(FREE)
                is_asked = True
            due_s = max(0.0, self._told_s + self._brief.beat_s - now_s)
            wait_s = due_s if is_asked else min(due_s, budget.wait_s(now_s))
            ready, _, _ = select.select([self._link.fileno(), self._feed.fileno()], [], [], wait_s)
            if self._link.fileno() in ready:
                return 0  # it says nothing: it hung up
            if self._feed.fileno() in ready:
                note = self._feed.recv(MAX_NOTE_BYTES)
                if not note:
                    return EXIT_NO_FEED
                is_asked = False
                pair = self._take(OFFERED.validate_json(note))
                budget.pay(self._spent(pair), self._monotonic())

    def _load(self, candidate: Candidate) -> Model:
        runtime = RuntimeOrder(providers=self._brief.providers, threads=self._brief.threads)
        index = self._indexes[candidate.line]
        return load_model(Path(candidate.folder), runtime, on_loading=lambda name: self._marks.loading(index, name))

    def _take(self, offered: Offered) -> _Pair:
        """Answer one frame and compare."""
        champion = offered.answer
        pair = self._pairs.get((champion.pipeline, champion.release))
        model = self._models.get(champion.line)
        if pair is None:
            pair = self._pairs[champion.pipeline, champion.release] = _Pair(champion.line, "" if model is None else model.release)
        pair.skipped += offered.skipped
        pair.too_large += offered.too_large
        if model is not None:
            self._compare(pair, model, champion, offered.layout)
        return pair

    def _compare(self, pair: _Pair, model: Model, champion: Prediction, layout: Layout) -> None:
        began_s = self._monotonic()
        self._marks.inferring(self._indexes[champion.line], model.candidate)
        try:
            memory = self._memories.setdefault(champion.pipeline, Memory())
            view, session, sampler = self._view(layout), champion.session, self._sampler_of(champion)
            watched = model.watched
            if watched is not None and layout.is_input and watched.manifest.window is not None:
                watched = None  # readings became an input before they came here
            glimpse = sampler.begin(watched)
            answer = model.infer(view, is_input=layout.is_input, size=layout.size, memory=memory, session=session, glimpse=glimpse)
        except (BackendError, InvalidError):
            pair.tally.failed(champion)
        else:
            lat_ms = (self._monotonic() - began_s) * 1000.0 + layout.prepared_ms
            told = replace(champion, release=model.release, lat_ms=lat_ms, task=answer.task, top=answer.top, boxes=answer.boxes)
            pair.tally.pair(champion, replace(told, value=answer.value, unit=answer.unit, is_anomaly=answer.is_anomaly))
            if glimpse is not None:
                sampler.finish(glimpse, session=session)
        finally:
            self._marks.inferring(self._indexes[champion.line], "")

    def _sampler_of(self, champion: Prediction) -> RowSampler:
        """What makes the rows of the champion's pipeline, as the candidate sees and answers it."""
        found = self._samplers.get(champion.pipeline)
        if found is None:
            found = RowSampler(
                champion.pipeline, champion.line, clock=self._clock, budget=self._row_budget, send=self._keep_row, src=Source.SHADOW
            )
            found.watch(self._brief.row_step_s)
            self._samplers[champion.pipeline] = found
        return found

    def _keep_row(self, row: Sampled) -> bool:
        """Until the next beat, when there is room."""
        if len(self._rows) >= MAX_ROWS:
            return False
        self._rows.append(row)
        return True

    def _view(self, layout: Layout) -> Array:
        dtype = np.dtype(layout.dtype)
        size = int(np.prod(layout.shape)) * dtype.itemsize
        return self._buffer[:size].view(dtype).reshape(layout.shape)

    def _spent(self, pair: _Pair | None) -> float:
        """CPU seconds of this process since the last time, put down to the pair."""
        now_s = time.process_time()
        spent_s, self._paid_s = now_s - self._paid_s, now_s
        if pair is not None:
            pair.cpu_s += spent_s
        return spent_s

    def _beat(self, now_s: float) -> None:
        """Tell what came since the last beat. Raises: LinkClosedError."""
        wall_ms, self._told_s = round((now_s - self._told_s) * 1000.0), now_s
        compared = tuple(
            Compared(
                pipeline,
                pair.line,
                champion,
                pair.candidate,
                pair.tally.comparison(skipped=pair.skipped, too_large=pair.too_large, cpu_ms=round(pair.cpu_s * 1000.0), wall_ms=wall_ms),
            )
            for (pipeline, champion), pair in self._pairs.items()
        )
        self._pairs.clear()
        rows, self._rows = tuple(self._rows), []
        self._say(ShadowBeat(compared, _rss_mb(), rows))
        self._leftovers.tend()

    def _say(self, message: Said) -> None:
        self._link.send(SAID.dump_json(message))


def main(arguments: list[str]) -> int:
    """Run until one of the sockets is closed; returns the exit status."""
    parser = argparse.ArgumentParser(prog="agent.inference.shadow")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the control process")
    parser.add_argument("--feed", type=int, required=True, help="the socket to the inference process")
    parser.add_argument("--memory", type=int, required=True, help="the memory for the frame")
    parser.add_argument("--marks", type=int, required=True, help="the memory for marks")
    parser.add_argument("--brief", required=True, help="what to run, JSON")
    options = parser.parse_args(arguments)
    brief = read_brief(options.brief)
    _prepare_process(is_idle=brief.priority == "idle")
    shadow = Shadow(
        brief,
        link=Link(socket.socket(fileno=options.fd)),
        feed=socket.socket(fileno=options.feed),
        memory=options.memory,
        marks=Marks(options.marks),
    )
    try:
        shadow.load()
        return shadow.run()
    except LinkClosedError:
        return 0  # the control process is gone, or wants no shadow any more
    except (BrokenPipeError, ConnectionResetError, ValidationError):
        return EXIT_NO_FEED


def _prepare_process(*, is_idle: bool) -> None:
    keep_what_repeats()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the control process says when to stop
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if is_idle:  # before any runtime starts threads, which inherit it
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
    with contextlib.suppress(OSError):  # a container may hide it
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * _PAGE_BYTES / 2**20, 2)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # not sys.exit: a thread of a runtime must not keep the process
