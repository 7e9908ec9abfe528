"""The reference profile of a model version, made by the very artifact in a child under limits: `python -m fleet.registry.profiling`.

The child infers evaluation data with the device's own code, and some of the pictures again after mild to strong damage; the parent
survives whatever the runtime or the data do to it.
"""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fleet.registry.corruptions import SEVERITIES, corrupted, families
from fleet.registry.evaluation import Evaluation, open_evaluation
from fleet.registry.profiles import Rows, make_profile
from protocol.canonical import canonical_json
from protocol.clock import from_environment
from protocol.errors import InvalidError, MooringError
from protocol.files import read_bounded
from protocol.sketches.profile import FILE_NAME, MAX_PROFILE_BYTES, ModelProfile, decode_profile, encode_profile
from runtime.answers import Answer, Classification
from runtime.base import Array, Backend, BackendError, BackendOptions, InferFailed
from runtime.features import Extractor
from runtime.inputs import Layout, TensorDescription
from runtime.loader import MANIFEST_NAME, load_first, read_slot
from runtime.manifest import ClassificationManifest, DetectionManifest, ModelManifest, to_bytes
from runtime.postprocess import answerer_for
from runtime.preprocess import Filler, Preprocessor, compile_plan, plan_for
from runtime.probe import limit_child
from runtime.readings import WindowFiller

