"""What a device counts, made of seeded normal rows: a grid, the profile of its model version, windows and their messages."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache

import numpy as np
from simulators.messages import TS, body, incoming

from fleet.bus import Incoming
from fleet.db import Database
from fleet.devices import groups
from fleet.devices import store as device_store
from fleet.devices.model import ConfigPatch, Device, DeviceState, Twin
from fleet.monitoring import reference_store
from fleet.monitoring.drift_tables import ProfileRow
from protocol.clock import from_unix_ms
from protocol.ids import DEFAULT_TENANT, DeviceId, DeviceTypeName
from protocol.messages import REFERENCE_LEARNED
from protocol.sketches.codec import SUBWINDOW_MS, SketchWindow, Source, encode, merged
from protocol.sketches.counts import Counts, Sketcher
from protocol.sketches.grid import CONFIDENCE_BINS, FeatureGroup, Grid, fit_feature
from protocol.sketches.profile import AccuracyReference, FamilyReference, ModelProfile, encode_profile
from protocol.sketches.reference import DeviceReference, fit_reference
from protocol.sketches.summary import cell_scores, summarizer

#: The sub-window that the stamps of other test messages lie in.
W0 = TS // SUBWINDOW_MS
#: Names and groups of the grid's features; the last two are confidence and entropy.
FEATURES = (
    ("image.brightness", FeatureGroup.INPUT),
    ("image.sharpness", FeatureGroup.INPUT),
    ("embedding.1", FeatureGroup.EMBEDDING),
    ("output.confidence", FeatureGroup.OUTPUT),
    ("output.entropy", FeatureGroup.OUTPUT),
)
CLASSES = ("cat", "dog", "fox")
PRIORS = (0.5, 0.3, 0.2)
MODEL = hashlib.sha256(b"model").digest()[:16]
ACCURACY = 0.9


def rows(rng: np.random.Generator, count: int, *, shift: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> np.ndarray:
    """float32[count, 5]: normal, moved by `shift` deviations; confidence between 0 and 1, entropy falls with it."""
    values = rng.normal(size=(count, 4)) + np.asarray(shift)
    confidence = 1 / (1 + np.exp(-(values[:, 3] + 2)))
    entropy = -np.log(confidence)
    return np.column_stack([values[:, :3], confidence, entropy]).astype(np.float32)


@cache
def profile(seed: int = 1) -> ModelProfile:
    """The reference of a model version whose confidence tells how often it is right."""
    rng = np.random.default_rng(seed)
    values = rows(rng, 4000)
    confidence = values[:, 3]
    right = rng.random(len(values)) < confidence
    accuracy = float(right.mean())
    edges = (float(np.float32(np.quantile(confidence, 1 - accuracy))), float(np.float32(np.quantile(values[:, 4], accuracy))))
    features = [
        fit_feature(name, group, values[:, index], CONFIDENCE_BINS if index >= 3 else 32, extra_edges=edges[index - 3 : index - 2])
        for index, (name, group) in enumerate(FEATURES)
    ]
    grid = Grid(tuple(features), CLASSES, 1, TS - 90 * 86_400_000)
    sketcher = Sketcher(grid)
    for row, label in zip(values, rng.choice(len(CLASSES), len(values), p=PRIORS), strict=True):
        sketcher.add(row, int(label))
    bins = np.searchsorted(np.array(features[3].edges), confidence, side="left")
    counted = np.bincount(bins, minlength=features[3].bins)
    per_bin = np.bincount(bins, weights=right, minlength=features[3].bins) / np.maximum(counted, 1)
    confusion = tuple(tuple(0.9 if i == j else 0.05 for j in range(3)) for i in range(3))
    shift = np.zeros(2 * len(FEATURES) + len(CLASSES))
    shift[0] = -1.5
    families = (
        FamilyReference("dark", 1, 0.88, 0.02, tuple(shift.tolist())),
        FamilyReference("dirt", 1, 0.5, 0.3, tuple((-shift).tolist())),
    )
    reference = AccuracyReference(
        confidence="output.confidence",
        entropy="output.entropy",
        acc0=accuracy,
        conf0=float(confidence.mean()),
        confidence_edge=edges[0],
        entropy_edge=edges[1],
        bin_accuracy=tuple(per_bin.tolist()),
        confusion=confusion,
        families=families,
        epsilon=0.02,
    )
    return ModelProfile(grid, sketcher.take(), reference)


def counts(rng: np.random.Generator, count: int = 100, *, shift: Sequence[float] = (0.0,) * 4, priors: Sequence[float] = PRIORS) -> Counts:
    """Rows of one sub-window."""
    grid = profile().grid
    sketcher = Sketcher(grid)
    for row, label in zip(rows(rng, count, shift=shift), rng.choice(len(CLASSES), count, p=priors), strict=True):
        sketcher.add(row, int(label))
    return sketcher.take()


@dataclass
class SketchDevice:
    """A device that sends windows."""

    device: str = "cam-1"
    pipeline: str = "front"
    model: bytes = MODEL
    source: Source = Source.ACTIVE
    grid: Grid = field(default_factory=lambda: profile().grid)
    seed: int = 7

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def sub_window(
        self, w0: int, counted: Counts | None = None, *, score: float = np.nan, reference_id: bytes | None = None
    ) -> SketchWindow:
        """One sub-window, of 100 rows unless others are given."""
        made = counts(self.rng) if counted is None else counted
        scores = np.array([score], dtype=np.float32)
        return SketchWindow(
            self.pipeline, self.grid.grid_id, self.model, self.source, w0, 1, int(made.rows > 0), made, scores, reference_id
        )

    def hour(self, w0: int, *, sub_windows: Sequence[SketchWindow] = (), rev: int = 0) -> SketchWindow:
        """Six sub-windows from `w0` on as one."""
        parts = sub_windows or [self.sub_window(w0 + index) for index in range(6)]
        return replace(merged(parts, self.grid), rev=rev)

    def message(self, window: SketchWindow, *, tenant: str = "t0") -> Incoming:
        """As it comes over the broker."""
        return incoming(f"mooring/1/{tenant}/d/{self.device}/sketch/{window.pipeline}/{window.window_id}", encode(window))


def add_profile(database: Database, made: ModelProfile | None = None, *, model: bytes = MODEL, tenant: str = DEFAULT_TENANT) -> None:
    """The tenant has a release with this profile."""
    chosen = made or profile()
    row = ProfileRow(model.hex(), chosen.grid.grid_id.hex(), "animals", "1.0", encode_profile(chosen))
    with database.transaction() as tx:
        reference_store.put_profile(tx, tenant, row, now=from_unix_ms(TS))


@cache
def reference(seed: int = 3, *, days: int = 28) -> DeviceReference:
    """What a device learned in so many days before `W0`."""
    rng, w0s, grid = np.random.default_rng(seed), np.arange(W0 - days * 144, W0), profile().grid
    values = rows(rng, 40 * len(w0s)).reshape(len(w0s), 40, len(FEATURES))
    scores = [cell_scores(one)[1:-1][np.searchsorted(np.array(one.edges), values[:, :, index])] for index, one in enumerate(grid.features)]
    places, spreads = [score.mean(axis=1) for score in scores], [(score**2 - 1).mean(axis=1) for score in scores]
    shares = rng.multinomial(40, PRIORS, size=len(w0s)) / 40
    summaries = np.column_stack([*places, *spreads, shares])
    return fit_reference(summaries, w0s, grid=profile().grid, model=MODEL)


#: Sub-windows of one kind that are made and then drawn from.
POOL = 200


@cache
def _pool(shift: tuple[float, ...], priors: tuple[float, ...]) -> list[Counts]:
    rng = np.random.default_rng(19)
    return [counts(rng, 40, shift=shift, priors=priors) for _ in range(POOL)]


@dataclass
class WatchedDevice(SketchDevice):
    """A device with a reference of its own, which scores its sub-windows by it."""

    reference: DeviceReference = field(default_factory=reference)

    def scored(self, w0: int, *, shift: Sequence[float] = (0.0,) * 4, priors: Sequence[float] = PRIORS) -> SketchWindow:
        """One sub-window with its score."""
        counted = _pool(tuple(shift), tuple(priors))[self.rng.integers(POOL)]
        score = self.reference.scores(summarizer(self.grid).summarize(counted.cells[None], counted.classes[None]))[0]
        return self.sub_window(w0, counted, score=float(score), reference_id=self.reference.reference_id)

    def evidence(self, w0: int, count: int = 1, **moved: Sequence[float]) -> list[SketchWindow]:
        """So many sub-windows from `w0` on as they are sent when the check fires, each by itself."""
        return [self.scored(at, **moved) for at in range(w0, w0 + count)]

    def hours(self, w0: int, count: int, **moved: Sequence[float]) -> list[SketchWindow]:
        """So many hours from `w0` on."""
        return [self.hour(at, sub_windows=[self.scored(at + index, **moved) for index in range(6)]) for at in range(w0, w0 + 6 * count, 6)]

    def learned(self, seq: int = 0) -> Incoming:
        """The event with its reference."""
        data = {
            "pipeline": self.pipeline,
            "line": "animals",
            "model": self.model.hex(),
            "grid": self.grid.grid_id.hex(),
            "reference": self.reference.reference_id.hex(),
            "grade": str(self.reference.grade),
            "body": base64.b64encode(self.reference.encoded).decode(),
        }
        content = body(seq, specversion="1.0", id=f"e1-{seq}", source=f"/mooring/t0/{self.device}", type=REFERENCE_LEARNED, data=data)
        return incoming(f"mooring/1/t0/d/{self.device}/event", content)


def enroll(database: Database, *names: str) -> None:
    """Devices of the first group, as enrollment leaves them."""
    now = from_unix_ms(TS)
    groups.ensure_first(database, tenant=DEFAULT_TENANT, now=now)
    with database.transaction() as tx:
        for name in names:
            made = Device(
                tenant=DEFAULT_TENANT,
                device=DeviceId(name),
                device_type=DeviceTypeName("linux-x86-64"),
                group=groups.DEFAULT_GROUP,
                site=groups.DEFAULT_SITE,
                state=DeviceState.ENROLLED,
                labels={},
                hardware={},
                agent_version="0.1.0",
                public_key="",
                sealing_key="",
                serial=name,
                pending_serial=None,
                certificate_ends_at=now + timedelta(days=365),
                enrolled_at=now,
            )
            device_store.insert_device(tx, made)
            device_store.put_twin(tx, Twin(DEFAULT_TENANT, made.device, ConfigPatch(), 1, 1, "{}", None, None, now))
