"""Only what the device's own key signed is a recording of that device, to the last bit."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from grids import MODEL, plain_counts, plain_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import dsse, recordings, reports
from protocol.canonical import canonical_json, digest_of
from protocol.errors import InvalidError, MooringError, TrustError
from protocol.ids import DeviceId, TenantId
from protocol.messages import DsseSignature
from protocol.recordings import (
    MAX_ENVELOPE_BYTES,
    MAX_FILE_BYTES,
    PAYLOAD_TYPE,
    RecordingStatement,
    read_recording,
    sign_recording,
    verify_recording,
)
from protocol.sketches import cbor
from protocol.sketches.codec import SketchWindow, Source, encode
from protocol.sketches.recording import decode_recording, encode_recording

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "sketches"
KEY = ec.derive_private_key(91, ec.SECP256R1())
AT = 1_760_000_000_000


def body_of(count: int = 1) -> bytes:
    """A recording of so many sub-windows."""
    grid, none = plain_grid(), np.full(1, np.nan, np.float32)
    windows = (
        SketchWindow("cam", grid.grid_id, MODEL, Source.ACTIVE, 2_990_000 + index, 1, 1, plain_counts(), none) for index in range(count)
    )
    return encode_recording({grid.grid_id.hex(): grid.encoded}, map(encode, windows))


@cache
def signed(key: Any = KEY) -> bytes:
    return sign_recording(key, body_of(), device=DeviceId("cam-1"), tenant=TenantId("t0"), recorded_at_ms=AT)


def verified(data: bytes) -> RecordingStatement:
    return verify_recording(KEY.public_key(), read_recording(data))


def refusal(data: bytes) -> str:
    with pytest.raises(MooringError) as caught:
        verified(data)
    return caught.value.code


def with_envelope(**changes: Any) -> bytes:
    """The file with these parts of its envelope in place of its own."""
    envelope = read_recording(signed()).envelope.model_copy(update=changes)
    return cbor.encode({0: 2, 1: body_of(), 2: canonical_json(envelope.model_dump(mode="json"))})


def test_a_signed_recording_says_whose_it_is_and_when_it_was_made():
    file = read_recording(signed())
    assert file.body == body_of()
    assert len(decode_recording(file.body)) == 1
    wanted = RecordingStatement(device="cam-1", tenant="t0", recorded_at=AT, sha256=digest_of(body_of()))
    assert verified(signed()) == file.claimed == wanted


def test_the_file_of_format_2_stays_what_it_is():
    data, key = (GOLDEN / "recording.2.cbor").read_bytes(), load_pem_public_key((GOLDEN / "recording.2.pem").read_bytes())
    file = read_recording(data)
    assert verify_recording(key, file) == verified(signed())
    assert base64.b64decode(file.envelope.payload) == base64.b64decode(read_recording(signed()).envelope.payload)
    assert file.body == body_of()


def test_a_file_that_nobody_signed_is_the_recording_alone_and_verifies_with_no_key():
    file = read_recording(body_of())
    assert (file.body, file.envelope, file.claimed) == (body_of(), None, None)
    assert refusal(body_of()) == "recording-key"


def test_a_file_with_any_flipped_bit_is_refused_by_name():
    data = signed()
    for place in range(len(data)):
        for bit in range(8):
            code = refusal(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            assert code in {"malformed", "unknown-version", "too-large"} or code.startswith("recording-"), (place, bit)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_file_with_any_other_bytes_anywhere_is_refused_by_name(data: st.DataObject):
    whole = signed()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    other = data.draw(st.binary(max_size=40).filter(lambda part: part != whole[start:end]))
    if whole[:start] + other + whole[end:] != whole:
        assert refusal(whole[:start] + other + whole[end:]) != "invalid"


def test_a_file_that_is_cut_anywhere_is_refused_by_name():
    assert {refusal(signed()[:length]) for length in range(len(signed()))} == {"malformed"}


def test_a_recording_of_other_bytes_than_were_signed_is_refused():
    sealed = cbor.decode(signed(), max_bytes=MAX_FILE_BYTES, what="This")[2]
    assert refusal(cbor.encode({0: 2, 1: body_of(2), 2: sealed})) == "recording-changed"


def test_another_devices_key_is_refused():
    assert refusal(signed(ec.generate_private_key(ec.SECP256R1()))) == "recording-key"


def test_a_key_id_alone_proves_nothing():
    other = read_recording(signed(ec.generate_private_key(ec.SECP256R1()))).envelope.signatures[0]
    forged = DsseSignature(keyid=dsse.key_id(KEY.public_key()), sig=other.sig)
    assert refusal(with_envelope(signatures=[forged])) == "recording-signature"


def test_what_the_key_signed_as_something_else_is_no_recording():
    statement = base64.b64decode(read_recording(signed()).envelope.payload)
    report = dsse.seal(KEY, reports.PAYLOAD_TYPE, statement)
    assert refusal(with_envelope(payloadType=reports.PAYLOAD_TYPE)) == "recording-type"
    assert refusal(with_envelope(signatures=report.signatures)) == "recording-signature"


def test_nor_is_a_signed_recording_a_version_report():
    with pytest.raises(TrustError) as caught:
        reports.verify_report(KEY.public_key(), read_recording(signed()).envelope)
    assert caught.value.code == "report-type"


def test_an_envelope_has_one_spelling():
    file = read_recording(signed())
    good, extra = file.envelope.signatures[0], DsseSignature(keyid="x", sig=base64.b64encode(b"nothing").decode())
    assert refusal(with_envelope(signatures=[good, extra])) == "malformed"
    text = file.envelope.model_dump_json(indent=1).encode()
    assert refusal(cbor.encode({0: 2, 1: file.body, 2: text})) == "malformed"
    assert refusal(with_envelope(payload="%%%")) == "recording-form"
    # the last character of base64 has bits that no byte holds
    loose = dsse.envelope_of(PAYLOAD_TYPE, b"{}", keyid="", signature=b"x").model_copy(update={"payload": "e31="})
    assert refusal(cbor.encode({0: 2, 1: file.body, 2: canonical_json(loose.model_dump(mode="json"))})) == "malformed"


def test_a_signed_document_that_says_nothing_of_a_recording_is_refused():
    sealed = canonical_json(dsse.seal(KEY, PAYLOAD_TYPE, b'{"device":"cam-1"}').model_dump(mode="json"))
    assert refusal(cbor.encode({0: 2, 1: body_of(), 2: sealed})) == "malformed"


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({0: 3}, "unknown-version"),
        ([], "unknown-version"),
        ({0: 2, 1: b""}, "malformed"),
        ({0: 2, 1: "text", 2: b""}, "malformed"),
        ({0: 2, 1: b"", 2: b"", 3: b""}, "malformed"),
        ({0: 2, 1: b"", 2: b"no json"}, "malformed"),
        ({0: 2, 1: b"", 2: b"[" * 5000}, "malformed"),
        ({0: 2, 1: b"", 2: bytes(MAX_ENVELOPE_BYTES + 1)}, "too-large"),
    ],
)
def test_what_is_no_recording_is_refused_by_name(document: Any, code: str):
    with pytest.raises(InvalidError) as caught:
        read_recording(cbor.encode(document))
    assert caught.value.code == code


def test_a_file_that_is_too_large_is_refused_before_it_is_read():
    with pytest.raises(InvalidError) as caught:
        read_recording(bytes(MAX_FILE_BYTES + 1))
    assert caught.value.code == "too-large"


def test_the_largest_recording_fits_with_its_envelope():
    around = len(signed()) - len(body_of())
    assert around < MAX_FILE_BYTES - recordings.MAX_RECORDING_BYTES
