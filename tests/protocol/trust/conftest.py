"""A device and its two repositories in memory: the world in which attacks are tried."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from simulators.repository import BASE_URL, RepositorySimulator, target

from protocol.clock import to_unix_ms
from protocol.ids import DeviceId, DeviceTypeName, LineName, TenantId
from protocol.trust.metadata import (
    DirectorFields,
    ImageLineFields,
    ImageTargetFields,
    Requires,
    line_pattern,
    line_role,
    write_fields,
)
from protocol.trust.updater import Assignment, DeviceFacts, RepositoryAccess, verify_assignment

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
DIGITS = LineName("digits")
MODEL = b"not really a model, but bytes with a digest"


@dataclass
class World:
    """Edit it, then `check()` as the device does."""

    folder: Path
    image: RepositorySimulator
    director: RepositorySimulator
    facts: DeviceFacts
    now: datetime = NOW
    time_floor: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    floors: dict[LineName, int] = field(default_factory=dict)
    committed: dict[LineName, int] = field(default_factory=dict)
    configurations: dict[str, int] = field(default_factory=dict)

    def image_fields(self, **changes: Any) -> ImageTargetFields:
        values: dict[str, Any] = {
            "line": "digits",
            "release": "1.0",
            "counter": 10,
            "variant": "onnx",
            "device_types": ("camera",),
            "runtime": "onnx",
            "requires": Requires(),
        }
        return ImageTargetFields(**(values | changes))

    def order(self, **changes: Any) -> None:
        """What the director's targets say about themselves."""
        values: dict[str, Any] = {
            "device": "cam-1",
            "tenant": "t0",
            "assignment": "as-1",
            "attempt": 1,
            "campaign": "ca-1",
            "issued_at": to_unix_ms(NOW),
        }
        self.director.targets.unrecognized_fields = write_fields(DirectorFields(**(values | changes)))

    def release(self, release: str = "1.0", counter: int = 10, *, role: str = "digits", **changes: Any) -> list[str]:
        """Put a release of two files into the image repository's line role; returns the paths."""
        fields = write_fields(self.image_fields(release=release, counter=counter, **changes))
        variant = changes.get("variant", "onnx")
        paths = [f"model/{role}/{release}/{variant}.{name}" for name in ("model.onnx", "manifest.json")]
        for path in paths:
            self.image.delegated[line_role(role)].targets[path] = target(path, MODEL + path.encode(), fields)
        self.image.publish()
        return paths

    def assign(self, release: str = "1.0", *, role: str = "digits", variant: str = "onnx") -> None:
        """Let the director name the release, as the image repository describes it."""
        self.director.targets.targets = {
            path: target(path, MODEL + path.encode())
            for path in self.image.delegated[line_role(role)].targets
            if path.startswith(f"model/{role}/{release}/{variant}.")
        }
        self.director.publish()

    def access(self, name: str) -> RepositoryAccess:
        simulator = getattr(self, name)
        return RepositoryAccess(self.folder / name, BASE_URL, simulator.bootstrap, simulator)

    def check(self, **facts: Any) -> Assignment:
        return verify_assignment(
            image=self.access("image"),
            director=self.access("director"),
            facts=replace(self.facts, **facts),
            now=self.now,
            time_floor=self.time_floor,
            floors=self.floors,
            committed=self.committed,
            configurations=self.configurations,
        )


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[], World]:
    def make() -> World:
        image, director = RepositorySimulator(now=NOW), RepositorySimulator(now=NOW)
        role = image.delegate(line_role("digits"), line_pattern("digits"))
        role.unrecognized_fields = write_fields(ImageLineFields(line="digits", floor=0))
        facts = DeviceFacts(DeviceId("cam-1"), TenantId("t0"), DeviceTypeName("camera"), {"onnx"}, agent_version="0.1.0")
        world = World(tmp_path, image, director, facts)
        world.order()
        world.release()
        world.assign()
        return world

    return make


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    """Release 1.0 of line digits, published and assigned to the camera cam-1."""
    return make_world()
