"""From a frame to the input tensor: the table, the fast paths, the fits; and the recorded tensors both sides reproduce."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.decoding import decode
from protocol.errors import InvalidError
from runtime.inputs import Color, Fit, Interpolation, Layout, Preprocess, TensorDescription
from runtime.preprocess import Plan, Preprocessor, Transfer, plan_for, table_of

RECORDED = Path(__file__).resolve().parents[1] / "golden" / "preprocess"
RECORDS = sorted(RECORDED.glob("*.json"))


def tensor(dtype: str, *, layout: Layout = Layout.NHWC, size: tuple[int, int] = (8, 8), channels: int = 3, scale=None, zero_point=None):
    shape = (1, *size, channels) if layout is Layout.NHWC else (1, channels, *size)
    return TensorDescription(name="x", shape=shape, layout=layout, dtype=dtype, scale=scale, zero_point=zero_point)


def pattern(height: int, width: int) -> np.ndarray:
    """A BGR frame of pure arithmetic: the same everywhere."""
    rows, columns, channels = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((rows * 7 + columns * 13 + channels * 31) % 256).astype(np.uint8)


def plan(image: TensorDescription, **changes: object) -> Plan:
    return plan_for(image, Preprocess(**({"color": Color.RGB} | changes)))


class TestTable:
    @given(
        dtype=st.sampled_from(["int8", "uint8"]),
        scale=st.floats(1e-4, 10),
        mean=st.floats(-2, 2),
        std=st.floats(0.01, 5) | st.floats(-5, -0.01),
        data=st.data(),
    )
    @settings(deadline=None)
    def test_every_entry_is_the_formula_rounded_half_to_even_and_clipped(self, dtype: str, scale: float, mean: float, std: float, data):
        low, high = (-128, 127) if dtype == "int8" else (0, 255)
        zero_point = data.draw(st.integers(low, high))
        image = tensor(dtype, scale=scale, zero_point=zero_point)
        table = table_of(image, np.array([mean]), np.array([std]))
        pixel = data.draw(st.integers(0, 255))
        exact = (pixel / 255.0 - mean) / std / float(np.float32(scale))
        assert table[0][pixel] == min(high, max(low, round(exact) + zero_point))
        assert table.dtype.name == dtype

    def test_scale_1_255_and_zero_point_minus_128_is_one_exclusive_or(self):
        assert plan(tensor("int8", scale=1 / 255, zero_point=-128)).transfer is Transfer.XOR
        assert plan(tensor("int8", scale=0.003921568859368563, zero_point=-128)).transfer is Transfer.XOR

    def test_scale_1_255_and_zero_point_0_is_a_copy(self):
        assert plan(tensor("uint8", scale=1 / 255, zero_point=0)).transfer is Transfer.COPY
        assert plan(tensor("uint8", scale=1 / 128, zero_point=128), mean=(0.5,), std=(0.5,)).transfer is Transfer.TABLE

    @pytest.mark.parametrize("layout", [Layout.NHWC, Layout.NCHW])
    @pytest.mark.parametrize(
        ("dtype", "scale", "zero_point"), [("int8", 1 / 255, -128), ("uint8", 1 / 255, 0), ("int8", 0.02, 3), ("uint8", 0.01, 20)]
    )
    def test_every_fast_path_equals_the_table(self, layout: Layout, dtype: str, scale: float, zero_point: int):
        image = tensor(dtype, layout=layout, scale=scale, zero_point=zero_point)
        frame = pattern(8, 8)
        table = table_of(image, np.zeros(3), np.ones(3))
        wanted = np.stack([table[channel][frame[:, :, 2 - channel]] for channel in range(3)], axis=-1)
        seen = Preprocessor(plan(image)).run(frame)[0]
        assert np.array_equal(seen if layout is Layout.NHWC else seen.transpose(1, 2, 0), wanted)

    @given(
        scale=st.floats(1e-3, 0.1) | st.just(1 / 128),
        zero_point=st.integers(0, 255),
        mean=st.floats(-1, 1) | st.just(0.5),
        std=st.floats(0.1, 3) | st.floats(-3, -0.1) | st.just(0.5),
        width=st.integers(1, 70),
        layout=st.sampled_from([Layout.NHWC, Layout.NCHW]),
    )
    @settings(deadline=None)
    def test_what_is_computed_in_place_of_a_table_equals_it(self, scale, zero_point, mean, std, width, layout):
        image = tensor("uint8", layout=layout, size=(256, width), scale=scale, zero_point=zero_point)
        frame = np.repeat(np.arange(256, dtype=np.uint8), width * 3).reshape(256, width, 3)
        wanted = table_of(image, np.array([mean]), np.array([std]))[0][frame]
        seen = Preprocessor(plan(image, mean=(mean,), std=(std,))).run(frame)[0]
        assert np.array_equal(seen if layout is Layout.NHWC else seen.transpose(1, 2, 0), wanted)

    def test_a_table_is_computed_where_it_is_a_line_far_from_halves_and_looked_up_elsewhere(self):
        assert plan(tensor("uint8", scale=1 / 128, zero_point=128)).line == (128 / 255, 128.0)
        assert plan(tensor("uint8", scale=2 / 255, zero_point=0)).line is None  # every second sum is a half
        assert plan(tensor("uint8", scale=1 / 128, zero_point=0), mean=(0.5,)).line is None  # dark pixels lie below 0
        assert plan(tensor("uint8", scale=1 / 128, zero_point=128), mean=(0.5, 0.4, 0.5)).line is None
        assert plan(tensor("int8", scale=1 / 128, zero_point=0)).line is None

    @pytest.mark.parametrize("layout", [Layout.NHWC, Layout.NCHW])
    def test_floats_are_the_formula_in_single_precision(self, layout: Layout):
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        frame = pattern(8, 8)
        seen = Preprocessor(plan(tensor("float32", layout=layout), mean=mean, std=std)).run(frame)[0]
        wanted = (frame[:, :, ::-1] / 255.0 - np.array(mean)) / np.array(std)
        assert np.allclose(seen if layout is Layout.NHWC else seen.transpose(1, 2, 0), wanted, atol=1e-5)
        assert seen.dtype == np.float32


class TestFrames:
    def test_the_same_memory_is_filled_every_time(self):
        runner = Preprocessor(plan(tensor("float32")))
        first = runner.run(pattern(8, 8))
        assert runner.run(pattern(20, 10)) is first is runner.tensor

    @pytest.mark.parametrize("color", list(Color))
    def test_gray_and_color_frames_fill_every_color(self, color: Color):
        channels = 1 if color is Color.GRAY else 3
        runner = Preprocessor(plan(tensor("uint8", channels=channels, scale=1 / 255, zero_point=0), color=color))
        flat = np.full((16, 12), 77, np.uint8)
        assert (runner.run(flat) == 77).all()
        assert (runner.run(np.dstack([flat] * 3)) == 77).all()

    def test_bgr_keeps_and_rgb_turns_the_channels(self):
        frame = pattern(8, 8)
        image = tensor("uint8", scale=1 / 255, zero_point=0)
        assert np.array_equal(Preprocessor(plan(image, color=Color.BGR)).run(frame)[0], frame)
        assert np.array_equal(Preprocessor(plan(image)).run(frame)[0], frame[:, :, ::-1])

    def test_crop_takes_the_center(self):
        frame = np.zeros((8, 24, 3), np.uint8)
        frame[:, 8:16] = 200
        runner = Preprocessor(plan(tensor("uint8", scale=1 / 255, zero_point=0), fit=Fit.CROP))
        assert (runner.run(frame) == 200).all()

    def test_letterbox_fills_the_bars_and_keeps_the_shape(self):
        frame = np.full((8, 16, 3), 200, np.uint8)
        runner = Preprocessor(plan(tensor("uint8", scale=1 / 255, zero_point=0), fit=Fit.LETTERBOX, fill=9))
        seen = runner.run(frame)[0, :, :, 0]
        assert (seen[:2] == 9).all()
        assert (seen[2:6] == 200).all()
        assert (seen[6:] == 9).all()

    def test_stretch_uses_everything(self):
        frame = np.zeros((8, 16, 3), np.uint8)
        frame[:, 8:] = 255
        seen = Preprocessor(plan(tensor("uint8", scale=1 / 255, zero_point=0))).run(frame)[0, :, :, 0]
        assert (seen[:, :3] == 0).all()
        assert (seen[:, 5:] == 255).all()

    @given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(list(Fit)), st.sampled_from(list(Interpolation)))
    @settings(max_examples=60, deadline=None)
    def test_any_frame_size_fills_the_tensor(self, height: int, width: int, fit: Fit, interpolation: Interpolation):
        runner = Preprocessor(plan(tensor("float32", size=(12, 20)), fit=fit, interpolation=interpolation))
        seen = runner.run(np.full((height, width, 3), 255, np.uint8))
        assert seen.shape == (1, 12, 20, 3)
        assert math.isclose(float(seen.max()), 1.0, abs_tol=1e-5)
        assert fit is Fit.LETTERBOX or math.isclose(float(seen.min()), 1.0, abs_tol=1e-5)

    @given(
        times=st.integers(1, 60),
        rest=st.integers(0, 2),
        width=st.integers(1, 90),
        fit=st.sampled_from([Fit.STRETCH, Fit.CROP]),
        interpolation=st.sampled_from(list(Interpolation)),
    )
    @settings(deadline=None)
    def test_rows_are_left_out_only_where_resizing_the_whole_frame_gives_the_same(
        self, times: int, rest: int, width: int, fit: Fit, interpolation: Interpolation
    ):
        frame = pattern(12 * times + rest, width)
        left, columns = (0, width) if fit is Fit.STRETCH else (max(0, (width - frame.shape[0]) // 2), min(width, frame.shape[0]))
        top, rows = (0, frame.shape[0]) if fit is Fit.STRETCH else (max(0, (frame.shape[0] - width) // 2), min(width, frame.shape[0]))
        code = cv2.INTER_AREA if interpolation is Interpolation.AREA else cv2.INTER_LINEAR
        wanted = cv2.resize(frame[top : top + rows, left : left + columns], (12, 12), interpolation=code)
        image = tensor("uint8", size=(12, 12), scale=1 / 255, zero_point=0)
        seen = Preprocessor(plan(image, color=Color.BGR, fit=fit, interpolation=interpolation)).run(frame)[0]
        assert np.array_equal(seen, wanted)

    @pytest.mark.parametrize("color", list(Color))
    @pytest.mark.parametrize("fit", list(Fit))
    def test_frames_of_many_shapes_one_after_the_other_leave_nothing_behind(self, fit: Fit, color: Color):
        channels = 1 if color is Color.GRAY else 3
        made = plan(tensor("int8", channels=channels, scale=0.02, zero_point=3), color=color, fit=fit, fill=9)
        one_for_all = Preprocessor(made)
        frames = [
            pattern(8, 8),
            pattern(40, 24),
            pattern(8, 8)[:, :, 0],
            pattern(24, 40)[:, :, :1],
            np.dstack([pattern(9, 30), pattern(9, 30)[:, :, 0]]),
        ]
        for frame in [*frames, *reversed(frames)]:
            assert np.array_equal(one_for_all.run(frame), Preprocessor(made).run(frame))

    def test_a_frame_is_refused_for_its_dtype_after_others_of_its_shape(self):
        runner = Preprocessor(plan(tensor("float32")))
        runner.run(pattern(8, 8))
        with pytest.raises(InvalidError, match="wanted uint8, height x width x 3"):
            runner.run(pattern(8, 8).astype(np.int8))

    @pytest.mark.parametrize(
        "frame",
        [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)],
        ids=["float", "five channels", "flat", "empty"],
    )
    def test_another_kind_of_frame_is_refused_in_words(self, frame: np.ndarray):
        with pytest.raises(InvalidError, match="wanted uint8, height x width x 3"):
            Preprocessor(plan(tensor("float32"))).run(frame)


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem for path in RECORDS])
def test_recorded_tensors_are_reproduced(path: Path):
    """`tolerance` is 0 where no pixel is computed anew; resizing may be one brightness off across OpenCV versions and processors."""
    record = json.loads(path.read_text())
    image = decode(TensorDescription, record["tensor"])
    frame = pattern(*record["frame"])
    seen = Preprocessor(plan_for(image, decode(Preprocess, record["preprocess"]))).run(frame)
    wanted = np.asarray(record["expected"], np.float64).reshape(image.shape)
    assert np.abs(seen.astype(np.float64) - wanted).max() <= record["tolerance"] + 1e-6


def test_there_are_recorded_tensors_for_every_fit_and_transfer():
    records = [json.loads(path.read_text()) for path in RECORDS]
    assert {record["preprocess"]["fit"] for record in records} == set(Fit)
    made = {plan_for(decode(TensorDescription, record["tensor"]), decode(Preprocess, record["preprocess"])).transfer for record in records}
    assert made == set(Transfer)
