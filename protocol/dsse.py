"""What a device proves with its identity key: DSSE v1.0 envelopes (github.com/secure-systems-lab/dsse).

The key is ECDSA P-256; the signature is DER over SHA-256 of the pre-authentication encoding, which holds the payload's type: what was
signed as one kind of statement is never taken for another. `keyid` is a hint: the verifier brings the key from its inventory.
"""

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.errors import TrustError
from protocol.messages import DsseEnvelope, DsseSignature

_ALGORITHM = ec.ECDSA(hashes.SHA256())


def key_id(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo in DER, as hex."""
    return hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def seal(key: ec.EllipticCurvePrivateKey, payload_type: str, payload: bytes) -> DsseEnvelope:
    """The payload in an envelope signed by the key."""
    signature = key.sign(_pre_authentication(payload_type, payload), _ALGORITHM)
    return envelope_of(payload_type, payload, keyid=key_id(key.public_key()), signature=signature)


def envelope_of(payload_type: str, payload: bytes, *, keyid: str, signature: bytes) -> DsseEnvelope:
    """The envelope of these parts, with one signature."""
    signed = DsseSignature(keyid=keyid, sig=base64.b64encode(signature).decode())
    return DsseEnvelope(payload=base64.b64encode(payload).decode(), payloadType=payload_type, signatures=[signed])


def unseal(public_key: ec.EllipticCurvePublicKey, envelope: DsseEnvelope, *, payload_type: str, what: str, code: str) -> bytes:
    """The payload that the holder of the key signed as this type; `what` it is, in words, and `code` before the kind of a refusal.

    Raises: TrustError: another type (`<code>-type`), no signature by this key (`-signature`), or no base64 (`-form`).
    """
    if envelope.payloadType != payload_type:
        raise TrustError(f"Payload type {envelope.payloadType!r}; wanted {payload_type!r}.", code=f"{code}-type")
    payload = decoded(envelope.payload, code=code)
    message = _pre_authentication(payload_type, payload)
    if not any(_is_by(public_key, decoded(one.sig, code=code), message) for one in envelope.signatures):
        raise TrustError(f"The {what} is not signed by the key of this device.", code=f"{code}-signature")
    return payload


def decoded(text: str, *, code: str) -> bytes:
    """The bytes of a part of an envelope. Raises: TrustError (`<code>-form`) when it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise TrustError("The envelope holds something that is not base64.", code=f"{code}-form") from None


def _is_by(public_key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        public_key.verify(signature, message, _ALGORITHM)
    except InvalidSignature:
        return False
    return True


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """PAE(type, body) = "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)