#: Of one child: wall clock, and processor time.
TIMEOUT_S, CPU_S = 1200.0, 900
#: Pictures that are damaged, at least and at most, and the processor time that all of them may take together.
MIN_DAMAGED, MAX_DAMAGED, DAMAGED_CPU_S = 48, 192, 240.0
#: Of each place at least, when the evaluation data say where they are from and time allows.
DAMAGED_OF_PLACE = 64
#: A profile of frames or windows of which fewer gave an answer would tell too little.
_MIN_ANSWERED = 0.5
#: Inputs that are kept for golden vectors, evenly spaced among the evaluation data, and bytes of them all.
MAX_INPUTS, MAX_INPUT_BYTES = 16, 4 << 20
_EVALUATION, _ANSWER, _INPUTS = "evaluation", "answer.json", "inputs.npy"
_MAX_ANSWER_BYTES, _MAX_SAID = 64 << 10, 2000
_NICENESS = 10


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where an input came from, as far as it is known."""

    #: (height, width) of the frame.
    size: tuple[int, int] | None = None
    #: The window before and after it was normalized.
    readings: Array | None = None
    reference: Array | None = None


@dataclass(frozen=True, slots=True)
class _Said:
    """What the evaluation data say of a frame or window: the place of its label in the manifest, and where it is from."""

    truth: int | None
    place: str | None


@dataclass(frozen=True, slots=True)
class Profiled:
    """A reference profile as it is kept, and what making it found."""

    data: bytes
    profile: ModelProfile
    #: Features that are not watched, and why: "constant", "missing", "like NAME", "limit".
    left_out: dict[str, str]
    #: What the model was given of some of the evaluation data: its first input, [n, *shape]; n may be 0.
    inputs: Array


def make_in_child(model: Path, manifest: ModelManifest, evaluation: Path) -> Profiled:
    """The reference profile of a model file from evaluation data.

    Raises: InvalidError saying what was seen, wanted and what to do: data that do not fit the model, too little data (too-little-data), a
    model that does not run here, takes too long (profile-timeout) or kills its process (profile-crashed).
    """
    with tempfile.TemporaryDirectory(prefix="mooring-profile-") as scratch:
        folder = Path(scratch)
        (folder / MANIFEST_NAME).write_bytes(to_bytes(manifest))
        for source, name in ((model, manifest.model_file), (evaluation, _EVALUATION)):
            _link(source, folder / name)
        said = _run_child(folder)
        try:
            answer = json.loads(read_bounded(folder / _ANSWER, _MAX_ANSWER_BYTES))
        except (OSError, ValueError):
            raise InvalidError(f"The profile could not be made: {said or 'the child left no answer'}.", code="profile-crashed") from None
        if "error" in answer:
            raise InvalidError(str(answer["error"]), code=str(answer["code"]), hint=answer.get("hint"))
        data = read_bounded(folder / FILE_NAME, MAX_PROFILE_BYTES)
        inputs = _read_inputs(folder / _INPUTS, manifest.inputs[0])
    return Profiled(data, decode_profile(data), dict(answer["left_out"]), inputs)


def _read_inputs(path: Path, tensor: TensorDescription) -> Array:
    """What the child kept; it ran a model from outside, so its word is checked."""
    try:
        inputs = np.load(io.BytesIO(read_bounded(path, MAX_INPUT_BYTES + 4096)), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise InvalidError("The profile could not be made: the child left no inputs.", code="profile-crashed") from None
    if inputs.dtype != tensor.dtype or inputs.shape[1:] != tuple(tensor.shape) or len(inputs) > MAX_INPUTS:
        raise InvalidError(
            f"The profile could not be made: inputs of {inputs.dtype}{list(inputs.shape)}; wanted {tensor.dtype}[n, {list(tensor.shape)}].",
            code="profile-crashed",
        )
    return np.asarray(inputs)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _run_child(folder: Path) -> str:
    """Run the child to its end; what it said last. Raises: InvalidError when it was killed or took too long."""
    command = [sys.executable, "-m", "fleet.registry.profiling", str(folder)]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(folder)}
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=noise,
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
        )
        try:
            status = child.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        finally:
            if child.returncode is None:
                child.kill()
                child.wait()
        noise.seek(max(0, noise.seek(0, os.SEEK_END) - _MAX_SAID))
        said = noise.read().decode(errors="replace").strip().splitlines()
    if status == -signal.SIGXCPU:
        raise InvalidError(
            f"The model did not answer the evaluation data within {CPU_S} s of processor time.",
            code="profile-timeout",
            hint="Bring fewer frames.",
        )
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        raise InvalidError(
            f"The process that inferred the evaluation data was killed by {name}.",
            code="profile-crashed",
            hint="Is there too little memory? Bring smaller or fewer frames.",
        )
    return said[-1][:500] if said else ""


# --- the child ---


def main(arguments: Sequence[str]) -> int:
    """Make the profile of the folder's model from the folder's evaluation data.

    Leaves `answer.json`, and beside it `profile.cbor` and some of the inputs, `inputs.npy`.
    """
    folder = Path(arguments[0])
    limit_child()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    os.nice(_NICENESS)
    try:
        profile, left_out, inputs = _make(folder)
        (folder / FILE_NAME).write_bytes(encode_profile(profile))
        np.save(folder / _INPUTS, inputs, allow_pickle=False)
        answer: dict[str, object] = {"left_out": left_out}
    except MemoryError:
        answer = {"error": "The evaluation data do not fit into memory.", "code": "too-large", "hint": "Bring smaller or fewer frames."}
    except MooringError as error:
        answer = {"error": error.message, "code": error.code, **({"hint": error.hint} if error.hint else {})}
    (folder / _ANSWER).write_bytes(canonical_json(answer))
    return 0


def _make(folder: Path) -> tuple[ModelProfile, dict[str, str], Array]:
    manifest = read_slot(folder)
    try:
        loaded = load_first(folder, manifest, BackendOptions())
    except BackendError as error:
        raise InvalidError(f"The model cannot answer evaluation data here: {error.message}", code=error.code, hint=error.hint) from error
    with open_evaluation(folder / _EVALUATION, manifest) as evaluation:
        judge = _Judge(manifest, loaded.backend, wanted=evaluation.count)
        rows, damaged = _frames(judge, evaluation) if manifest.preprocess is not None else (_windows(judge, evaluation), {})
    if len(rows.values) < max(2, _MIN_ANSWERED * evaluation.count):
        raise InvalidError(
            f"Of {evaluation.count} frames or windows only {len(rows.values)} gave an answer.",
            code="too-little-data",
            hint="Look at the range and the missing numbers that the manifest allows.",
        )
    made_at_ms = int(from_environment().now().timestamp() * 1000)  # windows of before the grid was made are refused
    profile, selection = make_profile(rows, made_at_ms=made_at_ms, damaged=damaged)
    return profile, dict(selection.left_out), judge.inputs


class _Judge:
    """Infers inputs one by one and keeps the rows that come of them."""

    def __init__(self, manifest: ModelManifest, backend: Backend, *, wanted: int) -> None:
        """`wanted`: frames or windows that are to come, of which some evenly spaced ones are kept as inputs."""
        self.manifest, self._backend = manifest, backend
        source = manifest.inputs[0]
        room = min(MAX_INPUTS, MAX_INPUT_BYTES // (source.size * np.dtype(source.dtype).itemsize))
        self._every, self._room = -(-wanted // max(1, room)), room
        self._kept: list[Array] = []
        self._seen = 0
        self._answerer, self._extractor = answerer_for(manifest), Extractor(manifest)
        self._states = {one.name: np.full(one.shape, one.zero_point or 0, one.dtype) for one in manifest.inputs[1:]}

    def row(self, tensor: Array, origin: _Origin) -> tuple[Array, tuple[str, ...], int] | None:
        """(numbers, labels, place of the best class or -1); None when the model gave no answer."""
        inputs = {self.manifest.inputs[0].name: tensor, **self._states}
        try:
            outputs = self._backend.infer(inputs)
            answer = self._answerer.run(outputs, inputs=inputs, size=origin.size, reference=origin.reference)
        except InferFailed as error:
            if error.code in ("not_finite", "out_of_range"):
                return None
            raise InvalidError(f"The model failed on evaluation data: {error.message}", code=error.code) from error
        row = self._extractor.row(tensor, answer, outputs=outputs, size=origin.size, readings=origin.readings)
        return row.copy(), self._extractor.labels, _place(answer, self.manifest, self._extractor.labels)

    def keep(self, tensor: Array) -> None:
        """Note what the model is given of a frame or window as it is."""
        if self._seen % self._every == 0 and len(self._kept) < self._room:
            self._kept.append(tensor.copy())
        self._seen += 1

    @property
    def inputs(self) -> Array:
        """What was kept: [n, *shape]."""
        source = self.manifest.inputs[0]
        return np.stack(self._kept) if self._kept else np.empty((0, *source.shape), source.dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers."""
        return self._extractor.names


