"""Readings of a gateway's sensors: JSON objects from a local MQTT broker, gathered into windows.

A ring of the last `window` readings gives one window every `stride` readings. The broker's client runs in its own thread and hands
readings over in a bounded queue; what is malformed or does not fit is counted and said in `text`.
"""

import json
import math
import threading
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.orders import BROKER_SCHEMES, SensorSource, mask
from agent.sources.base import Array, DecodeError, Grabbed, Need, Readings, SourceLostError
from agent.sources.states import Channel
from protocol.clock import Clock

MAX_READING_BYTES = 64 << 10
#: Readings that wait for the capture thread; more are lost, oldest first, and counted.
MAX_WAITING = 4096
CONNECT_TIMEOUT_S = 10.0
#: Seconds without any reading after which the stream counts as silent, or ten times the longest pause seen, whichever is longer.
SILENCE_S = 60.0
SILENCE_FACTOR = 10.0
#: Seconds for which a malformed message or a gap is worth telling.
TROUBLE_S = 300.0


class GapPolicy(StrEnum):
    """What happens to a reading that lacks a field or holds no finite number there."""

    #: It is left out.
    DROP = "drop"
    #: The field keeps its last value; before the first one the reading is left out.
    HOLD = "hold"
    #: It enters as NaN and the windows that hold it are dropped as `decode_error`.
    REJECT = "reject"
    #: It enters as NaN, and what becomes of its windows says the manifest of the model that takes them.
    PASS = "pass"  # noqa: S105 - no password


