"""Measuring how a model runs best on this device: providers and threads, with its golden vectors, in child processes, in turns.

`python -m agent.inference.autotune FOLDER CANDIDATE OPTIONS` is the child: it loads one setup, compares the golden vectors, and infers as
often as each line on its standard input says. Two children live at a time, the default's and a challenger's; while one works the other
waits, so both see the same machine. A challenger that wins is measured against the default once more, in new processes, and only then
replaces it. Batches are not tried: a manifest has batch 1 (ADR 0025).
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from agent.children import child_environment
from agent.inference.tuning import Match, Setup, Speed, Tuning, Tunings, is_better
from protocol.canonical import digest_of
from protocol.errors import InvalidError
from protocol.files import read_bounded
from runtime.base import BackendError, BackendOptions, Candidate, candidates_for, parse_candidate
from runtime.golden import compare, key_of, read_goldens
from runtime.loader import MANIFEST_NAME, load_on, read_slot
from runtime.manifest import MAX_MANIFEST_BYTES
from runtime.probe import MODULES, limit_child, options_of, options_text
from runtime.providers import DEFAULT_PROVIDER, find_kind
from runtime.records import ModelRecords

#: Turns of each of two setups, and milliseconds that one turn takes at most; at least so many inferences all the same.
ROUNDS, TURN_MS, LEAST_INFERENCES, MOST_INFERENCES = 6, 250.0, 5, 100
#: Seconds that a child may take to load its model or for one turn, when the budget's rest is less: it must not fail for being slow.
LEAST_WAIT_S = 30.0
MAX_THREADS = 4
_NICENESS = 10
_MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Wishes:
    """Between which limits to tune."""

    #: Milliseconds between two frames.
    frame_ms: float = 40.0
    #: Seconds of wall clock, and of processor time, for all of it.
    budget_s: float = 20.0
    #: Why to stop now, in words: heat, too little memory; "" while it may go on.
    may_not: Callable[[], str] = lambda: ""


class _Stopped(Exception):  # noqa: N818 - not an error: the reason why the default stays
    """The budget is used up, or the device is too hot or too short of memory."""


@dataclass(slots=True)
class _Budget:
    wishes: Wishes
    began_s: float = field(default_factory=time.monotonic)
    cpu_s: float = 0.0

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def left_s(self) -> float:
        return min(self.wishes.budget_s - self.wall_s, self.wishes.budget_s - self.cpu_s)

    def check(self) -> None:
        """Raises: _Stopped."""
        if reason := self.wishes.may_not():
            raise _Stopped(reason)
        if self.left_s <= 0:
            raise _Stopped(f"The budget of {self.wishes.budget_s:g} s is used up.")


def tune(folder: Path, options: BackendOptions | None = None, *, wishes: Wishes | None = None, records_dir: Path | None = None) -> Tuning:
    """How the slot folder's model runs best here; kept in `records_dir` when all was measured. Never slower than the default.

    Raises: InvalidError on a folder that is no slot; BackendError when the default itself does not run.
    """
    options = options or BackendOptions()
    artifact = digest_of(read_bounded(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))
    usable = usable_candidates(folder, options, ModelRecords(records_dir, provider_options=options.provider_options).quarantined(artifact))
    budget = _Budget(wishes or Wishes())
    default = _default(folder, usable, options, budget)
    challengers = [setup for setup in setups_of(usable, options) if setup != default]
    matches: list[Match] = []
    try:
        best = _best_of(folder, default, challengers, options, budget, matches)
    except _Stopped as stopped:
        return Tuning(artifact, default, default, f"{default} stays. {stopped}", budget.wall_s, budget.cpu_s, tuple(matches))
    found = Tuning(
        artifact, best.setup if best else default, default, _in_words(best, default), budget.wall_s, budget.cpu_s, tuple(matches)
    )
    Tunings(records_dir, provider_options=options.provider_options, threads=options.threads).keep(found)
    return found


def usable_candidates(folder: Path, options: BackendOptions, quarantined: Sequence[str] = ()) -> list[Candidate]:
    """The installed candidates for the slot's model that did not crash with it, best first. Raises: InvalidError."""
    manifest = read_slot(folder)
    wanted = candidates_for(folder / manifest.model_file, manifest.backends, options)
    return [one for one in wanted if str(one) not in quarantined and importlib.util.find_spec(MODULES[one.backend]) is not None]


