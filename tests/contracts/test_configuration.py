"""What the server's dry run says is what the agent then reports, for any settings of the device and any configuration."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.clock import FakeClock

from agent.config import AgentConfig, UpdateConfig
from agent.configuration import ConfigurationOffer, Pointer
from agent.reporting import configuration_body, reported_body
from agent.settings.overlaying import settable, with_settable
from agent.store import Store
from agent.twin import Twin
from fleet.configurations.service import effect_of
from protocol.configuration import Configuration, PipelineSettings, TelemetrySettings, UpdateSettings, checked, effective, overlay
from protocol.ids import DeviceId, Digest
from protocol.messages import Desired, Reported

FPS, LEVELS = st.floats(0, 1000, allow_nan=False), st.sampled_from(["debug", "info", "warning", "error"])
SECONDS, KEEPS, SCORES = st.floats(1, 3600, allow_nan=False), st.sampled_from(["ring", "events", "all"]), st.none() | st.floats(0, 1)
NAMES = st.sampled_from(["front", "back", "yard"])
WINDOWS = st.lists(
    st.fixed_dictionaries({"from": st.just("22:00"), "to": st.just("04:00")}, optional={"days": st.just(["mon"])}), max_size=2
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


PIPELINES = some(max_fps=FPS, keep=KEEPS, min_score=SCORES)
OWN_UPDATE = {"metered": st.booleans(), "bandwidth_kib_s": FPS, "download_windows": WINDOWS, "consent": st.sampled_from(["none", "site"])}
LOCAL = st.fixed_dictionaries(
    {},
    optional={
        "log_level": LEVELS,
        "telemetry": some(perf_s=SECONDS, sys_s=SECONDS),
        "update": some(**OWN_UPDATE),
        "pipelines": st.lists(
            st.fixed_dictionaries(
                {"name": NAMES, "line": st.just("digits"), "source": st.just({"kind": "camera"})}, optional={"max_fps": FPS, "keep": KEEPS}
            ),
            max_size=2,
            unique_by=lambda one: one["name"],
        ),
    },
)
SECTIONS = some(
    log_level=st.none() | LEVELS,
    telemetry=some(perf_s=st.none() | SECONDS, sys_s=SECONDS),
    update=some(**OWN_UPDATE, time_zone=st.just("Europe/Vienna")),
    pipelines=st.dictionaries(st.just("*") | NAMES, PIPELINES, max_size=2),
).map(lambda section: checked(section, what="test"))
DOCUMENTS = st.builds(lambda fleet, group, own: Configuration("t0", "doors", 7, fleet, group, {"cam-1": own}), SECTIONS, SECTIONS, SECTIONS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    with Store(tmp_path_factory.mktemp("store") / "outbox.db", clock=FakeClock()) as opened:
        yield opened


def told(twin: Twin, document: Configuration) -> Reported:
    """What the device reports under the configuration."""
    found = effective(document, "cam-1")
    twin.apply(found)
    offer = ConfigurationOffer(document.group, document.rev, 0, 1, Digest(f"sha256:{'0' * 64}"))
    signed = configuration_body(Pointer(committed=offer), found, twin.in_force)
    body = reported_body(desired_rev=1, config=twin.in_force.config, errors={}, conditions=[], configuration=signed)
    envelope = {"ts": 0, "clk": "ok", "boot": "b", "epoch": "e", "seq": 0, "floor": 0}
    return Reported.model_validate_json(Reported.model_validate({**envelope, **body}).model_dump_json())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(LOCAL, DOCUMENTS, DOCUMENTS)
def test_the_dry_run_says_what_the_device_then_reports(store: Store, local: dict[str, Any], before: Configuration, after: Configuration):
    store.save_desired(Desired(rev=0))
    twin = Twin(store, AgentConfig.model_validate(local), None)
    old = told(twin, before)
    planned = effect_of(after, DeviceId("cam-1"), old)
    pipelines_before = {one.name: one for one in twin.in_force.pipelines}
    new = told(twin, after)
    assert planned.is_known
    assert planned.after == new.configuration.values
    started_again = {one.name for one in twin.in_force.pipelines if one != pipelines_before[one.name]}
    assert set(planned.restarts) == started_again
    assert new.configuration.base == old.configuration.base
    assert bool(planned.changes) == (old.configuration.values != new.configuration.values)


def test_what_may_be_set_from_afar_is_what_the_agent_has():
    values = settable(AgentConfig.model_validate({"pipelines": [{"name": "front", "line": "digits", "source": {"kind": "camera"}}]}))
    assert set(values["telemetry"]) == set(TelemetrySettings.model_fields)
    assert set(values["update"]) == set(UpdateSettings.model_fields)
    assert set(values["pipelines"]["front"]) == set(PipelineSettings.model_fields)


@given(SECTIONS)
def test_the_agent_takes_every_value_that_the_schema_allows(section: dict[str, Any]):
    local = AgentConfig.model_validate({"pipelines": [{"name": "front", "line": "digits", "source": {"kind": "camera"}}]})
    wished = effective(Configuration("t0", "doors", 1, section), "cam-1").settings
    values = overlay(settable(local), wished).values
    changed, errors = with_settable(local, values)
    assert errors == {}
    assert settable(changed)["telemetry"] == values["telemetry"]


def test_an_older_agent_leaves_out_the_key_that_it_cannot_take():
    local = AgentConfig()
    values = settable(local)
    values["update"] = {**values["update"], "consent": "village", "metered": True}
    changed, errors = with_settable(local, values)
    assert (changed.update.metered, changed.update.consent) == (True, UpdateConfig().consent)
    assert "village" in errors["update.consent"]
