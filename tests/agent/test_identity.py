"""Enrollment gives a whole identity or none, and every refusal says what was seen and what to do."""

import shutil
import socket
import ssl
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from simulators.authority import DAY, Authority
from simulators.device_api import DeviceApi
from simulators.proxy import Proxy

from agent import identity
from agent.identity import (
    EnrollmentWish,
    certificate_life,
    enroll,
    is_renewal_due,
    load_identity,
    open_client,
    parse_token,
    renew_certificate,
)
from protocol.errors import ConflictError, DeviceError, InvalidError, TransferError, TrustError, UnauthenticatedError


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def api(tmp_path, authority):
    with DeviceApi(tmp_path, authority) as server:
        yield server


def wish(api: DeviceApi, token: str, **changes: Any) -> EnrollmentWish:
    return EnrollmentWish(**{"server": api.url, "token": parse_token(token), "device_type": "sim", "device": "cam-1", **changes})


def leftovers(folder):
    return sorted(path.name for path in folder.parent.glob("identity*"))


def test_enrollment_writes_a_whole_identity_with_private_keys_for_the_owner_only(tmp_path, api):
    folder = tmp_path / "state" / "identity"
    found = enroll(folder, wish(api, api.invite()))
    assert found == load_identity(folder)
    assert (found.device, found.tenant, found.enrollment.device_type, found.enrollment.group) == ("cam-1", "t0", "sim", "lab")
    assert {path.name for path in folder.iterdir()} == {
        "device-key.pem", "device-cert.pem", "ca.pem", "sealing-key.bin", "enrollment.json", "image-root.json", "director-root.json",
    }  # fmt: skip
    assert {(folder / name).stat().st_mode & 0o777 for name in ("device-key.pem", "sealing-key.bin")} == {0o600}
    assert leftovers(folder) == ["identity"]
    certificate = x509.load_pem_x509_certificate(found.certificate_path.read_bytes())
    assert certificate.public_key() == found.signing_key().public_key()
    assert isinstance(found.tls_context(), ssl.SSLContext)


def test_the_keys_never_leave(tmp_path, api):
    folder = tmp_path / "identity"
    found = enroll(folder, wish(api, api.invite()))
    sent = api.requests[0].model_dump_json()
    assert "PRIVATE" not in sent
    assert found.sealing_key().hex() not in sent
    assert len(found.sealing_key()) == 32


def test_the_sealing_key_is_bound_to_the_identity_key(tmp_path, api):
    import base64

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    found = enroll(tmp_path / "identity", wish(api, api.invite()))
    request = api.requests[0]
    public = found.signing_key().public_key()
    public.verify(base64.b64decode(request.sealing_signature), base64.b64decode(request.sealing_key), ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("state", ["wrong", "used"])
def test_a_wrong_or_used_token_is_refused_in_the_servers_words_and_leaves_nothing(tmp_path, api, state):
    token = api.invite()
    api.tokens[token] = False
    if state == "wrong":
        token = f"mrg1.t0.tok1.{'x' * 32}.{api.authority.sha256}"
    with pytest.raises(UnauthenticatedError, match="wrong, used or expired") as caught:
        enroll(tmp_path / "identity", wish(api, token))
    assert token not in str(caught.value)
    assert leftovers(tmp_path / "identity") == []


def test_a_server_with_another_authority_than_the_token_names_gets_no_token(tmp_path, api):
    token = f"mrg1.t0.tok1.{'s' * 32}.{'0' * 64}"
    with pytest.raises(TrustError, match="somebody may stand in between") as caught:
        enroll(tmp_path / "identity", wish(api, token))
    assert caught.value.code == "wrong-server"
    assert api.requests == []
    assert leftovers(tmp_path / "identity") == []


@pytest.mark.parametrize("text", ["", "mrg1", "mrg2.t0.a.ssssssssssssssssssssss." + "0" * 64, "mrg1.t0.a.secretsecretsecret." + "g" * 64])
def test_what_is_no_token_is_refused_without_repeating_it(text):
    with pytest.raises(InvalidError) as caught:
        parse_token(text)
    assert "secretsecret" not in str(caught.value)


def test_an_enrolled_device_is_not_enrolled_again_unless_forced(tmp_path, api):
    folder = tmp_path / "identity"
    first = enroll(folder, wish(api, api.invite()))
    key = first.key_path.read_bytes()
    with pytest.raises(ConflictError, match="--force"):
        enroll(folder, wish(api, api.invite("b" * 32)))
    assert first.key_path.read_bytes() == key
    second = enroll(folder, wish(api, api.invite("b" * 32), device="cam-2"), force=True)
    assert second.device == "cam-2"
    assert second.key_path.read_bytes() != key
    assert leftovers(folder) == ["identity"]


def test_a_failed_forced_enrollment_keeps_the_old_identity(tmp_path, api):
    folder = tmp_path / "identity"
    enroll(folder, wish(api, api.invite()))
    with pytest.raises(UnauthenticatedError):
        enroll(folder, wish(api, f"mrg1.t0.tok1.{'x' * 32}.{api.authority.sha256}"), force=True)
    assert load_identity(folder).device == "cam-1"


def test_a_lost_answer_is_asked_for_again_with_the_same_key(tmp_path, api):
    def lose(answer):
        raise ConnectionError

    folder = tmp_path / "identity"
    token = api.invite()
    api.tamper = lose
    with pytest.raises(TransferError):
        enroll(folder, wish(api, token))
    with pytest.raises(DeviceError):
        load_identity(folder)
    kept = (tmp_path / "identity.pending" / "device-key.pem").read_bytes()
    api.tamper = lambda answer: answer
    enroll(folder, wish(api, token))
    assert (folder / "device-key.pem").read_bytes() == kept


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cam-9"},
        {"certificate_pem": "nonsense"},
        {"image_root": "e30="},
        {"director_root": "%%"},
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, api, change):
    api.tamper = lambda answer: answer.model_copy(update=change)
    with pytest.raises(TrustError):
        enroll(tmp_path / "identity", wish(api, api.invite()))
    assert leftovers(tmp_path / "identity") == []


