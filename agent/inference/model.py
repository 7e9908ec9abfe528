"""One loaded model with its compiled plans: from a frame or window to an answer. Used by one thread at a time, through its lock."""

import contextlib
import json
import random
import threading
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from agent.inference.memory import Memory, StateInputs
from agent.inference.messages import Box, Choice, LineCount, ScoredLabel
from agent.inference.needs import need_of
from agent.inference.options import backend_options
from agent.inference.pictures import Inputs
from agent.inference.rows import Glimpse, find_watched
from agent.inference.shadow_feed import Offer
from agent.orders import RuntimeOrder
from agent.sources.base import Array
from protocol.canonical import digest_of
from protocol.clock import SystemClock
from protocol.decoding import encode
from protocol.errors import InvalidError
from protocol.files import read_bounded
from runtime.answers import Answer, Classification, Detections
from runtime.base import Backend, BackendError, Candidate, InferFailed, RuntimeMissing, candidates_for
from runtime.loader import MANIFEST_NAME, check_files, load_on
from runtime.manifest import MAX_MANIFEST_BYTES, ClassificationManifest, ModelManifest, from_bytes
from runtime.postprocess import answerer_for
from runtime.preprocess import Preprocessor, compile_plan
from runtime.readings import WindowFiller

#: Latencies that the 99th percentile since activation is computed from: the latest ones.
LATENCIES = 4096
WARM_ROUNDS = 3
#: Codes of answers that are no answer and of windows that lack a number: counted as invalid, nobody's back end is at fault.
_INVALID = frozenset({"not_finite", "out_of_range"})
#: Counters for answers that have no class; a prime, so that numbers on a grid spread.
_BUCKETS = 257
_monotonic = SystemClock().monotonic
#: What frames and windows consist of, as objects: numpy's names for them would be looked up for every frame.
_PIXEL, _READING = np.dtype(np.uint8), np.dtype(np.float32)


@lru_cache(maxsize=64)
def slower_by_chance(count: int, *, share: float = 0.01, confidence: float = 0.99) -> int:
    """How many of `count` values may lie above a limit, with that confidence, when each does so with probability `share`."""
    chance = below = (1.0 - share) ** count
    slower = 0
    while below < confidence and slower < count:
        chance *= (count - slower) * share / ((slower + 1) * (1.0 - share))
        slower += 1
        below += chance
    return slower


class Latencies:
    """The latest milliseconds per inference, in memory allocated once; written without numpy, whose code models drive from the caches."""

    def __init__(self, size: int = LATENCIES) -> None:
        self._size = size
        self._kept = array("f", bytes(4 * size))
        #: The same memory.
        self._values = np.frombuffer(self._kept, np.float32)
        self._count = 0

    def add(self, milliseconds: float) -> None:
        """Remember one, forgetting the oldest when full."""
        self._kept[self._count % self._size] = milliseconds
        self._count += 1

    def p99(self) -> float | None:
        """The 99th percentile; None before the first one."""
        return float(np.percentile(self._values[: self._count], 99)) if self._count else None

    def p99_low(self) -> float | None:
        """What the 99th percentile of all inferences is at least, with a confidence of 99 %; None before the first one.

        An order statistic, whatever the distribution (Conover, Practical Nonparametric Statistics, 3.2): the percentile of few latencies
        is the slowest of them, and one busy moment of the machine makes no slow model.
        """
        kept = min(self._count, self._values.size)
        if not kept:
            return None
        rank = max(0, kept - 1 - slower_by_chance(kept))
        return float(np.partition(self._values[:kept], rank)[rank])


class Sample:
    """At most `size` of the latencies of one beat, each equally likely to be among them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: list[float] = []
        self._seen = 0

    def add(self, milliseconds: float) -> None:
        """Offer one, to the microsecond."""
        self._seen += 1
        if len(self._values) < self._size:
            self._values.append(milliseconds)
        elif (index := int(random.random() * self._seen)) < self._size:  # noqa: S311 - thins figures, guards nothing
            self._values[index] = milliseconds

    def take(self) -> tuple[float, ...]:
        """What was kept, and begin anew."""
        values, self._values, self._seen = self._values, [], 0
        return tuple(values)


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which bytes of which folder a model came from."""

    folder: Path
    #: Digest of manifest.json, which binds the digests of all files.
    artifact: str


@dataclass(slots=True)
class Inferred:
    """What a model answered for one frame or window; which of the fields is meant says `task`, as in `Prediction`; not frozen, like it."""

    release: str
    task: str
    top: tuple[ScoredLabel, ...] = ()
    boxes: tuple[Box, ...] = ()
    value: float | None = None
    unit: str = ""
    is_anomaly: bool | None = None


