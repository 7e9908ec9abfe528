"""Replacing the certificate authority: in order, no device left behind unasked, each step one file."""

import contextlib
import json
import ssl
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from simulators.enrolling import EnrollingDevice

from fleet import audit
from fleet.audit import Actor, ActorKind
from fleet.config import PkiConfig
from fleet.devices import enrollment, rotation, service, store
from fleet.devices.pki import Authority, authority_files, create_authority, open_authority
from fleet.devices.rotation import Stage
from protocol.errors import ConfigError, ConflictError, UnavailableError
from protocol.ids import DeviceId, TenantId

NOW, T0, ANNA = datetime(2026, 3, 1, 12, tzinfo=UTC), TenantId("t0"), Actor(ActorKind.PERSON, "anna")


@pytest.fixture
def authority(tmp_path) -> Authority:
    return open_authority(tmp_path / "pki", PkiConfig())


def take(world, step, **options):
    found = step(world.database, world.authority, tenant=T0, by=ANNA, now=NOW, reason="yearly", **options)
    return replace(world, authority=found)


def renew(world, device: EnrollingDevice) -> None:
    identity = identity_of(world, device)
    issued = enrollment.renew_certificate(world.database, world.authority, identity=identity, csr_pem=device.csr_pem(), now=NOW)
    enrollment.authenticate(world.database, device=device.device, serial=issued.serial, now=NOW)


def identity_of(world, device: EnrollingDevice):
    with world.database.reading() as tx:
        serial = store.get_device(tx, T0, DeviceId(device.device)).serial
    return enrollment.authenticate(world.database, device=device.device, serial=serial, now=NOW)


def status(world) -> rotation.RotationStatus:
    return rotation.read_status(world.database, world.authority)


def test_the_three_steps_move_every_device_to_the_next_authority(world):
    first, device = world.authority, world.add_device("cam-1")
    assert (status(world).stage, status(world).waiting) == (Stage.SETTLED, 0)
    world = take(world, rotation.begin)
    assert (world.authority.pin, status(world).stage, status(world).waiting) == (first.pin, Stage.BEGUN, 1)
    renew(world, device)
    world = take(world, rotation.switch)
    assert world.authority.pin == status(world).issuing != first.pin
    assert status(world).latecomers == ("cam-1",)
    renew(world, device)
    assert status(world).waiting == 0
    world = take(world, rotation.finish)
    assert status(world).stage is Stage.SETTLED
    assert world.authority.ca_pem.count("BEGIN CERTIFICATE") == 1
    assert first.ca_pem not in world.authority.ca_path.read_text()


def test_a_device_that_did_not_follow_stops_the_next_step_by_name(world):
    world.add_device("cam-asleep")
    world = take(world, rotation.begin)
    with pytest.raises(ConflictError, match=r"1 of 1 devices.*cam-asleep") as caught:
        take(world, rotation.switch)
    assert caught.value.code == "devices-behind"
    assert status(world).stage is Stage.BEGUN
    world = take(world, rotation.switch, is_forced=True)
    with pytest.raises(ConflictError, match="cam-asleep"):
        take(world, rotation.finish)


class Interrupted:
    """A database at which something happens right after the first transaction of a step."""

    def __init__(self, database, happens) -> None:
        self.reading, self._database, self._happens = database.reading, database, [happens]

    @contextlib.contextmanager
    def transaction(self):
        with self._database.transaction() as tx:
            yield tx
        while self._happens:
            self._happens.pop()()


@pytest.mark.parametrize("name", ["switch", "finish"])
def test_a_device_that_enrolls_while_a_step_is_taken_prevents_it(world, name):
    stale = world
    world = take(world, rotation.begin)
    if name == "finish":
        stale = world
        world = take(world, rotation.switch)
    stage = status(world).stage
    between = replace(world, database=Interrupted(world.database, lambda: stale.add_device("cam-new")))
    with pytest.raises(ConflictError, match="cam-new"):
        take(between, getattr(rotation, name))
    assert status(world).stage is stage
    with world.database.reading() as tx:
        entries = [entry for entry in audit.list_entries(tx, T0) if entry.action.startswith(f"authority.{name}")]
    assert sorted(entry.action for entry in entries) == [f"authority.{name}", f"authority.{name}-prevented"]


