"""Rows of sensor windows: channels in the readings' own units, whatever the tensor, and sums with fixed signs where there are many."""

import numpy as np
import pytest

from fleet.registry.drafts import complete, parse_draft
from protocol.errors import InvalidError
from runtime.answers import Measurement
from runtime.base import ModelTensors, TensorSpec
from runtime.features import Extractor, candidates
from runtime.manifest import FileEntry, ModelManifest
from runtime.readings import WindowFiller

SCORE = Measurement(1.5, "", is_anomaly=False)


def manifest(fields=("X axis", "y", "z"), length=64, *, dtype="float32", **window) -> ModelManifest:
    scale = {} if dtype == "float32" else {"scale": 0.05, "zero_point": 0}
    source = TensorSpec("window", (1, length * len(fields)), dtype, **scale)
    tensors = ModelTensors("onnx", "onnx", "1", (source,), (TensorSpec("score", (1, 1), "float32"),))
    written = {
        "task": "anomaly",
        "anomaly": {"threshold": 2.0},
        "window": {"fields": list(fields), "length": length, **window},
        "device_types": ["x"],
    }
    files = {"model.onnx": FileEntry(sha256=f"sha256:{'0' * 64}", length=1)}
    return complete(parse_draft(written), tensors, line="m", release="1", counter=1, variant="onnx", files=files)


def row_of(made: ModelManifest, readings: np.ndarray) -> tuple[dict[str, float], Extractor]:
    extractor = Extractor(made)
    tensor = WindowFiller(made.inputs[0], made.window).fill(readings)
    row = extractor.row(tensor, SCORE, readings=readings)
    return dict(zip(extractor.names, row.tolist(), strict=True)), extractor


def waves(length=64, fields=3, period=8.0) -> np.ndarray:
    moments = np.arange(length)[:, None]
    return (np.sin(2 * np.pi * moments / period + np.arange(fields)) * (1 + np.arange(fields)) + 10).astype(np.float32)


def test_channels_are_named_by_their_fields():
    assert candidates(manifest(("X axis", "y", "X-axis!", "°")))[:4] == (
        "sensor.x-axis.value",
        "sensor.y.value",
        "sensor.x-axis-3.value",
        "sensor.field-4.value",
    )
    assert candidates(manifest())[-2:] == ("output.score", "output.step")


@pytest.mark.parametrize("order", ["readings", "fields"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_numbers_are_in_the_readings_own_units(dtype, order):
    readings = waves()
    seen, _ = row_of(manifest(dtype=dtype, order=order, mean=[10.0], std=[2.0, 1.0, 4.0]), readings)
    for index, field in enumerate(("x-axis", "y", "z")):
        channel = readings[:, index]
        assert seen[f"sensor.{field}.value"] == pytest.approx(channel.mean(), abs=0.1)
        assert seen[f"sensor.{field}.step"] == pytest.approx(np.abs(np.diff(channel)).mean(), abs=0.1)
        assert seen[f"sensor.{field}.spread"] == pytest.approx(channel.std(), abs=0.1)


def test_the_energy_is_that_of_the_band():
    in_band, _ = row_of(manifest(), waves(period=8))
    below, _ = row_of(manifest(), waves(period=64))
    assert in_band["sensor.y.energy"] == pytest.approx(np.log10(waves(period=8)[:, 1].var()), abs=0.05)
    assert below["sensor.y.energy"] < in_band["sensor.y.energy"] - 1


def test_many_fields_are_the_first_ones_and_sums_of_the_rest():
    fields = tuple(f"f{index}" for index in range(20))
    names = candidates(manifest(fields))
    assert len(names) <= 32
    assert [name for name in names if name.endswith(".value")] == [
        *(f"sensor.f{index}.value" for index in range(4)),
        *(f"sensor.mix-{index}.value" for index in (1, 2, 3)),
    ]
    readings = waves(fields=20)
    before, _ = row_of(manifest(fields), readings)
    readings[:, 13] += 30
    after, _ = row_of(manifest(fields), readings)
    assert {name for name in names if before[name] != pytest.approx(after[name], abs=1e-3)} >= {f"sensor.mix-{i}.value" for i in (1, 2, 3)}
    assert before["sensor.f3.value"] == after["sensor.f3.value"]


def test_windows_of_one_reading_step_from_window_to_window():
    made = manifest(("t",), 1)
    assert candidates(made)[:2] == ("sensor.t.value", "sensor.t.step")
    extractor, filler = Extractor(made), WindowFiller(made.inputs[0], made.window)
    seen = [extractor.row(filler.fill(np.array([[value]], np.float32)), SCORE)[:2].tolist() for value in (20.0, 23.0)]
    assert seen == [[20, 0], [23, 3]]


def test_missing_readings_and_those_outside_the_physical_range_are_counted():
    made = manifest(missing="mean", ranges={"y": [-50.0, 50.0]})
    readings = waves()
    readings[3, 0] = np.nan
    readings[5:9, 1] = 80.0
    seen, extractor = row_of(made, readings)
    assert (extractor.quality.not_finite, extractor.quality.out_of_range) == (1, 4)
    assert np.isfinite(list(seen.values())).all()


@pytest.mark.parametrize("ranges", [{"q": [0, 1]}, {"y": [1, 1]}, {"y": [5, -5]}])
def test_a_range_that_cannot_be_is_refused(ranges):
    with pytest.raises(InvalidError, match="wanted one of the fields"):
        manifest(ranges=ranges)


def test_a_sensor_that_stands_still_has_the_same_hash():
    made = manifest()
    _, one = row_of(made, waves())
    _, same = row_of(made, waves())
    _, other = row_of(made, waves() + np.float32(0.001))
    assert one.quality.hash == same.quality.hash != other.quality.hash