class Model:
    """A back end that answers, and what it did since its activation."""

    def __init__(
        self,
        key: ModelKey,
        manifest: ModelManifest,
        backend: Backend,
        *,
        asked: Candidate,
        candidate: Candidate,
        refused: tuple[str, ...],
        threads: int = 1,
    ) -> None:
        self.key = key
        self.candidate = str(candidate)
        self.release = manifest.release
        self.plan = plan_key(manifest)
        #: What drift watches of it, and why nothing is although it came with a profile.
        self.watched, self.watch_fault = find_watched(key.folder, manifest)
        #: Pixels of a frame that the model can use; None when it takes readings.
        self.need = need_of(manifest)
        #: Held while inferring and while closing: one thread at a time, and nothing closes under a running inference.
        self.lock = threading.Lock()
        self.is_closed = False
        #: Failures in a row; the engine looks for another back end when they do not end.
        self.failures = 0
        self._manifest = manifest
        self._backend = backend
        self._asked = str(asked)
        self._effective = f"{backend.name}:{backend.effective_provider.effective}"
        self._refused = refused
        self._threads = threads
        self._input = manifest.inputs[0]
        self._answerer = answerer_for(manifest)
        self._filler = None if manifest.window is None else WindowFiller(self._input, manifest.window)
        self._preprocessor: Preprocessor | None = None
        self._state = StateInputs(manifest)
        #: Inputs by name, the same dictionary for every inference.
        self._inputs: dict[str, Array] = dict(self._state.first())
        self._latencies = Latencies()
        self._inferences = self._errors = self._invalid = 0
        #: Answers by best class, or by the number that they stand on.
        self._answers = array("q", bytes(8 * max(len(_labels_of(manifest)) + 1, _BUCKETS)))

    @property
    def provider(self) -> str:
        """What really runs, "backend:provider"."""
        return self._effective

    def prepare(self, data: Array, shared: Inputs) -> None:
        """Make the input of a frame and leave it in `shared`, in any thread and while another frame is inferred. Windows are left alone.

        A frame that does not fit raises nothing here: it will when it is inferred.
        """
        if self._filler is None and data.dtype == _PIXEL:
            with contextlib.suppress(InvalidError):
                shared.of(self.plan, self._new_preprocessor, data)

    def infer(
        self,
        data: Array,
        *,
        offer: Offer | None = None,
        is_input: bool = False,
        memory: Memory | None = None,
        session: int = 0,
        size: tuple[int, int] | None = None,
        shared: Inputs | None = None,
        glimpse: Glimpse | None = None,
    ) -> Inferred:
        """The answer; `data` is a frame, a window, or (`is_input`) what another model made of one by the same plan.

        `offer`: hears the model's input, while it holds. `memory`: what the pipeline's frames of this session left in a stateful model;
        without one each frame is a first. `size`: (height, width) of the frame behind an input. `shared`: where the input of a frame
        that others infer too lies, once it is made. `glimpse`: where copies are left. Raises: InferFailed; InvalidError when frame or
        window does not fit the input.
        """
        began_s = 0.0 if offer is None else _monotonic()
        tensor = data if is_input else self._tensor(data, shared)
        prepared_s = 0.0 if offer is None else _monotonic()
        inputs, state = self._inputs, self._state
        inputs[self._input.name] = tensor
        if state.carried:
            inputs.update(state.first() if memory is None else memory.recall(state, session))
        try:
            outputs = self._backend.infer(inputs)
            if offer is not None:
                offer.take_input(self.plan, tensor, (prepared_s - began_s) * 1000.0)
            reference = None if self._filler is None or is_input else self._filler.values
            if size is None and not is_input and data.dtype == _PIXEL:
                size = data.shape[0], data.shape[1]
            answer = self._answerer.run(outputs, inputs=inputs, size=size, reference=reference)
        except BackendError:
            if memory is not None:  # a state that is not finite would spoil every answer from now on
                memory.forget()
            raise
        if glimpse is not None and self.watched is not None:
            readings = data if self._filler is not None else None
            glimpse.take(self.watched, tensor, answer=answer, outputs=outputs, size=size, readings=readings)
        if memory is not None and state.carried:
            memory.keep(state, outputs)
        return self._inferred(answer)

    def _inferred(self, answer: Answer) -> Inferred:
        task = self._manifest.task
        if isinstance(answer, Classification):
            return Inferred(self.release, task, answer.top)
        if isinstance(answer, Detections):
            boxes = tuple(Box(one.label, one.index, one.score, *one.box) for one in answer.items)
            return Inferred(self.release, task, boxes=boxes)
        return Inferred(self.release, task, value=answer.value, unit=answer.unit, is_anomaly=answer.is_anomaly)

    def succeeded(self, answer: Inferred, milliseconds: float) -> None:
        """Count an answer."""
        self._inferences += 1
        self.failures = 0
        self._latencies.add(milliseconds)
        if answer.task == "classification":
            self._answers[answer.top[0].index if answer.top else -1] += 1
        else:  # a frame without objects and a calm machine are no dead model: what the answer stands on still moves
            self._answers[hash(self._answerer.best) % _BUCKETS] += 1

    def failed(self, error: BackendError | InvalidError) -> None:
        """Count a failure."""
        self._inferences += 1
        self._errors += 1
        if error.code in _INVALID:
            self._invalid += 1
        else:
            self.failures += 1

    def count(self, line: str) -> LineCount:
        """Figures since activation."""
        answers = sum(self._answers)
        return LineCount(
            line=line,
            folder=str(self.key.folder),
            release=self.release,
            asked=self._asked,
            effective=self._effective,
            inferences=self._inferences,
            errors=self._errors,
            invalid=self._invalid,
            p99_ms=self._latencies.p99(),
            top_share=max(self._answers) / answers if answers else None,
            refused=self._refused,
            threads=self._threads,
            share=self._backend.effective_provider.share_accelerated,
            p99_low_ms=self._latencies.p99_low(),
        )

    def close(self) -> None:
        """Wait for a running inference, then free the back end; may be called again."""
        with self.lock:
            self.is_closed = True
            self._backend.close()

    def _tensor(self, data: Array, shared: Inputs | None) -> Array:
        if self._filler is not None:
            return self._filler.fill(data)
        if data.ndim == 2 and data.dtype == _READING:  # a window of readings for a model whose manifest says nothing of windows
            if self._input.dtype != "float32" or data.size != int(np.prod(self._input.shape)):
                raise InvalidError(
                    f"The window is {data.dtype.name}{list(data.shape)}; the model wants {self._input.dtype}{list(self._input.shape)}.",
                    code="input_mismatch",
                    hint="Set `window` and `fields` of the source as the model was trained, or assign another line.",
                )
            return data.reshape(self._input.shape)
        if shared is not None:
            return shared.of(self.plan, self._new_preprocessor, data)
        if self._preprocessor is None:
            self._preprocessor = self._new_preprocessor()
        return self._preprocessor.run(data)

    def _new_preprocessor(self) -> Preprocessor:
        return Preprocessor(compile_plan(self._manifest))


