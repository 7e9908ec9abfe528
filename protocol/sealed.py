"""A secret on its way to one device: sealed by the server to the device's own key, opened on the device only (HPKE, RFC 9180).

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. The context binds a sealed text to its device and name, so that a
text copied to another name or device does not open.
"""

import base64
import binascii

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import x25519

from protocol.errors import InvalidError, TrustError
from protocol.ids import DeviceId

#: Bytes of a secret: a user name and a password, or a token.
MAX_SECRET_BYTES = 8192
KEY_BYTES = 32
#: Base64 text of the longest sealed secret, with the 32 bytes of the encapsulated key and the 16 of the tag.
MAX_SEALED_CHARACTERS = (MAX_SECRET_BYTES + KEY_BYTES + 16 + 2) * 4 // 3 + 4
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def secret_context(device: DeviceId, name: str) -> bytes:
    """What binds a sealed text to the device and the name of the secret."""
    return b"mooring/secret/1/" + device.encode() + b"/" + name.encode()


def new_sealing_key() -> bytes:
    """A new private key, 32 raw bytes."""
    return x25519.X25519PrivateKey.generate().private_bytes_raw()


def sealing_public_key(private: bytes) -> bytes:
    """The public half, 32 raw bytes. Raises: InvalidError when the private one is not 32 bytes."""
    return _private(private).public_key().public_bytes_raw()


def seal(public: bytes, plaintext: bytes, *, context: bytes) -> str:
    """The plaintext as base64 that only the holder of the private key opens. Raises: InvalidError on a bad key or too long a secret."""
    if len(plaintext) > MAX_SECRET_BYTES:
        raise InvalidError(f"A secret of {len(plaintext)} bytes; wanted at most {MAX_SECRET_BYTES}.")
    if len(public) != KEY_BYTES:
        raise InvalidError(f"A sealing key has {len(public)} bytes; wanted {KEY_BYTES}.")
    key = x25519.X25519PublicKey.from_public_bytes(public)
    try:
        return base64.b64encode(_SUITE.encrypt(plaintext, key, context)).decode()
    except ValueError:
        raise InvalidError("The sealing key is not a usable X25519 key.") from None


def open_sealed(private: bytes, text: str, *, context: bytes) -> bytes:
    """The plaintext. Raises: InvalidError when the text is malformed; TrustError when it was sealed for another key, device or name."""
    if len(text) > MAX_SEALED_CHARACTERS:
        raise InvalidError(f"A sealed secret of {len(text)} characters; wanted at most {MAX_SEALED_CHARACTERS}.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("A sealed secret is not base64.") from None
    try:
        return _SUITE.decrypt(data, _private(private), context)
    except (InvalidTag, ValueError):
        raise TrustError("A sealed secret does not open.", hint="It was sealed for another device, name or key: set it again.") from None


def _private(private: bytes) -> x25519.X25519PrivateKey:
    if len(private) != KEY_BYTES:
        raise InvalidError(f"A sealing key has {len(private)} bytes; wanted {KEY_BYTES}.")
    return x25519.X25519PrivateKey.from_private_bytes(private)
