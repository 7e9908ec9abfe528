"""Sticks: what is signed for one, how it lives beside what is online, and what a report on one counts for."""

import random
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from publishing import create, publish
from registries import ANNA, T0

from fleet import audit, jobs, loop
from fleet.campaigns import service as campaigns
from fleet.campaigns import store as campaign_store
from fleet.campaigns.model import ReportChannel
from fleet.devices import groups
from fleet.devices import service as devices
from protocol.bundle import DEVICES, DIRECTOR, IMAGE, INDEX, ROOT_NAME, read_bundle_index
from protocol.canonical import digest_of
from protocol.clock import to_unix_ms
from protocol.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, TrustError
from protocol.ids import DeviceId, GroupName, TenantId
from protocol.messages import SlotReport, VersionReport
from protocol.reports import sign_report

CAM = DeviceId("cam-1")
GROUP = GroupName("cameras")
#: What looks at signatures alone needs one database.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def fleet(make_fleet, import_digits):
    made = make_fleet(CAM)
    publish(made.registry, create(made.registry, import_digits()))
    return made


def stick(fleet, days=90):
    return loop.create_bundle(fleet.registry, tenant=T0, by=ANNA, group=GROUP, valid_days=days, reason="the hills")


def reads(bundle, device=CAM):
    """How a device reads the stick: (image file, director file)."""

    def find(path: str) -> bytes:
        if path not in bundle.files:
            raise NotFoundError(path)
        return bundle.files[path]

    def director(name: str) -> bytes:
        return find(f"{DIRECTOR}/{name}" if ROOT_NAME.fullmatch(name) else f"{DEVICES}/{device}/{name}")

    return lambda name: find(f"{IMAGE}/{name}"), director


def on_stick(device, bundle):
    device.read_image, device.read_director = reads(bundle, device.device)
    return device


def test_a_stick_names_the_release_files_and_how_long_it_holds(fleet, tmp_path):
    fleet.campaign()
    made = stick(fleet, days=60)
    index = read_bundle_index(made.files[INDEX])
    assert (index.tenant, index.group, index.devices) == (T0, GROUP, (CAM,))
    assert index.valid_until == to_unix_ms(made.valid_until) == to_unix_ms(fleet.now + timedelta(days=60)) // 1000 * 1000
    assert made.idle == ()
    line = on_stick(fleet.trust_device(tmp_path, CAM), made).check().lines[0]
    assert {file.sha256 for file in line.targets} == set(made.blobs)
    assert all(fleet.registry.blobs.size(digest) == length for digest, length in made.blobs.items())


def test_blobs_of_a_stick_are_read_by_their_tenant_alone(fleet):
    fleet.campaign()
    digest, length = next(iter(stick(fleet).blobs.items()))
    size, chunks = loop.open_bundle_blob(fleet.registry, tenant=T0, digest=digest)
    assert (size, sum(map(len, chunks))) == (length, length)
    others = fleet.registry.blobs.put(b"another tenant's")
    for tenant, wanted in ((TenantId("t9"), digest), (T0, others)):
        with pytest.raises(NotFoundError):
            loop.open_bundle_blob(fleet.registry, tenant=tenant, digest=wanted)


@on_sqlite
def test_a_stick_holds_its_days_when_everything_online_has_expired(fleet, tmp_path, clock):
    fleet.campaign()
    made = stick(fleet, days=90)
    clock.advance(86_400 * 89)
    assert on_stick(fleet.trust_device(tmp_path, CAM), made).check().lines
    clock.advance(86_400 * 2)
    with pytest.raises(TrustError) as caught:
        on_stick(fleet.trust_device(tmp_path / "later", CAM), made).check()
    assert caught.value.code == "freeze"


@on_sqlite
def test_no_longer_than_the_offline_roles_hold(fleet):
    fleet.campaign()
    assert stick(fleet, days=366).valid_until <= fleet.now + timedelta(days=365)


@on_sqlite
def test_a_device_goes_from_the_network_to_a_stick_and_back(fleet, tmp_path, clock):
    fleet.campaign()
    device = fleet.trust_device(tmp_path, CAM)
    online = device.read_image, device.read_director
    device.check()
    made = stick(fleet)
    carried = on_stick(device, made).check().metadata_versions
    device.read_image, device.read_director = online
    served = device.check().metadata_versions
    # never equal: the longer life of the stick's metadata would hide a freeze of what is online
    for role in ("image.timestamp", "image.snapshot", "director.timestamp", "director.targets"):
        assert served[role] > carried[role], role
    with pytest.raises(TrustError) as caught:
        on_stick(device, made).check()
    assert caught.value.code == "rollback"
    clock.advance(60)
    on_stick(device, stick(fleet)).check()


