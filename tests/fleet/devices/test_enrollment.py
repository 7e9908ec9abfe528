"""Enrollment: one invitation, one device; distinct errors for who holds the token, none for who does not."""

import base64
import hashlib
import threading
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from simulators.enrolling import EnrollingDevice

from fleet import audit, jobs
from fleet.config import LimitsConfig
from fleet.devices import enrollment, groups, service, store, twins
from fleet.devices.enrollment import parse_token, token_text
from fleet.devices.model import DeviceState
from fleet.devices.pki import public_key_pem
from protocol.errors import ConflictError, InvalidError, NotFoundError, UnauthenticatedError
from protocol.ids import DeviceId, DeviceTypeName, GroupName, TenantId

from .conftest import ANNA, NOW, T0, T1


def _refused(world, request, kind, *, now=NOW):
    with pytest.raises(kind) as caught:
        world.enroll(request, now=now)
    return caught.value.code


def _serial(response):
    return str(x509.load_pem_x509_certificate(response.certificate_pem.encode()).serial_number)


def test_a_device_gets_its_identity_and_the_change_is_audited(world):
    device, invite = EnrollingDevice(device="cam-1"), world.invite()
    response = world.enroll(device.request(invite.text))
    assert (response.device, response.tenant, response.group) == ("cam-1", "t0", "default")
    assert base64.b64decode(response.director_root) == b"t0"
    certificate = x509.load_pem_x509_certificate(response.certificate_pem.encode())
    assert certificate.subject.rfc4514_string() == "CN=cam-1"
    assert certificate.public_key() == device.key.public_key()
    kept = service.get_device(world.database, T0, DeviceId("cam-1"))
    assert (kept.state, kept.site, dict(kept.hardware), kept.agent_version) == (DeviceState.ENROLLED, "default", {"cpu": "test"}, "0.1.0")
    with world.database.reading() as tx:
        newest = audit.list_entries(tx, T0, limit=1)[0]
        audit.verify(tx, T0)
    assert (newest.action, newest.subject, str(newest.actor)) == ("device.enrolled", "device/cam-1", "device:cam-1")
    assert newest.detail["invite"] == invite.token_id
    assert newest.detail["invited_by"] == "person:anna"


def test_a_device_without_a_wish_gets_an_id(world):
    response = world.enroll(EnrollingDevice().request(world.invite().text))
    assert response.device.startswith("dev-")


def test_the_token_carries_the_pin_of_the_authority_and_its_secret_is_nowhere_stored(world):
    invite = world.invite()
    presented = parse_token(invite.text)
    assert presented.pin == world.authority.pin
    assert (presented.tenant, presented.token_id) == (T0, invite.token_id)
    with world.database.transaction() as tx:
        kept = store.find_token(tx, T0, invite.token_id)
    assert kept.secret_sha256 == hashlib.sha256(presented.secret.encode()).hexdigest()
    assert presented.secret not in repr(kept)


@pytest.mark.parametrize("text", ["", "mrg1", "mrg1.t0.inv-1.secret", "mrg2.t0.inv-1.0123456789abcdef." + "0" * 64, "a\x00b", "x" * 200])
def test_a_malformed_token_is_refused_without_repeating_it(world, text):
    with pytest.raises(InvalidError, match="malformed") as caught:
        world.enroll(EnrollingDevice().request(text))
    assert caught.value.code == "token-malformed"


def test_unknown_and_foreign_and_wrong_tokens_look_alike(world):
    mine, pin = parse_token(world.invite().text), world.authority.pin
    texts = {
        "no such invitation": token_text(T0, "inv-0123", mine.secret, pin),
        "another secret": token_text(T0, mine.token_id, "0" * 32, pin),
        "another tenant's": token_text(T1, mine.token_id, mine.secret, pin),
        "no such tenant": token_text(TenantId("nobody"), mine.token_id, mine.secret, pin),
    }
    messages = set()
    for text in texts.values():
        with pytest.raises(UnauthenticatedError) as caught:
            world.enroll(EnrollingDevice().request(text))
        messages.add((caught.value.code, str(caught.value)))
    assert len(messages) == 1


