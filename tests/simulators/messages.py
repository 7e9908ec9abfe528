"""Messages as a device would send them, for tests of the server."""

import json
from typing import Any

from fleet.bus import Incoming

#: 2026-03-01T00:00:00Z
TS = 1_772_323_200_000


def body(seq: int | None, *, floor: int | None = 0, epoch: str = "e1", ts: int = TS, **values: Any) -> dict[str, Any]:
    """An envelope with these values."""
    numbers = {} if seq is None else {"seq": seq, "floor": floor}
    return {"v": 1, "ts": ts, "clk": "ok", "boot": "b", "epoch": epoch, **numbers, **values}


def incoming(topic: str, content: dict[str, Any] | bytes, *, mid: int = 1, retain: bool = False) -> Incoming:
    """As the bus would hand it over."""
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Incoming(topic, payload, 1, retain, mid, 1)


def event(device: str, seq: int, *, tenant: str = "t0", kind: str = "mooring.test.v1", **envelope: Any) -> Incoming:
    """One row of class `stored`."""
    content = body(seq, **envelope)
    content |= {"specversion": "1.0", "id": f"{content['epoch']}-{seq}", "source": f"/mooring/{tenant}/{device}", "type": kind}
    return incoming(f"mooring/1/{tenant}/d/{device}/event", content)


def tel_sys(device: str, seq: int, *, tenant: str = "t0", **envelope: Any) -> Incoming:
    """One row of class `sent`."""
    values = {"window_s": 10, "cpu_percent": 1.5, "rss_mb": 50, "disk_free_mb": 1000, "outbox_rows": 1, "outbox_mb": 0.1}
    return incoming(f"mooring/1/{tenant}/d/{device}/tel/sys", body(seq, **values, **envelope))


def status(device: str, seq: int, presence: str, *, tenant: str = "t0", **envelope: Any) -> Incoming:
    """One state message."""
    return incoming(f"mooring/1/{tenant}/d/{device}/status", body(seq, presence=presence, **envelope))


def reported(device: str, seq: int, conditions: list[dict[str, Any]], **envelope: Any) -> Incoming:
    """The twin's half of the device, with conditions."""
    return incoming(f"mooring/1/t0/d/{device}/reported", body(seq, desired_rev=1, conditions=conditions, **envelope))


def inference(device: str, pipeline: str, frame: int) -> Incoming:
    """One prediction, class `ring`."""
    values = {"pipeline": pipeline, "line": "digits", "release": "1.0", "session": 1, "frame": frame, "lat_ms": 1.0}
    top = [{"label": "7", "index": 7, "score": 0.9}]
    return incoming(f"mooring/1/t0/d/{device}/inf/{pipeline}", body(None, top=top, **values))
