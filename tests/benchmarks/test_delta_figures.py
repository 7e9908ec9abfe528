"""What the delta benchmark claims rests on these: the bound, the rounding of what is wanted, and which pair is called the worst."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.delta_pairs import bound, figures, listing, peers
from benchmarks.record import Row, compare, measure, render

PAIR = listing.Pair("net_small", "small", "int8", Path("old.onnx"), Path("new.onnx"), 1.75, is_given=False)


def model(path, weights):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def measured(ours, sizes, *, pair=PAIR, full=1000):
    use = peers.Use(0.1, 9.0)
    trials = {name: [peers.Trial("best", size, use, use)] for name, size in sizes.items()}
    mine = figures.Ours(size=ours, method=2, encodes=[use], speeds=[80.0, 90.0], memories=[4.0])
    return figures.Measured(pair, mine, trials, {}, full, 100.0, 0.2)


def test_the_bound_is_the_entropy_of_the_differences(tmp_path):
    old = model(tmp_path / "old.onnx", np.zeros(64, np.int8))
    new = model(tmp_path / "new.onnx", np.repeat(np.array([-1, 0, 1, 127], np.int8), 16))
    assert bound.entropy_bytes(old, new) == pytest.approx(64 * 2 / 8)
    assert bound.changed_share(old, new) == pytest.approx(0.75)


def test_equal_files_have_no_entropy(tmp_path):
    old = model(tmp_path / "old.onnx", np.arange(64, dtype=np.int8))
    assert bound.entropy_bytes(old, old) == 0


def test_only_the_four_generic_tools_are_the_measure_of_an_int8_pair():
    found = measured(100, {"HDiffPatch": 10, "bsdiff": 300, "detools": 200, "ZipNN": 5})
    assert (found.best[0], found.times) == ("detools", pytest.approx(2.0))


def test_what_is_wanted_is_rounded_against_us():
    exactly, missed = measured(400, {"bsdiff": 700}), measured(401, {"bsdiff": 700})
    assert figures.size_row(measured(399, {"bsdiff": 700})).met
    assert not figures.size_row(missed).met
    assert float(figures.size_row(exactly).target.split()[1]) <= 1 / 1.75


def test_a_delta_more_than_its_header_above_the_whole_file_is_a_miss():
    rows = {row.what: row for row in figures.rows_of(measured(1113, {"bsdiff": 3000}))}
    assert not rows["net_small: above the full download"].met


def test_the_worst_row_is_the_one_furthest_from_its_own_bound():
    easy = compare("easy: size", ours=[50], peer=[100], peer_name="a", unit="B", target="<= 0.6")
    hard = compare("hard: size", ours=[30], peer=[100], peer_name="a", unit="B", target="<= 0.3")
    slow = measure("slow: decode MB/s", ours=[40.0], unit="MB/s", target=">= 50")
    fast = measure("fast: decode MB/s", ours=[400.0], unit="MB/s", target=">= 50")
    assert "hard" in figures.worst([easy, hard], "size")[0].what
    assert "slow" in figures.worst([fast, slow], "speed")[0].what


def test_a_tool_that_gives_another_file_back_has_no_result(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"a" * 100)
    new.write_bytes(b"b" * 100)
    lies = peers.Variant("lies", ("cp", "{new}", "{delta}"), ("cp", "{old}", "{out}"))
    with pytest.raises(peers.PeerError, match="differs"):
        peers.attempt(lies, old, new, tmp_path)


def test_a_tool_that_fails_has_no_result():
    with pytest.raises(peers.PeerError, match="left with 1"):
        peers.run(["false"])


def test_readme_shows_only_the_rows_of_the_headline():
    row = Row("kept", 1.0, None, "", None, "s", 1, 0.0, "<= 2", met=True)
    other = {**{name: getattr(row, name) for name in Row.__slots__}, "what": "left out"}
    shown = {name: getattr(row, name) for name in Row.__slots__}
    text = render([{"machine": "m", "headline": ["kept"], "rows": [shown, other]}])
    assert "| kept |" in text
    assert "left out" not in text