class _Collected:
    """Rows as they come in."""

    def __init__(self, judge: _Judge) -> None:
        self._judge = judge
        self._rows: list[tuple[Array, tuple[str, ...], int]] = []
        self._truth: list[int] = []
        self._places: list[str] = []
        self._excluded = 0

    def add(self, tensor: Array, said: _Said, origin: _Origin) -> None:
        """Infer an input and keep what comes of it."""
        row = self._judge.row(tensor, origin)
        if row is None:
            self._excluded += 1
            return
        self._rows.append(row)
        if said.truth is not None:
            self._truth.append(said.truth)
        if said.place is not None:
            self._places.append(said.place)

    def rows(self) -> Rows:
        """All so far."""
        manifest, names = self._judge.manifest, self._judge.names
        is_known = isinstance(manifest, ClassificationManifest) and bool(self._truth)
        return Rows(
            names=names,
            values=np.stack([one[0] for one in self._rows]) if self._rows else np.zeros((0, len(names)), np.float32),
            labels=tuple(one[1] for one in self._rows),
            known=manifest.postprocess.labels if isinstance(manifest, ClassificationManifest | DetectionManifest) else (),
            answered=np.array([one[2] for one in self._rows], np.int64) if is_known else None,
            truth=np.array(self._truth, np.int64) if is_known else None,
            excluded=self._excluded,
            places=tuple(self._places) or None,
        )


def _windows(judge: _Judge, evaluation: Evaluation) -> Rows:
    manifest, collected = judge.manifest, _Collected(judge)
    if manifest.window is None:
        raise RuntimeError("a manifest has preprocess or window")
    filler = WindowFiller(manifest.inputs[0], manifest.window)
    for readings, said in zip(evaluation.items, _said_of(evaluation), strict=True):
        try:
            tensor = filler.fill(readings)
        except InvalidError as error:
            if error.code != "not_finite":
                raise
            continue
        judge.keep(tensor)
        collected.add(tensor, said, _Origin(readings=readings, reference=filler.values))
    return collected.rows()


