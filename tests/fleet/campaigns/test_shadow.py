"""Campaigns that compare: what devices are told, when they end, which reports count, and what is read out of the figures."""

from datetime import UTC, datetime, timedelta

import pytest
from publishing import LINE, create, publish
from registries import ANNA, T0
from simulators.messages import incoming

from fleet import loop
from fleet.campaigns import store as campaign_store
from fleet.campaigns.model import Assigned, ComparisonPlan, RunAs, UpdateState, check_comparison, judge_candidate
from fleet.campaigns.shadow import prune, shadow_summary, take_event
from fleet.monitoring.ingest import IngestRules, ingest_batch
from protocol.canonical import digest_of
from protocol.clock import to_unix_ms
from protocol.errors import ConflictError, InvalidError
from protocol.ids import DeviceId, ReleaseVersion
from protocol.messages import Event, VersionReport
from protocol.shadow import EVENT_TYPE, Arm, Comparison, Pairs, ShadowReport
from protocol.sketches.fixed import LATENCY_MS, Counter

SHADOW = ComparisonPlan(RunAs.SHADOW)


def candidate_of(fleet, device: str):
    with fleet.registry.database.reading() as tx:
        return campaign_store.find_assigned(tx, T0, DeviceId(device), LINE, is_candidate=True)


def report_candidate(fleet, device: str, release, **changes):
    """The device's report on its candidate; `changes` replace what it says."""
    assigned = candidate_of(fleet, device)
    slot = {"slot": "c", "active": False, "committed": False, **changes.pop("slot", {})}
    values = {"assignment": assigned.assignment, "attempt": assigned.attempt, "update_state": "succeeded", **changes}
    return fleet.report(device, release, healthy=0, slot=slot, **values)


@pytest.fixture
def running(make_fleet):
    """Two devices that run 1.0, and 1.1 published."""
    fleet = make_fleet("cam-1", "cam-2")
    first = fleet.release("1.0")
    fleet.campaign()
    for device in ("cam-1", "cam-2"):
        fleet.report(device, first)
    fleet.tick()
    fleet.second = fleet.release("1.1")
    return fleet


def test_a_candidate_is_assigned_beside_what_devices_run_and_stays_there_until_somebody_ends_it(running):
    made = running.campaign("1.1", comparison=SHADOW)
    assert [running.assigned(name).version for name in ("cam-1", "cam-2")] == ["1.0", "1.0"]
    assert [candidate_of(running, name).version for name in ("cam-1", "cam-2")] == ["1.1", "1.1"]
    for name in ("cam-1", "cam-2"):
        report_candidate(running, name, running.second)
    assert running.states(made) == {"cam-1": "updated", "cam-2": "updated"}
    running.tick()
    assert running.state(made) == "running"
    loop.abort_campaign(running.registry, tenant=T0, campaign=made.campaign, by=ANNA, reason="seen enough")
    assert [candidate_of(running, name) for name in ("cam-1", "cam-2")] == [None, None]
    assert running.assigned("cam-1").version == "1.0"


def test_a_comparison_is_over_by_itself_when_its_time_is(running):
    until = running.now + timedelta(hours=2)
    made = running.campaign("1.1", comparison=ComparisonPlan(RunAs.AB, share=50, until=until))
    running.tick()
    assert running.state(made) == "running"
    running.registry.clock.advance(2 * 3600 + 1)
    running.tick()
    assert running.state(made) == "succeeded"
    assert candidate_of(running, "cam-1") is None


@pytest.mark.parametrize(
    ("slot", "said", "verdict"),
    [
        ({}, {}, UpdateState.UPDATED),
        ({"slot": "b"}, {}, None),
        ({"sha256": digest_of(b"other")}, {}, None),
        ({"release": "1.0"}, {}, None),
        ({"line": "other"}, {}, None),
        ({}, {"update_state": "downloading"}, None),
        ({}, {"assignment": "as-other"}, None),
        ({}, {"attempt": 7}, None),
        ({}, {"update_state": "failed", "reason": "golden_mismatch"}, UpdateState.FAILED),
        ({}, {"update_state": "failed", "assignment": "as-other"}, None),
    ],
)
def test_a_candidate_counts_only_when_it_lies_there_with_the_assigned_digest(slot, said, verdict):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assigned = Assigned(DeviceId("cam-1"), LINE, ReleaseVersion("1.1"), "as-1", 1, "ca-1", now)
    there = {"line": LINE, "slot": "c", "active": False, "committed": False, "release": "1.1", "counter": 2, "sha256": digest_of(b"model")}
    about = {"device": "cam-1", "tenant": "t0", "boot_id": "b", "report_counter": 1, "time": 0, "time_floor": 0}
    answer = {"assignment": "as-1", "attempt": 1, "update_state": "succeeded", **said}
    report = VersionReport.model_validate({**about, **answer, "slots": [{**there, **slot}]})
    assert judge_candidate(assigned, {digest_of(b"model")}, report).state is verdict