def _labels_of(manifest: ModelManifest) -> tuple[str, ...]:
    return manifest.postprocess.labels if isinstance(manifest, ClassificationManifest) else ()


def plan_key(manifest: ModelManifest) -> str:
    """Names how a model's input is made from a frame: equal keys, equal inputs."""
    plan = {
        "preprocess": encode(manifest.preprocess),
        "window": encode(manifest.window),
        "input": encode(replace(manifest.inputs[0], name="")),
    }
    return digest_of(json.dumps(plan, sort_keys=True).encode())


def read_key(folder: Path) -> tuple[ModelKey, ModelManifest]:
    """The key and the manifest of a slot folder. Raises: InvalidError when the manifest is missing or not valid."""
    try:
        data = read_bounded(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise InvalidError(f"{folder / MANIFEST_NAME} cannot be read: {error.strerror}.", code="manifest_invalid") from None
    return ModelKey(folder, digest_of(data)), from_bytes(data)


def load_model(
    folder: Path,
    runtime: RuntimeOrder,
    *,
    quarantined: Collection[str] = (),
    demoted: Collection[str] = (),
    choice: Choice | None = None,
    on_loading: Callable[[str], None],
) -> Model:
    """The folder's model, warmed up, on the first back end that takes it; `on_loading` hears the candidate before, "" after.

    What autotune chose comes first, unless it crashed or hung with this model since.

    Raises: InvalidError when manifest or files are not right; BackendError when no back end takes the model, the loudest of them.
    """
    key, manifest = read_key(folder)
    check_files(folder, manifest)
    artifact = folder / manifest.model_file
    options = backend_options(runtime)
    wanted = candidates_for(artifact, manifest.backends, options)
    usable = [candidate for candidate in wanted if str(candidate) not in quarantined]
    faults: list[BackendError] = []
    chosen = choice.candidate if choice else ""
    for candidate in sorted(usable, key=lambda candidate: (str(candidate) in demoted, str(candidate) != chosen)):
        on_loading(str(candidate))
        tuned = replace(options, threads=choice.threads) if choice and str(candidate) == chosen else options
        try:
            backend = load_on(candidate, artifact, manifest, tuned, warm_rounds=WARM_ROUNDS)
        except BackendError as error:
            faults.append(error)
            continue
        finally:
            on_loading("")
        missing = {fault.backend for fault in faults if isinstance(fault, RuntimeMissing)}
        asked = next(option for option in wanted if option.backend not in missing)
        if choice and str(candidate) == chosen and str(asked) == choice.replaces:
            asked = candidate  # on purpose: what was asked for runs too, and worse
        refused = tuple(
            f"{fault.backend}:{fault.provider or 'cpu'}: {fault.message}" for fault in faults if not isinstance(fault, RuntimeMissing)
        )
        refused += tuple(f"{name}: failed with this model before" for name in quarantined)
        return Model(key, manifest, backend, asked=asked, candidate=candidate, refused=refused, threads=tuned.threads)
    raise _loudest(faults, artifact)


def _loudest(faults: list[BackendError], artifact: Path) -> BackendError:
    loud = [fault for fault in faults if not isinstance(fault, RuntimeMissing)]
    if loud:
        return loud[-1]
    if faults:
        return faults[0]
    return InferFailed(
        f"Every back end that could run {artifact.name} failed with it before.",
        backend=artifact.suffix.removeprefix("."),
        artifact=artifact.name,
        code="no_backend",
        hint="Roll the line back to another release.",
    )
