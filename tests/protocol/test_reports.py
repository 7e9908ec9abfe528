"""Only what the device's own key signed is a version report."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocol import dsse, reports
from protocol.errors import TrustError
from protocol.messages import DsseEnvelope, DsseSignature, SlotReport, VersionReport

KEY = ec.generate_private_key(ec.SECP256R1())
REPORT = VersionReport(
    device="cam-1",
    tenant="t0",
    boot_id="b",
    report_counter=3,
    time=1,
    time_floor=0,
    update_state="succeeded",
    slots=[SlotReport(line="digits", slot="b", active=True, committed=True, release="1.1", counter=2, sha256="sha256:" + "0" * 64)],
)


def test_a_signed_report_verifies_and_returns_whole():
    envelope = reports.sign_report(KEY, REPORT)
    assert envelope.payloadType == "application/vnd.mooring.version-report.v1+json"
    assert envelope.signatures[0].keyid == dsse.key_id(KEY.public_key())
    assert reports.verify_report(KEY.public_key(), DsseEnvelope.model_validate_json(envelope.model_dump_json())) == REPORT


def test_another_devices_key_is_refused():
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TrustError) as caught:
        reports.verify_report(other.public_key(), reports.sign_report(KEY, REPORT))
    assert caught.value.code == "report-signature"


def test_a_key_id_alone_proves_nothing():
    envelope = reports.sign_report(ec.generate_private_key(ec.SECP256R1()), REPORT)
    forged = envelope.model_copy(
        update={"signatures": [DsseSignature(keyid=dsse.key_id(KEY.public_key()), sig=envelope.signatures[0].sig)]}
    )
    with pytest.raises(TrustError):
        reports.verify_report(KEY.public_key(), forged)


def test_one_good_signature_among_others_is_enough():
    envelope = reports.sign_report(KEY, REPORT)
    bad = DsseSignature(keyid="x", sig=base64.b64encode(b"nothing").decode())
    both = envelope.model_copy(update={"signatures": [bad, *envelope.signatures]})
    assert reports.verify_report(KEY.public_key(), both) == REPORT


@pytest.mark.parametrize("payload", [b"{}", b"not json", b'{"v":2}'])
def test_a_changed_payload_is_refused(payload):
    envelope = reports.sign_report(KEY, REPORT).model_copy(update={"payload": base64.b64encode(payload).decode()})
    with pytest.raises(TrustError) as caught:
        reports.verify_report(KEY.public_key(), envelope)
    assert caught.value.code == "report-signature"


def test_a_signature_for_another_type_is_refused():
    envelope = reports.sign_report(KEY, REPORT).model_copy(update={"payloadType": "application/json"})
    with pytest.raises(TrustError, match="Payload type"):
        reports.verify_report(KEY.public_key(), envelope)


def test_a_signed_document_that_is_no_report_is_refused():
    payload = b'{"device":"cam-1"}'
    signature = KEY.sign(dsse._pre_authentication(reports.PAYLOAD_TYPE, payload), dsse._ALGORITHM)
    envelope = DsseEnvelope(
        payload=base64.b64encode(payload).decode(),
        payloadType=reports.PAYLOAD_TYPE,
        signatures=[DsseSignature(keyid="", sig=base64.b64encode(signature).decode())],
    )
    with pytest.raises(TrustError, match="malformed at"):
        reports.verify_report(KEY.public_key(), envelope)


@pytest.mark.parametrize("text", ["%%%", "é", "A"])
def test_what_is_not_base64_is_refused(text):
    envelope = reports.sign_report(KEY, REPORT)
    with pytest.raises(TrustError, match="base64"):
        reports.verify_report(KEY.public_key(), envelope.model_copy(update={"payload": text}))
    with pytest.raises(TrustError, match="base64"):
        reports.verify_report(KEY.public_key(), envelope.model_copy(update={"signatures": [DsseSignature(keyid="", sig=text)]}))


def test_the_pre_authentication_encoding_is_that_of_the_specification():
    # DSSE protocol.md, "Test vectors"
    assert dsse._pre_authentication("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