def test_candidates_that_fail_stop_the_comparison_and_no_device(running):
    made = running.campaign("1.1", comparison=SHADOW)
    report_candidate(running, "cam-1", running.second, update_state="failed", reason="golden_mismatch")
    running.tick()
    assert running.state(made) == "failed"
    assert candidate_of(running, "cam-2") is None
    assert running.assigned("cam-2").version == "1.0"


def test_a_comparison_and_a_rollout_of_one_line_do_not_wait_for_each_other_but_two_comparisons_do(running):
    running.campaign("1.1", comparison=SHADOW)
    rollout = running.campaign("1.1")
    assert running.assigned("cam-1").version == "1.1"
    running.report("cam-1", running.second)
    assert running.states(rollout)["cam-1"] == "updated"
    with pytest.raises(ConflictError, match="under way"):
        running.campaign("1.0", comparison=SHADOW)


def test_a_report_about_a_candidate_says_nothing_about_what_the_device_runs(running):
    rollout = running.campaign("1.1", min_inferences=0)
    running.campaign("1.1", comparison=SHADOW)
    report_candidate(running, "cam-1", running.second)
    assert running.states(rollout)["cam-1"] == "assigned"


def test_who_comes_to_the_group_later_joins_the_rollout_and_no_comparison(running):
    made = running.campaign("1.1", comparison=SHADOW)
    running.enroll("cam-3")
    running.tick()
    assert "cam-3" not in running.states(made)


