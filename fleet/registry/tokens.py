"""Where a private key is kept: an encrypted file, a PKCS#11 token, a key service; each opened as a signer by its reference.

A reference is a path, `pkcs11:token=NAME;object=LABEL?module-path=/usr/lib/…so` (RFC 7512), or the URI of one of securesystemslib's own
signers (`hsm:`, `awskms:`, `gcpkms:`, `azurekms:`, `hv:`). Private keys in tokens and services never reach this process.
"""

import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import Key, SecretsHandler, Signature, Signer, SSlibKey

from fleet.registry.signing import MAX_KEY_BYTES, check_scheme, is_encrypted, load_key, load_public_key
from protocol.errors import ConfigError, ConflictError, InvalidError
from protocol.files import read_bounded, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pkcs11

#: Gives the secret that opens a key; the argument says which one is asked for.
Ask = Callable[[str], str]

SCHEME = "pkcs11"
PIN_ENVIRONMENT = "MOORING_KEY_PIN"
#: Where the module of the token is when the URI does not say.
MODULE_ENVIRONMENT = "MOORING_PKCS11_MODULE"
#: Served by securesystemslib's signers; they bring their own libraries and credentials.
SERVICE_SCHEMES = ("hsm", "awskms", "gcpkms", "azurekms", "hv")
_ED25519_PARAMETERS = bytes.fromhex("06032b6570")  # the OID 1.3.101.112, DER
_ED25519_BYTES = 32


def open_signer(reference: str, *, ask: Ask | None = None, public: Path | None = None) -> Signer:
    """The private key behind the reference. `ask` is called for a passphrase or PIN that no variable or file gives.

    `public` names the public half; it is needed for key services only and looked for beside the reference file otherwise.
    Raises: ConfigError naming what is missing, locked or not installed.
    """
    scheme = scheme_of(reference)
    if scheme == SCHEME:
        return TokenSigner.open(TokenKey.parse(reference), ask=ask)
    if scheme in SERVICE_SCHEMES:
        return _open_service(reference, public, ask)
    path = Path(reference)
    if path.suffix == ".uri":
        return open_signer(read_reference(path), ask=ask, public=public or path.with_suffix(".pub"))
    passphrase = ask("passphrase") if ask is not None and is_encrypted(path) else None
    return load_key(path, passphrase=passphrase)


def scheme_of(reference: str) -> str:
    """The scheme of a key URI; empty for a path."""
    scheme, colon, _ = reference.partition(":")
    return scheme if colon and scheme in {SCHEME, *SERVICE_SCHEMES} else ""


def read_reference(path: Path) -> str:
    """The URI that a .uri file holds. Raises: ConfigError."""
    try:
        text = read_bounded(path, MAX_KEY_BYTES).decode().strip()
    except (OSError, InvalidError, UnicodeDecodeError) as error:
        raise ConfigError(f"The key reference {path} cannot be read: {error}.", code="key-missing") from error
    if not scheme_of(text):
        raise ConfigError(f"{path} holds {text[:60]!r}; wanted a key URI: {', '.join((SCHEME, *SERVICE_SCHEMES))}.", code="key-missing")
    return text


