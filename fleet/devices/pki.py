"""The fleet's own certificate authority (EC P-256): server, services and devices. Certificates live by system time.

A device's common name is its id; names with a dot (`fleet.ingest`, `consumer.<name>`) belong to services, which no device id can be.
While it is replaced (rotation.py) two authorities are trusted and one of them issues.
"""

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.config import PkiConfig
from protocol.errors import ConfigError, InvalidError, UnavailableError
from protocol.files import read_bounded, write_atomically
from protocol.ids import DeviceId, check_name

#: Names of our own processes on the broker.
INGEST, CONTROLLER, CALLER = "fleet.ingest", "fleet.controller", "fleet.caller"
_CONSUMER_PREFIX = "consumer."
#: A certificate is valid a little before it was made: devices' clocks are a little late.
BACKDATE = timedelta(hours=1)
_MAX_PEM_BYTES = 64 * 1024
#: More are never trusted at once: the one that issues, and the next or the former one.
MAX_TRUSTED = 2
#: Name of the database lock that is shared while a device's certificate is made, and held while the authority is replaced.
ISSUING_LOCK = "authority"
#: When a device asks again that met a server which has to be started again, seconds.
REPLACED_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Where a certificate and its key lie, PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate just signed."""

    pem: str
    #: Decimal text: up to 159 bits do not fit an integer column.
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Generations:
    """Which authorities of the folder are in use, by number; the first one is 1. One file, written at once: the moment of each change."""

    issuing: int = 1
    trusted: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class Sibling:
    """An authority that is trusted beside the one that issues; it signs its own revocation list and nothing else."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate authority that issues, opened: its certificate, its key, its folder."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    folder: Path
    config: PkiConfig
    siblings: tuple[Sibling, ...] = ()
    #: As the folder's were when this was opened.
    generations: Generations = Generations()

    @property
    def ca_path(self) -> Path:
        """All trusted authorities, PEM: what everybody verifies with."""
        return self.folder / "trusted.pem"

    @property
    def ca_pem(self) -> str:
        """All trusted authorities as PEM text, the one that issues first."""
        return "".join(
            one.public_bytes(serialization.Encoding.PEM).decode()
            for one in (self.certificate, *(sibling.certificate for sibling in self.siblings))
        )

    @property
    def trust_digest(self) -> str:
        """SHA-256 hex of `ca_pem`: two devices with the same one trust the same, and their certificates come from the same authority."""
        return hashlib.sha256(self.ca_pem.encode()).hexdigest()

    @property
    def pin(self) -> str:
        """SHA-256 hex of the issuing certificate's DER: stands in every enrollment token."""
        return fingerprint(self.certificate)

    def check_current(self) -> None:
        """Nothing when a certificate of this one is trusted by whoever is in use now, and whom it trusts issues.

        Raises: UnavailableError when the authority was replaced since this process opened it; ConfigError.
        """
        now = read_generations(self.folder)
        if self.generations.issuing not in now.trusted or now.issuing not in self.generations.trusted:
            text = "The certificate authority was replaced; this server issues with the one before until it is started again."
            raise UnavailableError(text, retry_after_s=REPLACED_RETRY_S, code="authority-replaced")

    def issue_device(self, device: DeviceId, public_key: ec.EllipticCurvePublicKey) -> IssuedCertificate:
        """A client certificate of the device for its own key."""
        certificate = self._sign(
            check_name(device, what="Device"), public_key, days=self.config.device_days, usage=[ExtendedKeyUsageOID.CLIENT_AUTH], names=()
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        return IssuedCertificate(pem, str(certificate.serial_number), certificate.not_valid_after_utc)

    def ensure_server(self, *, extra_names: Sequence[str] = ()) -> KeyPair:
        """The server's certificate and key for the configured names; made anew when names changed or a third of its life is left."""
        names = tuple(dict.fromkeys([*self.config.names, *extra_names]))
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        return self._ensure("server", "mooring.server", days=self.config.server_days, usage=usage, names=names)

    def ensure_service(self, principal: str) -> KeyPair:
        """Client certificate and key of a process of ours or a consumer on the broker. Raises: InvalidError when it has no such name."""
        if principal not in {INGEST, CONTROLLER, CALLER}:
            prefix, name = principal[: len(_CONSUMER_PREFIX)], principal[len(_CONSUMER_PREFIX) :]
            if prefix != _CONSUMER_PREFIX:
                raise InvalidError(f"{principal!r} is no service.", hint=f"Wanted: {INGEST}, {CONTROLLER}, {CALLER} or consumer.<name>.")
            check_name(name, what="Consumer")
        return self._ensure(principal, principal, days=self.config.server_days, usage=[ExtendedKeyUsageOID.CLIENT_AUTH], names=())

    def revocation_list(self, revoked: Iterable[tuple[str, datetime]], *, days: int = 30) -> bytes:
        """The serials that are no longer valid and since when: a list (CRL, PEM) of each trusted authority, as OpenSSL wants it."""
        now = _system_now()
        entries = [x509.RevokedCertificateBuilder().serial_number(int(serial)).revocation_date(since).build() for serial, since in revoked]
        lists = []
        for authority in (Sibling(self.certificate, self.key), *self.siblings):
            builder = x509.CertificateRevocationListBuilder(revoked_certificates=entries).issuer_name(authority.certificate.subject)
            builder = builder.last_update(now - BACKDATE).next_update(now + timedelta(days=days))
            lists.append(builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return b"".join(lists)

    def _ensure(self, stem: str, common_name: str, *, days: int, usage: list[x509.ObjectIdentifier], names: tuple[str, ...]) -> KeyPair:
        pair = KeyPair(self.folder / f"{stem}.pem", self.folder / f"{stem}-key.pem")
        with lock(self.folder):
            if not _is_current(pair, self.certificate, names):
                key = ec.generate_private_key(ec.SECP256R1())
                certificate = self._sign(common_name, key.public_key(), days=days, usage=usage, names=names)
                write_atomically(pair.key, _key_pem(key), mode=0o600)
                write_atomically(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        return pair

    def _sign(
        self,
        common_name: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        days: int,
        usage: list[x509.ObjectIdentifier],
        names: tuple[str, ...],
    ) -> x509.Certificate:
        now = _system_now()
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = _builder(common_name, self.certificate.subject, public_key, start=now - BACKDATE, end=end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(is_authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def open_authority(folder: Path, config: PkiConfig) -> Authority:
    """The authority of the folder, made on first use, also when several processes start at once.

    Raises: ConfigError when its files are there but unusable.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock(folder):
        certificate_path, key_path = authority_files(folder, 1)
        generations = read_generations(folder)
        if generations == Generations() and not certificate_path.exists():
            create_authority(certificate_path, key_path, config)
        issuing, *siblings = (_open(folder, number) for number in generations.trusted)
        authority = Authority(issuing.certificate, issuing.key, folder, config, tuple(siblings), generations)
        if not authority.ca_path.exists() or authority.ca_path.read_text() != authority.ca_pem:
            write_atomically(authority.ca_path, authority.ca_pem.encode())
    return authority


def authority_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Certificate and key of an authority by its number."""
    stem = "ca" if number == 1 else f"ca-{number}"
    return folder / f"{stem}.pem", folder / f"{stem}-key.pem"


def read_generations(folder: Path) -> Generations:
    """Which authorities are in use, the issuing one first. Raises: ConfigError."""
    path = folder / "authorities.json"
    if not path.exists():
        return Generations()
    try:
        document = json.loads(read_bounded(path, _MAX_PEM_BYTES))
        issuing, trusted = int(document["issuing"]), tuple(int(number) for number in document["trusted"])
    except (OSError, ValueError, TypeError, KeyError, InvalidError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", hint="Restore it from a backup.") from error
    if issuing not in trusted or not 1 <= len(set(trusted)) == len(trusted) <= MAX_TRUSTED:
        raise ConfigError(f"{path} names {trusted} as trusted and {issuing} as issuing.", hint="Restore it from a backup.")
    return Generations(issuing, (issuing, *(number for number in trusted if number != issuing)))


def write_generations(folder: Path, generations: Generations) -> None:
    """Put other authorities in use, durably and at once; every process of the server takes it over at its next start."""
    document = {"issuing": generations.issuing, "trusted": list(generations.trusted)}
    write_atomically(folder / "authorities.json", json.dumps(document).encode())


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 hex of the certificate's DER."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _open(folder: Path, number: int) -> Sibling:
    certificate_path, key_path = authority_files(folder, number)
    try:
        certificate = x509.load_pem_x509_certificate(read_bounded(certificate_path, _MAX_PEM_BYTES))
        key = serialization.load_pem_private_key(read_bounded(key_path, _MAX_PEM_BYTES), None)
    except (OSError, ValueError, TypeError, InvalidError) as error:
        raise ConfigError(f"The certificate authority in {folder} cannot be read: {error}.", hint="Restore it from a backup.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{key_path} is not the key of {certificate_path}.", hint="Restore both from the same backup.")
    return Sibling(certificate, key)


def check_request(pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a certificate request that proves its key; its subject and extensions are ignored.

    Raises: InvalidError when it is malformed, not P-256, or not signed by its own key.
    """
    wanted = "Wanted: a PEM certificate request with an EC P-256 key, signed by that key."
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        is_proven = request.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise InvalidError(f"The certificate request cannot be read: {error}.", hint=wanted, code="csr-invalid") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidError(f"The certificate request has a {type(key).__name__}.", hint=wanted, code="csr-invalid")
    if not is_proven:
        raise InvalidError("The certificate request is not signed by its own key.", hint=wanted, code="csr-invalid")
    return key


def public_key_pem(key: ec.EllipticCurvePublicKey) -> str:
    """The key as PEM text (SubjectPublicKeyInfo)."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def load_public_key(pem: str) -> ec.EllipticCurvePublicKey:
    """The key of the PEM text that `public_key_pem` wrote. Raises: InvalidError."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError as error:
        raise InvalidError(f"A public key cannot be read: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidError(f"A {type(key).__name__} where an EC key was wanted.")
    return key


def create_authority(certificate_path: Path, key_path: Path, config: PkiConfig) -> None:
    """Make an authority with a new key and write both files."""
    now, key = _system_now(), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mooring.authority.{os.urandom(4).hex()}")])
    builder = _builder_for(name, name, key.public_key(), start=now - BACKDATE, end=now + timedelta(days=config.authority_days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(is_authority=True), critical=True)
    # the key first: a certificate without a key would look complete
    write_atomically(key_path, _key_pem(key), mode=0o600)
    write_atomically(certificate_path, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _builder(
    common_name: str, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return _builder_for(subject, issuer, public_key, start=start, end=end)


def _builder_for(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public_key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_current(pair: KeyPair, authority: x509.Certificate, names: tuple[str, ...]) -> bool:
    if not (pair.certificate.exists() and pair.key.exists()):
        return False
    try:
        found = x509.load_pem_x509_certificate(read_bounded(pair.certificate, _MAX_PEM_BYTES))
        key = serialization.load_pem_private_key(read_bounded(pair.key, _MAX_PEM_BYTES), None)
        found.verify_directly_issued_by(authority)
        has = list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) if names else []
    except (ValueError, TypeError, InvalidSignature, InvalidError, x509.ExtensionNotFound):
        return False
    life = found.not_valid_after_utc - found.not_valid_before_utc
    is_fresh = found.not_valid_after_utc - _system_now() > life / 3
    return is_fresh and key.public_key() == found.public_key() and has == [_general_name(name) for name in names]


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the only process that changes the folder."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _system_now() -> datetime:
    return datetime.now(UTC)