@pytest.mark.parametrize(
    "plan",
    [
        ComparisonPlan(RunAs.ACTIVE, share=50),
        ComparisonPlan(RunAs.AB, share=100),
        ComparisonPlan(RunAs.AB, share=0),
        ComparisonPlan(RunAs.SHADOW, share=50),
        ComparisonPlan(RunAs.SHADOW, cpu=0),
        ComparisonPlan(RunAs.SHADOW, cpu=101),
        ComparisonPlan(RunAs.SHADOW, until=datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(plan):
    with pytest.raises(InvalidError):
        check_comparison(plan, datetime(2026, 3, 1, tzinfo=UTC))


def test_the_devices_own_verifier_tells_a_candidate_from_what_the_line_runs(make_fleet, import_digits, tmp_path):
    fleet = make_fleet("cam-1")
    first = publish(fleet.registry, create(fleet.registry, import_digits()))
    fleet.campaign("1.0")
    fleet.report("cam-1", first)
    fleet.tick()
    publish(fleet.registry, create(fleet.registry, import_digits("1.1"), version="1.1"))
    until = fleet.now + timedelta(days=1)
    made = fleet.campaign("1.1", comparison=ComparisonPlan(RunAs.AB, share=30, cpu=15, until=until))
    device = fleet.trust_device(tmp_path, DeviceId("cam-1"))
    told = device.check()
    assert [(line.release, line.assignment) for line in told.lines] == [("1.0", fleet.assigned("cam-1").assignment)]
    (candidate,) = told.candidates
    assert (candidate.release.release, candidate.release.campaign) == ("1.1", made.campaign)
    assert (candidate.run.as_, candidate.run.share, candidate.run.until, candidate.cpu) == ("ab", 30, to_unix_ms(until), 15)
    assert candidate.run.salt == made.campaign
    fleet.campaign("1.1")
    told = device.check()
    assert [line.release for line in told.lines] == ["1.1"]
    assert told.candidates == ()


# --- what devices say ---


@pytest.fixture
def comparing(running):
    """Two devices whose candidate is 1.1."""
    running.made = running.campaign("1.1", comparison=SHADOW)
    return running


def said(fleet, *, number: int = 1, device: str = "cam-1", hours: float = 0.0, **changes) -> ShadowReport:
    """A report kept as ingest keeps it."""
    start = to_unix_ms(fleet.now) + int(hours * 3_600_000)
    values = {
        "pipeline": "door",
        "line": LINE,
        "run_as": "shadow",
        "champion": "1.0",
        "candidate": "1.1",
        "assignment": "as-1",
        "campaign": fleet.made.campaign,
        "since": start,
        "until": start + 3_600_000,
        "figures": figures(),
        **changes,
    }
    report = ShadowReport.model_validate(values)
    with fleet.registry.database.transaction() as tx:
        take_event(tx, T0, DeviceId(device), event(report.model_dump(mode="json"), number=number), fleet.now)
    return report


def event(data: dict, *, number: int = 1, kind: str = EVENT_TYPE) -> Event:
    source = {"ts": 0, "boot": "b", "epoch": "e", "seq": number, "id": f"e-{number}", "source": "/mooring/t0/cam-1"}
    return Event.model_validate({**source, "type": kind, "data": data})


def figures(agreed: int = 90) -> Comparison:
    champion, candidate = Counter(LATENCY_MS), Counter(LATENCY_MS)
    champion.add(2.0)
    candidate.add(3.0)
    arms = {"champion": Arm(frames=100, latency_ms=champion.cells()), "candidate": Arm(frames=100, latency_ms=candidate.cells())}
    return Comparison(**arms, pairs=Pairs(compared=100, agreed=agreed), cpu_ms=200, wall_ms=1000)


def test_reports_of_a_device_add_up_and_one_that_comes_twice_counts_once(comparing):
    fleet = comparing
    said(fleet, number=1)
    said(fleet, number=1)
    said(fleet, number=2, hours=1, figures=figures(70), state="ended", reason="assignment_ended")
    said(fleet, device="cam-2", pipeline="yard")
    (one,) = shadow_summary(fleet.registry.database, T0, device=DeviceId("cam-1"), pipeline="door")
    assert (one.reports, one.figures.pairs.compared, one.agreement) == (2, 200, 0.8)
    assert one.latency_ratio == pytest.approx(1.5)
    assert one.cpu_share == pytest.approx(0.2)
    assert (one.latest.state, one.latest.reason) == ("ended", "assignment_ended")
    assert len(shadow_summary(fleet.registry.database, T0, campaign=fleet.made.campaign)) == 2
    assert shadow_summary(fleet.registry.database, T0, campaign="ca-2") == []


def test_events_of_other_kinds_are_left_alone_and_a_malformed_report_is_refused(comparing):
    fleet = comparing
    with fleet.registry.database.transaction() as tx:
        take_event(tx, T0, DeviceId("cam-1"), event({}, kind="mooring.other.v1"), fleet.now)
        for bad in ({}, {**figures().model_dump(mode="json"), "v": 2}):
            with pytest.raises(InvalidError, match=EVENT_TYPE):
                take_event(tx, T0, DeviceId("cam-1"), event(bad), fleet.now)
    assert shadow_summary(fleet.registry.database, T0) == []


def test_a_device_says_nothing_about_campaigns_that_it_is_not_in(comparing):
    comparing.enroll("cam-3")
    with pytest.raises(InvalidError, match="none that the device is in"):
        said(comparing, device="cam-3")
    with pytest.raises(InvalidError, match="none that the device is in"):
        said(comparing, campaign="ca-else")


def test_reports_arrive_by_ingest_and_one_that_is_malformed_is_a_dead_letter_beside_the_others(comparing):
    report = said(comparing, number=1).model_dump(mode="json")
    rules = IngestRules(lambda _tx, _tenant, devices: set(devices), on_event=(take_event,))
    bodies = [event(report, number=2), event({**report, "run_as": "else"}, number=3), event({}, number=4, kind="mooring.other.v1")]
    batch = [incoming(f"mooring/1/{T0}/d/cam-1/event", one.model_dump(mode="json", exclude_none=True)) for one in bodies]
    outcome = ingest_batch(comparing.registry.database, batch, rules=rules, now=comparing.now)
    assert (outcome.accepted, outcome.rejected) == (2, 1)
    (one,) = shadow_summary(comparing.registry.database, T0, device=DeviceId("cam-1"))
    assert one.reports == 2


def test_old_reports_are_forgotten(comparing):
    fleet = comparing
    said(fleet, number=1)
    fleet.registry.clock.advance(3600)
    said(fleet, number=2)
    assert prune(fleet.registry.database, before=fleet.now - timedelta(minutes=30)) == 1
    assert sum(one.reports for one in shadow_summary(fleet.registry.database, T0)) == 1
