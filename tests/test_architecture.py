"""The house keeps its shape: what imports what, who alone may touch SQL, TUF and heavy libraries, and what both sides share."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "runtime", "agent", "fleet")

#: Which files may import a library (prefixes of paths). Everything else must go through them.
ONLY_IMPORTERS: dict[str, tuple[str, ...]] = {
    "sqlalchemy": (
        "fleet/db.py",
        "fleet/migrations/",
        "fleet/audit.py",
        "fleet/jobs.py",
        "fleet/parts.py",
        "*/store.py",
        "*/alarm_store.py",
        "*/drift_group_store.py",
        "*/drift_store.py",
        "*/drift_tables.py",
        "*/quarantine_store.py",
        "*/reference_store.py",
    ),
    "alembic": ("fleet/db.py", "fleet/migrations/"),
    "sqlite_utils": ("agent/database/schema.py",),
    "tuf": ("protocol/trust/", "agent/update/fetch.py", "agent/update/tuf_cli.py", "fleet/registry/"),
    "securesystemslib": ("protocol/trust/", "fleet/registry/", "fleet/signer.py"),
    "cv2": ("agent/sources/opencv.py", "runtime/preprocess.py"),
    "onnxruntime": ("runtime/onnx.py",),
    "ai_edge_litert": ("runtime/tflite.py",),
    "tflite_runtime": ("runtime/tflite.py",),
    "obstore": ("fleet/blobs.py",),
    "paho": ("protocol/mqtt.py", "agent/uplink.py", "agent/sources/sensor.py", "agent/doctor.py", "fleet/bus.py", "fleet/broker.py"),
}

#: Pure deciders: values in, values out. They import nothing that acts.
DECIDERS = (
    "agent/drift/check.py",
    "agent/drift/conditions.py",
    "agent/drift/sending.py",
    "agent/update/states.py",
    "agent/update/acceptance.py",
    "agent/update/probe.py",
    "agent/events/debounce.py",
    "agent/events/telling.py",
    "agent/events/following.py",
    "agent/events/judging.py",
    "agent/inference/tracking.py",
    "protocol/geometry.py",
    "protocol/sketches/codec.py",
    "protocol/sketches/counts.py",
    "protocol/sketches/evidence.py",
    "protocol/sketches/grid.py",
    "protocol/sketches/leb128.py",
    "protocol/sketches/looks.py",
    "protocol/sketches/profile.py",
    "protocol/sketches/reference.py",
    "protocol/sketches/scatter.py",
    "protocol/sketches/summary.py",
    "protocol/sketches/tail.py",
    "fleet/campaigns/planner.py",
    "fleet/monitoring/accuracy.py",
    "fleet/monitoring/alarms.py",
    "fleet/monitoring/attribution.py",
    "fleet/monitoring/detectors.py",
    "fleet/monitoring/drift_model.py",
    "fleet/monitoring/health.py",
    "fleet/monitoring/rules.py",
    "fleet/monitoring/stretches.py",
)
ACTING = {"socket", "sqlite3", "subprocess", "threading", "time", "logging", "os", "httpx", "sqlalchemy", "paho", "pathlib"}


def _sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


@cache
def _imports(path: Path) -> frozenset[str]:
    """First names of all modules that the file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return frozenset(names)


def _is_allowed(relative: str, allowed: tuple[str, ...]) -> bool:
    return any(relative.startswith(item) or (item.startswith("*/") and relative.endswith(item[1:])) for item in allowed)


@pytest.mark.parametrize("library", sorted(ONLY_IMPORTERS))
def test_a_wrapped_library_is_imported_by_its_wrapper_alone(library: str):
    offenders = [
        relative
        for path in _sources()
        if library in _imports(path) and not _is_allowed(relative := path.relative_to(ROOT).as_posix(), ONLY_IMPORTERS[library])
    ]
    assert offenders == [], f"{library} may be imported by {ONLY_IMPORTERS[library]} only"


@pytest.mark.parametrize("decider", DECIDERS)
def test_a_decider_imports_nothing_that_acts(decider: str):
    assert _imports(ROOT / decider) & ACTING == set()


def test_floors_of_the_house_are_kept():
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_of_protocol_and_runtime_is_reached_by_both_sides():
    """`protocol` and `runtime` are what both sides share; what only one side needs lives with that side."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    shared = {name for package in ("protocol", "runtime") for name in {package, *graph.find_descendants(package)}}
    alone = {}
    for side in ("agent", "fleet"):
        reached = set()
        for module in {side, *graph.find_descendants(side)}:
            reached |= graph.find_upstream_modules(module)
        # a package's __init__ is run with any of its modules
        reached |= {name.rpartition(".")[0] for name in reached}
        alone[side] = sorted(shared - reached)
    assert alone == {"agent": [], "fleet": []}


def test_no_address_but_loopback_is_bound_by_default():
    offenders = [path.as_posix() for path in _sources() if '"0.0.0.0"' in path.read_text() or "'0.0.0.0'" in path.read_text()]
    assert offenders == []


def test_no_shell_string_is_ever_run():
    offenders = [path.as_posix() for path in _sources() if "shell=True" in path.read_text() or "os.system(" in path.read_text()]
    assert offenders == []
