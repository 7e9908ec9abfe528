"""Desired twins: composed from group, device, pipelines and secrets; counted and announced only when they really change."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.settings.desired import parse_desired
from fleet import audit, jobs
from fleet.config import LimitsConfig
from fleet.devices import groups, service, store, twins
from fleet.devices.model import ConfigPatch, PipelineSpec, parse_config, parse_labels, parse_pipelines
from protocol.errors import InvalidError, NotFoundError, StaleRevisionError
from protocol.ids import DeviceId, GroupName
from protocol.sealed import open_sealed, secret_context

from .conftest import ANNA, NOW, T0

CAM = DeviceId("cam-1")
FRONT = {"name": "front", "line": "digits", "source": {"kind": "video", "path": "/x.mp4", "loop": True}, "keep": "events", "max_fps": 10.0}
BACK = {"name": "back", "line": "digits", "source": {"kind": "stream", "url": "rtsp://10.0.0.5/s1", "secret": "cam"}}


@pytest.fixture
def device(world):
    return world.add_device(CAM)


def _desired(world):
    return twins.get_desired(world.database, T0, CAM)


def _announced(world):
    """How many jobs wait to tell devices; takes them."""
    with world.database.transaction() as tx:
        count = 0
        while job := jobs.claim(tx, kinds=[twins.PUBLISH_DESIRED], now=NOW):
            jobs.finish(tx, job, now=NOW)
            count += 1
        return count


def test_a_fresh_device_keeps_its_local_settings(world, device):
    desired = _desired(world)
    assert (desired.config, desired.manifest) == ({}, None)
    with world.database.reading() as tx:
        assert store.find_desired_rev(tx, T0, CAM) == desired.rev


def test_what_the_device_says_wins_over_its_group(world, device):
    group = parse_config({"telemetry": {"perf_s": 30, "sys_s": 60}, "update": {"poll_s": 600}})
    groups.change_group(world.database, tenant=T0, name=groups.DEFAULT_GROUP, config=group, by=ANNA, now=NOW)
    twins.set_device_config(world.database, tenant=T0, device=CAM, config=parse_config({"telemetry": {"perf_s": 10}}), by=ANNA, now=NOW)
    assert _desired(world).config == {"telemetry": {"perf_s": 10.0, "sys_s": 60.0}, "update": {"poll_s": 600.0}}


def test_pipelines_keep_their_order_and_reach_the_device_in_its_own_words(world, device):
    twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([FRONT, BACK]), by=ANNA, now=NOW)
    config = _desired(world).config
    assert [one["name"] for one in config["pipelines"]] == ["front", "back"]
    parsed, errors = parse_desired(json.loads(json.dumps(config)))
    assert errors == {}
    assert [pipeline.name for pipeline in parsed.pipelines] == ["front", "back"]
    found = twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([BACK, FRONT]), by=ANNA, now=NOW)
    assert [(one.name, one.position, one.revision) for one in found] == [("back", 0, 2), ("front", 1, 2)]


def test_a_pipeline_that_stays_keeps_its_revision(world, device):
    twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([FRONT]), by=ANNA, now=NOW)
    found = twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([FRONT, BACK]), by=ANNA, now=NOW)
    assert [(one.name, one.revision) for one in found] == [("front", 1), ("back", 1)]


def test_the_groups_pipelines_serve_a_device_that_has_none_of_its_own(world, device):
    groups.change_group(world.database, tenant=T0, name=groups.DEFAULT_GROUP, config=parse_config({"pipelines": [FRONT]}), by=ANNA, now=NOW)
    twins.refresh_group(world.database, tenant=T0, group=groups.DEFAULT_GROUP, now=NOW)
    assert [one["name"] for one in _desired(world).config["pipelines"]] == ["front"]
    twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([BACK]), by=ANNA, now=NOW)
    assert [one["name"] for one in _desired(world).config["pipelines"]] == ["back"]
    twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=[], by=ANNA, now=NOW)
    assert [one["name"] for one in _desired(world).config["pipelines"]] == ["front"]


def test_only_a_real_change_is_counted_and_announced(world, device):
    _announced(world)
    patch = parse_config({"update": {"poll_s": 60}})
    twins.set_device_config(world.database, tenant=T0, device=CAM, config=patch, by=ANNA, now=NOW)
    rev = _desired(world).rev
    assert _announced(world) == 1
    twins.set_device_config(world.database, tenant=T0, device=CAM, config=patch, by=ANNA, now=NOW)
    assert (_desired(world).rev, _announced(world)) == (rev, 0)
    with world.database.reading() as tx:
        assert store.get_twin(tx, T0, CAM).revision == 3  # what people set was set twice


def test_a_devices_new_config_keeps_what_commands_told_it_of_drift(world, device):
    told = {"acknowledged": ("front",), "rebaselined": {"front": 7}, "references": {"front": "QUJD"}, "check": "device"}
    with world.database.transaction() as tx:
        twins.change_drift(tx, T0, CAM, lambda patch: patch.model_copy(update=told), now=NOW)

    def set_drift(**values: object) -> dict[str, object]:
        twins.set_device_config(world.database, tenant=T0, device=CAM, config=parse_config({"drift": values}), by=ANNA, now=NOW)
        return _desired(world).config["drift"]

    kept = {"acknowledged": ["front"], "rebaselined": {"front": 7}, "references": {"front": "QUJD"}}
    assert set_drift(check="server", indoor=True) == {**kept, "check": "server", "indoor": True}
    assert set_drift(references={}) == {**kept, "references": {}}, "what the config names is as it says"
    with world.database.reading() as tx:
        said = [one.detail["config"] for one in audit.list_entries(tx, T0) if one.action == "device.config-changed"]
    assert {"drift": {"check": "server", "indoor": True}} in said, "the audit log has what somebody asked, not what was kept"


def test_several_changes_before_the_device_was_told_are_one_job(world, device):
    _announced(world)
    for poll_s in (60, 61, 62):
        patch = parse_config({"update": {"poll_s": poll_s}})
        twins.set_device_config(world.database, tenant=T0, device=CAM, config=patch, by=ANNA, now=NOW)
    assert _announced(world) == 1


def test_a_director_hint_is_part_of_the_twin(world, device):
    before = _desired(world).rev
    url, sha256 = "/device/v1/director/targets.json", "sha256:" + "a" * 64
    for _ in range(2):
        with world.database.transaction() as tx:
            twins.set_manifest(tx, T0, CAM, url=url, sha256=sha256, now=NOW)
    desired = _desired(world)
    assert (desired.rev, desired.manifest.url, desired.manifest.sha256) == (before + 1, url, sha256)


def test_a_secret_reaches_only_its_device_and_is_nowhere_in_the_clear(world, device):
    plain = b"user:geheim-4711"
    twins.set_secret(world.database, tenant=T0, device=CAM, name="cam", plaintext=plain, by=ANNA, now=NOW)
    sealed = _desired(world).config["secrets"]["cam"]
    assert open_sealed(device.sealing_private, sealed, context=secret_context(CAM, "cam")) == plain
    assert service.get_detail(world.database, T0, CAM).secret_names == ("cam",)
    with world.database.reading() as tx:
        everything = repr(
            [store.list_secrets(tx, T0, CAM), store.get_twin(tx, T0, CAM), audit.list_entries(tx, T0), jobs.list_jobs(tx, T0)]
        )
    assert "geheim" not in everything
    twins.delete_secret(world.database, tenant=T0, device=CAM, name="cam", by=ANNA, now=NOW)
    assert "secrets" not in _desired(world).config
    with pytest.raises(NotFoundError, match="no secret 'cam'"):
        twins.delete_secret(world.database, tenant=T0, device=CAM, name="cam", by=ANNA, now=NOW)


@pytest.mark.parametrize(("name", "plaintext"), [("Bad Name", b"x"), ("cam", b""), ("cam", b"x" * 4097)])
def test_a_secret_that_does_not_fit_is_refused(world, device, name, plaintext):
    with pytest.raises(InvalidError):
        twins.set_secret(world.database, tenant=T0, device=CAM, name=name, plaintext=plaintext, by=ANNA, now=NOW)


def test_a_change_against_an_old_revision_changes_nothing(world, device):
    twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([FRONT]), by=ANNA, now=NOW, expected_revision=1)
    with pytest.raises(StaleRevisionError):
        twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=[], by=ANNA, now=NOW, expected_revision=1)
    with pytest.raises(StaleRevisionError):
        twins.set_device_config(world.database, tenant=T0, device=CAM, config=ConfigPatch(), by=ANNA, now=NOW, expected_revision=1)
    assert len(_desired(world).config["pipelines"]) == 1


def test_too_many_pipelines_and_two_of_one_name_are_refused(world, device):
    specs = parse_pipelines([FRONT, BACK])
    with pytest.raises(InvalidError, match=r"limits\.pipelines"):
        twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=specs, by=ANNA, now=NOW, limits=LimitsConfig(pipelines=1))
    spec = PipelineSpec.model_validate(FRONT)
    with pytest.raises(InvalidError, match="same name"):
        twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=[spec, spec], by=ANNA, now=NOW)
    with pytest.raises(InvalidError, match="list of pipelines"):
        twins.set_device_config(world.database, tenant=T0, device=CAM, config=parse_config({"pipelines": [FRONT]}), by=ANNA, now=NOW)


def test_a_moved_device_gets_the_twin_of_its_new_group(world, device):
    groups.create_group(world.database, tenant=T0, name="yard", config=parse_config({"update": {"poll_s": 5}}), by=ANNA, now=NOW)
    service.move_device(world.database, tenant=T0, device=CAM, group=GroupName("yard"), by=ANNA, now=NOW, reason="rain")
    assert _desired(world).config == {"update": {"poll_s": 5.0}}


def test_every_change_has_its_audit_entry(world, device):
    twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([FRONT]), by=ANNA, now=NOW, reason="a")
    twins.set_secret(world.database, tenant=T0, device=CAM, name="cam", plaintext=b"x", by=ANNA, now=NOW, reason="b")
    twins.set_device_config(world.database, tenant=T0, device=CAM, config=ConfigPatch(), by=ANNA, now=NOW, reason="c")
    with world.database.reading() as tx:
        audit.verify(tx, T0)
        found = [(entry.action, entry.reason) for entry in audit.list_entries(tx, T0, limit=3)]
    assert found == [("device.config-changed", "c"), ("device.secret-set", "b"), ("device.pipelines-changed", "a")]


def test_devices_of_a_line_are_found(world, device):
    twins.set_pipelines(world.database, tenant=T0, device=CAM, specs=parse_pipelines([FRONT, BACK]), by=ANNA, now=NOW)
    with world.database.reading() as tx:
        assert store.list_devices_of_line(tx, T0, "digits") == [CAM]
        assert store.list_devices_of_line(tx, T0, "other") == []
        assert [spec.name for spec in store.list_pipelines_of(tx, T0, [CAM])[CAM]] == ["front", "back"]


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"telemtry": {}}, "config/telemtry"),
        ({"telemetry": {"perf_s": 0}}, "config/telemetry/perf_s"),
        ({"update": {"poll_s": "soon"}}, "config/update/poll_s"),
        ({"pipelines": [{**FRONT, "keep": "some"}]}, "config/pipelines/0/keep"),
        ({"pipelines": [FRONT, FRONT]}, "front"),
        ([], "config"),
    ],
)
def test_a_config_that_the_device_could_not_use_is_refused_with_its_place(document, place):
    with pytest.raises(InvalidError, match=place):
        parse_config(document)


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "stream", "url": "rtsp://user:password@10.0.0.5/s1"},
        {"kind": "sensor", "broker": "mqtt://u:p@h", "topic": "a", "fields": ["t"]},
        {"kind": "teleport"},
        {"kind": "folder", "path": ""},
    ],
)
def test_a_source_with_a_password_in_the_clear_or_of_no_kind_is_refused(source):
    with pytest.raises(InvalidError, match="source"):
        parse_pipelines([{**FRONT, "source": source}])


def test_only_what_is_set_is_said_so_that_an_older_agent_understands_the_rest():
    source = {"kind": "stream", "url": "rtsp://10.0.0.5/s1"}
    (plain,) = parse_pipelines([{**FRONT, "source": source}])
    assert plain.model_dump(mode="json").keys() == {"name", "line", "source", "keep", "max_fps", "min_score"}
    assert plain.model_dump(mode="json")["source"].keys() == {"kind", "url", "secret"}
    looks = {"roi": [0, 0, 0.5, 1], "motion": {"min_area": 0.01}, "preview": True}
    (looking,) = parse_pipelines([{**FRONT, **looks, "source": {**source, "sub_url": "rtsp://10.0.0.5/s2", "decode": "keyframes"}}])
    parsed, errors = parse_desired(twins.compose(ConfigPatch(), ConfigPatch(), (looking,), {}))
    assert not errors
    (pipeline,) = parsed.pipelines or ()
    assert (pipeline.roi, pipeline.motion.min_area, pipeline.preview, pipeline.source.decode) == ((0, 0, 0.5, 1), 0.01, True, "keyframes")


@pytest.mark.parametrize("labels", [{"Bad Key": "x"}, {"a": "x" * 201}, {str(n): "" for n in range(65)}, {"a": 1}, []])
def test_labels_have_limits(labels):
    with pytest.raises(InvalidError, match="labels"):
        parse_labels(labels)


_patches = st.builds(
    lambda perf, poll: parse_config(
        {
            "telemetry": {} if perf is None else {"perf_s": perf},
            "update": {} if poll is None else {"poll_s": poll},
        }
    ),
    st.none() | st.integers(1, 3600),
    st.none() | st.integers(1, 86_400),
)


@given(_patches, _patches, st.booleans())
def test_whatever_is_composed_the_device_understands(group, device, has_pipeline):
    specs = parse_pipelines([FRONT] if has_pipeline else [])
    document = twins.compose(group, device, specs, {"cam": "c2VhbGVk"})
    parsed, errors = parse_desired(document)
    assert errors == {}
    assert parsed.telemetry.perf_s == (device.telemetry.perf_s if device.telemetry.perf_s is not None else group.telemetry.perf_s)
    assert (parsed.pipelines is None) == (not has_pipeline)