def setups_of(candidates: Sequence[Candidate], options: BackendOptions) -> list[Setup]:
    """Every setup worth trying: each candidate, on the processor with 1, 2 and 4 threads as far as there are processors."""
    processors = os.cpu_count() or 1
    counts = sorted({options.threads, *(threads for threads in (1, 2, MAX_THREADS) if threads <= processors)})
    setups = []
    for candidate in candidates:
        kind = find_kind(candidate.provider)
        is_threaded = candidate.provider == DEFAULT_PROVIDER or (kind is not None and bool(kind.threads_option))
        setups += [Setup(str(candidate), threads) for threads in (counts if is_threaded else [options.threads])]
    return setups


def has_something_to_gain(candidates: Sequence[Candidate], *, p99_ms: float, frame_ms: float) -> bool:
    """Whether tuning may change anything: there is another provider or back end, or the default misses the frame budget.

    With one candidate that meets it, one thread is the cheapest way already.
    """
    return len(candidates) > 1 or (p99_ms > frame_ms and (os.cpu_count() or 1) > 1)


def _default(folder: Path, usable: Sequence[Candidate], options: BackendOptions, budget: _Budget) -> Setup:
    """The setup that runs without tuning: the first candidate that loads. Raises: BackendError, the last one met."""
    fault: BackendError | None = None
    for candidate in usable:
        setup = Setup(str(candidate), options.threads)
        try:
            with _Child(folder, setup, options, budget):
                return setup
        except BackendError as error:
            fault = error
    if fault is None:
        raise BackendError(f"No runtime for {folder.name} is installed.", backend="", code="no_backend")
    raise fault


def _best_of(
    folder: Path, default: Setup, challengers: Sequence[Setup], options: BackendOptions, budget: _Budget, matches: list[Match]
) -> Match | None:
    """The winner of two matches, None: the default stays. Raises: _Stopped."""
    frame_ms = budget.wishes.frame_ms
    won: list[Match] = []
    for setup in challengers:
        budget.check()
        matches.append(_match(folder, setup, default, options, budget))
        if _has_won(matches[-1], frame_ms):
            won.append(matches[-1])
    for match in sorted(won, key=lambda one: _merit(one, frame_ms)):
        budget.check()
        again = _match(folder, match.setup, default, options, budget)
        matches.append(dataclasses.replace(again, text=f"Once more. {again.text}".strip()))
        if _has_won(again, frame_ms):
            return again
    return None


def _has_won(match: Match, frame_ms: float) -> bool:
    return match.speed is not None and match.default is not None and is_better(match.speed, match.default, frame_ms=frame_ms)


def _merit(match: Match, frame_ms: float) -> tuple[bool, float]:
    """Least first: those that meet the budget by processor time, then the others by how near they come; against their own default."""
    if match.speed is None or match.default is None:
        return True, float("inf")
    meets = match.speed.p99_ms <= frame_ms
    return not meets, match.speed.cpu_ms / match.default.cpu_ms if meets else match.speed.p50_ms / match.default.p50_ms


def _match(folder: Path, setup: Setup, default: Setup, options: BackendOptions, budget: _Budget) -> Match:
    """Both setups in turns. Raises: _Stopped."""
    try:
        with _Child(folder, default, options, budget) as ours, _Child(folder, setup, options, budget) as theirs:
            for turn in range(ROUNDS):
                for child in (ours, theirs) if turn % 2 else (theirs, ours):
                    budget.check()
                    child.infer()
            return Match(setup, theirs.speed(), ours.speed())
    except BackendError as error:
        return Match(setup, None, None, str(error)[:500])


def _in_words(best: Match | None, default: Setup) -> str:
    if best is None or best.speed is None or best.default is None:
        return f"{default} stays: nothing else is better."
    new, old = best.speed, best.default
    return (
        f"{best.setup} in place of {default}: {new.cpu_ms:.3g} ms of processor in place of {old.cpu_ms:.3g}, "
        f"p99 {new.p99_ms:.3g} ms in place of {old.p99_ms:.3g}."
    )


