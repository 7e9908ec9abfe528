"""Readings from a real broker become windows; what is malformed is counted; a broker that goes is found again."""

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion
from simulators.plain_broker import PlainBroker
from waiting import wait_until

from agent.orders import SensorSource
from agent.sources.base import DecodeError, Grabbed, SourceLostError
from agent.sources.sensor import GapPolicy, SensorStream, parse_reading
from protocol.clock import SystemClock

NO_STOP = threading.Event()
TOPIC = "site/pump"

pytestmark = pytest.mark.needs_broker


@pytest.fixture
def broker(mosquitto_path: Path, tmp_path: Path, free_port: int) -> Iterator[PlainBroker]:
    with PlainBroker(mosquitto_path, tmp_path / "broker", free_port) as running:
        yield running


class Publisher:
    """A sensor: every reading has reached the broker when `send` returns."""

    def __init__(self, broker: PlainBroker) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def send(self, payload: bytes | dict[str, Any]) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._client.publish(TOPIC, data, qos=1).wait_for_publish(60)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def publisher(broker: PlainBroker) -> Iterator[Publisher]:
    made = Publisher(broker)
    yield made
    made.close()


def stream(url: str, *, window: int = 4, stride: int = 2, gaps: GapPolicy = GapPolicy.HOLD, silence_s: float = 60.0) -> SensorStream:
    config = SensorSource(kind="sensor", broker=url, topic=TOPIC, fields=("t", "p"), window=window, stride=stride)
    return SensorStream(config, clock=SystemClock(), gaps=gaps, silence_s=silence_s)


def grab_on(source: SensorStream) -> None:
    """Grab until that raises."""
    while True:
        source.grab(NO_STOP)


def next_window(source: SensorStream) -> np.ndarray:
    grabbed = wait_until(lambda: source.grab(NO_STOP), what="a window")
    assert isinstance(grabbed, Grabbed)
    return source.retrieve(np.empty(0, np.float32)).copy()


def test_windows_overlap_by_the_stride_and_hold_the_readings_oldest_first(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url)
    source.open()
    for index in range(8):
        publisher.send({"t": index, "p": 10 * index, "other": "ignored"})
    assert next_window(source).tolist() == [[0, 0], [1, 10], [2, 20], [3, 30]]
    assert next_window(source).tolist() == [[2, 20], [3, 30], [4, 40], [5, 50]]
    assert next_window(source).tolist() == [[4, 40], [5, 50], [6, 60], [7, 70]]
    source.close()


def test_a_window_is_written_in_place(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=2, stride=1)
    source.open()
    publisher.send({"t": 1, "p": 2})
    publisher.send({"t": 3, "p": 4})
    wait_until(lambda: source.grab(NO_STOP))
    into = np.empty((2, 2), np.float32)
    assert source.retrieve(into) is into
    source.close()


def test_malformed_messages_are_counted_and_change_nothing(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=2, stride=2)
    source.open()
    bad = [b"", b"not json", b"[1, 2]", b'"text"', b"\xff\xfe", b"[" * 5000, json.dumps({"t": 1, "p": 2, "x": "y" * 70_000}).encode()]
    for payload in bad:
        publisher.send(payload)
    publisher.send({"t": 1, "p": 2})
    publisher.send({"t": 3, "p": 4})
    assert next_window(source).tolist() == [[1, 2], [3, 4]]
    assert source.malformed == len(bad)
    assert f"{len(bad)} of {len(bad) + 2} messages" in source.text
    source.close()


def test_a_held_gap_keeps_the_last_value_and_is_counted(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=3, stride=3, gaps=GapPolicy.HOLD)
    source.open()
    for reading in ({"t": 1}, {"t": 1, "p": 5}, {"t": 2, "p": None}, {"t": 3, "p": "high"}):
        publisher.send(reading)
    assert next_window(source).tolist() == [[1, 5], [2, 5], [3, 5]]
    assert source.take_channels()["p"].gaps == 3
    source.close()


def test_a_dropped_gap_leaves_the_reading_out(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=2, stride=2, gaps=GapPolicy.DROP)
    source.open()
    for reading in ({"t": 1, "p": 5}, {"t": 2}, {"t": 3, "p": 7}):
        publisher.send(reading)
    assert next_window(source).tolist() == [[1, 5], [3, 7]]
    source.close()


def test_a_rejected_gap_spoils_its_windows_only(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=2, stride=2, gaps=GapPolicy.REJECT)
    source.open()
    for reading in ({"t": 1, "p": 5}, {"t": 2}, {"t": 3, "p": 7}, {"t": 4, "p": 8}):
        publisher.send(reading)
    wait_until(lambda: source.grab(NO_STOP))
    with pytest.raises(DecodeError, match="1 readings without a number"):
        source.retrieve(np.empty(0, np.float32))
    assert next_window(source).tolist() == [[3, 7], [4, 8]]
    source.close()


def test_a_gap_may_be_passed_on_for_the_models_manifest_to_decide(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=2, stride=2, gaps=GapPolicy.PASS)
    source.open()
    for reading in ({"t": 1, "p": 5}, {"t": 2}):
        publisher.send(reading)
    assert np.array_equal(next_window(source), np.array([[1, 5], [2, np.nan]], np.float32), equal_nan=True)
    source.close()


def test_channels_are_summarized_since_they_were_last_taken(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=3, stride=3)
    source.open()
    for value in (1, 2, 6):
        publisher.send({"t": value, "p": -value})
    next_window(source)
    channels = source.take_channels()
    assert (channels["t"].count, channels["t"].mean, channels["t"].low, channels["t"].high) == (3, 3.0, 1.0, 6.0)
    assert channels["p"].low == -6.0
    assert source.take_channels() == {}
    source.close()


def test_a_broker_that_goes_away_is_lost_and_found_again(broker: PlainBroker, publisher: Publisher):
    source = stream(broker.url, window=1, stride=1)
    source.open()
    broker.stop()
    with pytest.raises(SourceLostError, match="broke off"):
        grab_on(source)
    with pytest.raises(SourceLostError, match="cannot be reached"):
        source.open()
    broker.start()
    source.open()
    again = Publisher(broker)
    again.send({"t": 1, "p": 2})
    assert next_window(source).tolist() == [[1, 2]]
    again.close()
    source.close()


def test_a_silent_stream_is_lost(broker: PlainBroker):
    source = stream(broker.url, silence_s=0.2)
    source.open()
    with pytest.raises(SourceLostError, match="silent"):
        grab_on(source)
    source.close()


def test_a_wrong_password_is_refused_and_not_shown(mosquitto_path: Path, tmp_path: Path, free_port: int):
    with PlainBroker(mosquitto_path, tmp_path / "b", free_port, user="gateway", password="right") as locked:
        good = stream(locked.url.replace("//", "//gateway:right@"))
        good.open()
        good.close()
        with pytest.raises(SourceLostError, match="refused: Not authorized") as caught:
            stream(locked.url.replace("//", "//gateway:wrong-one@")).open()
    assert "wrong-one" not in str(caught.value)
    assert "***@127.0.0.1" in str(caught.value)


def test_an_address_that_is_no_broker_is_named():
    with pytest.raises(SourceLostError, match="no broker address"):
        stream("http://127.0.0.1:1").open()


@given(st.binary(max_size=200))
def test_no_payload_breaks_the_parser(payload: bytes):
    values = parse_reading(payload, ("t",))
    assert values is None or len(values) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_only_finite_numbers_become_values(value: Any):
    (parsed,) = parse_reading(json.dumps({"t": value}).encode(), ("t",)) or (math.nan,)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assert math.isnan(parsed) or (is_number and parsed == float(value))
