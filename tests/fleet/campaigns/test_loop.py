"""The loop with the device's own verifier at its end: what people decide is what a device is told, and nothing else."""

import itertools
import json

import pytest
from publishing import APPROVER, LINE, approve, create, publish
from registries import ANNA, BERT, T0
from simulators.task_models import detection_draft, ssd_slot

from fleet import audit, loop
from fleet.db import Connection
from fleet.devices import groups
from fleet.monitoring import store as monitoring_store
from fleet.registry import service as releases
from fleet.registry.drafts import parse_draft
from fleet.registry.model import ReleaseState
from fleet.registry.store import director_metadata
from protocol.clock import to_unix_ms
from protocol.errors import ConflictError, ForbiddenError, TrustError
from protocol.ids import DeviceId


def say_runtimes(fleet, device: DeviceId, *names: str, capabilities: tuple[str, ...] | list[str] = ()):
    """The device's `info` message, as ingest keeps it."""
    body = {
        "ts": 0,
        "boot": "b",
        "epoch": "e",
        "seq": 1,
        "device_type": "linux-x86-64",
        "agent_version": "0.1.0",
        "runtimes": [{"name": name, "version": "1", "state": "ok"} for name in names],
        "capabilities": list(capabilities),
    }
    with fleet.registry.database.transaction() as tx:
        keep_info(tx, device, body, fleet.now)


_SEQUENCE = itertools.count(1)


def keep_info(tx: Connection, device: DeviceId, body: dict, now):
    key = monitoring_store.device_keys(tx, T0, [device])[device]
    row = {"tenant": T0, "device_key": key, "stream": "info", "epoch_number": 1, "seq": next(_SEQUENCE), "ts": now, "received_at": now}
    monitoring_store.save_state(tx, {**row, "body": json.dumps(body)})


def test_a_release_travels_from_a_draft_to_the_devices_verifier_and_back_as_a_signed_report(make_fleet, import_digits, tmp_path):
    fleet = make_fleet("cam-onnx", "cam-tflite")
    registry = fleet.registry
    say_runtimes(fleet, "cam-onnx", "onnx")
    say_runtimes(fleet, "cam-tflite", "litert")
    devices = {
        name: fleet.trust_device(tmp_path, DeviceId(name), runtimes=frozenset({name.removeprefix("cam-")}))
        for name in ("cam-onnx", "cam-tflite")
    }
    assert [device.check().lines for device in devices.values()] == [(), ()]
    first = publish(registry, create(registry, import_digits(), import_digits(kind="tflite")))
    assert first.state is ReleaseState.PUBLISHED
    made = fleet.campaign("1.0")
    for name, device in devices.items():
        line = device.check().lines[0]
        variant = first.find_variant(device_type="linux-x86-64", runtimes=frozenset({name.removeprefix("cam-")}))
        assert (line.release, line.variant, line.campaign) == ("1.0", variant.variant, made.campaign)
        device.committed = {LINE: line.counter}
        fleet.report(DeviceId(name), first, slot={"sha256": variant.model_file.sha256})
    fleet.tick()
    assert fleet.state(made) == "succeeded"
    second = publish(registry, create(registry, import_digits("1.1"), import_digits("1.1", kind="tflite"), version="1.1"))
    fleet.campaign("1.1")
    assert [device.check().lines[0].release for device in devices.values()] == ["1.1", "1.1"]
    for name, device in devices.items():
        device.committed = {LINE: second.counter}
        variant = second.find_variant(device_type="linux-x86-64", runtimes=frozenset({name.removeprefix("cam-")}))
        fleet.report(DeviceId(name), second, slot={"sha256": variant.model_file.sha256})
    fleet.tick()
    fleet.campaign("1.0")
    assert [device.check().lines[0].release for device in devices.values()] == ["1.0", "1.0"]


def test_a_device_whose_runtimes_are_unknown_is_told_once_they_are_known(make_fleet, import_digits, tmp_path):
    fleet = make_fleet("cam-1")
    publish(fleet.registry, create(fleet.registry, import_digits(), import_digits(kind="tflite")))
    fleet.campaign()
    device = fleet.trust_device(tmp_path, DeviceId("cam-1"))
    assert device.check().lines == ()
    say_runtimes(fleet, "cam-1", "onnx")
    assert device.check().lines[0].variant == "onnx"
    say = releases.director_file(fleet.registry, tenant=T0, device=DeviceId("cam-1"), name="timestamp.json", source=loop.order_source(T0))
    assert device.check().metadata_versions["director.timestamp"] > 0
    assert (
        releases.director_file(fleet.registry, tenant=T0, device=DeviceId("cam-1"), name="timestamp.json", source=loop.order_source(T0))
        == say
    )