class _Child:
    """A process with one setup, which infers when it is told to."""

    def __init__(self, folder: Path, setup: Setup, options: BackendOptions, budget: _Budget) -> None:
        self._setup, self._budget = setup, budget
        self._cpu_s = 0.0
        self._walls: list[float] = []
        self._cpus: list[float] = []
        self._count = LEAST_INFERENCES
        wanted = dataclasses.replace(options, threads=setup.threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent.inference.autotune", str(folder.resolve()), setup.candidate, options_text(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**child_environment(), "OMP_NUM_THREADS": str(setup.threads)},
            bufsize=0,
        )

    def __enter__(self) -> Self:
        """Wait until it is loaded. Raises: BackendError when it does not run, or not right."""
        try:
            self._take(max(LEAST_WAIT_S, self._budget.left_s))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def infer(self) -> None:
        """One turn. Raises: BackendError when it dies or stands still."""
        with contextlib.suppress(OSError):  # a dead one is noticed by its silence
            assert_pipe(self._process.stdin).write(f"{self._count}\n".encode())
        told = self._take(max(LEAST_WAIT_S, self._budget.left_s))
        self._walls += told["walls_ms"]
        self._cpus.append(told["turn_cpu_ms"])
        middle = sorted(self._walls)[len(self._walls) // 2]
        self._count = max(LEAST_INFERENCES, min(MOST_INFERENCES, int(TURN_MS / max(middle, 1e-3))))

    def speed(self) -> Speed:
        """What it cost so far."""
        walls = sorted(self._walls)
        return Speed(min(self._cpus), walls[len(walls) // 2], walls[min(len(walls) - 1, int(len(walls) * 0.99))])

    def _take(self, timeout_s: float) -> dict[str, Any]:
        line = _read_line(assert_pipe(self._process.stdout).fileno(), timeout_s)
        if not line:
            state = "did not answer in time" if self._process.poll() is None else f"ended with {self._process.returncode}"
            raise BackendError(f"{self._setup} {state}.", backend=self._setup.candidate, code="timeout")
        told: dict[str, Any] = json.loads(line)
        self._budget.cpu_s += float(told.get("cpu_s", 0.0)) - self._cpu_s
        self._cpu_s = float(told.get("cpu_s", 0.0))
        if "error" in told:
            raise BackendError(str(told["error"])[:500], backend=self._setup.candidate, code=str(told["code"]))
        return told


def assert_pipe(pipe: Any) -> Any:
    """The pipe that `Popen` was asked for."""
    if pipe is None:
        raise RuntimeError("the child was started without its pipes")
    return pipe


def _read_line(fd: int, timeout_s: float) -> bytes:
    """One line, b"" at the end, when it is too long, or when none came in time."""
    deadline, data = time.monotonic() + timeout_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while not data.endswith(b"\n"):
            if len(data) > _MAX_LINE_BYTES or not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            part = os.read(fd, _MAX_LINE_BYTES)
            if not part:
                return b""
            data += part
    return data


# --- the child ---


@contextmanager
def _answers() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where answers go; libraries that print get standard error instead."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(document: dict[str, Any]) -> None:
            out.write(json.dumps({**document, "cpu_s": time.process_time()}) + "\n")
            out.flush()

        yield say


def _serve(folder: Path, candidate: Candidate, options: BackendOptions, say: Callable[[dict[str, Any]], None]) -> None:
    """Load, compare, then infer as often as each line says, until the end of standard input."""
    manifest, goldens = read_slot(folder), read_goldens(folder)
    backend = load_on(candidate, folder / manifest.model_file, manifest, options)
    vectors = [dict(vector) for vector in goldens.inputs]
    results = [{name: value.copy() for name, value in backend.infer(vector).items()} for vector in vectors]
    if differences := compare(goldens, results, key=key_of(backend.name, backend.version)):
        raise InvalidError(f"{candidate} answers otherwise: {differences[0]}", code="golden_mismatch")
    say({"ready": True})
    for line in sys.stdin:
        count, walls = min(int(line), MOST_INFERENCES), []
        began_s = time.process_time()
        for index in range(count):
            started = time.perf_counter()
            backend.infer(vectors[index % len(vectors)])
            walls.append((time.perf_counter() - started) * 1000)
        turn_cpu_ms = (time.process_time() - began_s) * 1000 / count
        say({"walls_ms": walls, "turn_cpu_ms": turn_cpu_ms})


def main(arguments: Sequence[str]) -> int:
    """Be the child of one setup."""
    limit_child()
    os.nice(_NICENESS)
    folder, candidate, options = Path(arguments[0]), parse_candidate(arguments[1]), options_of(arguments[2])
    with _answers() as say:
        try:
            _serve(folder, candidate, options, say)
        except (BackendError, InvalidError) as error:
            say({"error": str(error), "code": error.code})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
