"""Made-up pictures for golden vectors: the same everywhere, within what the plan can give, and told apart by real models."""

import numpy as np
import pytest
from example_models import READABLE, manifest_for, model_folder

from runtime.golden import compare, decode
from runtime.inputs import Color, Layout, Preprocess, TensorDescription
from runtime.probe import make_goldens, run_goldens
from runtime.samples import sample_inputs

IMAGE = TensorDescription(name="x", shape=(1, 3, 16, 24), layout=Layout.NCHW, dtype="float32")


def test_the_same_seed_gives_the_same_tensors_and_another_one_others():
    plan = Preprocess(color=Color.RGB, mean=(0.5,), std=(0.5,))
    first, second = sample_inputs(IMAGE, plan, count=8), sample_inputs(IMAGE, plan, count=8)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0]["x"], sample_inputs(IMAGE, plan, count=1, seed=1)[0]["x"])
    assert all(item["x"].shape == IMAGE.shape and -1 <= item["x"].min() < item["x"].max() <= 1 for item in first)


@pytest.mark.parametrize("variant", READABLE)
def test_golden_vectors_of_made_up_pictures_tell_a_damaged_model_from_a_good_one(variant: str):
    folder = model_folder(variant)
    manifest = manifest_for(folder, variant)
    inputs = sample_inputs(manifest.inputs[0], manifest.preprocess, count=8)
    goldens = decode(make_goldens(folder / f"model.{variant}", inputs))
    again = run_goldens(folder / f"model.{variant}", inputs)
    damaged = run_goldens(model_folder(variant, "1.2") / f"model.{variant}", inputs)
    for key, rows in again.outputs.items():
        assert compare(goldens, rows, key=key) == ()
        assert compare(goldens, damaged.outputs[key], key=key) != ()
