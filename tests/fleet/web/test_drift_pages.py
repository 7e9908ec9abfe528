"""The pages of drift without scripts, over a device whose pictures became darker: an alarm from its first sight to its end."""

from dataclasses import replace

import pytest
from console_site import ConsoleSite, running_site
from simulators.clock import FakeClock
from simulators.darker_camera import add_drift

from fleet.jobs import list_jobs
from fleet.monitoring import drift_references, drift_service, drift_store, reference_store
from fleet.monitoring.alerts.announcing import DELIVER
from fleet.monitoring.alerts.model import Recipient, RecipientKind
from fleet.monitoring.alerts.service import create_recipient
from fleet.monitoring.drift_alarms import DETECTOR
from fleet.monitoring.drift_model import ReferenceSource
from protocol.ids import DEFAULT_TENANT, DeviceId


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("server"), clock=FakeClock()) as site:
        site.person("ola", "operator")
        site.person("vera", "viewer")
        site.enroll("cam-1")
        yield site


@pytest.fixture(scope="module")
def ola(site):
    return site.browser("ola")


@pytest.fixture(scope="module")
def vera(site):
    return site.browser("vera")


@pytest.fixture(scope="module")
def alarm(site, ola):
    for path, text in (("/alarms", "No open alarms"), ("/drift", "mooring drift reference import")):
        assert text in ola.get(path).text
    recipient = Recipient(DEFAULT_TENANT, "pager", RecipientKind.WEBHOOK, "https://example.org/hook")
    create_recipient(site.ground.database, recipient=recipient, by=DETECTOR, now=site.services.clock.now())
    site.online("cam-1")
    return add_drift(site.ground.database, site.ingest, "cam-1", now=site.services.clock.now())


def deliveries(site: ConsoleSite) -> list[str]:
    with site.ground.database.reading() as tx:
        return sorted(job.payload["alert"]["type"] for job in list_jobs(tx, DEFAULT_TENANT, kind=DELIVER))


def test_the_alarm_is_listed_counted_and_told(site, ola, alarm):
    page = ola.get("/alarms").text
    assert f"/alarms/{alarm.alarm}" in page
    assert "Picture darker since" in page
    assert '<span class="count">1<span class="visually-hidden"> waiting</span></span>' in page
    assert 'aria-live="polite"' in page
    assert "1 open alarm. The newest: cam-1 / front." in page
    assert deliveries(site) == ["mooring.alarm.raised.v1"]
    assert "Open alarms" in ola.get("/").text
    assert "Drift and accuracy" not in ola.get("/devices/cam-1/monitoring").text, "no telemetry, no pipeline"
    site.perf("cam-1")
    assert 'href="/drift/cam-1/front">Drift and accuracy' in ola.get("/devices/cam-1/monitoring").text


def test_the_map_shows_the_feature_that_moved_warm_and_the_others_not(ola, alarm):
    page = ola.get("/drift").text
    assert page.count('<td class="cell heat-4"') == 1
    assert "image.brightness" in page
    assert f"/alarms/{alarm.alarm}" in page


def test_a_reference_from_a_recording_that_nobody_signed_is_shown_as_such_on_every_page_and_a_signed_one_is_not(site, ola, alarm):
    pages, said = ("/drift", "/drift/cam-1/front", f"/alarms/{alarm.alarm}"), ", from an unsigned recording"
    assert [said in ola.get(path).text for path in pages] == [True] * 3
    database = site.ground.database
    (used,) = drift_references.list_references(database, DEFAULT_TENANT, DeviceId("cam-1"), "front")
    for source, is_said in ((ReferenceSource.SIGNED_RECORDING, False), (ReferenceSource.RECORDING, True)):
        with database.transaction() as tx:
            (series,) = drift_store.list_series(tx, DEFAULT_TENANT)
            reference_store.set_source(tx, DEFAULT_TENANT, series.series_key, replace(used, source=source))
        assert [said in ola.get(path).text for path in pages] == [is_said] * 3


def test_a_pipeline_shows_distributions_scores_and_what_may_be_believed(ola, alarm):
    page = ola.get("/drift/cam-1/front").text
    assert '<rect class="before"' in page
    assert "Numbers of image.brightness" in page
    assert 'data-plot="' in page
    assert "not trusted" in page or "matched" in page
    one = ola.get("/drift/cam-1/front?range=7d&feature=output.confidence").text
    assert one.count('<svg class="dist"') == 1
    assert ola.get("/drift/cam-1/front?feature=nothing").status_code == 404
    assert ola.get("/drift/cam-1/other").status_code == 404
    assert ola.get("/drift/nobody/front").status_code == 404


def test_the_page_of_an_alarm_says_what_it_means_and_what_if(ola, alarm):
    page = ola.get(f"/alarms/{alarm.alarm}").text
    for wanted in ("What it means", "How sure is it", "What it costs to be wrong", "darker", "What if other false alarms were allowed?"):
        assert wanted in page
    assert "&#34;kind&#34;: &#34;onset&#34;" in page
    asked = ola.get(f"/alarms/{alarm.alarm}?rate=0.2").text
    assert "With 0.2 false alarms per year this shift would have been seen after <strong>10 min</strong>" in asked
    part = ola.get(f"/alarms/{alarm.alarm}/what-if?step=20").text
    assert part.startswith("<p")
    assert "With 10 false alarms per year" in part
    assert ola.get(f"/alarms/{alarm.alarm}?rate=0").status_code == 422
    assert ola.get("/alarms/al-nothing").status_code == 404


def test_viewers_look_and_do_not_answer(site, vera, alarm):
    assert "Take it" not in vera.get(f"/alarms/{alarm.alarm}").text
    assert vera.submit(f"/alarms/{alarm.alarm}/acknowledge", revision=str(alarm.revision)).status_code == 403


def test_an_alarm_is_taken_muted_and_cleared_with_a_reason_by_who_saw_its_newest_state(site, ola, alarm):
    here = f"/alarms/{alarm.alarm}"

    def now():
        return drift_service.get_alarm(site.ground.database, DEFAULT_TENANT, alarm.alarm)

    stale = ola.submit(f"{here}/acknowledge", revision=str(now().revision + 5), note="mine")
    assert stale.status_code == 412
    assert 'role="alert"' in stale.text
    assert ola.submit(f"{here}/acknowledge", revision=str(now().revision), note="on my way").status_code == 303
    assert now().acknowledged_by == "person:ola"
    assert ola.submit(f"{here}/acknowledge", revision=str(now().revision)).status_code == 409
    assert ola.submit(f"{here}/mute", revision=str(now().revision), hours="24", reason="known").status_code == 303
    assert "muted until" in ola.get(here).text
    assert ola.submit(f"{here}/mute", revision=str(now().revision), hours="0", reason="again").status_code == 303
    assert ola.submit(f"{here}/clear", revision=str(now().revision), outcome="condition", reason="").status_code == 422
    assert ola.submit(f"{here}/clear", revision=str(now().revision), outcome="recovered", reason="x").status_code == 422
    assert ola.submit(f"{here}/clear", revision=str(now().revision), outcome="condition", reason="dirty lens").status_code == 303
    page = ola.get(here).text
    assert "It is cleared" in page
    assert "No open alarms" in ola.get("/alarms").text
    assert alarm.alarm in ola.get("/alarms?show=cleared").text
    assert deliveries(site) == ["mooring.alarm.cleared.v1", "mooring.alarm.raised.v1"]
    with site.ground.database.reading() as tx:
        assert len({job.payload["alert"]["subject"] for job in list_jobs(tx, DEFAULT_TENANT, kind=DELIVER)}) == 1