class SensorStream:
    """Windows of readings, float32 of shape (window, fields), oldest first."""

    repeats = False
    decoder = refused = ""

    def __init__(self, config: SensorSource, *, clock: Clock, gaps: GapPolicy = GapPolicy.HOLD, silence_s: float = SILENCE_S) -> None:
        self._config = config
        self._clock = clock
        self._gaps = gaps
        self._silence_s = silence_s
        self._name = f"{mask(config.broker)} topic {config.topic}"
        self._client: mqtt.Client | None = None
        self._condition = threading.Condition()
        self._waiting: deque[tuple[float, ...]] = deque(maxlen=MAX_WAITING)
        self._subscribed = False
        self._refusal = ""
        self._received = self._malformed = self._incomplete = self._overrun = 0
        self._trouble_s = -math.inf
        self._channels = [_Sum() for _ in config.fields]
        self._ring: Readings = np.zeros((config.window, len(config.fields)), np.float32)
        self._last: list[float] = [math.nan] * len(config.fields)
        self._count = 0
        self._since_window = 0
        self._heard_s = 0.0
        self._longest_pause_s = 0.0

    @property
    def text(self) -> str:
        """What was malformed, missing or lost; empty when all has been well for TROUBLE_S."""
        with self._condition:
            parts: list[str] = []
            if self._clock.monotonic() - self._trouble_s > TROUBLE_S:
                return ""
            if self._incomplete:
                parts.append(f"{self._incomplete} readings lacked a number in one of {', '.join(self._config.fields)}")
            if self._malformed:
                parts.append(f"{self._malformed} of {self._received} messages on {self._config.topic} were no JSON object of numbers")
            if self._overrun:
                parts.append(f"{self._overrun} readings came faster than they were taken and are lost")
            return "; ".join(parts)

    @property
    def malformed(self) -> int:
        """Messages that were no JSON object, or too long."""
        with self._condition:
            return self._malformed

    def suits(self, need: Need | None) -> bool:  # noqa: ARG002 - readings are no pictures
        """Whatever the models need."""
        return True

    def open(self) -> None:
        """Connect and subscribe. Raises: SourceLostError naming the broker (credentials masked), its answer and what to check."""
        self.close()
        url = urlsplit(self._config.broker)
        if url.scheme not in BROKER_SCHEMES or not url.hostname:
            raise SourceLostError(f"{self._name} is no broker address.", hint="Wanted mqtt://host:1883 or mqtts://host:8883.")
        with self._condition:
            self._subscribed, self._refusal = False, ""
            self._waiting.clear()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311, reconnect_on_failure=False)
        if url.username is not None:
            client.username_pw_set(unquote(url.username), unquote(url.password or ""))
        if url.scheme == "mqtts":
            client.tls_set()
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_disconnect, client.on_message = self._on_disconnect, self._on_message
        client.connect_timeout = CONNECT_TIMEOUT_S
        try:
            client.connect(url.hostname, url.port or (8883 if url.scheme == "mqtts" else 1883), keepalive=30)
        except (OSError, ValueError) as error:
            raise SourceLostError(
                f"{self._name} cannot be reached: {error}.", hint="Check that the broker runs and the address is right."
            ) from None
        self._client = client
        client.loop_start()
        with self._condition:
            self._condition.wait_for(lambda: self._subscribed or self._refusal, CONNECT_TIMEOUT_S)
            refusal = self._refusal or ("" if self._subscribed else f"no answer within {CONNECT_TIMEOUT_S:g} s")
        if refusal:
            self.close()
            raise SourceLostError(f"{self._name} refused: {refusal}.", hint="Check user, password and what that user may read.")
        self._heard_s = self._clock.monotonic()

    def grab(self, stop: threading.Event) -> Grabbed | None:
        """A full window, every `stride` readings. Raises: SourceLostError when the broker hung up or nothing came for long."""
        while not stop.is_set():
            reading = self._next_reading()
            if reading is None:
                return None
            if self._enter(reading) and self._count >= self._config.window and self._since_window >= self._config.stride:
                self._since_window = 0
                return Grabbed(self._heard_s)
        return None

    def retrieve(self, into: Array) -> Array:
        """The window grabbed last. Raises: DecodeError when it holds NaN (policy `reject`)."""
        out = into if into.shape == self._ring.shape and into.dtype == np.float32 else np.empty_like(self._ring)
        split = self._count % self._config.window
        out[: self._config.window - split] = self._ring[split:]
        out[self._config.window - split :] = self._ring[:split]
        if self._gaps is not GapPolicy.PASS and not np.isfinite(out).all():
            raise DecodeError(f"A window of {self._name} has {int(np.isnan(out).sum())} readings without a number.")
        return out

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.on_disconnect = None
            client.disconnect()
            client.loop_stop()

    def take_channels(self) -> Mapping[str, Channel]:
        """Count, mean, lowest, highest and gaps of each field since the last call."""
        with self._condition:
            taken = {name: total.take() for name, total in zip(self._config.fields, self._channels, strict=True)}
        return {name: channel for name, channel in taken.items() if channel.count or channel.gaps}

    def _next_reading(self) -> tuple[float, ...] | None:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._refusal, 1.0)
            now = self._clock.monotonic()
            if self._waiting:
                self._longest_pause_s = max(self._longest_pause_s, now - self._heard_s)
                self._heard_s = now
                return self._waiting.popleft()
            if self._refusal:
                raise SourceLostError(f"{self._name} broke off: {self._refusal}.", hint="It is opened again by itself.")
        silent_s = now - self._heard_s
        if silent_s > max(self._silence_s, SILENCE_FACTOR * self._longest_pause_s):
            raise SourceLostError(f"{self._name} has been silent for {silent_s:.0f} s.", hint="Check that something publishes there.")
        return None

    def _enter(self, reading: tuple[float, ...]) -> bool:
        """Put the reading into the ring; returns False when it was left out."""
        values = list(reading)
        for index, value in enumerate(values):
            if math.isnan(value):
                if self._gaps is GapPolicy.DROP or (self._gaps is GapPolicy.HOLD and math.isnan(self._last[index])):
                    return False
                if self._gaps is GapPolicy.HOLD:
                    values[index] = self._last[index]
        self._last = values
        self._ring[self._count % self._config.window] = values
        self._count += 1
        self._since_window += 1
        return True

    # --- called by the broker client's thread ---

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: mqtt.ConnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._refuse(str(code))
        else:
            client.subscribe(self._config.topic, qos=0)

    def _on_subscribe(self, _client: mqtt.Client, _data: Any, _mid: int, codes: list[ReasonCode], _properties: Properties | None) -> None:
        failed = [str(code) for code in codes if code.is_failure]
        if failed:
            self._refuse(f"subscription to {self._config.topic}: {failed[0]}")
            return
        with self._condition:
            self._subscribed = True
            self._condition.notify_all()

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, _flags: mqtt.DisconnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        self._refuse(str(code))

    def _refuse(self, text: str) -> None:
        with self._condition:
            self._refusal = self._refusal or text
            self._condition.notify_all()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        values = parse_reading(bytes(message.payload), self._config.fields)
        with self._condition:
            self._received += 1
            if values is None:
                self._malformed += 1
                self._trouble_s = self._clock.monotonic()
                return
            for total, value in zip(self._channels, values, strict=True):
                total.add(value)
            is_incomplete, is_full = any(map(math.isnan, values)), len(self._waiting) == MAX_WAITING
            self._incomplete += is_incomplete
            self._overrun += is_full
            if is_incomplete or is_full:
                self._trouble_s = self._clock.monotonic()
            self._waiting.append(values)
            self._condition.notify_all()


def parse_reading(payload: bytes, fields: tuple[str, ...]) -> tuple[float, ...] | None:
    """The fields' numbers, NaN where one is missing or no finite number; None when the payload is no JSON object or too long."""
    if len(payload) > MAX_READING_BYTES:
        return None
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    return tuple(_number(document.get(name)) for name in fields)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if abs(number) <= float(np.finfo(np.float32).max) else math.nan


class _Sum:
    """Running count, sum and range of one field."""

    def __init__(self) -> None:
        self._count, self._gaps, self._total = 0, 0, 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, value: float) -> None:
        if math.isnan(value):
            self._gaps += 1
            return
        self._count += 1
        self._total += value
        self._low, self._high = min(self._low, value), max(self._high, value)

    def take(self) -> Channel:
        mean = self._total / self._count if self._count else 0.0
        taken = Channel(self._count, mean, self._low if self._count else 0.0, self._high if self._count else 0.0, self._gaps)
        self._count, self._gaps, self._total = 0, 0, 0.0
        self._low, self._high = math.inf, -math.inf
        return taken
