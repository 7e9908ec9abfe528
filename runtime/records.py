"""What trying runtimes and models found, kept in small files until what it depends on changes. Without numpy: the control process reads it.

`runtimes.json` holds a result per runtime and provider, `models.json` one per model and candidate, `tuning.json` one per model.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from protocol.errors import InvalidError
from protocol.files import read_bounded, write_atomically
from runtime.cpu import instruction_set
from runtime.providers import DEFAULT_PROVIDER, LIBRARY_OPTION, ask_for

RUNTIMES_FILE, MODELS_FILE, TUNING_FILE = "runtimes.json", "models.json", "tuning.json"
#: A backend that crashed this often with one key is not tried again until the key changes.
MAX_CRASHES = 2
#: Entries of one file; the oldest go first. A device has few lines, and two slots of each.
MAX_ENTRIES = 256
#: Held over reading and writing, with a lock on the folder: self-tests and the supervision of the running process, which are processes of
#: their own, count in one file.
_WRITING = threading.Lock()
LOCK_FILE = "records.lock"
_MAX_BYTES = 1 << 20
_MAX_TEXT = 500
_PACKAGES = {"litert": "ai-edge-litert", "tflite": "tflite-runtime", "onnx": "onnxruntime", "litert-compiled": "ai-edge-litert"}
#: Distributions that provide the module `onnxruntime`.
_ONNX_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
)
_LIBRARY_FOLDERS = ("/usr/lib", f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/local/lib", "/lib")


class Kept:
    """A JSON file of records by key, read anew each time: several processes use it. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._path = None if folder is None else folder / name

    def all(self) -> dict[str, dict[str, Any]]:
        """Every record by its key; a damaged file is an empty one."""
        if self._path is None:
            return {}
        try:
            document = json.loads(read_bounded(self._path, _MAX_BYTES))
        except (OSError, ValueError, RecursionError, InvalidError):
            return {}
        return {key: value for key, value in document.items() if isinstance(value, dict)} if isinstance(document, dict) else {}

    def put(self, key: str, record: Mapping[str, Any], *, replaces: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Keep the record, as the newest, in place of those that it replaces. What the disk does not take is not kept."""
        with self.alone():
            self.put_alone(key, record, replaces=replaces)

    def put_alone(self, key: str, record: Mapping[str, Any], *, replaces: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """As `put`, for who works alone already."""
        if self._path is None:
            return
        kept = {other: value for other, value in self.all().items() if other != key and not (replaces and replaces(value))}
        newest = dict([*kept.items(), (key, dict(record))][-MAX_ENTRIES:])
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(newest).encode())

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread or process writes meanwhile; where the disk takes no lock, no other thread. Not to be nested."""
        with _WRITING, contextlib.ExitStack() as held:
            if self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    descriptor = os.open(self._path.parent / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    held.callback(os.close, descriptor)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """How one model did on one candidate on this device."""

    #: Digest of the model's manifest, which binds its files.
    artifact: str
    #: "backend:provider".
    candidate: str
    #: "ok", or the code of the last self-test: golden_mismatch, load_failed, crashed, timeout, …; "" before the first one.
    code: str = ""
    text: str = ""
    load_s: float = 0.0
    infer_ms_p50: float = 0.0
    infer_ms_p99: float = 0.0
    rss_mb: float = 0.0
    #: Deaths of a process inside it, in a probe or in use.
    crashes: int = 0


class ModelRecords:
    """The records of `models.json`. A record whose key is not today's is none: another runtime, library, kernel or processor."""

    def __init__(self, folder: Path | None, *, provider_options: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._kept = Kept(folder, MODELS_FILE)
        self._provider_options = provider_options or {}

    def find(self, artifact: str, candidate: str) -> ModelRecord | None:
        """What is known of the model on the candidate."""
        return _record_of(self._kept.all().get(self._key(artifact, candidate)))

    def note(self, record: ModelRecord) -> None:
        """Keep the result of a self-test; crashes add up, and a result that is good forgets none."""
        with self._kept.alone():
            self._put(dataclasses.replace(record, text=record.text[:_MAX_TEXT], crashes=record.crashes + self.crashes(record)))

    def crashed(self, artifact: str, candidate: str) -> int:
        """Count a death in use; returns how many there are now."""
        with self._kept.alone():
            known = self.find(artifact, candidate) or ModelRecord(artifact, candidate)
            counted = dataclasses.replace(known, crashes=known.crashes + 1)
            self._put(counted)
        return counted.crashes

    def crashes(self, record: ModelRecord) -> int:
        """Deaths so far of the record's model on its candidate."""
        known = self.find(record.artifact, record.candidate)
        return known.crashes if known else 0

    def quarantined(self, artifact: str) -> tuple[str, ...]:
        """Candidates that are not to be used for the model. Never the plain processor: there is nothing behind it."""
        known = (_record_of(value) for value in self._kept.all().values())
        names = [one.candidate for one in known if one and one.artifact == artifact and one.crashes >= MAX_CRASHES]
        return tuple(name for name in dict.fromkeys(names) if not _is_last_resort(name) and self.find(artifact, name) is not None)

    def _put(self, record: ModelRecord) -> None:
        def is_same(value: dict[str, Any]) -> bool:
            return (value.get("artifact"), value.get("candidate")) == (record.artifact, record.candidate)

        self._kept.put_alone(self._key(record.artifact, record.candidate), dataclasses.asdict(record), replaces=is_same)

    def _key(self, artifact: str, candidate: str) -> str:
        backend, _, provider = candidate.partition(":")
        key = environment_key(backend, provider, self._provider_options.get(provider))
        return hashlib.sha256(f"{key}\n{artifact}".encode()).hexdigest()


def environment_key(backend: str, provider: str = DEFAULT_PROVIDER, settings: Mapping[str, str] | None = None) -> str:
    """What a result depends on: packages and their libraries, numpy, the delegate's library, kernel, processor, provider, settings."""
    parts = [backend, provider, platform.python_version(), platform.release(), instruction_set(), version_of_package("numpy")]
    for package in _packages_of(backend):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = metadata.distribution(package)
            parts += [package, found.version, hashlib.sha256((found.read_text("RECORD") or "").encode()).hexdigest()]
            parts += [_stamp(Path(str(found.locate_file(file)))) for file in found.files or () if file.suffix == ".so"]
    options = ask_for(provider, settings=settings).options
    parts += [f"{key}={value}" for key, value in sorted(options.items())]
    if library := options.get(LIBRARY_OPTION, ""):
        parts += [_stamp(Path(folder) / library) for folder in ("/", *_LIBRARY_FOLDERS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def package_of(backend: str) -> str:
    """The distribution that brings a backend, as its installation is advised."""
    return _PACKAGES[backend]


def version_of(backend: str) -> str:
    """The version of the installed distribution that brings the backend; empty: none is installed."""
    return next((version for package in _packages_of(backend) if (version := version_of_package(package))), "")


def version_of_package(package: str) -> str:
    """The version of an installed distribution; empty: it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _packages_of(backend: str) -> tuple[str, ...]:
    return _ONNX_PACKAGES if backend == "onnx" else (_PACKAGES[backend],)


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size}.{stat.st_mtime_ns}"


def _is_last_resort(candidate: str) -> bool:
    return candidate.partition(":")[2] == DEFAULT_PROVIDER


def _record_of(value: dict[str, Any] | None) -> ModelRecord | None:
    try:
        record = None if value is None else ModelRecord(**value)
    except TypeError:
        return None
    return record if record is None or _is_sound(record) else None


def _is_sound(record: ModelRecord) -> bool:
    words = (record.artifact, record.candidate, record.code, record.text)
    figures = (record.load_s, record.infer_ms_p50, record.infer_ms_p99, record.rss_mb)
    return all(isinstance(one, str) for one in words) and all(isinstance(one, int | float) for one in (*figures, record.crashes))
