"""Windows and their merging: what is sent is what the contract says, and merging loses no count."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from agent.database.outbox import OutboxCounts
from agent.sources.states import Channel
from agent.telemetry import (
    Machine,
    UnitMeter,
    Usage,
    merge_windows,
    perf_drafts,
    read_machine,
    sys_draft,
)
from protocol.messages import TelPerf, TelSensor, TelSys

ENVELOPE = {"v": 1, "ts": 1, "clk": "ok", "boot": "b", "epoch": "e"}


@dataclass(frozen=True)
class Stats:
    pipeline: str = "front"
    line: str = "digits"
    release: str | None = "1.0"
    window_s: float = 10.0
    inferred: int = 100
    dropped: dict = field(default_factory=lambda: {"superseded": 3, "stale": 0})
    errors: int = 1
    fps: float = 10.0
    lat_ms_p50: float | None = 1.0
    lat_ms_p95: float | None = 2.0
    lat_ms_p99: float | None = 3.0
    effective: str = "onnx:cpu"
    source_state: str = "running"
    unsent: int = 2
    channels: dict = field(default_factory=dict)


def test_a_window_is_told_as_the_contract_says():
    drafts = perf_drafts([Stats()])
    body = TelPerf.model_validate({**ENVELOPE, **drafts[0].body})
    assert (drafts[0].stream, drafts[0].levels) == ("tel", ("perf",))
    assert (body.frames, body.dropped, body.errors, body.backend) == (100, {"superseded": 3, "unsent": 2}, 1, "onnx:cpu")


def test_a_sensor_window_has_its_channels_too():
    channels = {
        "co2": Channel(count=4, mean=400.0, low=390.0, high=410.0, gaps=1),
        "dead": Channel(count=0, mean=0.0, low=0.0, high=0.0, gaps=9),
    }
    drafts = perf_drafts([Stats(channels=channels)])
    body = TelSensor.model_validate({**ENVELOPE, **drafts[1].body})
    assert body.channels == {"co2": {"count": 4.0, "mean": 400.0, "min": 390.0, "max": 410.0, "gaps": 1.0}}


def test_an_empty_window_is_not_told():
    assert perf_drafts([Stats(window_s=0.0)]) == []


def test_the_device_window_counts_what_was_given_up():
    counts = OutboxCounts(rows=3, bytes=2**20, by_stream={}, unacknowledged=0, dropped={"sent": 4})
    draft = sys_draft(window_s=10.0, usage=Usage(12.5, 100.0), machine=Machine(48.0, 1000.0), counts=counts, ring_dropped=7)
    body = TelSys.model_validate({**ENVELOPE, **draft.body})
    assert (body.outbox_rows, body.outbox_mb, body.outbox_dropped) == (3, 1.0, {"sent": 4, "ring": 7})


figures = st.builds(
    Stats,
    window_s=st.floats(1, 60),
    inferred=st.integers(0, 10_000),
    dropped=st.dictionaries(st.sampled_from(["stale", "superseded", "no_buffer"]), st.integers(0, 1000)),
    errors=st.integers(0, 100),
    fps=st.floats(0, 100),
    lat_ms_p50=st.floats(0, 10) | st.none(),
    lat_ms_p99=st.floats(10, 100) | st.none(),
)


@given(st.lists(figures, min_size=1, max_size=6))
def test_merging_windows_keeps_every_sum_and_the_worst_latency(stats):
    bodies = [{**ENVELOPE, **draft.body} for draft in perf_drafts(stats)]
    merged = merge_windows(bodies)
    TelPerf.model_validate(merged)
    assert merged["frames"] == sum(body["frames"] for body in bodies)
    assert merged["errors"] == sum(body["errors"] for body in bodies)
    assert sum(merged["dropped"].values()) == sum(sum(body["dropped"].values()) for body in bodies)
    assert abs(merged["window_s"] - sum(body["window_s"] for body in bodies)) < 0.01
    assert merged["lat_ms_p99"] == max((b["lat_ms_p99"] for b in bodies if b["lat_ms_p99"] is not None), default=None)
    assert min(body["fps"] for body in bodies) - 0.01 <= merged["fps"] <= max(body["fps"] for body in bodies) + 0.01


def test_merging_device_windows_keeps_the_extremes():
    def body(**changes: Any):
        return {
            "window_s": 10.0,
            "cpu_percent": 10.0,
            "rss_mb": 50.0,
            "temperature_c": None,
            "disk_free_mb": 100.0,
            "outbox_rows": 1,
            **changes,
        }

    merged = merge_windows([body(cpu_percent=30.0), body(temperature_c=50.0, rss_mb=90.0), body(disk_free_mb=5.0, outbox_rows=9)])
    assert (merged["window_s"], merged["rss_mb"], merged["temperature_c"], merged["disk_free_mb"]) == (30.0, 90.0, 50.0, 5.0)
    assert (merged["outbox_rows"], round(merged["cpu_percent"], 1)) == (9, 16.7)


def test_merging_sensor_windows_weighs_means_by_their_counts():
    def body(count, mean, low, high):
        return {"window_s": 10.0, "channels": {"t": {"count": count, "mean": mean, "min": low, "max": high, "gaps": 1.0}}}

    merged = merge_windows([body(1.0, 10.0, 9.0, 11.0), body(3.0, 20.0, 8.0, 30.0), {"window_s": 10.0, "channels": {}}])
    assert merged["channels"]["t"] == {"count": 4.0, "mean": 17.5, "min": 8.0, "max": 30.0, "gaps": 2.0}


def test_windows_of_two_kinds_or_of_none_are_not_merged():
    assert merge_windows([{"window_s": 1.0, "frames": 1}, {"window_s": 1.0, "cpu_percent": 1.0}]) is None
    assert merge_windows([{"window_s": 1.0, "other": 1}]) is None


# --- the machine ---


def test_the_meter_sees_the_work_of_children_and_of_their_children():
    meter = UnitMeter()
    code = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = bytearray(60 << 20)\\nwhile True: pass'])"
    before = meter.measure(1.0).rss_mb
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        try:
            usage = wait_until(lambda: (found := meter.measure(1.0)).rss_mb > before + 60 and found, what="the memory of the grandchild")
            assert usage.rss_mb > before + 60
            wait_until(lambda: meter.measure(1.0).cpu_percent > 0, what="the time of the grandchild")
        finally:
            for task in Path(f"/proc/{child.pid}/task").iterdir():
                for grandchild in (task / "children").read_text().split():
                    os.kill(int(grandchild), 9)
            child.kill()
    assert meter.measure(1.0).cpu_percent >= 0


def test_the_hottest_sane_sensor_is_the_temperature(tmp_path):
    for name, text in (("thermal_zone0", "48500\n"), ("thermal_zone1", "51000\n"), ("thermal_zone2", "-274000"), ("thermal_zone3", "no")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "temp").write_text(text)
    machine = read_machine(tmp_path, thermal=tmp_path)
    assert machine.temperature_c == 51.0
    assert machine.disk_free_mb > 0
    assert read_machine(tmp_path, thermal=tmp_path / "none").temperature_c is None
