"""What people ask, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
from simulators.messages import body, event, incoming, status, tel_sys

from fleet.monitoring import live, service
from fleet.monitoring.ingest import IngestRules, ingest_batch
from fleet.monitoring.live import QUEUE_LENGTH, LiveFeed
from fleet.monitoring.model import Health, LiveMessage
from protocol.errors import InvalidError
from protocol.ids import DEFAULT_TENANT, DeviceId, TenantId
from protocol.messages import Presence

T0, CAM = DEFAULT_TENANT, DeviceId("cam-1")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EARLY = datetime(2026, 1, 1, tzinfo=UTC)
RULES = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices))


def perf(seq: int, pipeline: str, fps: float):
    content = body(seq, pipeline=pipeline, window_s=10, frames=100, fps=fps, lat_ms_p95=None)
    return incoming("mooring/1/t0/d/cam-1/tel/perf", content)


def test_a_chart_holds_one_pipelines_values_and_leaves_out_the_missing(monitored):
    ingest_batch(monitored, [perf(0, "front", 9.5), perf(1, "back", 4.0), perf(2, "front", 10.0)], rules=RULES, now=NOW)
    fps = service.list_points(monitored, T0, CAM, name="perf", field="fps", since=EARLY, pipeline="front")
    assert [point.value for point in fps] == [9.5, 10.0]
    assert service.list_points(monitored, T0, CAM, name="perf", field="lat_ms_p95", since=EARLY) == []
    with pytest.raises(InvalidError, match="perf/fps"):
        service.list_points(monitored, T0, CAM, name="perf", field="boot", since=EARLY)


def test_events_are_listed_by_what_they_are_about(monitored):
    sent = [event("cam-1", 0, subject="front"), event("cam-1", 1, subject="back"), event("cam-1", 2), event("cam-2", 0, subject="front")]
    ingest_batch(monitored, sent, rules=RULES, now=NOW)
    assert [row.body["seq"] for row in service.list_events(monitored, T0, device=CAM, subject="front")] == [0]
    assert len(service.list_events(monitored, T0, subject="front")) == 2
    assert len(service.list_events(monitored, T0, device=CAM)) == 3


def test_a_device_that_never_spoke_has_an_empty_view(monitored):
    assert service.get_view(monitored, T0, CAM).presence is Presence.OFFLINE
    assert service.list_views(monitored, T0, [CAM])[CAM].health is Health.UNKNOWN
    ingest_batch(monitored, [status("cam-1", 0, "online")], rules=RULES, now=NOW)
    assert service.list_views(monitored, T0, [CAM])[CAM].presence is Presence.ONLINE
    assert service.count_views(monitored, T0) == {(Presence.ONLINE, Health.UNKNOWN): 1}
    assert service.get_view(monitored, TenantId("acme"), CAM).presence is Presence.OFFLINE


def test_old_telemetry_goes_and_events_stay(monitored):
    ingest_batch(monitored, [tel_sys("cam-1", 0), event("cam-1", 0)], rules=RULES, now=NOW)
    assert service.prune(monitored, T0, now=NOW + timedelta(days=31), telemetry_days=30) == 1
    assert len(service.list_events(monitored, T0, device=CAM)) == 1


def test_another_process_polls_what_was_stored(monitored):
    ingest_batch(monitored, [event("cam-1", 0), tel_sys("cam-2", 0)], rules=RULES, now=NOW)
    messages, after = live.poll_received(monitored, T0, after=EARLY)
    assert {(one.device, one.topic) for one in messages} == {("cam-1", "event"), ("cam-2", "tel/sys")}
    assert live.poll_received(monitored, T0, after=after) == ([], after)


def test_a_slow_reader_loses_the_oldest_and_knows_how_many():
    feed = LiveFeed()
    with feed.subscribe(T0, CAM) as reader:
        assert feed.has_readers
        feed.publish(LiveMessage(T0, CAM, "event", NOW, {"n": number}) for number in range(QUEUE_LENGTH + 3))
        feed.publish([LiveMessage(T0, DeviceId("cam-2"), "event", NOW), LiveMessage(TenantId("acme"), CAM, "event", NOW)])
        taken = reader.take(timeout_s=0)
        assert (len(taken), taken[0].body["n"], reader.dropped) == (QUEUE_LENGTH, 3, 3)
        assert reader.take(timeout_s=0) == []
    assert not feed.has_readers
