"""Trying a runtime or a model in a child process, because an import proves nothing and native code can kill its process.

`python -m runtime.probe <command> …` is the child: it runs under limits and prints one JSON document. Everything else here is the
parent, which survives whatever the child does.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from protocol.canonical import digest_of
from protocol.errors import InvalidError
from protocol.files import read_bounded
from runtime.agreement import compare_answers
from runtime.base import (
    BACKENDS_OF_FORMAT,
    Array,
    Backend,
    BackendError,
    BackendOptions,
    Candidate,
    InferFailed,
    LoadFailed,
    ManifestMismatch,
    ModelTensors,
    ProbeFailed,
    RuntimeMissing,
    TensorSpec,
    candidates_for,
    create,
    format_of,
    parse_candidate,
)
from runtime.golden import MAX_GOLDEN_BYTES, Goldens, Tolerance, decode, encode, key_of, read_goldens, tolerance_for
from runtime.loader import MANIFEST_NAME, check_files, load_on, read_slot
from runtime.manifest import MAX_MANIFEST_BYTES, ModelManifest
from runtime.onemodel import ONE_OPERATION
from runtime.postprocess import answerer_for
from runtime.providers import DEFAULT_PROVIDER, is_known_to
from runtime.records import MAX_CRASHES, RUNTIMES_FILE, Kept, ModelRecord, ModelRecords, environment_key, package_of, version_of
from runtime.samples import sample_vectors
from runtime.selftest import SelfTest

ENVIRONMENT_TIMEOUT_S = 60.0
INSPECT_TIMEOUT_S = 60.0
SELF_TEST_TIMEOUT_S = 180.0
#: Of one child: address space is not bounded (runtimes map files), written files and processor time are.
_MAX_ANSWER_BYTES = 8 << 20
_MAX_DATA_BYTES = 3 << 30
_MAX_NOISE_BYTES = 8192
_TIMED_ROUNDS = 30
#: Of a child that tests one model while another infers.
_NICENESS = 10
#: The module of each backend; one that cannot be found is not installed.
MODULES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime", "onnx": "onnxruntime", "litert-compiled": "ai_edge_litert"}


class RuntimeState(StrEnum):
    """What probing a runtime found."""

    #: It computed the right answer.
    OK = "ok"
    #: Not installed.
    MISSING = "missing"
    #: It computed a wrong answer.
    MISMATCH = "mismatch"
    #: It raised.
    ERROR = "error"
    #: It killed its process.
    CRASHED = "crashed"
    #: It did not answer in time.
    TIMEOUT = "timeout"
    #: It runs, but not on what was asked for.
    FELL_BACK = "fell_back"


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """One backend on this device; `text` says what was seen when it is not ok."""

    #: "onnx", or with a provider "onnx:cuda".
    name: str
    state: RuntimeState
    version: str = ""
    text: str = ""
    #: What really ran, e.g. "cpu".
    provider: str = ""
    crashes: int = 0


# --- the parent ---


def probe_environment(
    cache_dir: Path | None, *, options: BackendOptions | None = None, timeout_s: float = ENVIRONMENT_TIMEOUT_S
) -> list[RuntimeStatus]:
    """The status of every usual backend on the processor, and of every wanted provider on the installed backends that know it.

    Each is tried in a child of its own. With a `cache_dir` the results are kept there and used until packages, libraries, kernel or
    processor change.
    """
    options = options or BackendOptions()
    usual = [name for names in BACKENDS_OF_FORMAT.values() for name in names]
    wanted = [
        Candidate(name, provider)
        for provider in options.providers
        for name in MODULES
        if provider != DEFAULT_PROVIDER and is_known_to(provider, name) and importlib.util.find_spec(MODULES[name]) is not None
    ]
    candidates = dict.fromkeys([*map(Candidate, usual), *wanted])
    return [_probe_backend(candidate, cache_dir, options, timeout_s) for candidate in candidates]


def inspect_model(path: Path, *, timeout_s: float = INSPECT_TIMEOUT_S) -> ModelTensors:
    """The tensors of a model file, read in a child by the first installed runtime of its kind.

    Raises: InvalidError on another suffix; LoadFailed when the file is not a usable model; RuntimeMissing; ProbeFailed when the child
    crashed or hung.
    """
    backends = BACKENDS_OF_FORMAT[format_of(path)]
    answer: dict[str, Any] = {}
    for name in backends:
        answer = _ask(["inspect", str(path.resolve()), name], timeout_s, backend=name, artifact=path.name)
        if answer.get("code") != RuntimeMissing.code:
            break
    if "error" in answer:
        raise _error_of(answer, artifact=path.name)
    return _tensors_of(answer)


def self_test(
    folder: Path,
    options: BackendOptions | None = None,
    *,
    only: str = "",
    timeout_s: float = SELF_TEST_TIMEOUT_S,
    records_dir: Path | None = None,
) -> SelfTest:
    """Whether the slot folder's model answers its golden vectors on this device; tried on each candidate until one passes.

    `only`: no other candidate than this "backend:provider". The children run at low priority: others infer meanwhile.
    With a `records_dir` every result is kept there, and a candidate that crashed twice with this model is not tried again until its
    key changes (`runtime.records`). Never raises for what the folder holds: that is the verdict.
    """
    options = options or BackendOptions()
    records = ModelRecords(records_dir, provider_options=options.provider_options)
    try:
        manifest = read_slot(folder)
    except (InvalidError, OSError) as error:
        return SelfTest(ok=False, code="manifest_invalid", text=str(error))
    try:
        check_files(folder, manifest)
    except (InvalidError, OSError) as error:
        return SelfTest(ok=False, code="file_mismatch", text=str(error))
    verdict = SelfTest(ok=False, code=RuntimeMissing.code, text=f"No runtime for {manifest.runtime.name} files is installed.")
    wanted = (parse_candidate(only),) if only else candidates_for(folder / manifest.model_file, manifest.backends, options)
    artifact = digest_of(read_bounded(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))
    quarantined = records.quarantined(artifact)
    for candidate in wanted:
        if importlib.util.find_spec(MODULES[candidate.backend]) is None:
            continue
        if str(candidate) in quarantined:
            verdict = SelfTest(ok=False, code="crashed", text=f"{candidate} crashed {MAX_CRASHES} times with this model; it is left out.")
            continue
        result = _self_test_on(folder, candidate, options, timeout_s)
        records.note(_record(artifact, candidate, result))
        if result.ok:
            return result
        if result.code != RuntimeMissing.code or verdict.code == RuntimeMissing.code:
            verdict = result
    return verdict


def run_goldens(
    model: Path,
    inputs: Sequence[dict[str, Array]],
    *,
    options: BackendOptions | None = None,
    tolerances: dict[str, Tolerance] | None = None,
    timeout_s: float = SELF_TEST_TIMEOUT_S,
) -> Goldens:
    """Golden vectors of the model: the inputs with its outputs on every installed runtime of its kind, each in a child.

    Raises: InvalidError on bad inputs; LoadFailed, InferFailed (as LoadFailed), RuntimeMissing, ProbeFailed.
    """
    options = options or BackendOptions()
    outputs: dict[str, tuple[dict[str, Array], ...]] = {}
    with tempfile.TemporaryDirectory(prefix="mooring-golden-") as scratch:
        request, reply = Path(scratch) / "request.cbor", Path(scratch) / "reply.cbor"
        request.write_bytes(encode(Goldens(tuple(inputs), {"request": tuple({"none": np.zeros(1, np.int8)} for _ in inputs)}, {})))
        answer: dict[str, Any] = {}
        for name in BACKENDS_OF_FORMAT[format_of(model)]:
            arguments = ["goldens", str(model.resolve()), name, str(request), str(reply), options_text(options)]
            answer = _ask(arguments, timeout_s, backend=name, artifact=model.name)
            if answer.get("code") == RuntimeMissing.code:
                continue
            if "error" in answer:
                raise _error_of(answer, artifact=model.name)
            outputs.update(decode(reply.read_bytes()).outputs)  # type: ignore[arg-type]  # Mapping is read as dict
    if not outputs:
        raise _error_of(answer, artifact=model.name)
    rows = next(iter(outputs.values()))
    found = {name: tolerance_for([row[name] for row in rows]) for name in rows[0]}
    return Goldens(tuple(inputs), outputs, {**found, **(tolerances or {})})


def make_goldens(model: Path, inputs: Sequence[dict[str, Array]], *, options: BackendOptions | None = None) -> bytes:
    """The bytes of `golden.cbor` for a model file and 1 to 64 input vectors. Raises: as `run_goldens`."""
    return encode(run_goldens(model, inputs, options=options))


def _probe_backend(candidate: Candidate, cache_dir: Path | None, options: BackendOptions, timeout_s: float) -> RuntimeStatus:
    backend, provider = candidate.backend, candidate.provider
    name = backend if provider == DEFAULT_PROVIDER else str(candidate)
    if importlib.util.find_spec(MODULES[backend]) is None:
        return RuntimeStatus(name, RuntimeState.MISSING, text=f"{package_of(backend)} is not installed.")
    cache, key = Kept(cache_dir, RUNTIMES_FILE), environment_key(backend, provider, options.provider_options.get(provider))
    cached = _status_of(cache.all().get(key))
    is_final = cached is not None and (cached.state is not RuntimeState.CRASHED or cached.crashes >= MAX_CRASHES)
    if cached is not None and is_final and cached.state is not RuntimeState.TIMEOUT:
        return cached
    crashes = cached.crashes if cached else 0
    try:
        answer = _ask(["environment", str(candidate), options_text(options)], timeout_s, backend=str(candidate), artifact="")
    except ProbeFailed as error:
        state = RuntimeState(error.kind)
        status = RuntimeStatus(name, state, version_of(backend), str(error), crashes=crashes + (state is RuntimeState.CRASHED))
    else:
        if "error" in answer:
            is_missing = answer.get("code") == RuntimeMissing.code and "No module named" in str(answer["error"])
            state = RuntimeState.MISSING if is_missing else RuntimeState.ERROR
            status = RuntimeStatus(name, state, version_of(backend), str(answer["error"])[:500])
        else:
            version, text, provider = (str(answer[field]) for field in ("version", "text", "provider"))
            status = RuntimeStatus(name, RuntimeState(answer["state"]), version, text, provider)
    cache.put(key, dataclasses.asdict(status), replaces=lambda value: value.get("name") == name)
    return status


def _status_of(document: dict[str, Any] | None) -> RuntimeStatus | None:
    try:
        return None if document is None else RuntimeStatus(**{**document, "state": RuntimeState(document["state"])})
    except (TypeError, KeyError, ValueError):
        return None


def _record(artifact: str, candidate: Candidate, result: SelfTest) -> ModelRecord:
    return ModelRecord(
        artifact,
        str(candidate),
        code=result.code,
        text=result.text,
        load_s=result.load_s,
        infer_ms_p50=result.infer_ms_p50,
        infer_ms_p99=result.infer_ms_p99,
        rss_mb=result.rss_mb,
        crashes=int(result.code == "crashed"),
    )


def _self_test_on(folder: Path, candidate: Candidate, options: BackendOptions, timeout_s: float) -> SelfTest:
    arguments = ["self-test", str(folder.resolve()), str(candidate), options_text(options)]
    try:
        answer = _ask(arguments, timeout_s, backend=candidate.backend, artifact=folder.name)
    except ProbeFailed as error:
        return SelfTest(ok=False, code=error.kind, text=str(error), provider="")
    if "error" in answer:
        return SelfTest(ok=False, code=str(answer["code"]), text=str(answer["error"]))
    names = {field.name for field in dataclasses.fields(SelfTest)}
    return SelfTest(**{key: value for key, value in answer.items() if key in names})


def _ask(arguments: Sequence[str], timeout_s: float, *, backend: str, artifact: str) -> dict[str, Any]:
    """The child's JSON document. Raises: ProbeFailed when it died, hung or did not answer."""
    with tempfile.TemporaryFile() as noise, tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            [sys.executable, "-m", "runtime.probe", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=noise,
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
        )
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise ProbeFailed(
                f"{backend} did not answer within {timeout_s:g} s.", kind="timeout", backend=backend, artifact=artifact
            ) from None
        noise.seek(max(0, noise.seek(0, os.SEEK_END) - _MAX_NOISE_BYTES))
        last_words = noise.read().decode(errors="replace").strip()
        answer.seek(0)
        document = _json_or_none(answer.read(_MAX_ANSWER_BYTES))
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        raise ProbeFailed(
            f"{backend} was killed by {name} while it ran {artifact or 'the one-operation model'}.",
            kind="crashed",
            backend=backend,
            artifact=artifact,
        )
    if code != 0 or document is None:
        tail = last_words.splitlines()[-1][:300] if last_words else f"exit status {code}"
        raise ProbeFailed(f"{backend} failed without an answer: {tail}", kind="error", backend=backend, artifact=artifact)
    return document