def _open_service(reference: str, public: Path | None, ask: Ask | None) -> Signer:
    if public is None or not public.exists():
        raise ConfigError(f"{reference} needs its public half in a file.", hint="Name it with --public KEY.pub.", code="key-missing")
    handler: SecretsHandler | None = ask
    try:
        return Signer.from_priv_key_uri(reference, load_public_key(public), handler)
    except UnsupportedLibraryError as error:
        raise ConfigError(f"{reference} cannot be used: {error}.", hint="Install the library of that key service.") from error
    except Exception as error:  # the signers of services document no errors of their own
        raise ConfigError(f"{reference} cannot be opened: {type(error).__name__}: {error}.", code="key-missing") from error


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key in a PKCS#11 token, as RFC 7512 names it."""

    token: str
    label: str
    #: CKA_ID; None: the label alone names the key.
    key_id: bytes | None = None
    module: str = ""
    pin_file: Path | None = None

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Raises: ConfigError when the URI names no token and key, or has an attribute that is not known here."""
        path, _, query = uri.removeprefix(f"{SCHEME}:").partition("?")
        fields = {name: value for name, _, value in (part.partition("=") for part in path.split(";") if part)}
        options = dict(parse_qsl(query))
        if unknown := (fields.keys() - {"token", "object", "id", "type"}) | (options.keys() - {"module-path", "pin-source"}):
            raise ConfigError(
                f"{uri}: {min(unknown)!r} is not understood.", hint="Known: token, object, id, type; module-path, pin-source."
            )
        if "token" not in fields or not ("object" in fields or "id" in fields):
            raise ConfigError(f"{uri} names no key.", hint="Wanted: pkcs11:token=NAME;object=LABEL?module-path=/usr/lib/….so")
        pin = options.get("pin-source", "").removeprefix("file:")
        return cls(
            token=unquote(fields["token"]),
            label=unquote(fields.get("object", "")),
            key_id=_bytes_of(fields["id"]) if "id" in fields else None,
            module=options.get("module-path", "") or os.environ.get(MODULE_ENVIRONMENT, ""),
            pin_file=Path(pin) if pin else None,
        )

    def pin(self, ask: Ask | None) -> str:
        """From the file of the URI, MOORING_KEY_PIN, or by asking. Raises: ConfigError when there is nobody to ask."""
        if self.pin_file is not None:
            try:
                return read_bounded(self.pin_file, MAX_KEY_BYTES).decode().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"The PIN file {self.pin_file} cannot be read: {error}.") from error
        if found := os.environ.get(PIN_ENVIRONMENT):
            return found
        if ask is None:
            raise ConfigError(
                f"Token {self.token} wants a PIN.", hint=f"Give it in {PIN_ENVIRONMENT} or with pin-source=FILE.", code="key-locked"
            )
        return ask("PIN")


class TokenSigner(Signer):
    """Signs inside a PKCS#11 token: Ed25519 where the token can, else ECDSA on P-256. A session is opened per signature."""

    def __init__(self, key: TokenKey, pin: str, public_key: SSlibKey) -> None:
        self._key, self._pin, self._public_key = key, pin, public_key

    @classmethod
    def open(cls, key: TokenKey, *, ask: Ask | None) -> Self:
        """The signer, after its public half was read from the token. Raises: ConfigError."""
        pin = key.pin(ask)
        with _session(key, pin) as session:
            public = _public_half(session, key)
        return cls(key, pin, public)

    @classmethod
    def create(cls, key: TokenKey, *, ask: Ask | None) -> Self:
        """Make a new key inside the token under that name. Raises: ConflictError when the name is taken; ConfigError."""
        pin = key.pin(ask)
        with _session(key, pin, for_writing=True) as session:
            _generate(session, key)
        return cls.open(key, ask=lambda _: pin)

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None) -> Self:
        """As securesystemslib's interface wants it; refuses a token that holds another key than `public_key`."""
        signer = cls.open(TokenKey.parse(priv_key_uri), ask=secrets_handler)
        if signer.public_key.keyid != public_key.keyid:
            raise ValueError(f"{priv_key_uri} holds key {signer.public_key.keyid}; wanted {public_key.keyid}")
        return signer

    @property
    def public_key(self) -> SSlibKey:
        """The public half."""
        return self._public_key

    def sign(self, payload: bytes) -> Signature:
        """The token's signature of the payload. Raises: ConfigError when token or key are gone."""
        import pkcs11
        from pkcs11.util.ec import encode_ecdsa_signature

        with _session(self._key, self._pin) as session:
            private = _find(session, self._key, pkcs11.ObjectClass.PRIVATE_KEY)
            if self._public_key.keytype == "ed25519":
                raw = private.sign(payload, mechanism=pkcs11.Mechanism.EDDSA)
            else:
                raw = encode_ecdsa_signature(
                    private.sign(session.digest(payload, mechanism=pkcs11.Mechanism.SHA256), mechanism=pkcs11.Mechanism.ECDSA)
                )
        return Signature(self._public_key.keyid, bytes(raw).hex())