def test_a_certificate_for_another_key_is_refused(tmp_path, api):
    certificate, _ = api.authority.issue(tmp_path, "cam-1")
    api.tamper = lambda answer: answer.model_copy(update={"certificate_pem": certificate.read_text()})
    with pytest.raises(TrustError, match="another key"):
        enroll(tmp_path / "identity", wish(api, api.invite()))


def test_a_server_that_does_not_answer_is_a_transfer_error_naming_it(tmp_path, api, free_port):
    with pytest.raises(TransferError, match=f"127.0.0.1:{free_port}") as caught:
        enroll(tmp_path / "identity", wish(api, api.invite(), server=f"https://127.0.0.1:{free_port}"))
    assert "Check the address" in str(caught.value)


def test_an_endless_answer_is_cut_off(tmp_path, api):
    api.answer = lambda *_: (200, b"x" * (identity.MAX_PEM_BYTES + 1))
    with pytest.raises(TransferError, match="more than"):
        enroll(tmp_path / "identity", wish(api, api.invite()))


def test_a_host_that_the_certificate_does_not_name_is_refused(tmp_path, authority):
    with DeviceApi(tmp_path, authority, host="127.0.0.2") as server, pytest.raises(TransferError, match="host name"):
        enroll(tmp_path / "identity", wish(server, server.invite()))


@pytest.mark.parametrize(("starts", "ends"), [(10 * DAY, 20 * DAY), (-20 * DAY, -10 * DAY)])
def test_a_certificate_outside_its_time_points_to_the_clock(tmp_path, authority, starts: timedelta, ends: timedelta):
    class Skewed(Authority):
        def issue(self, folder, name, **options: Any):
            return super().issue(folder, name, **{**options, "starts": starts, "ends": ends})

    with DeviceApi(tmp_path, Skewed()) as server, pytest.raises(TransferError, match="system clock"):
        enroll(tmp_path / "identity", wish(server, server.invite()))


def test_a_server_on_an_ipv6_literal_enrolls(tmp_path, authority):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        server = DeviceApi(tmp_path, authority, host="::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server:
        assert "[::1]" in server.url
        assert enroll(tmp_path / "identity", wish(server, server.invite())).device == "cam-1"


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_enrollment_goes_through_a_proxy(tmp_path, api, scheme):
    with Proxy() as proxy:
        enroll(tmp_path / "identity", wish(api, api.invite(), proxy=proxy.url(scheme)))
        assert proxy.asked[0] == api.url.removeprefix("https://")


def test_a_certificate_is_renewed_in_its_last_third_with_the_same_key(tmp_path, api):
    found = enroll(tmp_path / "identity", wish(api, api.invite()))
    start, end = certificate_life(found)
    assert not is_renewal_due(found, start + (end - start) * 0.6)
    assert is_renewal_due(found, start + (end - start) * 0.7)
    before, key = found.certificate_path.read_bytes(), found.key_path.read_bytes()
    with open_client(found.tls_context(), base_url=api.url, proxy=None, timeout_s=60.0) as client:
        renew_certificate(found, client)
    assert found.certificate_path.read_bytes() != before
    assert found.key_path.read_bytes() == key
    found.tls_context()


def test_a_renewed_certificate_for_somebody_else_is_refused_and_the_old_one_stays(tmp_path, api):
    found = enroll(tmp_path / "identity", wish(api, api.invite()))
    before, api.renews_as = found.certificate_path.read_bytes(), "cam-9"
    with open_client(found.tls_context(), base_url=api.url, proxy=None, timeout_s=60.0) as client, pytest.raises(TrustError, match="cam-1"):
        renew_certificate(found, client)
    assert found.certificate_path.read_bytes() == before


def test_a_device_that_is_not_enrolled_says_how_to(tmp_path):
    with pytest.raises(DeviceError, match="mooring-agent enroll") as caught:
        load_identity(tmp_path / "identity")
    assert caught.value.code == "not-enrolled"


def test_a_cut_between_the_two_renames_leaves_the_old_identity(tmp_path, api):
    folder = tmp_path / "identity"
    enroll(folder, wish(api, api.invite()))
    folder.rename(tmp_path / "identity.old")
    assert load_identity(folder).device == "cam-1"


def test_a_broken_identity_is_named(tmp_path, api):
    folder = tmp_path / "identity"
    found = enroll(folder, wish(api, api.invite()))
    found.key_path.write_text("nonsense")
    with pytest.raises(DeviceError, match=r"device-key\.pem is not a readable key"):
        found.signing_key()
    with pytest.raises(DeviceError, match="cannot be used"):
        found.tls_context()
    (folder / "enrollment.json").write_text("{")
    with pytest.raises(DeviceError, match=r"enrollment\.json cannot be read"):
        load_identity(folder)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, api):
    (tmp_path / "state").write_text("")
    with pytest.raises(DeviceError, match="cannot be written"):
        enroll(tmp_path / "state" / "identity", wish(api, api.invite()))
