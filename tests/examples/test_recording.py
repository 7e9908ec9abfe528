"""The example's recording: from frames through the device's code, grid and counts to a reference that knows its own and tells others."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from example_models import DIGITS, READABLE, make_slot

from examples.digits import recording
from examples.digits.video import make_video
from fleet.monitoring.drift_import import learn
from fleet.registry.profiling import make_in_child
from protocol.sketches.profile import decode_profile
from protocol.sketches.recording import decode_recording
from protocol.sketches.summary import summary
from runtime.loader import read_slot

pytestmark = pytest.mark.skipif("onnx" not in READABLE, reason="needs ONNX Runtime")
UNTIL = datetime(2099, 5, 20, 13, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slot whose release was profiled with held-out scans."""
    folder = tmp_path_factory.mktemp("slot")
    made, frames = make_slot(folder / "slot", "onnx"), folder / "frames.npz"
    with np.load(DIGITS / "evaluation.npz") as kept:
        np.savez(frames, frames=kept["frames"][:140])
    profiled = make_in_child(made / "model.onnx", read_slot(made), frames)
    (made / "profile.cbor").write_bytes(profiled.data)
    return made


def test_a_reference_is_learned_from_the_recording_and_tells_darkness_from_days_like_its_own(slot, monkeypatch):
    monkeypatch.setattr(recording, "SCANS", 40)  # each frame is drawn, which takes most of the time
    data = recording.record(slot, until=UNTIL, count=60)
    recorded = decode_recording(data)
    assert len(recorded) == 14 * 144
    assert recorded[-1].window.end_ms == int(datetime(2099, 5, 20, tzinfo=UTC).timestamp() * 1000)
    reference = learn(recorded, pipeline="front").reference
    grid = decode_profile((slot / "profile.cbor").read_bytes()).grid
    assert reference.grid_id == grid.grid_id
    rows, random = recording.rows_of(slot, grid, read_slot(slot), recording.scan_frames()), np.random.default_rng(5)
    usual = [recording.sub_window(rows, grid, random, count=60) for _ in range(40)]
    p = reference.p_values(reference.scores(np.stack([summary(one, grid) for one in usual])))
    assert np.median(p) > 0.1
    names = [feature.name for feature in grid.features]
    darker = recording.Rows(rows.values.copy(), rows.classes)
    darker.values[:, :, names.index("image.brightness")] *= 0.7
    odd = summary(recording.sub_window(darker, grid, random, count=60), grid)
    assert reference.p_values(reference.scores(odd[None]))[0] < 1e-4


def test_a_recording_of_a_video_is_made_of_its_frames_alone(slot, tmp_path):
    make_video(tmp_path / "door.mp4", fps=15, frames=24, frames_per_scan=3)
    frames = list(recording.video_frames(tmp_path / "door.mp4"))
    assert [frame.shape for frame in frames] == [(240, 320, 3)] * 24
    grid = decode_profile((slot / "profile.cbor").read_bytes()).grid
    rows = recording.rows_of(slot, grid, read_slot(slot), frames, per_scan=1)
    assert rows.values.shape == (24, 1, len(grid.features))
    (window, *_) = decode_recording(recording.record(slot, days=1, until=UNTIL, count=75, video=tmp_path / "door.mp4"))
    assert window.window.counts.rows == 75
    with pytest.raises(OSError, match=r"none\.mp4"):
        recording.record(slot, until=UNTIL, video=tmp_path / "none.mp4")