@contextmanager
def _session(key: TokenKey, pin: str, *, for_writing: bool = False) -> "Iterator[pkcs11.Session]":
    try:
        import pkcs11
    except ImportError as error:
        raise ConfigError("PKCS#11 tokens need the package python-pkcs11.", hint="pip install 'mooring[hsm]'") from error
    if not key.module:
        raise ConfigError(
            f"Which PKCS#11 module has token {key.token}?", hint=f"Add ?module-path=/usr/lib/….so, or set {MODULE_ENVIRONMENT}."
        )
    try:
        token = pkcs11.lib(key.module).get_token(token_label=key.token)
        with token.open(rw=for_writing, user_pin=pin) as session:
            yield session
    except pkcs11.exceptions.PinIncorrect as error:
        raise ConfigError(
            f"The PIN does not open token {key.token}.", hint="Tokens lock themselves after a few wrong PINs.", code="key-locked"
        ) from error
    except (pkcs11.exceptions.PKCS11Error, RuntimeError) as error:  # RuntimeError: the module does not load
        raise ConfigError(f"Token {key.token} cannot be used: {type(error).__name__} {error}.".rstrip(), code="key-missing") from error


def _find(session: "pkcs11.Session", key: TokenKey, kind: "pkcs11.ObjectClass") -> Any:
    import pkcs11

    wanted: dict[str, Any] = {
        "object_class": kind,
        **({"label": key.label} if key.label else {}),
        **({"id": key.key_id} if key.key_id else {}),
    }
    try:
        return session.get_key(**wanted)
    except pkcs11.exceptions.NoSuchKey as error:
        raise ConfigError(f"Token {key.token} has no key {key.label or key.key_id!r}.", code="key-missing") from error
    except pkcs11.exceptions.MultipleObjectsReturned as error:
        raise ConfigError(f"Token {key.token} has several keys {key.label!r}.", hint="Add ;id=%01 to the URI.") from error


def _public_half(session: "pkcs11.Session", key: TokenKey) -> SSlibKey:
    import pkcs11
    from pkcs11.util.ec import encode_ec_public_key

    found = _find(session, key, pkcs11.ObjectClass.PUBLIC_KEY)
    if bytes(found[pkcs11.Attribute.EC_PARAMS]) == _ED25519_PARAMETERS:
        # an OCTET STRING around the point, by most tokens
        point = bytes(found[pkcs11.Attribute.EC_POINT])[-_ED25519_BYTES:]
        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(point))
    loaded = load_der_public_key(encode_ec_public_key(found))
    if not isinstance(loaded, EllipticCurvePublicKey) or not isinstance(loaded.curve, SECP256R1):
        raise ConfigError(f"The key in token {key.token} is neither Ed25519 nor ECDSA on P-256.", code="key-missing")
    return check_scheme(SSlibKey.from_crypto(loaded), f"token {key.token}")


def _generate(session: "pkcs11.Session", key: TokenKey) -> None:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    if any(True for _ in session.get_objects({pkcs11.Attribute.LABEL: key.label})):
        raise ConflictError(f"Token {key.token} has something named {key.label!r} already.", hint="Choose another object= in the URI.")
    names: dict[str, Any] = {"store": True, "label": key.label, "id": key.key_id or os.urandom(8)}
    try:
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC_EDWARDS, {pkcs11.Attribute.EC_PARAMS: _ED25519_PARAMETERS}, local=True
        )
        parameters.generate_keypair(mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN, **names)
    except (pkcs11.exceptions.MechanismInvalid, pkcs11.exceptions.FunctionNotSupported, pkcs11.exceptions.AttributeValueInvalid):
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
        )
        parameters.generate_keypair(mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN, **names)


def save_public_key(path: Path, key: SSlibKey) -> None:
    """Write the public half as PEM."""
    made = key._crypto_key()  # noqa: SLF001 - the one place of securesystemslib that turns its key into a cryptography key
    write_atomically(path, made.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _bytes_of(text: str) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(text)
