"""Loading a slot folder: its files checked against its manifest, its model on the first candidate that takes it."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.errors import InvalidError
from protocol.files import digest_of_file
from runtime.base import Backend, BackendError, BackendOptions, Candidate, RuntimeMissing, candidates_for, create
from runtime.manifest import ModelManifest, load_manifest

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to infer, and why better candidates are not used."""

    backend: Backend
    candidate: Candidate
    faults: tuple[BackendError, ...]

    @property
    def provider(self) -> str:
        """What really runs, "backend:provider"."""
        return f"{self.backend.name}:{self.backend.effective_provider.effective}"


def read_slot(folder: Path) -> ModelManifest:
    """The manifest of a slot folder. Raises: InvalidError when it is missing or not valid."""
    try:
        return load_manifest(folder / MANIFEST_NAME)
    except FileNotFoundError:
        raise InvalidError(f"{folder.name} has no {MANIFEST_NAME}.", code="manifest_invalid") from None


def check_files(folder: Path, manifest: ModelManifest) -> None:
    """Returns when every file that the manifest names is there with its length and digest.

    Raises: InvalidError naming the first that is not.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InvalidError(f"{name} is missing; the manifest names it.", code="file_mismatch")
        length = path.stat().st_size
        if length != entry.length:
            raise InvalidError(f"{name} has {length} bytes; the manifest says {entry.length}.", code="file_mismatch")
        seen = digest_of_file(path)
        if seen != entry.sha256:
            raise InvalidError(f"{name} has the digest {seen}; the manifest says {entry.sha256}.", code="file_mismatch")


def load_first(
    folder: Path,
    manifest: ModelManifest,
    options: BackendOptions,
    *,
    skip: Collection[str] = (),
    warm_rounds: int = 3,
) -> Loaded:
    """The model on the first candidate that loads and warms up; `skip` holds quarantined candidates as "backend:provider".

    Raises: BackendError, the last one met, when no candidate takes it; RuntimeMissing when none is installed or left.
    """
    artifact = folder / manifest.model_file
    faults: list[BackendError] = []
    for candidate in candidates_for(artifact, manifest.backends, options):
        if str(candidate) in skip:
            continue
        try:
            backend = load_on(candidate, artifact, manifest, options, warm_rounds=warm_rounds)
        except BackendError as error:
            faults.append(error)
        else:
            return Loaded(backend, candidate, tuple(faults))
    loud = [fault for fault in faults if not isinstance(fault, RuntimeMissing)]
    if loud:
        raise loud[-1]
    if faults:
        raise faults[0]
    raise RuntimeMissing(f"Every backend for {artifact.name} is quarantined.", backend=manifest.runtime.name, artifact=artifact.name)


def load_on(candidate: Candidate, artifact: Path, manifest: ModelManifest, options: BackendOptions, *, warm_rounds: int = 3) -> Backend:
    """The model on one candidate and nothing else, warmed up: a provider that is not there leaves the model to the next candidate.

    Raises: BackendError; code "accelerator_fallback" when the model would run elsewhere.
    """
    backend = create(candidate.backend)
    try:
        backend.load(artifact, manifest.spec, replace(options, providers=(candidate.provider,), require=True))
        backend.warm(warm_rounds)
    except BackendError:
        backend.close()
        raise
    return backend
