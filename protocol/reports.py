"""Version reports, signed with the device's identity key: the only evidence that a campaign counts (UPDATES 1.8).

Envelope: DSSE v1.0 (github.com/secure-systems-lab/dsse). The key is ECDSA P-256; the signature is DER over SHA-256 of the
pre-authentication encoding. `keyid` is a hint: the verifier brings the key from its inventory.
"""

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from protocol.canonical import canonical_json
from protocol.errors import TrustError
from protocol.messages import DsseEnvelope, DsseSignature, VersionReport

PAYLOAD_TYPE = "application/vnd.mooring.version-report.v1+json"
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def key_id(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo in DER, as hex."""
    return hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def sign_report(key: ec.EllipticCurvePrivateKey, report: VersionReport) -> DsseEnvelope:
    """The report in an envelope signed by the key."""
    payload = canonical_json(report.model_dump(mode="json"))
    signature = key.sign(_pre_authentication(PAYLOAD_TYPE, payload), _ALGORITHM)
    signed = DsseSignature(keyid=key_id(key.public_key()), sig=base64.b64encode(signature).decode())
    return DsseEnvelope(payload=base64.b64encode(payload).decode(), payloadType=PAYLOAD_TYPE, signatures=[signed])


def verify_report(public_key: ec.EllipticCurvePublicKey, envelope: DsseEnvelope) -> VersionReport:
    """The report that the holder of the key signed. Raises: TrustError: another type, no signature by this key, or not a report."""
    if envelope.payloadType != PAYLOAD_TYPE:
        raise TrustError(f"Payload type {envelope.payloadType!r}; wanted {PAYLOAD_TYPE!r}.", code="report-type")
    payload = _decode(envelope.payload)
    message = _pre_authentication(PAYLOAD_TYPE, payload)
    if not any(_is_by(public_key, signature, message) for signature in envelope.signatures):
        raise TrustError("The version report is not signed by the key of this device.", code="report-signature")
    try:
        return VersionReport.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TrustError(f"The signed version report is malformed at {where or 'its start'}: {first['msg']}.", code="report-form") from None


def _is_by(public_key: ec.EllipticCurvePublicKey, signature: DsseSignature, message: bytes) -> bool:
    try:
        public_key.verify(_decode(signature.sig), message, _ALGORITHM)
    except InvalidSignature:
        return False
    return True


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """PAE(type, body) = "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise TrustError("The envelope holds something that is not base64.", code="report-form") from None
