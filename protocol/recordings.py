"""A recording that the device which made it signed: whose sub-windows they are, and when they were put together.

The file: CBOR {0: 2, 1: the recording as protocol.sketches.recording writes it, 2: a DSSE envelope in canonical JSON}. The envelope's
payload names device, tenant, moment and the digest of the recording. Without an envelope the file is the recording alone, and no device
proves it. Every byte counts: the file is read in the one form that is written.
"""

from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from protocol import dsse
from protocol.canonical import canonical_json, digest_of
from protocol.errors import InvalidError, TrustError
from protocol.fields import DigestText, Name, UnixMs
from protocol.ids import DeviceId, TenantId
from protocol.messages import SCHEMA_MAJOR, DsseEnvelope, Wire
from protocol.sketches import cbor
from protocol.sketches.recording import FORMAT as UNSIGNED_FORMAT
from protocol.sketches.recording import MAX_RECORDING_BYTES

PAYLOAD_TYPE = "application/vnd.mooring.recording.v1+json"
FORMAT = 2
MAX_ENVELOPE_BYTES = 8 << 10
#: Longest file, bytes: a recording, its envelope and what is around them.
MAX_FILE_BYTES = MAX_RECORDING_BYTES + MAX_ENVELOPE_BYTES + 64
_WHAT = "A recording"


class RecordingStatement(Wire):
    """What the device says of its recording: the payload of the envelope."""

    v: Literal[1] = SCHEMA_MAJOR
    device: Name
    tenant: Name
    recorded_at: UnixMs
    #: Of the recording's bytes.
    sha256: DigestText


@dataclass(frozen=True, slots=True)
class RecordingFile:
    """A recording as it was brought; nothing of it is verified yet."""

    #: As protocol.sketches.recording writes it.
    body: bytes = field(repr=False)
    #: None: nobody signed it.
    envelope: DsseEnvelope | None = None
    #: What the envelope says, which tells whose key to verify it with.
    claimed: RecordingStatement | None = None


def sign_recording(key: ec.EllipticCurvePrivateKey, body: bytes, *, device: DeviceId, tenant: TenantId, recorded_at_ms: int) -> bytes:
    """The file of this recording, signed with the device's identity key."""
    statement = RecordingStatement(device=device, tenant=tenant, recorded_at=recorded_at_ms, sha256=digest_of(body))
    envelope = dsse.seal(key, PAYLOAD_TYPE, canonical_json(statement.model_dump(mode="json")))
    return cbor.encode({0: FORMAT, 1: body, 2: canonical_json(envelope.model_dump(mode="json"))})


def read_recording(data: bytes) -> RecordingFile:
    """The recording in these bytes and its envelope, if it has one; neither is verified.

    Raises: InvalidError (too-large, malformed, unknown-version); TrustError (recording-type, recording-form).
    """
    document = cbor.decode(data, max_bytes=MAX_FILE_BYTES, what=_WHAT)
    if isinstance(document, dict) and document.get(0) == UNSIGNED_FORMAT:
        return RecordingFile(data)
    if not isinstance(document, dict) or document.get(0) != FORMAT:
        raise InvalidError("This is no recording of sub-windows that this program reads.", code="unknown-version")
    body, sealed = document.get(1), document.get(2)
    if document.keys() != {0, 1, 2} or not isinstance(body, bytes) or not isinstance(sealed, bytes):
        raise InvalidError("A signed recording that is not its recording and its envelope.", code="malformed")
    if len(sealed) > MAX_ENVELOPE_BYTES:
        raise InvalidError(f"An envelope of {len(sealed)} bytes; at most {MAX_ENVELOPE_BYTES} are allowed.", code="too-large")
    envelope = _envelope(sealed)
    return RecordingFile(body, envelope, _statement(dsse.decoded(envelope.payload, code="recording")))


def verify_recording(public_key: ec.EllipticCurvePublicKey, file: RecordingFile) -> RecordingStatement:
    """What the holder of the key signed of this recording.

    Raises: TrustError: not signed at all or by another key (recording-key), a wrong signature (recording-signature), or of other bytes
    (recording-changed).
    """
    if file.envelope is None or file.envelope.signatures[0].keyid != dsse.key_id(public_key):
        raise TrustError("The recording is signed with another key than this device has.", code="recording-key")
    payload = dsse.unseal(public_key, file.envelope, payload_type=PAYLOAD_TYPE, what="recording", code="recording")
    statement, found = _statement(payload), digest_of(file.body)
    if statement.sha256 != found:
        raise TrustError(f"The recording was changed: it is {found}, signed was {statement.sha256}.", code="recording-changed")
    return statement


def _envelope(sealed: bytes) -> DsseEnvelope:
    try:
        envelope = DsseEnvelope.model_validate_json(sealed)
    except (ValidationError, RecursionError) as error:
        raise InvalidError("The envelope of the recording cannot be read.", code="malformed") from error
    if envelope.payloadType != PAYLOAD_TYPE:
        raise TrustError(f"Payload type {envelope.payloadType!r}; wanted {PAYLOAD_TYPE!r}.", code="recording-type")
    signed = envelope.signatures[0]
    payload, signature = dsse.decoded(envelope.payload, code="recording"), dsse.decoded(signed.sig, code="recording")
    alone = dsse.envelope_of(PAYLOAD_TYPE, payload, keyid=signed.keyid, signature=signature)
    if canonical_json(alone.model_dump(mode="json")) != sealed:  # JSON and base64 have other spellings, which no signature covers
        raise InvalidError("The envelope of the recording is not in canonical form with one signature.", code="malformed")
    return envelope


def _statement(payload: bytes) -> RecordingStatement:
    try:
        return RecordingStatement.model_validate_json(payload)
    except (ValidationError, RecursionError) as error:
        raise InvalidError("What the envelope says of the recording cannot be read.", code="malformed") from error