def test_a_server_that_missed_two_steps_issues_nothing_that_would_leave_a_device_behind(world):
    device = world.add_device("cam-1")
    identity, settled = identity_of(world, device), world
    begun = take(world, rotation.begin)
    renew(settled, device)  # of the one that issues still; it renews once more
    renew(begun, device)
    switched = take(begun, rotation.switch)
    renew(begun, device)
    invite = settled.invite().text
    for ask in (lambda: renew(settled, device), lambda: settled.enroll(EnrollingDevice(device="cam-2").request(invite))):
        with pytest.raises(UnavailableError, match="started again") as caught:
            ask()
        assert caught.value.code == "authority-replaced"
    assert store_has(world, "cam-2") is False
    renew(switched, device)
    take(switched, rotation.finish)
    with pytest.raises(UnavailableError):
        enrollment.renew_certificate(begun.database, begun.authority, identity=identity, csr_pem=device.csr_pem(), now=NOW)
    renew(switched, device)


def store_has(world, device: str) -> bool:
    with world.database.reading() as tx:
        return store.find_device(tx, T0, DeviceId(device)) is not None


def test_revoked_devices_hold_nothing_up(world):
    world.add_device("cam-gone")
    world = take(world, rotation.begin)
    service.revoke_device(world.database, tenant=T0, device=DeviceId("cam-gone"), by=ANNA, now=NOW, reason="stolen")
    assert status(world).devices == 0
    take(world, rotation.switch)


@pytest.mark.parametrize(
    ("done", "step"),
    [
        ((), "switch"),
        ((), "finish"),
        (("begin",), "begin"),
        (("begin",), "finish"),
        (("begin", "switch"), "begin"),
        (("begin", "switch"), "switch"),
    ],
)
def test_steps_out_of_order_are_refused_and_change_nothing(world, done, step):
    for name in done:
        world = take(world, getattr(rotation, name))
    before = world.authority.ca_path.read_bytes()
    with pytest.raises(ConflictError, match="follows"):
        take(world, getattr(rotation, step))
    assert open_authority(world.authority.folder, PkiConfig()).ca_path.read_bytes() == before


def test_every_step_is_audited_with_who_and_why(world):
    for step in (rotation.begin, rotation.switch, rotation.finish):
        world = take(world, step)
    with world.database.reading() as tx:
        entries = [entry for entry in audit.list_entries(tx, T0) if entry.action.startswith("authority.")]
    assert sorted(entry.action for entry in entries) == ["authority.begin", "authority.finish", "authority.switch"]
    assert {(entry.actor.name, entry.reason) for entry in entries} == {("anna", "yearly")}


def test_a_cut_after_the_next_key_was_made_leaves_the_old_authority_and_the_step_can_be_taken_again(world):
    before = world.authority.ca_pem
    create_authority(*authority_files(world.authority.folder, 2), PkiConfig())  # all that `begin` does before its one file
    assert open_authority(world.authority.folder, PkiConfig()).ca_pem == before
    assert status(take(world, rotation.begin)).stage is Stage.BEGUN


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"issuing": 2, "trusted": [1]}', '{"issuing": 1, "trusted": [1, 2, 3]}', '{"issuing": 1, "trusted": [1, 1]}']
)
def test_a_damaged_list_of_authorities_is_refused(authority, text):
    (authority.folder / "authorities.json").write_text(text)
    with pytest.raises(ConfigError, match="backup"):
        open_authority(authority.folder, PkiConfig())


def test_a_missing_key_of_the_next_authority_is_refused_not_replaced(world):
    authority = take(world, rotation.begin).authority
    assert json.loads((authority.folder / "authorities.json").read_text()) == {"issuing": 1, "trusted": [1, 2]}
    (authority.folder / "ca-2-key.pem").unlink()
    with pytest.raises(ConfigError, match="backup"):
        open_authority(authority.folder, PkiConfig())


def test_both_authorities_revoke_while_both_are_trusted(world):
    world.add_device("cam-1")
    authority = take(world, rotation.begin).authority
    assert authority.revocation_list([("5", NOW)]).count(b"BEGIN X509 CRL") == 2


def test_the_servers_own_certificate_follows_the_switch(world):
    before = ssl.create_default_context(cafile=str(world.authority.ca_path))
    old = world.authority.ensure_server().certificate.read_bytes()
    authority = take(take(world, rotation.begin), rotation.switch).authority
    assert authority.ensure_server().certificate.read_bytes() != old
    assert len(before.get_ca_certs()) == 1
    assert len(ssl.create_default_context(cafile=str(authority.ca_path)).get_ca_certs()) == 2
