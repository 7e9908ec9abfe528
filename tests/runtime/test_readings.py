"""Windows of sensor readings: normalized per field, quantized as the model wants, and what lacks a number."""

import numpy as np
import pytest

from protocol.decoding import decode
from protocol.errors import InvalidError
from runtime.inputs import TensorDescription, Window
from runtime.readings import WindowFiller

READINGS = np.array([[10.0, 1.0], [12.0, 2.0], [14.0, 5.0]], np.float32)
PLAIN = {"fields": ("t", "p"), "length": 3, "mean": (12.0, 2.0), "std": (2.0, 4.0)}
WANTED = [[-1.0, -0.25], [0.0, 0.0], [1.0, 0.75]]


def filler(*, dtype: str = "float32", scale=None, zero_point=None, shape=(1, 6), **changes: object) -> WindowFiller:
    tensor = TensorDescription(name="x", shape=shape, dtype=dtype, scale=scale, zero_point=zero_point)
    return WindowFiller(tensor, decode(Window, {**PLAIN, **changes}))


def test_each_field_is_normalized_by_its_own_mean_and_deviation():
    assert filler(shape=(1, 3, 2)).fill(READINGS).tolist() == [WANTED]


def test_one_mean_and_deviation_may_stand_for_all():
    assert filler(mean=(2.0,), std=(2.0,)).fill(READINGS).tolist() == [[4.0, -0.5, 5.0, 0.0, 6.0, 1.5]]


def test_fields_may_lie_one_after_the_other():
    assert filler(order="fields").fill(READINGS).tolist() == [[-1.0, 0.0, 1.0, -0.25, 0.0, 0.75]]


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -3), ("uint8", 120)])
def test_integers_are_rounded_half_to_even_and_stay_inside_their_type(dtype: str, zero_point: int):
    made = filler(dtype=dtype, scale=0.5, zero_point=zero_point)
    assert (made.fill(READINGS).astype(int) - zero_point).tolist() == [[-2, 0, 0, 0, 2, 2]]
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    assert made.fill(READINGS * np.float32(1e9)).reshape(-1)[[0, 5]].tolist() == [high, high]
    assert made.fill(READINGS * np.float32(-1e9)).reshape(-1)[[0, 5]].tolist() == [low, low]


def test_the_numbers_before_quantization_are_kept_beside():
    made = filler(dtype="int8", scale=100.0, zero_point=0)
    assert not made.fill(READINGS).any()
    assert made.values.tolist() == [-1.0, -0.25, 0.0, 0.0, 1.0, 0.75]


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_a_window_that_lacks_a_number_is_refused_as_invalid_or_filled_with_the_mean(hole: float):
    broken = READINGS.copy()
    broken[1, 1] = hole
    with pytest.raises(InvalidError, match="1 of the window's 6 numbers") as caught:
        filler().fill(broken)
    assert caught.value.code == "not_finite"
    assert filler(missing="mean", shape=(1, 3, 2)).fill(broken).tolist() == [[WANTED[0], [0.0, 0.0], WANTED[2]]]


def test_another_shape_is_told_with_what_the_model_wants():
    with pytest.raises(InvalidError, match=r"float32\[2, 3\]; the model wants float32\[3, 2\]: 3 readings of t, p"):
        filler().fill(READINGS.T)
    with pytest.raises(InvalidError, match="uint8"):
        filler().fill(np.zeros((3, 2), np.uint8))