def test_a_used_token_is_refused_for_another_key(world):
    token = world.invite().text
    world.enroll(EnrollingDevice(device="cam-1").request(token))
    assert _refused(world, EnrollingDevice(device="cam-2").request(token), ConflictError) == "token-used"
    assert _refused(world, EnrollingDevice(device="cam-1").request(token), ConflictError) == "token-used"


def test_a_device_that_lost_the_answer_may_ask_again_with_its_key(world):
    device, token = EnrollingDevice(device="cam-1"), world.invite().text
    lost = world.enroll(device.request(token))
    again = world.enroll(device.request(token))
    assert again.device == "cam-1"
    with pytest.raises(UnauthenticatedError, match="newer certificate"):
        enrollment.authenticate(world.database, device="cam-1", serial=_serial(lost), now=NOW)
    assert enrollment.authenticate(world.database, device="cam-1", serial=_serial(again), now=NOW).device == "cam-1"


def test_an_expired_token_is_refused_also_for_asking_again(world):
    device, token = EnrollingDevice(device="cam-1"), world.invite(valid_s=60).text
    late = NOW + timedelta(seconds=60)
    assert _refused(world, device.request(token), ConflictError, now=late) == "token-expired"
    world.enroll(device.request(token))
    assert _refused(world, device.request(token), ConflictError, now=late) == "token-used"


def test_another_device_type_is_refused_and_the_token_stays_usable(world):
    token = world.invite().text
    assert _refused(world, EnrollingDevice(device_type="linux-arm64").request(token), ConflictError) == "token-type-mismatch"
    world.enroll(EnrollingDevice().request(token))


def test_a_token_for_one_device_serves_no_other(world):
    token = world.invite(device=DeviceId("cam-1")).text
    assert _refused(world, EnrollingDevice(device="cam-2").request(token), ConflictError) == "token-device-mismatch"
    assert world.enroll(EnrollingDevice().request(token)).device == "cam-1"


def test_a_taken_id_is_refused_in_the_same_words_for_every_tenant(world):
    world.add_device("cam-1")
    texts = set()
    for tenant in (T0, T1):
        with pytest.raises(ConflictError) as caught:
            world.enroll(EnrollingDevice(device="cam-1").request(world.invite(tenant=tenant).text))
        assert caught.value.code == "device-exists"
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_a_refused_enrollment_leaves_nothing_behind(world):
    world.add_device("cam-1")
    invite = world.invite()
    with world.database.reading() as tx:
        before = audit.head(tx, T0)
    assert _refused(world, EnrollingDevice(device="cam-1").request(invite.text), ConflictError) == "device-exists"
    with world.database.transaction() as tx:
        assert audit.head(tx, T0) == before
        assert store.find_token(tx, T0, invite.token_id).used_at is None
    world.enroll(EnrollingDevice(device="cam-2").request(invite.text))


def test_two_threads_with_one_token_make_exactly_one_device(world):
    token, barrier = world.invite().text, threading.Barrier(4)
    won, lost = [], []

    def run(number):
        request = EnrollingDevice(device=f"cam-{number}").request(token)
        barrier.wait(120)
        try:
            won.append(world.enroll(request).device)
        except ConflictError as error:
            lost.append(error.code)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), lost) == (1, ["token-used"] * 3)
    assert [one.device for one in service.list_devices(world.database, T0)] == won


def test_two_threads_with_two_tokens_and_one_id_make_exactly_one_device(world):
    tokens, barrier = [world.invite().text, world.invite(tenant=T1).text], threading.Barrier(2)
    outcomes = []

    def run(token):
        request = EnrollingDevice(device="cam-1").request(token)
        barrier.wait(120)
        try:
            outcomes.append(world.enroll(request).device)
        except ConflictError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=run, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["cam-1", "device-exists"]


