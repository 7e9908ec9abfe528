"""What the map of drift's false alarms is fitted to: where so many come, and how far cameras differ."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="simulated cameras are drawn with OpenCV")
pytest.importorskip("sklearn", reason="simulated cameras see scikit-learn's digits")

from benchmarks.drift.sums import BY_SUM, report, where


def test_a_rate_is_found_where_it_first_comes_and_stays_though_a_day_swallows_alarms():
    rates = BY_SUM / 2
    assert where(rates, 1.0) == pytest.approx(2.0, rel=0.06)
    dented = np.where((BY_SUM > 3) & (BY_SUM < 4), 1.4, rates)
    assert where(dented, 1.6) == pytest.approx(4.0, rel=0.06)
    assert where(rates, 1e6) == BY_SUM[-1]


def test_the_bound_is_over_cameras_and_says_which_one_the_fit_hangs_on():
    alike = np.ones((4, 5, 1)) * np.rint(BY_SUM)
    one_wild = alike.copy()
    one_wild[3] *= 5
    line_alike, line_wild = (
        next(one for one in report(counts.astype(int), (0.75,)) if one.split()[0] == "10") for counts in (alike, one_wild)
    )
    assert line_alike.split()[1:] == ["200", "10.000", "10.000", "10.00", "10.00", "10"]
    assert line_wild.split()[2] == "20.000"
    assert float(line_wild.split()[3]) > 40
    of_wild = next(one for one in report(one_wild.astype(int), (0.75,)) if one.startswith("0.75 of 5.0"))
    low, high = (float(word) for word in of_wild.split()[-3::2])
    assert low < 2.5 < high
