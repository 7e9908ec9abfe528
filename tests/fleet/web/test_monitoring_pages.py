"""The pages of telemetry and rules, without scripts: what they show, how they are empty, and what their forms do."""

import json
import re
from datetime import timedelta

import pytest
from console_site import ConsoleSite, running_site
from simulators.clock import FakeClock

from fleet.monitoring.alerts import history, service
from fleet.monitoring.alerts.model import Counted
from protocol.ids import DEFAULT_TENANT


@pytest.fixture(scope="module")
def clock():
    return FakeClock()


@pytest.fixture(scope="module")
def site(tmp_path_factory, clock):
    with running_site(tmp_path_factory.mktemp("server"), clock=clock) as site:
        site.person("ola", "operator")
        site.person("root", "admin")
        site.enroll("cam-1")
        yield site


@pytest.fixture(scope="module")
def ola(site):
    return site.browser("ola")


@pytest.fixture(scope="module")
def root(site):
    return site.browser("root")


def plots(page: str) -> dict[str, dict]:
    """The charts of a page by the label of their drawing."""
    found = re.findall(r'data-plot="([^"]*)" role="img" aria-label="([^"]*)"', page)
    return {label.partition(",")[0]: json.loads(points.replace("&#34;", '"')) for points, label in found}


def test_pages_say_what_to_do_while_there_is_nothing(site: ConsoleSite, ola, root):
    browser = ola
    assert "mooring device invite" in browser.get("/monitoring").text
    assert "mooring rule create slow" in browser.get("/rules").text
    assert "No telemetry in this time" in browser.get("/devices/cam-1/monitoring").text
    assert browser.get("/devices/nobody/monitoring").status_code == 404


def test_the_fleet_and_a_device_are_drawn_and_all_numbers_stand_in_tables(site: ConsoleSite, clock, ola, root):
    site.online("cam-1")
    for _ in range(3):
        clock.advance(60)
        site.perf("cam-1", p50=4.0)
        values = {"window_s": 10, "cpu_percent": 20.0, "rss_mb": 90.0, "disk_free_mb": 900.0, "outbox_rows": 0, "outbox_mb": 0.0}
        site.say("cam-1", "tel/sys", **values)
    clock.advance(60)
    history.add_received(site.ground.database, DEFAULT_TENANT, now=clock.now())
    history.save_counted(site.ground.database, DEFAULT_TENANT, Counted(1, 1, 0, 0), now=clock.now())
    browser = ola
    for span in ("1h", "24h", "7d"):
        page = browser.get(f"/monitoring?range={span}")
        found = plots(page.text)
        assert found["Devices"]["lines"][0] == {"label": "online", "values": found["Devices"]["lines"][0]["values"]}
        assert [value for value in found["Devices"]["lines"][0]["values"] if value] == [1]
        latency = found["Inference latency"]["lines"]
        assert [value for value in latency[2]["values"] if value] == pytest.approx([12.0])
        assert "<summary>Numbers</summary>" in page.text
        device = plots(browser.get(f"/devices/cam-1/monitoring?range={span}").text)
        assert {"Inference latency", "Frames per second", "CPU of one core", "Memory", "Free disk"} <= device.keys()
        assert "Temperature" not in device, "there is none"
    assert browser.get("/monitoring?range=5y").status_code == 422


def test_the_form_tests_a_rule_on_history_and_stores_nothing(site: ConsoleSite, clock, ola, root):
    clock.advance(600)
    site.perf("cam-1", p50=50.0)
    clock.advance(30)
    asked = {"metric": "latency_p99_ms", "threshold": "100", "for_min": "0", "hours": "1"}
    page = ola.get("/rules/test", params=asked).text
    assert "it would have fired <strong>1 time</strong>" in page
    assert 'value="100"' in page
    assert "Add rule" not in page, "operators may not"
    assert service.list_rules(site.ground.database, DEFAULT_TENANT) == []


@pytest.mark.parametrize(
    "change", [{"threshold": "much"}, {"metric": "weather"}, {"scope": "group"}, {"hours": "9999"}, {"window_min": "0"}]
)
def test_a_form_that_makes_no_sense_says_why_and_keeps_what_was_typed(site: ConsoleSite, change, ola, root):
    asked = {"metric": "latency_p99_ms", "threshold": "123", "hours": "1", **change}
    answer = ola.get("/rules/test", params=asked)
    assert answer.status_code in {404, 422}
    assert 'role="alert"' in answer.text
    assert f'value="{asked["threshold"]}"' in answer.text


def test_an_administrator_adds_a_rule_sees_it_fire_and_deletes_it(site: ConsoleSite, clock, ola, root):
    browser = root
    fields = {"name": "slow", "metric": "latency_p99_ms", "threshold": "100", "for_min": "0", "scope": "device", "subject": "cam-1"}
    assert browser.submit("/rules", **fields).status_code == 303
    assert browser.submit("/rules", **fields).status_code == 409
    clock.advance(600)
    site.perf("cam-1", p50=60.0)
    service.evaluate(site.ground.database, DEFAULT_TENANT, now=clock.now() + timedelta(seconds=1))
    page = ola.get("/rules").text
    assert "fires on 1" in page
    assert "latency p99 above 100 ms, on device cam-1" in page
    assert ola.submit("/rules/slow/delete", revision="1", reason="x").status_code == 403
    assert browser.submit("/rules/slow/delete", revision="4", reason="x").status_code == 412
    assert browser.submit("/rules/slow/delete", revision="1", reason="too loud").status_code == 303
    assert "ended: rule deleted" in browser.get("/rules").text