def _json_or_none(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _error_of(answer: dict[str, Any], *, artifact: str) -> BackendError:
    text, code, backend = str(answer["error"]), str(answer["code"]), str(answer.get("backend", ""))
    kinds: dict[str, type[BackendError]] = {RuntimeMissing.code: RuntimeMissing, ManifestMismatch.code: ManifestMismatch}
    return kinds.get(code, LoadFailed)(text, backend=backend, artifact=artifact, code=code)


def _tensors_of(answer: dict[str, Any]) -> ModelTensors:
    def specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(**{**row, "shape": tuple(row["shape"])}) for row in rows)

    return ModelTensors(answer["format"], answer["backend"], answer["version"], specs(answer["inputs"]), specs(answer["outputs"]))


def options_text(options: BackendOptions) -> str:
    """The options as an argument of a child."""
    return json.dumps(dataclasses.asdict(options))


def options_of(text: str) -> BackendOptions:
    """The options of `options_text`."""
    document = json.loads(text)
    return BackendOptions(**{**document, "providers": tuple(document["providers"])})


# --- the child ---


def _environment(candidate_text: str, options_text: str) -> dict[str, Any]:
    candidate, options = parse_candidate(candidate_text), options_of(options_text)
    file_format = "onnx" if candidate.backend == "onnx" else "tflite"
    with tempfile.TemporaryDirectory(prefix="mooring-probe-") as scratch:
        model = Path(scratch) / f"model.{file_format}"
        model.write_bytes(ONE_OPERATION[file_format])
        backend = create(candidate.backend)
        tensors = backend.load(model, None, dataclasses.replace(options, providers=(candidate.provider,), require=False))
        given = np.arange(4, dtype=np.float32).reshape(1, 4)
        result = np.array(backend.infer({tensors.inputs[0].name: given})[tensors.outputs[0].name])
        provider, version = backend.effective_provider, backend.version
        backend.close()
    off = float(np.abs(result - 2 * given).max())
    state, text = RuntimeState.OK, ""
    if not off <= 1e-6:
        state, text = RuntimeState.MISMATCH, f"x + x differs by {off:g}."
    elif provider.fell_back:
        state, text = RuntimeState.FELL_BACK, f"Asked for {provider.asked}, runs on {provider.effective}. {provider.reason}".strip()
    return {"state": state, "text": text, "version": version, "provider": provider.effective}


