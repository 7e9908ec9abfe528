"""Campaigns on real tables: who is assigned what, which reports count, and what stays when things go wrong."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from registries import ANNA, T0
from simulators.clock import FakeClock

from fleet import audit, loop
from fleet.campaigns import service as campaigns
from fleet.campaigns import store as campaign_store
from fleet.campaigns.model import Assigned, CampaignState, Phase, meaning_of
from fleet.devices import store as device_store
from fleet.devices import twins
from fleet.registry import store as release_store
from fleet.registry.model import ReleaseState
from fleet.web import console_views
from fleet.web.auth import Caller
from protocol.canonical import digest_of
from protocol.errors import ConflictError, ForbiddenError, NotFoundError, StaleRevisionError
from protocol.ids import DeviceId, GroupName, LineName, ReleaseVersion, TenantId
from protocol.reasons import REASONS, blocked_by

LINE = LineName("digits")


def actions(fleet):
    with fleet.registry.database.reading() as tx:
        return [entry.action for entry in audit.list_entries(tx, T0, limit=100)]


def test_a_campaign_assigns_counts_signed_reports_and_ends(make_fleet):
    fleet = make_fleet("cam-1", "cam-2")
    release = fleet.release("1.0")
    made = fleet.campaign()
    assert fleet.states(made) == {"cam-1": "assigned", "cam-2": "assigned"}
    answer = fleet.report("cam-1", release)
    assert answer.report_counter == 1
    assert answer.nonce
    assert fleet.states(made) == {"cam-1": "updated", "cam-2": "assigned"}
    fleet.tick()
    assert fleet.state(made) == "running"
    fleet.report("cam-2", release)
    fleet.tick()
    assert fleet.state(made) == "succeeded"
    assert {"campaign.created", "campaign.assigned", "update.updated", "campaign.succeeded"} <= set(actions(fleet))
    assert fleet.tick() == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"slot": {"active": False}},
        {"slot": {"committed": False}},
        {"slot": {"sha256": digest_of(b"other")}},
        {"slot": {"release": "0.9"}},
        {"slot": {"line": "other"}},
        {"healthy": 99},
    ],
)
def test_a_device_counts_only_with_the_assigned_digest_active_committed_and_healthy(make_fleet, lie):
    fleet = make_fleet("cam-1")
    release = fleet.release("1.0")
    made = fleet.campaign()
    fleet.report("cam-1", release, **lie)
    fleet.tick()
    assert fleet.states(made) == {"cam-1": "assigned"}
    assert fleet.state(made) == "running"


def test_a_report_signed_by_another_key_is_refused_and_in_the_audit_log(make_fleet):
    fleet = make_fleet("cam-1", "cam-2")
    release = fleet.release("1.0")
    made = fleet.campaign()
    for key in (ec.generate_private_key(ec.SECP256R1()), fleet.keys["cam-2"]):
        with pytest.raises(ForbiddenError) as caught:
            fleet.report("cam-1", release, key=key)
        assert caught.value.code == "report-refused"
    assert fleet.states(made) == {"cam-1": "assigned", "cam-2": "assigned"}
    assert actions(fleet)[0] == "report.refused"


def test_a_report_for_another_device_or_tenant_is_refused(make_fleet):
    fleet = make_fleet("cam-1")
    release = fleet.release("1.0")
    fleet.campaign()
    for lie in ({"device": "cam-2"}, {"tenant": "t1"}):
        with pytest.raises(ForbiddenError):
            fleet.report("cam-1", release, **lie)


def test_a_replayed_report_is_refused_by_its_counter(make_fleet):
    fleet = make_fleet("cam-1")
    release = fleet.release("1.0")
    fleet.campaign()
    fleet.report("cam-1", release, report_counter=7)
    for counter in (7, 6):
        with pytest.raises(ConflictError) as caught:
            fleet.report("cam-1", release, report_counter=counter)
        assert caught.value.code == "report-counter"
    assert fleet.report("cam-1", release, report_counter=8).report_counter == 8


def test_a_failed_self_test_fails_the_campaign_and_devices_get_back_what_they_had(make_fleet):
    fleet = make_fleet("cam-1", "cam-2")
    good, bad = fleet.release("1.0"), fleet.release("1.1")
    fleet.campaign()
    for device in ("cam-1", "cam-2"):
        fleet.report(device, good)
    fleet.tick()
    made = fleet.campaign("1.1")
    assert fleet.assigned("cam-2").version == "1.1"
    fleet.report("cam-1", good, update_state="rolled_back", reason="golden_mismatch", text="output 3 differs")
    update = campaigns.list_updates(fleet.registry.database, T0, made.campaign)[0]
    assert (update.state, update.reason, update.text) == ("failed", "golden_mismatch", "output 3 differs")
    fleet.tick()
    assert fleet.state(made) == "failed"
    assert fleet.states(made) == {"cam-1": "failed", "cam-2": "withdrawn"}
    assert [fleet.assigned(device).version for device in ("cam-1", "cam-2")] == ["1.0", "1.0"]
    assert bad.counter > good.counter


def test_a_release_refused_in_a_failed_campaign_is_tried_again_only_when_a_later_campaign_says_so(make_fleet):
    fleet = make_fleet("cam-1")
    good, bad = fleet.release("1.0"), fleet.release("1.1")
    fleet.campaign()
    fleet.report("cam-1", good)
    fleet.tick()
    fleet.campaign("1.1")
    fleet.report("cam-1", bad, update_state="failed", reason="probe_timeout", slot={"active": False})
    fleet.tick()
    assert fleet.assigned("cam-1").version == "1.0"
    with pytest.raises(ConflictError, match=r"runs digits 1\.0") as caught:
        loop.offer_again(fleet.registry, tenant=T0, device=DeviceId("cam-1"), line=LINE, by=ANNA, reason="lens cleaned")
    assert "--again" in caught.value.hint
    made = fleet.campaign("1.1")
    assert fleet.assigned("cam-1").attempt == 1
    campaigns.abort(
        fleet.registry.database,
        tenant=T0,
        campaign=made.campaign,
        by=ANNA,
        now=fleet.now,
        reason="forgot --again",
        on_changed=loop.direct(fleet.registry),
    )
    fleet.campaign("1.1", again=True)
    assert (fleet.assigned("cam-1").version, fleet.assigned("cam-1").attempt) == ("1.1", 2)
    again = loop.offer_again(fleet.registry, tenant=T0, device=DeviceId("cam-1"), line=LINE, by=ANNA, reason="once more")
    assert again.attempt == 3


def test_failures_are_grouped_by_cause_the_most_frequent_first(make_fleet):
    names = [f"cam-{number}" for number in range(1, 6)]
    fleet = make_fleet(*names)
    release = fleet.release("1.0")
    made = fleet.campaign(phases=(Phase(failure_threshold=1.0),))
    fleet.tick()
    for name, reason in zip(names, ("golden_mismatch", "disk_full", "golden_mismatch", "golden_mismatch"), strict=False):
        fleet.report(name, release, update_state="failed", reason=reason, text=f"seen by {name}", slot={"active": False})
    found = campaigns.list_failures(fleet.registry.database, T0, made.campaign)
    assert [(one.reason, one.count, one.example.device, one.example.text) for one in found] == [
        ("golden_mismatch", 3, "cam-1", "seen by cam-1"),
        ("disk_full", 1, "cam-2", "seen by cam-2"),
    ]


def test_devices_that_took_a_release_back_before_are_told_with_why_and_what_to_do(make_fleet):
    names = [f"cam-{number}" for number in range(1, 6)]
    fleet = make_fleet(*names)
    release = fleet.release("1.0")
    made = fleet.campaign(phases=(Phase(failure_threshold=1.0),))
    for name, reason in zip(names, ("golden_mismatch", "latency_worse", "golden_mismatch", "from_a_newer_agent"), strict=False):
        text = f"{blocked_by(reason)} seen by {name}"
        fleet.report(name, release, update_state="failed", reason="blocked", text=text, slot={"active": False})
    (blocked,) = campaigns.list_failures(fleet.registry.database, T0, made.campaign)
    assert (blocked.reason, blocked.count, blocked.example.text) == ("blocked", 4, "blocked: golden_mismatch: seen by cam-1")
    assert [(one.reason, one.count) for one in blocked.causes] == [("golden_mismatch", 2), ("", 1), ("latency_worse", 1)]
    progress = campaigns.get_progress(fleet.registry.database, T0, made.campaign)
    told = meaning_of(progress.campaign, blocked)
    assert f"2 for golden_mismatch: {REASONS['golden_mismatch'].meaning}" in told
    again = "mooring campaign create --line digits --release 1.0 --group cameras --again"
    assert told.endswith(f"When that is mended: mooring campaign abort {made.campaign}, then {again}")
    page = console_views.campaign(fleet.registry.database, Caller(T0, "anna", frozenset()), made.campaign)
    assert [(one.code, one.meaning) for one in page.failures] == [("blocked", told)]
    over = progress.campaign.moved(CampaignState.FAILED, now=fleet.now, reason="")
    assert meaning_of(over, blocked).endswith(f"When that is mended: {again}")


def test_a_failure_report_about_an_earlier_assignment_or_attempt_does_not_count(make_fleet):
    fleet = make_fleet("cam-1")
    release = fleet.release("1.0")
    made = fleet.campaign()
    fleet.report("cam-1", release, update_state="failed", assignment="as-old", slot={"active": False})
    fleet.report("cam-1", release, update_state="failed", attempt=0, slot={"active": False})
    assert fleet.states(made) == {"cam-1": "assigned"}


def test_a_device_that_does_not_trust_what_it_was_told_says_so_in_the_campaign_also_when_its_time_is_over(make_fleet, clock: FakeClock):
    fleet = make_fleet("cam-1", "cam-2")
    release = fleet.release("1.0")
    made = fleet.campaign(timeout_s=3600)
    fleet.report("cam-1", release, update_state="idle", assignment="", slots=[], attack_indicator="bad-signature")
    updates = {update.device: update for update in campaigns.list_updates(fleet.registry.database, T0, made.campaign)}
    assert (str(updates["cam-1"].state), updates["cam-1"].reason) == ("assigned", "bad-signature")
    assert updates["cam-2"].reason == ""
    clock.advance(3601)
    fleet.tick()
    updates = {update.device: update for update in campaigns.list_updates(fleet.registry.database, T0, made.campaign)}
    assert {update.reason for update in updates.values()} == {"timed_out"}
    assert "bad-signature" in updates["cam-1"].text
    assert "said" not in updates["cam-2"].text


def test_without_a_verdict_in_time_a_device_counts_as_timed_out_and_a_late_report_still_counts(make_fleet, clock: FakeClock):
    fleet = make_fleet(*(f"cam-{n}" for n in range(12)))
    release = fleet.release("1.0")
    made = fleet.campaign(timeout_s=3600)
    for number in range(11):
        fleet.report(f"cam-{number}", release)
    clock.advance(3601)
    fleet.tick()
    assert fleet.states(made)["cam-11"] == "timed-out"
    assert fleet.state(made) == "succeeded"
    fleet.report("cam-11", release)
    assert fleet.states(made)["cam-11"] == "updated"


def test_a_planned_rollback_is_a_campaign_to_an_earlier_release(make_fleet):
    fleet = make_fleet("cam-1")
    first, second = fleet.release("1.0"), fleet.release("1.1")
    for release in (first, second, first):
        made = fleet.campaign(release.version)
        assert fleet.assigned("cam-1").version == release.version
        fleet.report("cam-1", release)
        fleet.tick()
        assert fleet.state(made) == "succeeded"


def test_a_release_below_the_raised_floor_is_not_brought_to_devices_that_would_refuse_it(make_fleet):
    fleet = make_fleet("cam-1")
    fleet.release("1.0")
    fleet.release("1.1")
    first = fleet.campaign("1.0")
    with fleet.registry.database.transaction() as tx:
        release_store.raise_floor(tx, T0, LINE, 2)
    with pytest.raises(ConflictError, match=r"digits/1\.0 has counter 1; the floor of line digits was raised to 2") as caught:
        loop.offer_again(fleet.registry, tenant=T0, device=DeviceId("cam-1"), line=LINE, by=ANNA, reason="x")
    assert (caught.value.code, "counter 2 or higher" in str(caught.value.hint)) == ("below-floor", True)
    assert fleet.assigned("cam-1").attempt == 1
    loop.abort_campaign(fleet.registry, tenant=T0, campaign=first.campaign, by=ANNA, reason="floor raised")
    with pytest.raises(ConflictError) as caught:
        fleet.campaign("1.0")
    assert caught.value.code == "below-floor"
    fleet.campaign("1.1")
    assert fleet.assigned("cam-1").version == "1.1"


def test_a_floor_that_is_raised_pauses_what_runs_below_it_and_resuming_is_refused_until_it_ends(make_fleet):
    fleet = make_fleet("cam-1", "cam-2")
    fleet.release("1.0")
    fleet.release("1.1")
    made = fleet.campaign("1.0", phases=(Phase(until_percent=50), Phase()))
    with fleet.registry.database.transaction() as tx:
        release_store.raise_floor(tx, T0, LINE, 2)
    fleet.tick()
    found = campaigns.get_progress(fleet.registry.database, T0, made.campaign).campaign
    assert (found.state, found.reason) == (
        "paused",
        "The release has counter 1; the floor of line digits was raised to 2: devices refuse it.",
    )
    assert actions(fleet)[0] == "campaign.paused"
    with pytest.raises(ConflictError, match="every device would refuse it") as caught:
        campaigns.resume(fleet.registry.database, tenant=T0, campaign=made.campaign, by=ANNA, now=fleet.registry.clock.now())
    assert caught.value.code == "below-floor"
    fleet.tick()
    assert fleet.state(made) == "paused"
    loop.abort_campaign(fleet.registry, tenant=T0, campaign=made.campaign, by=ANNA, reason="floor raised")
    fleet.campaign("1.1")
    assert fleet.assigned("cam-1").version == "1.1"


def test_offering_again_raises_the_attempt(make_fleet):
    fleet = make_fleet("cam-1", *(f"ok-{n}" for n in range(10)))
    release = fleet.release("1.0")
    made = fleet.campaign()
    fleet.report("cam-1", release, update_state="failed", reason="golden_mismatch", slot={"active": False})
    assert fleet.states(made)["cam-1"] == "failed"
    with pytest.raises(ConflictError):
        loop.offer_again(fleet.registry, tenant=T0, device="none", line=LINE, by=ANNA, reason="x")
    again = loop.offer_again(fleet.registry, tenant=T0, device="cam-1", line=LINE, by=ANNA, reason="mended")
    assert again.attempt == 2
    assert fleet.states(made)["cam-1"] == "assigned"
    fleet.report("cam-1", release)
    assert fleet.states(made)["cam-1"] == "updated"
    assert actions(fleet)[1] == "update.offered-again"


def test_later_phases_are_not_touched_before_the_first_one_is_done(make_fleet, clock: FakeClock):
    fleet = make_fleet(*(f"cam-{n}" for n in range(10)))
    release = fleet.release("1.0")
    made = fleet.campaign(phases=(Phase(until_percent=20, soak_s=60), Phase()))
    opened = [device for device, state in fleet.states(made).items() if state == "assigned"]
    assert len(opened) == 2
    for device in opened:
        fleet.report(device, release)
    fleet.tick()
    assert sum(state == "waiting" for state in fleet.states(made).values()) == 8
    clock.advance(60)
    fleet.tick()
    assert sum(state == "assigned" for state in fleet.states(made).values()) == 8


def test_why_a_campaign_began_is_in_the_audit_log(make_fleet):
    fleet = make_fleet("cam-1")
    fleet.release("1.0")
    fleet.campaign(reason="dirty lenses in the yard")
    with fleet.registry.database.reading() as tx:
        entries = audit.list_entries(tx, T0, limit=100)
    assert [entry.reason for entry in entries if entry.action == "campaign.created"] == ["dirty lenses in the yard"]


def test_paused_means_that_nothing_further_is_assigned(make_fleet):
    fleet = make_fleet("cam-1")
    fleet.release("1.0")
    made = loop.create_campaign(fleet.registry, tenant=T0, by=ANNA, line=LINE, version=ReleaseVersion("1.0"), group=GroupName("cameras"))
    database, now = fleet.registry.database, fleet.now
    with pytest.raises(StaleRevisionError):
        campaigns.pause(database, tenant=T0, campaign=made.campaign, by=ANNA, now=now, revision=9)
    paused = campaigns.pause(database, tenant=T0, campaign=made.campaign, by=ANNA, now=now, revision=1)
    fleet.tick()
    assert fleet.states(made) == {"cam-1": "waiting"}
    with pytest.raises(ConflictError):
        campaigns.pause(database, tenant=T0, campaign=made.campaign, by=ANNA, now=now)
    campaigns.resume(database, tenant=T0, campaign=made.campaign, by=ANNA, now=now, revision=paused.revision)
    fleet.tick()
    assert fleet.states(made) == {"cam-1": "assigned"}


def test_aborting_takes_back_what_has_no_verdict_and_says_so(make_fleet):
    fleet = make_fleet("cam-1", "cam-2")
    release = fleet.release("1.0")
    made = fleet.campaign()
    fleet.report("cam-1", release)
    loop.abort_campaign(fleet.registry, tenant=T0, campaign=made.campaign, by=ANNA, reason="wrong model")
    assert fleet.states(made) == {"cam-1": "updated", "cam-2": "withdrawn"}
    assert fleet.assigned("cam-1").version == "1.0"
    assert fleet.assigned("cam-2") is None
    assert actions(fleet)[0] == "campaign.aborted"
    with pytest.raises(ConflictError):
        loop.abort_campaign(fleet.registry, tenant=T0, campaign=made.campaign, by=ANNA, reason="again")


def test_a_campaign_that_cannot_be_is_refused(make_fleet):
    fleet = make_fleet("cam-1")
    fleet.release("1.0")
    fleet.release("2.0", state=ReleaseState.APPROVED)
    fleet.release("3.0", device_types=("gateway",))
    with pytest.raises(ConflictError, match="approved"):
        fleet.campaign("2.0")
    with pytest.raises(ConflictError, match="the group has linux-x86-64, the release is for gateway"):
        fleet.campaign("3.0")
    with pytest.raises(NotFoundError):
        fleet.campaign("9.9")
    fleet.campaign()
    with pytest.raises(ConflictError, match="under way"):
        fleet.campaign()


def test_another_tenants_campaign_is_not_there(make_fleet):
    fleet = make_fleet("cam-1")
    fleet.release("1.0")
    made = fleet.campaign()
    with pytest.raises(NotFoundError):
        campaigns.get_progress(fleet.registry.database, TenantId("t1"), made.campaign)
    assert campaigns.list_progress(fleet.registry.database, TenantId("t1")) == []


def test_a_device_is_woken_with_the_digest_of_its_new_targets(make_fleet):
    fleet = make_fleet("cam-1")
    fleet.release("1.0")
    fleet.campaign()
    with fleet.registry.database.reading() as tx:
        twin = device_store.get_twin(tx, T0, "cam-1")
    assert twin.manifest_url == loop.TARGETS_URL
    assert twin.manifest_sha256.startswith("sha256:")


class PowerCutError(Exception):
    """The process dies here."""


def test_a_tick_that_is_cut_anywhere_assigns_nobody_twice_and_nobody_beyond_the_phase(make_fleet):
    fleet = make_fleet(*(f"cam-{n}" for n in range(6)))
    fleet.release("1.0")
    made = loop.create_campaign(
        fleet.registry,
        tenant=T0,
        by=ANNA,
        line=LINE,
        version=ReleaseVersion("1.0"),
        group=GroupName("cameras"),
        phases=(Phase(until_percent=50), Phase()),
    )
    real = loop.direct(fleet.registry)

    def before(tx, tenant, devices):
        raise PowerCutError

    def after(tx, tenant, devices):
        real(tx, tenant, devices)
        raise PowerCutError

    for cut in (before, after):
        with pytest.raises(PowerCutError):
            campaigns.tick(fleet.registry.database, now=fleet.now, on_changed=cut)
        assert set(fleet.states(made).values()) == {"waiting"}
        assert [fleet.assigned(f"cam-{n}") for n in range(6)] == [None] * 6
    fleet.tick()
    first = {n: fleet.assigned(f"cam-{n}") for n in range(6)}
    assert sum(item is not None for item in first.values()) == 3
    fleet.tick()
    assert {n: fleet.assigned(f"cam-{n}") for n in range(6)} == first
    assert actions(fleet).count("campaign.assigned") == 1


def test_healthy_inferences_of_one_line_prove_nothing_about_another(make_fleet):
    fleet = make_fleet("cam-1")
    release = fleet.release("1.0")
    made = fleet.campaign()
    with fleet.registry.database.transaction() as tx:
        other = Assigned("cam-1", LineName("other"), ReleaseVersion("1.0"), "as-other", 1, "ca-other", fleet.now)
        campaign_store.save_assigned(tx, T0, [other])
    fleet.report("cam-1", release, assignment="as-other")
    assert fleet.states(made) == {"cam-1": "assigned"}
    fleet.report("cam-1", release)
    assert fleet.states(made) == {"cam-1": "updated"}


def test_consent_is_said_for_one_assignment_told_to_the_device_and_audited(make_fleet):
    fleet = make_fleet("cam-1")
    fleet.release("1.0")
    with pytest.raises(ConflictError, match="Nothing is assigned"):
        loop.consent(fleet.registry, tenant=T0, device=DeviceId("cam-1"), line=LINE, is_given=True, by=ANNA, reason="shop is closed")
    fleet.campaign()
    before = twins.get_desired(fleet.registry.database, T0, DeviceId("cam-1"))
    made = loop.consent(fleet.registry, tenant=T0, device=DeviceId("cam-1"), line=LINE, is_given=True, by=ANNA, reason="shop is closed")
    desired = twins.get_desired(fleet.registry.database, T0, DeviceId("cam-1"))
    assert desired.rev == before.rev + 1
    assert [(one.line, one.assignment, one.given) for one in desired.consents] == [(LINE, made.assignment, True)]
    with fleet.registry.database.reading() as tx:
        entry = audit.list_entries(tx, T0)[0]
    assert (entry.action, entry.reason, entry.detail["assignment"]) == ("update.consent-given", "shop is closed", made.assignment)


def test_devices_hinted_together_are_told_to_spread_their_questions(make_fleet):
    fleet = make_fleet(*(f"cam-{number:02}" for number in range(60)))
    fleet.release("1.0")
    fleet.campaign()
    desired = twins.get_desired(fleet.registry.database, T0, DeviceId("cam-00"))
    assert desired.manifest is not None
    assert desired.manifest.spread_s == 3
