"""What the inference process writes is what the control process reads; what it reads fits, or is refused without being repeated."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.hearing import FROM_WORKER
from agent.inference.messages import (
    Activate,
    ArmOrder,
    Beat,
    Box,
    Choice,
    Configure,
    Finding,
    LineCount,
    PipelineCount,
    Prediction,
    Quality,
    Sampled,
    SampleRows,
    ScoredLabel,
    Snapshot,
    Stop,
    TakeTurns,
    ZoneShape,
)
from agent.inference.shadow_messages import Layout, Offered
from agent.inference.shadow_reports import OFFERED
from agent.inference.writing import read_order, write, write_offered
from agent.orders import PipelineOrder, RuntimeOrder, StreamSource
from agent.sources.states import Channel, SourceState
from protocol.decoding import MisfitError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 2**60)
LABELS = st.builds(ScoredLabel, TEXT, COUNT, NUMBER)
BOXES = st.builds(Box, TEXT, COUNT, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, st.none() | COUNT)
PREDICTIONS = st.builds(
    Prediction,
    pipeline=TEXT,
    line=TEXT,
    release=TEXT,
    session=COUNT,
    frame=COUNT,
    at_ms=COUNT,
    top=st.lists(LABELS, max_size=3).map(tuple),
    lat_ms=NUMBER,
    age_ms=NUMBER,
    task=TEXT,
    boxes=st.lists(BOXES, max_size=3).map(tuple),
    value=st.none() | NUMBER,
    unit=TEXT,
    is_anomaly=st.none() | st.booleans(),
)


@given(PREDICTIONS)
def test_every_prediction_is_heard_as_it_was_written(prediction: Prediction):
    assert FROM_WORKER.validate_json(write(prediction)) == prediction
    offered = Offered(prediction, Layout((1, 2), "uint8", is_input=True, size=(3, 4)), 5, 6)
    assert OFFERED.validate_json(write_offered(offered)) == offered


def test_a_prediction_says_every_field():
    """It is written by hand: a new field must not be forgotten."""
    prediction = Prediction("p", "l", "1", 1, 2, 3, (ScoredLabel("a", 0, 0.5),), 1.0, 2.0, boxes=(Box("b", 1, 0.5, 0.0, 0.1, 0.2, 0.3),))
    document = json.loads(write(prediction))
    assert set(document) == set(Prediction.__slots__)
    assert set(document["top"][0]) == set(ScoredLabel.__slots__)
    assert set(document["boxes"][0]) == set(Box.__slots__)


def test_beats_and_rows_are_heard_as_they_were_written():
    pipeline = PipelineCount("p", 1, 2, 3, {"stale": 4}, 0, 0, 0, 1, SourceState.LOST, "lost", (1.5, 2.0), {"a": Channel(1, 0.5, 0.0, 1.0)})
    line = LineCount("l", "/slot", "1.0", "onnx:cuda", "onnx:cpu", 1, 2, 3, None, 0.5, ("why",), share=None)
    beat = Beat((pipeline,), (line,), (Finding("source_lost", "warning", "the cable", "p"),), 51.5)
    row = Sampled("p", "l", "1", "/slot", "ab", "cd", 1.5, 4.0, "AA==", ("cat",), (480, 640), Quality(1.0, 2.0, "ff"))
    for message in (beat, row, replace(row, size=None, quality=None)):
        assert FROM_WORKER.validate_json(write(message)) == message


def test_orders_are_read_as_they_were_written():
    source = StreamSource(kind="stream", url="rtsp://u:p@cam/1", decode="keyframes")
    pipeline = PipelineOrder(name="front", line="cars", source=source, roi=(0.0, 0.0, 0.5, 1.0))
    runtime = RuntimeOrder(providers=("cuda",), options={"cuda": {"a": "b"}}, require=True, threads=2)
    for order in (
        Configure((pipeline,), runtime, 7),
        Activate(1, "cars", "/slot", 2, ("onnx:cuda",), choice=Choice("onnx:cpu", "onnx:cuda", 2)),
        TakeTurns((ArmOrder("cars", "front", "/candidate", 20, "s", "d"),)),
        SampleRows({"front": 0.0}),
        Snapshot(3, "front", (ZoneShape("drive", ((0.0, 0.0), (1.0, 1.0)), is_closed=False),)),
        Stop(),
    ):
        assert read_order(write(order)) == order


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "explode"},
        {"first_session": "7"},
        {"pipelines": [{"name": "front", "line": "cars", "source": {"kind": "stream", "url": "rtsp://u:hush@cam/1", "decode": "some"}}]},
        {"pipelines": [{"name": "../x", "line": "cars", "source": {"kind": "stream", "url": "rtsp://u:hush@cam/1"}}]},
        {"pipelines": [{"name": "front", "line": "cars", "source": {"kind": "camera"}, "roi": [0.5, 0, 0.5, 1]}]},
        {"runtime": {"threads": 65}},
    ],
)
def test_an_order_that_does_not_fit_is_refused_without_repeating_it(change: dict[str, object]):
    document = {"kind": "configure", "pipelines": [], "runtime": {}, "first_session": 1, **change}
    with pytest.raises(MisfitError, match="does not fit") as seen:
        read_order(json.dumps(document).encode())
    assert "hush" not in str(seen.value)
    assert seen.value.__cause__ is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000], ids=["empty", "list", "cut", "no text", "deep"])
def test_what_is_no_order_is_refused(data: bytes):
    with pytest.raises(MisfitError):
        read_order(data)