def test_an_invitation_for_its_id_lets_a_device_enroll_again_and_keeps_its_place(world):
    first = world.add_device("cam-1")
    groups.create_group(world.database, tenant=T0, name="yard", by=ANNA, now=NOW)
    service.move_device(world.database, tenant=T0, device=DeviceId("cam-1"), group=GroupName("yard"), by=ANNA, now=NOW)
    twins.set_secret(world.database, tenant=T0, device=DeviceId("cam-1"), name="cam", plaintext=b"a:b", by=ANNA, now=NOW)
    rev = twins.get_desired(world.database, T0, DeviceId("cam-1")).rev
    second = EnrollingDevice()
    response = world.enroll(second.request(world.invite(device=DeviceId("cam-1")).text))
    detail = service.get_detail(world.database, T0, DeviceId("cam-1"))
    assert response.group == "yard"
    assert (detail.device.group, detail.secret_names) == ("yard", ())
    assert detail.device.public_key == public_key_pem(second.key.public_key()) != public_key_pem(first.key.public_key())
    assert detail.twin.desired_rev > rev  # the old secret is gone from what it should be like


def test_a_revoked_device_comes_back_with_an_invitation_of_its_own(world):
    device, token = EnrollingDevice(device="cam-1"), world.invite().text
    serial = _serial(world.enroll(device.request(token)))
    service.revoke_device(world.database, tenant=T0, device=DeviceId("cam-1"), by=ANNA, now=NOW, reason="stolen")
    with pytest.raises(UnauthenticatedError, match="revoked"):
        enrollment.authenticate(world.database, device="cam-1", serial=serial, now=NOW)
    assert service.list_revoked_serials(world.database, now=NOW) == [(serial, NOW)]
    assert _refused(world, device.request(token), ConflictError) == "token-used"
    assert _refused(world, device.request(world.invite().text), ConflictError) == "device-exists"
    response = world.enroll(device.request(world.invite(device=DeviceId("cam-1")).text))
    assert enrollment.authenticate(world.database, device="cam-1", serial=_serial(response), now=NOW).device == "cam-1"


def test_another_tenants_invitation_cannot_take_a_device_over(world):
    world.add_device("cam-1")
    invite = world.invite(tenant=T1, device=DeviceId("cam-1"))
    assert _refused(world, EnrollingDevice().request(invite.text), ConflictError) == "device-exists"


def test_an_invitation_of_another_type_for_an_existing_device_is_refused(world):
    world.add_device("cam-1")
    with pytest.raises(ConflictError, match="is of type 'linux-x86-64'"):
        world.invite(device=DeviceId("cam-1"), device_type=DeviceTypeName("linux-arm64"))


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"group": GroupName("nowhere")}, NotFoundError, "no group 'nowhere'"),
        ({"device_type": DeviceTypeName("toaster")}, NotFoundError, "linux-arm64"),
        ({"valid_s": 0}, InvalidError, "at most 90 days"),
        ({"device": DeviceId("Bad Name")}, InvalidError, "not a valid name"),
    ],
)
def test_an_impossible_invitation_is_refused(world, changes, kind, text):
    with pytest.raises(kind, match=text):
        world.invite(**changes)


def test_a_withdrawn_invitation_is_worth_nothing(world):
    invite = world.invite()
    enrollment.withdraw_invite(world.database, tenant=T0, token_id=invite.token_id, by=ANNA, now=NOW)
    assert _refused(world, EnrollingDevice().request(invite.text), UnauthenticatedError) == "token-unknown"
    with pytest.raises(NotFoundError):
        enrollment.withdraw_invite(world.database, tenant=T0, token_id=invite.token_id, by=ANNA, now=NOW)
    assert enrollment.list_invites(world.database, T0) == []


def test_a_sealing_key_that_the_device_did_not_sign_is_refused(world):
    device, other = EnrollingDevice(), EnrollingDevice()
    swapped = other.request("x").sealing_key
    assert _refused(world, device.request(world.invite().text, sealing_key=swapped), InvalidError) == "sealing-key-invalid"
    short = base64.b64encode(b"short").decode()
    signature = base64.b64encode(device.key.sign(b"short", ec.ECDSA(hashes.SHA256()))).decode()
    request = device.request(world.invite().text, sealing_key=short, sealing_signature=signature)
    assert _refused(world, request, InvalidError) == "sealing-key-invalid"


def test_a_request_with_another_kind_of_key_is_refused(world):
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = request.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    assert _refused(world, EnrollingDevice().request(world.invite().text, csr_pem=pem), InvalidError) == "csr-invalid"
    assert _refused(world, EnrollingDevice().request(world.invite().text, csr_pem="nonsense"), InvalidError) == "csr-invalid"