def test_four_eyes_whoever_made_release_or_model_does_not_approve_it(make_fleet, import_digits):
    fleet = make_fleet()
    release = create(fleet.registry, import_digits())
    approval = loop.propose_release(fleet.registry, tenant=T0, by=BERT, line=LINE, version=release.version)
    for person in (ANNA, BERT):
        with pytest.raises(ForbiddenError):
            loop.decide_approval(
                fleet.registry,
                tenant=T0,
                approval=approval.approval,
                verdict="approved",
                by=person,
                permissions=APPROVER,
                reason="mine",
            )
    assert releases.get_release(fleet.registry, T0, LINE, release.version).state is ReleaseState.PROPOSED
    assert loop.list_signing_tasks(fleet.registry, T0) == []


def test_a_rejected_release_is_not_signed_and_may_be_proposed_again(make_fleet, import_digits, clock):
    fleet = make_fleet()
    release = create(fleet.registry, import_digits())
    approve(fleet.registry, release, "rejected")
    assert releases.get_release(fleet.registry, T0, LINE, release.version).state is ReleaseState.REJECTED
    assert loop.list_signing_tasks(fleet.registry, T0) == []
    with pytest.raises(ConflictError):
        loop.publish_release(fleet.registry, tenant=T0, by=BERT, line=LINE, version=release.version)
    clock.advance(1)
    approve(fleet.registry, release)
    assert len(loop.list_signing_tasks(fleet.registry, T0)) == 1
    with fleet.registry.database.reading() as tx:
        assert [entry.action for entry in audit.list_entries(tx, T0, limit=2)] == ["release.approved", "approval.approved"]


def test_a_device_of_another_group_is_told_nothing(make_fleet, import_digits, tmp_path):
    fleet = make_fleet("cam-1")
    groups.create_group(fleet.registry.database, tenant=T0, name="others", by=ANNA, now=fleet.now, site=None)
    fleet.enroll("cam-2", group="others")
    publish(fleet.registry, create(fleet.registry, import_digits()))
    fleet.campaign()
    assert fleet.trust_device(tmp_path, DeviceId("cam-1")).check().lines
    assert fleet.trust_device(tmp_path, DeviceId("cam-2")).check().lines == ()


def test_one_devices_metadata_is_refused_by_another(make_fleet, import_digits, tmp_path):
    fleet = make_fleet("cam-1", "cam-2")
    publish(fleet.registry, create(fleet.registry, import_digits()))
    fleet.campaign()
    thief = fleet.trust_device(tmp_path, DeviceId("cam-2"))
    thief.read_director = fleet.trust_device(tmp_path, DeviceId("cam-1")).read_director
    with pytest.raises(TrustError) as caught:
        thief.check()
    assert caught.value.code == "wrong-device"


def test_a_server_restored_from_a_backup_is_not_refused_by_its_fleet(make_fleet, import_digits, tmp_path, clock):
    fleet = make_fleet("cam-1")
    publish(fleet.registry, create(fleet.registry, import_digits()))
    fleet.campaign()
    device = fleet.trust_device(tmp_path, DeviceId("cam-1"))
    version = device.check().metadata_versions["director.timestamp"]
    assert version >= to_unix_ms(clock.now()) // 1000
    with fleet.registry.database.transaction() as tx:
        tx.execute(director_metadata.delete())
    clock.advance(60)
    assert device.check().metadata_versions["director.timestamp"] > version


def test_a_device_that_does_not_say_it_can_answer_a_task_is_not_offered_its_models(make_fleet, tmp_path):
    fleet = make_fleet("cam-1")
    draft = parse_draft({**detection_draft("ssd"), "device_types": ["linux-x86-64"]})
    file = ssd_slot(tmp_path / "slot") / "model.onnx"
    model = releases.import_model(fleet.registry, tenant=T0, by=ANNA, model="finder", file=file, draft=draft)
    publish(fleet.registry, create(fleet.registry, model))
    say_runtimes(fleet, "cam-1", "onnx")
    fleet.campaign()
    device = fleet.trust_device(tmp_path, DeviceId("cam-1"))
    assert device.check().lines == ()
    say_runtimes(fleet, "cam-1", "onnx", capabilities=["classification", "detection"])
    assert [line.release for line in device.check().lines] == ["1.0"]