def _frames(judge: _Judge, evaluation: Evaluation) -> tuple[Rows, dict[tuple[str, int], Rows]]:
    """Rows of the frames as they are, and, where they are labelled, of some of them after each kind of damage."""
    manifest = judge.manifest
    if manifest.preprocess is None:
        raise RuntimeError("frames want preprocess")
    plain, color = _Collected(judge), manifest.preprocess.color
    damages = [(family, severity) for family in families(color) for severity in SEVERITIES] if evaluation.truth is not None else []
    after = {damage: _Collected(judge) for damage in damages}
    pictures, filler = _Pictures(manifest), Filler(compile_plan(manifest))
    chosen = _chosen(evaluation)
    spent_s, done = 0.0, 0
    for index, (frame, said) in enumerate(zip(evaluation.items, _said_of(evaluation), strict=True)):
        picture, origin = pictures.of(frame), _Origin(size=(frame.shape[0], frame.shape[1]))
        tensor = filler.fill(picture)
        judge.keep(tensor)
        plain.add(tensor, said, origin)
        if index not in chosen or (done >= MIN_DAMAGED and spent_s > DAMAGED_CPU_S * (index + 1) / evaluation.count):
            continue
        began_s = time.process_time()
        for family, severity in damages:
            damaged = corrupted(picture, family, severity, seed=index, color=color)
            after[family, severity].add(filler.fill(damaged), said, origin)
        spent_s, done = spent_s + time.process_time() - began_s, done + 1
    found = {damage: collected.rows() for damage, collected in after.items()}
    return plain.rows(), {damage: rows for damage, rows in found.items() if len(rows.values)}


def _chosen(evaluation: Evaluation) -> frozenset[int]:
    """Which frames are damaged: evenly spaced ones, of each place as many as tell something of it."""
    if evaluation.places is None:
        return frozenset(_spaced(range(evaluation.count), MAX_DAMAGED))
    of_place: dict[str, list[int]] = {}
    for index, place in enumerate(evaluation.places):
        of_place.setdefault(place, []).append(index)
    each = max(DAMAGED_OF_PLACE, MAX_DAMAGED // len(of_place))
    return frozenset(index for its in of_place.values() for index in _spaced(its, each))


def _spaced(places: Sequence[int], most: int) -> list[int]:
    count = min(most, len(places))
    return [places[index * len(places) // count] for index in range(count)]


class _Pictures:
    """Brings frames to the input's size and color, as pixels: what damage is done to."""

    def __init__(self, manifest: ModelManifest) -> None:
        plan, preprocess = compile_plan(manifest), manifest.preprocess
        if preprocess is None:
            raise RuntimeError("pictures want preprocess")
        shape = (1, plan.height, plan.width, plan.channels)
        same = TensorDescription(name="pixels", shape=shape, layout=Layout.NHWC, dtype="uint8", scale=1 / 255, zero_point=0)
        plain = replace(preprocess, mean=(0.0,), std=(1.0,))
        try:
            self._runner = Preprocessor(plan_for(same, plain))
        except ImportError:
            raise InvalidError(
                "Frames cannot be brought to the model's size here: OpenCV is not installed.",
                hint="Install it on the server: pip install 'mooring[camera-headless]'",
                code="no-opencv",
            ) from None

    def of(self, frame: Array) -> Array:
        """uint8, height x width x channels, an array of its own."""
        return np.array(self._runner.run(frame)[0])


def _said_of(evaluation: Evaluation) -> Iterator[_Said]:
    nothing = [None] * evaluation.count
    for truth, place in zip(evaluation.truth or nothing, evaluation.places or nothing, strict=True):
        yield _Said(truth, place)


def _place(answer: Answer, manifest: ModelManifest, labels: tuple[str, ...]) -> int:
    if isinstance(answer, Classification) and answer.top:
        return answer.top[0].index
    if isinstance(manifest, ClassificationManifest) and labels:
        return manifest.postprocess.labels.index(labels[0])
    return -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
