"""The certificate authority: real TLS accepts what it makes and refuses what it does not."""

import base64
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from simulators.enrolling import EnrollingDevice

from fleet.config import PkiConfig
from fleet.devices.pki import check_request, load_public_key, open_authority, public_key_pem
from protocol.errors import ConfigError, InvalidError
from protocol.ids import DeviceId


@pytest.fixture
def own(tmp_path):
    return open_authority(tmp_path / "pki", PkiConfig())


def _client_context(authority, certificate=None, key=None):
    context = ssl.create_default_context(cafile=str(authority.ca_path))
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def _handshake(server_context, client_context, server_name="localhost"):
    """The client's certificate as the server saw it. Raises what the client or the server raised."""
    left, right = socket.socketpair()
    seen, errors = [], []

    def serve():
        try:
            with server_context.wrap_socket(left, server_side=True) as tls:
                seen.append(tls.getpeercert())
                tls.sendall(b"x")
        except (ssl.SSLError, OSError) as error:
            errors.append(error)
        finally:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client_context.wrap_socket(right, server_hostname=server_name) as tls:
            assert tls.recv(1) == b"x"
    finally:
        right.close()
        thread.join()
    if errors:
        raise errors[0]
    return seen[0]


def _server_context(authority):
    pair = authority.ensure_server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority.ca_path)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_device_and_the_server_accept_each_other_over_tls(own, tmp_path):
    device = EnrollingDevice()
    (tmp_path / "d.pem").write_text(own.issue_device(DeviceId("cam-1"), device.key.public_key()).pem)
    (tmp_path / "d-key.pem").write_bytes(_key_pem(device))
    seen = _handshake(_server_context(own), _client_context(own, tmp_path / "d.pem", tmp_path / "d-key.pem"))
    assert seen["subject"] == ((("commonName", "cam-1"),),)


def _key_pem(device):
    return device.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.mark.parametrize("principal", ["fleet.ingest", "fleet.controller", "consumer.home"])
def test_a_service_has_a_name_that_no_device_can_have(own, principal):
    pair = own.ensure_service(principal)
    seen = _handshake(_server_context(own), _client_context(own, pair.certificate, pair.key))
    assert seen["subject"] == ((("commonName", principal),),)
    with pytest.raises(InvalidError, match="not a valid name"):
        own.issue_device(DeviceId(principal), EnrollingDevice().key.public_key())


@pytest.mark.parametrize("principal", ["fleet.admin", "consumer.", "consumer.a.b", "consumer./../x", "cam-1", ""])
def test_a_name_of_no_service_is_refused(own, principal):
    with pytest.raises(InvalidError):
        own.ensure_service(principal)


def test_a_client_certificate_does_not_serve_as_a_server(own):
    pair = own.ensure_service("fleet.ingest")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(context, _client_context(own))


def test_a_server_of_another_authority_is_refused(own, tmp_path):
    other = open_authority(tmp_path / "other", PkiConfig())
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(_server_context(other), _client_context(own))


def test_a_server_under_another_name_is_refused(own):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"fleet\.example"):
        _handshake(_server_context(own), _client_context(own), "fleet.example")


def test_names_and_addresses_of_the_config_are_in_the_server_certificate(tmp_path):
    authority = open_authority(tmp_path / "pki", PkiConfig(names=("fleet.example", "10.1.2.3", "::1")))
    certificate = x509.load_pem_x509_certificate(authority.ensure_server(extra_names=["more.example"]).certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example", "more.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "::1"]


def test_a_server_certificate_is_kept_while_it_fits_and_made_anew_when_names_change(tmp_path):
    authority = open_authority(tmp_path / "pki", PkiConfig(names=("a.example",)))
    first = authority.ensure_server().certificate.read_bytes()
    assert authority.ensure_server().certificate.read_bytes() == first
    assert authority.ensure_server(extra_names=["b.example"]).certificate.read_bytes() != first


def test_a_damaged_server_certificate_is_made_anew(own):
    pair = own.ensure_server()
    pair.certificate.write_bytes(b"damaged")
    own.ensure_server()
    assert x509.load_pem_x509_certificate(pair.certificate.read_bytes())


def test_an_authority_is_made_once_and_opened_again(tmp_path):
    found, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.append(open_authority(tmp_path / "pki", PkiConfig()).pin)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_keys_are_readable_by_their_owner_only(own):
    own.ensure_server()
    own.ensure_service("fleet.ingest")
    keys = list(own.folder.glob("*-key.pem"))
    assert len(keys) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


@pytest.mark.parametrize("damage", ["no key", "another key", "no PEM"])
def test_a_damaged_authority_is_refused_not_replaced(tmp_path, damage):
    folder = tmp_path / "pki"
    open_authority(folder, PkiConfig())
    match damage:
        case "no key":
            (folder / "ca-key.pem").unlink()
        case "another key":
            open_authority(tmp_path / "other", PkiConfig())
            (folder / "ca-key.pem").write_bytes((tmp_path / "other" / "ca-key.pem").read_bytes())
        case _:
            (folder / "ca.pem").write_bytes(b"nonsense")
    before = (folder / "ca.pem").read_bytes()
    with pytest.raises(ConfigError, match="backup"):
        open_authority(folder, PkiConfig())
    assert (folder / "ca.pem").read_bytes() == before


def test_a_revoked_certificate_is_refused_by_openssl(own, tmp_path):
    device, pair = EnrollingDevice(), own.ensure_server()
    issued = own.issue_device(DeviceId("cam-1"), device.key.public_key())
    (tmp_path / "d.pem").write_text(issued.pem)
    (tmp_path / "d-key.pem").write_bytes(_key_pem(device))
    (tmp_path / "crl.pem").write_bytes(own.revocation_list([(issued.serial, datetime.now(UTC))]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(own.ca_path)
    context.load_verify_locations(tmp_path / "crl.pem")
    context.verify_mode, context.verify_flags = ssl.CERT_REQUIRED, ssl.VERIFY_CRL_CHECK_LEAF
    with pytest.raises((ssl.SSLError, ConnectionResetError), match=r"revoked|reset"):
        _handshake(context, _client_context(own, tmp_path / "d.pem", tmp_path / "d-key.pem"))
    service = own.ensure_service("fleet.ingest")
    assert _handshake(context, _client_context(own, service.certificate, service.key))


def test_a_device_certificate_lives_as_long_as_the_config_says(tmp_path):
    authority = open_authority(tmp_path / "pki", PkiConfig(device_days=30))
    issued = authority.issue_device(DeviceId("cam-1"), EnrollingDevice().key.public_key())
    left = issued.not_after - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)


def test_public_keys_survive_as_text():
    key = EnrollingDevice().key.public_key()
    assert load_public_key(public_key_pem(key)) == key
    with pytest.raises(InvalidError):
        load_public_key("nonsense")


def test_a_request_changed_on_its_way_is_refused():
    pem = EnrollingDevice().csr_pem()
    assert check_request(pem)
    der = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(serialization.Encoding.DER))
    der[-5] ^= 1
    changed = f"-----BEGIN CERTIFICATE REQUEST-----\n{base64.encodebytes(bytes(der)).decode()}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(InvalidError, match=r"not signed by its own key|cannot be read"):
        check_request(changed)
