"""The example's evaluation data: held-out scans as a device sees them."""

import numpy as np
from example_models import DIGITS

from examples.digits import evaluation, scans


def test_the_file_is_what_the_script_makes_of_the_held_out_scans():
    made = evaluation.make()
    with np.load(DIGITS / "evaluation.npz", allow_pickle=False) as kept:
        assert kept.files == ["frames", "labels"]
        assert (kept["labels"] == made["labels"]).all()
        # other versions of OpenCV round otherwise
        assert np.abs(kept["frames"].astype(int) - made["frames"]).max() <= 2
    assert len(made["labels"]) == len(scans.split().held_out)
    assert set(made["labels"].tolist()) == set(range(10))
