"""Registries that tests run on: fresh demo keys, blobs in memory, a clock that stands still; taken over by conftest.py files."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from simulators.clock import FakeClock

from fleet.audit import Actor, ActorKind
from fleet.blobs import open_blobs
from fleet.db import Database
from fleet.registry import service, store
from fleet.registry.drafts import load_draft
from fleet.registry.importing import inspect_upload
from fleet.registry.model import FileRef, ModelVersion, Release, ReleaseState, Variant
from fleet.registry.repository import target_files
from fleet.registry.signing import content_digest, create_trust
from protocol.canonical import digest_of
from protocol.ids import DeviceTypeName, Digest, LineName, ReleaseVersion, TenantId

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits"
T0 = TenantId("t0")
ANNA, BERT = Actor(ActorKind.PERSON, "anna"), Actor(ActorKind.PERSON, "bert")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def registry(tmp_path: Path, database: Database, clock: FakeClock) -> service.Registry:
    """A registry with demo keys: nothing is encrypted."""
    create_trust(tmp_path / "data", demo=True, now=clock.now())
    return service.open_registry(tmp_path / "data", database=database, blobs=open_blobs(f"file://{tmp_path}/blobs"), clock=clock)


@pytest.fixture(scope="session")
def goldens_of() -> Callable[[str, str], bytes]:
    """Golden vectors of a digit model, made once per run: each costs a child process."""

    @cache
    def make(version: str, kind: str) -> bytes:
        return inspect_upload(DIGITS / "models" / version / kind / f"model.{kind}", load_draft(DIGITS / f"{kind}.toml")).golden

    return make


@pytest.fixture
def import_digits(registry: service.Registry, goldens_of: Callable[[str, str], bytes]) -> Callable[..., ModelVersion]:
    """Import the digit model of a release for one runtime; returns its model version. `goldens=None`: let the registry make them."""

    def run(version: str = "1.0", kind: str = "onnx", **options: object) -> ModelVersion:
        options.setdefault("goldens", goldens_of(version, kind))
        file = DIGITS / "models" / version / kind / f"model.{kind}"
        draft = load_draft(DIGITS / f"{kind}.toml")
        return service.import_model(registry, tenant=T0, by=ANNA, model=f"digits-{kind}", file=file, draft=draft, **options)

    return run


def pass_days(registry: service.Registry, days: int) -> None:
    """Days in which the server runs: it looks at the clock now and then."""
    for _ in range(days):
        registry.clock.advance(days=1)
        service.renew(registry)


def add_release(registry: service.Registry, version: str, *, line: str = "digits") -> Release:
    """A draft whose model file is only named: cheap, for tests that look at what happens to a release, not at models."""
    now = registry.clock.now()
    files = tuple(FileRef(name, 10, digest_of(f"{version}{name}".encode())) for name in ("model.onnx", "golden.cbor", "card.json"))
    types = (DeviceTypeName("linux-x86-64"),)
    model = ModelVersion(T0, f"{line}-named", 1, "onnx", *files, "{}", "{}", types, now, str(ANNA))
    if not registry.image.has_line(LineName(line)):
        service.open_line(registry, tenant=T0, by=ANNA, line=LineName(line))
    with registry.database.transaction() as tx:
        model = replace(model, version=store.next_model_version(tx, T0, model.model))
        store.add_model_version(tx, model)
        counter = store.take_counter(tx, T0, LineName(line))
        variant = Variant("onnx", "onnx", types, model.id, files)
        content = (variant,)
        made = Release(
            T0, LineName(line), ReleaseVersion(version), counter, ReleaseState.DRAFT, content, Digest(""), now, str(ANNA), revision=1
        )
        made = replace(made, content_digest=content_digest(target_files(made)))
        store.add_release(tx, made)
    return made