def _inspect(path: str, backend_name: str) -> dict[str, Any]:
    backend = create(backend_name)
    tensors = backend.load(Path(path), None, BackendOptions())
    return dataclasses.asdict(tensors)


def _self_test(folder_text: str, candidate_text: str, options_text: str) -> dict[str, Any]:
    os.nice(_NICENESS)
    folder, candidate, options = Path(folder_text), parse_candidate(candidate_text), options_of(options_text)
    manifest = read_slot(folder)
    goldens = _golden_or_error(folder)
    started = time.perf_counter()
    backend = load_on(candidate, folder / manifest.model_file, manifest, options)
    load_s = time.perf_counter() - started
    results = [_copied(backend.infer(dict(vector))) for vector in goldens.inputs]
    key = key_of(backend.name, backend.version, backend.effective_provider.effective)
    differences = compare_answers(manifest, goldens, results, key=key)
    for sample in sample_vectors(manifest, count=2):  # the plan and the answer work here too
        _answer(manifest, sample, backend)
    timings = _timings(lambda index: backend.infer(dict(goldens.inputs[index % len(goldens.inputs)])))
    verdict = {
        "load_s": round(load_s, 4),
        "infer_ms_p50": round(float(np.percentile(timings, 50)), 4),
        "infer_ms_p99": round(float(np.percentile(timings, 99)), 4),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    effective = f"{backend.name}:{backend.effective_provider.effective}"
    if differences:
        worst = max(differences, key=lambda difference: difference.seen)
        text = f"{worst} {len(differences)} of {len(results)} vectors are outside on {effective}."
        return {"ok": False, "code": "golden_mismatch", "text": text, "provider": effective, **verdict}
    text = f"{len(results)} golden vectors inside their tolerance on {effective}."
    return {"ok": True, "code": "ok", "text": text, "provider": effective, **verdict}


def _answer(manifest: ModelManifest, inputs: dict[str, Array], backend: Backend) -> None:
    try:
        answerer_for(manifest).run(backend.infer(inputs), inputs=inputs)
    except InferFailed as error:
        if error.code != "out_of_range":  # made-up inputs measure nothing
            raise


def _golden_or_error(folder: Path) -> Goldens:
    try:
        return read_goldens(folder)
    except InvalidError as error:
        raise InvalidError(error.message, code="golden_invalid", hint=error.hint) from error


def _goldens(model: str, backend_name: str, request: str, reply: str, options_text: str) -> dict[str, Any]:
    asked = decode(Path(request).read_bytes()[: MAX_GOLDEN_BYTES + 1])
    backend = create(backend_name)
    backend.load(Path(model), None, options_of(options_text))
    results = tuple(_copied(backend.infer(dict(vector))) for vector in asked.inputs)
    data = encode(Goldens(asked.inputs, {key_of(backend.name, backend.version, backend.effective_provider.effective): results}, {}))
    Path(reply).write_bytes(data)
    return {"vectors": len(results)}


def _copied(outputs: Any) -> dict[str, Array]:
    return {name: np.array(value) for name, value in outputs.items()}


def _timings(infer: Callable[[int], object]) -> list[float]:
    timings = []
    for index in range(_TIMED_ROUNDS):
        started = time.perf_counter()
        infer(index)
        timings.append((time.perf_counter() - started) * 1000)
    return timings


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "environment": _environment,
    "inspect": _inspect,
    "self-test": _self_test,
    "goldens": _goldens,
}


def limit_child() -> None:
    """Let this process write no core, no large file, and take no more memory than a model may."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, wanted in ((resource.RLIMIT_DATA, _MAX_DATA_BYTES), (resource.RLIMIT_FSIZE, _MAX_ANSWER_BYTES)):
        _, hard = resource.getrlimit(kind)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError, OverflowError):
            resource.setrlimit(kind, (limit, hard))


def main(arguments: Sequence[str]) -> int:
    """Run one command of the child and print its JSON document; libraries that print get standard error instead."""
    limit_child()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        document = _COMMANDS[arguments[0]](*arguments[1:])
    except BackendError as error:
        document = {"error": str(error), "code": error.code, "backend": error.backend}
    except InvalidError as error:
        document = {"error": str(error), "code": error.code}
    with answer:
        json.dump(document, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