@on_sqlite
def test_a_stick_made_later_wins_over_one_made_earlier(fleet, tmp_path):
    fleet.campaign()
    first, second = stick(fleet), stick(fleet)
    device = fleet.trust_device(tmp_path, CAM)
    on_stick(device, first).check()
    on_stick(device, second).check()
    with pytest.raises(TrustError):
        on_stick(device, first).check()


@on_sqlite
def test_another_devices_part_of_the_stick_is_refused(fleet, tmp_path):
    fleet.enroll("cam-2")
    fleet.campaign()
    made = stick(fleet)
    thief = on_stick(fleet.trust_device(tmp_path, DeviceId("cam-2")), made)
    thief.read_director = reads(made, CAM)[1]
    with pytest.raises(TrustError) as caught:
        thief.check()
    assert caught.value.code == "wrong-device"


@on_sqlite
def test_a_device_without_an_assignment_is_named_as_idle(fleet):
    assert stick(fleet).idle == (CAM,)


def test_making_a_stick_is_audited_and_what_makes_no_sense_is_refused(fleet):
    stick(fleet)
    with fleet.registry.database.reading() as tx:
        entry = audit.list_entries(tx, T0, limit=1)[0]
    assert (entry.action, entry.subject, entry.reason, entry.detail["devices"]) == ("bundle.created", "group/cameras", "the hills", 1)
    for days in (0, 367):
        with pytest.raises(InvalidError):
            stick(fleet, days=days)
    with pytest.raises(NotFoundError):
        loop.create_bundle(fleet.registry, tenant=T0, by=ANNA, group=GroupName("nobody"), valid_days=1)
    with pytest.raises(NotFoundError):
        loop.create_bundle(fleet.registry, tenant=TenantId("t9"), by=ANNA, group=GROUP, valid_days=1)
    groups.create_group(fleet.registry.database, tenant=T0, name="empty", by=ANNA, now=fleet.now, site=None)
    with pytest.raises(ConflictError):
        loop.create_bundle(fleet.registry, tenant=T0, by=ANNA, group=GroupName("empty"), valid_days=1)


# --- reports on a stick ---


@pytest.fixture
def named(make_fleet):
    """A fleet whose release is only named: reports do not look at files."""
    made = make_fleet(CAM)
    made.release("1.0")
    return made


def envelope(fleet, *, counter=1, key=None, device=CAM, **changes):
    assigned = fleet.assigned(CAM)
    release = loop.release_store
    with fleet.registry.database.reading() as tx:
        found = release.get_release(tx, T0, assigned.line, assigned.version)
    slot = SlotReport(
        line=found.line,
        slot="a",
        active=True,
        committed=True,
        release=found.version,
        counter=found.counter,
        sha256=found.variants[0].model_file.sha256,
    )
    values = {
        "device": device,
        "tenant": T0,
        "boot_id": "b",
        "report_counter": counter,
        "time": to_unix_ms(fleet.now),
        "time_floor": 0,
        "assignment": assigned.assignment,
        "attempt": 1,
        "update_state": "succeeded",
        "slots": [slot],
        "healthy_inferences": 1000,
    }
    return sign_report(key or fleet.keys[CAM], VersionReport(**(values | changes)))


def bring(fleet, document, device=CAM):
    return loop.import_report(fleet.registry, tenant=T0, by=ANNA, device=device, envelope=document)


def test_a_report_that_was_brought_counts_like_one_that_was_sent_and_says_how_it_came(named):
    made = named.campaign()
    bring(named, envelope(named))
    assert named.states(made) == {"cam-1": "updated"}
    stored = campaigns.find_report(named.registry.database, T0, CAM)
    assert (stored.channel, stored.is_stale) == (ReportChannel.BUNDLE, False)
    with named.registry.database.reading() as tx:
        actions = {entry.action: str(entry.actor) for entry in audit.list_entries(tx, T0, limit=5)}
    assert actions["report.imported"] == str(ANNA)
    assert "update.updated" in actions