def test_what_a_database_cannot_keep_is_taken_out_of_the_hardware(world):
    world.enroll(EnrollingDevice(device="cam-1").request(world.invite().text, hardware={"c\x00pu": "x\x00y"}, agent_version="1\x00"))
    kept = service.get_device(world.database, T0, DeviceId("cam-1"))
    assert (dict(kept.hardware), kept.agent_version) == ({"cpu": "xy"}, "1")


def test_enrollment_tells_the_device_its_desired_config_by_a_job(world):
    groups.change_group(
        world.database,
        tenant=T0,
        name=groups.DEFAULT_GROUP,
        config=twins.ConfigPatch.model_validate({"update": {"poll_s": 60}}),
        by=ANNA,
        now=NOW,
    )
    world.add_device("cam-1")
    with world.database.transaction() as tx:
        kinds = {job.kind: dict(job.payload) for job in jobs.list_jobs(tx, T0)}
    assert kinds[twins.PUBLISH_DESIRED] == {"tenant": "t0", "device": "cam-1"}


def test_a_certificate_of_nobody_is_refused(world):
    with pytest.raises(UnauthenticatedError, match="No device 'ghost'"):
        enrollment.authenticate(world.database, device="ghost", serial="1", now=NOW)


def test_the_old_certificate_serves_until_the_first_use_of_the_new_one(world):
    device = EnrollingDevice(device="cam-1")
    old = _serial(world.enroll(device.request(world.invite().text)))
    identity = enrollment.authenticate(world.database, device="cam-1", serial=old, now=NOW)
    renewed = EnrollingDevice()
    issued = enrollment.renew_certificate(world.database, world.authority, identity=identity, csr_pem=renewed.csr_pem(), now=NOW)
    still = enrollment.authenticate(world.database, device="cam-1", serial=old, now=NOW)
    assert still.public_key == public_key_pem(device.key.public_key())
    fresh = enrollment.authenticate(world.database, device="cam-1", serial=issued.serial, now=NOW)
    assert fresh.public_key == public_key_pem(renewed.key.public_key())
    with pytest.raises(UnauthenticatedError, match="newer certificate"):
        enrollment.authenticate(world.database, device="cam-1", serial=old, now=NOW)
    assert enrollment.authenticate(world.database, device="cam-1", serial=issued.serial, now=NOW) == fresh


def test_a_second_renewal_makes_the_first_unused_one_worthless(world):
    device = EnrollingDevice(device="cam-1")
    old = _serial(world.enroll(device.request(world.invite().text)))
    identity = enrollment.authenticate(world.database, device="cam-1", serial=old, now=NOW)
    first, second = (
        enrollment.renew_certificate(world.database, world.authority, identity=identity, csr_pem=device.csr_pem(), now=NOW)
        for _ in range(2)
    )
    with pytest.raises(UnauthenticatedError, match="newer certificate"):
        enrollment.authenticate(world.database, device="cam-1", serial=first.serial, now=NOW)
    enrollment.authenticate(world.database, device="cam-1", serial=second.serial, now=NOW)


def test_ingest_knows_enrolled_devices_of_a_batch(world):
    world.add_device("cam-1")
    world.add_device("cam-2")
    service.revoke_device(world.database, tenant=T0, device=DeviceId("cam-2"), by=ANNA, now=NOW)
    asked = [(T0, DeviceId("cam-1")), (T1, DeviceId("cam-1")), (T0, DeviceId("cam-2")), (T0, DeviceId("ghost"))]
    with world.database.reading() as tx:
        assert store.filter_enrolled(tx, asked) == {(T0, "cam-1")}
        assert store.find_tenant_of(tx, DeviceId("cam-1")) == T0
        assert store.find_tenant_of(tx, DeviceId("cam-2")) is None


def test_open_invitations_have_a_limit_and_expired_ones_do_not_count(world):
    few = LimitsConfig(pending_invites=1)
    world.invite(valid_s=60, limits=few)
    with pytest.raises(ConflictError, match=r"limits\.pending_invites"):
        world.invite(limits=few)
    world.invite(limits=few, now=NOW + timedelta(seconds=61))