def test_bringing_it_again_or_an_older_one_is_a_conflict_and_changes_nothing(named):
    named.campaign()
    later, earlier = envelope(named, counter=7), envelope(named, counter=6, update_state="failed")
    bring(named, later)
    before = campaigns.find_report(named.registry.database, T0, CAM)
    for document in (later, earlier):
        with pytest.raises(ConflictError) as caught:
            bring(named, document)
        assert caught.value.code == "report-counter"
    assert campaigns.find_report(named.registry.database, T0, CAM) == before


def test_reports_that_the_device_did_not_sign_are_refused_and_audited(named):
    named.campaign()
    stranger = ec.generate_private_key(ec.SECP256R1())
    forged = envelope(named).model_copy(update={"payload": "e30="})
    for document in (envelope(named, key=stranger), envelope(named, device="cam-2"), forged):
        with pytest.raises(ForbiddenError):
            bring(named, document)
    assert campaigns.find_report(named.registry.database, T0, CAM) is None
    with named.registry.database.reading() as tx:
        assert [entry.action for entry in audit.list_entries(tx, T0, limit=3)] == ["report.refused"] * 3


def test_a_revoked_or_unknown_devices_reports_are_refused(named):
    named.campaign()
    document = envelope(named)
    with pytest.raises(NotFoundError):
        bring(named, document, device=DeviceId("cam-9"))
    devices.revoke_device(named.registry.database, tenant=T0, device=CAM, by=ANNA, now=named.now)
    with pytest.raises(ForbiddenError):
        bring(named, document)


def test_a_stick_with_a_report_does_not_disturb_the_nonces_of_a_device_that_is_online_again(named):
    named.campaign()
    first = loop.take_report(named.registry, identity=named.identity(CAM), envelope=envelope(named, counter=1), now=named.now)
    bring(named, envelope(named, counter=2))
    answer = loop.take_report(
        named.registry, identity=named.identity(CAM), envelope=envelope(named, counter=3, nonce=first.nonce), now=named.now
    )
    assert not answer.stale


# --- nonces online ---


def send(fleet, **values):
    return loop.take_report(fleet.registry, identity=fleet.identity(CAM), envelope=envelope(fleet, **values), now=fleet.now)


def test_a_report_carries_the_nonce_given_last_or_the_one_before(named):
    made = named.campaign()
    first = send(named, counter=1, update_state="downloading", slots=[])
    second = send(named, counter=2, nonce=first.nonce, update_state="downloading", slots=[])
    assert not second.stale
    # the answer to the last one was lost on its way
    third = send(named, counter=3, nonce=first.nonce)
    assert not third.stale
    assert named.states(made) == {"cam-1": "updated"}


@pytest.mark.parametrize("nonce", ["", "made-up", "first"])
def test_a_report_with_another_nonce_is_kept_as_stale_and_counts_for_nothing(named, nonce):
    made = named.campaign()
    nonces = [""]
    for counter in (1, 2, 3):
        nonces.append(send(named, counter=counter, nonce=nonces[-1], update_state="downloading", slots=[]).nonce)
    answer = send(named, counter=4, nonce=nonces[1] if nonce == "first" else nonce)
    assert answer.stale
    assert named.states(made) == {"cam-1": "assigned"}
    stored = campaigns.find_report(named.registry.database, T0, CAM)
    assert (stored.is_stale, stored.report.report_counter) == (True, 4)
    assert not send(named, counter=5, nonce=answer.nonce).stale
    assert named.states(made) == {"cam-1": "updated"}


def test_a_report_that_names_a_slot_twice_and_lines_that_nobody_has_is_taken(named):
    named.campaign()
    one = SlotReport(line="nobodys", slot="a", active=True, committed=True, release="9", counter=9, sha256=digest_of(b"x"))
    send(named, slots=[one, one])
    with named.registry.database.reading() as tx:
        assert [slot.line for slot in campaign_store.list_slots(tx, T0, CAM)] == ["nobodys"]
        assert [job.payload["line"] for job in jobs.list_jobs(tx, T0, kind="build_deltas")] == ["digits"]


def test_a_server_that_lost_its_record_gives_a_nonce_and_then_counts(named):
    made = named.campaign()
    answer = send(named, counter=9, nonce=f"{random.Random(1).getrandbits(64):x}")  # noqa: S311 - any text
    assert answer.stale
    assert not send(named, counter=10, nonce=answer.nonce).stale
    assert named.states(made) == {"cam-1": "updated"}
