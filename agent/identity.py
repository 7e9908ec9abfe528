"""Who this device is: its key, which never leaves it, its certificate, whom it trusts; and how it gets all that: enrollment.

The folder is all or nothing: it appears whole, by one rename, or not at all. A key made for an enrollment whose answer was lost
is kept and used again for the next attempt. TLS and certificates go by system time.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import shutil
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from agent.traffic import Traffic
from protocol.errors import (
    ConflictError,
    DeviceError,
    ForbiddenError,
    InvalidError,
    MooringError,
    TransferError,
    TrustError,
    UnauthenticatedError,
    UnavailableError,
)
from protocol.fields import Name
from protocol.files import fsync_folder, read_bounded, write_atomically
from protocol.ids import DeviceId, TenantId
from protocol.messages import BrokerAddress, CertificateAnswer, CertificateRequest, EnrollRequest, EnrollResponse, Problem, Wire

if TYPE_CHECKING:
    import httpx
    from cryptography.hazmat.primitives.asymmetric import ec

MAX_ANSWER_BYTES = 2 << 20
MAX_PEM_BYTES = 64 << 10
_KEY, _CERTIFICATE, _CA, _SEALING = "device-key.pem", "device-cert.pem", "ca.pem", "sealing-key.bin"
_ENROLLMENT, _IMAGE_ROOT, _DIRECTOR_ROOT = "enrollment.json", "image-root.json", "director-root.json"
_TOKEN = re.compile(r"mrg1\.([a-z0-9][a-z0-9-]{0,62})\.([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]{16,128})\.([0-9a-f]{64})")
#: OpenSSL's verify codes for "not yet valid" and "expired": often the device's own clock.
_CLOCK_VERIFY_CODES = {9, 10}


class Enrollment(Wire):
    """What the server decided at enrollment; the file enrollment.json."""

    device: Name
    tenant: Name
    group: Name | None = None
    device_type: Name
    server: str
    broker: BrokerAddress


@dataclass(frozen=True, slots=True)
class Identity:
    """An enrolled device. The private keys are read when they are used, never held in text."""

    folder: Path
    enrollment: Enrollment

    @property
    def device(self) -> DeviceId:
        return DeviceId(self.enrollment.device)

    @property
    def tenant(self) -> TenantId:
        return TenantId(self.enrollment.tenant)

    @property
    def key_path(self) -> Path:
        return self.folder / _KEY

    @property
    def certificate_path(self) -> Path:
        return self.folder / _CERTIFICATE

    @property
    def ca_path(self) -> Path:
        return self.folder / _CA

    @property
    def image_root_path(self) -> Path:
        return self.folder / _IMAGE_ROOT

    @property
    def director_root_path(self) -> Path:
        return self.folder / _DIRECTOR_ROOT

    def signing_key(self) -> "ec.EllipticCurvePrivateKey":
        """The key that signs version reports and recordings. Raises: DeviceError when the file is unreadable."""
        return _load_key(self.key_path)

    def sealing_key(self) -> bytes:
        """The key that opens sealed secrets. Raises: DeviceError when the file is unreadable."""
        try:
            return read_bounded(self.folder / _SEALING, 32)
        except (OSError, InvalidError) as error:
            raise DeviceError(f"{self.folder / _SEALING} cannot be read: {error}.", code="identity-broken") from None

    def tls_context(self) -> ssl.SSLContext:
        """TLS towards server and broker: our certificate, their authority only. Raises: DeviceError when a file is unreadable."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca_path))
            context.load_cert_chain(str(self.certificate_path), str(self.key_path))
        except (OSError, ssl.SSLError) as error:
            raise DeviceError(f"The identity in {self.folder} cannot be used: {error}.", code="identity-broken") from None
        return context


def load_identity(folder: Path) -> Identity:
    """The identity in the folder. Raises: DeviceError "not-enrolled" when there is none, "identity-broken" when it is not whole."""
    _finish_replacement(folder)
    if not (folder / _ENROLLMENT).is_file():
        raise DeviceError(
            f"This device is not enrolled: no {folder / _ENROLLMENT}.",
            code="not-enrolled",
            hint="Run `mooring-agent enroll --server URL --token-file FILE`.",
        )
    try:
        enrollment = Enrollment.model_validate_json(read_bounded(folder / _ENROLLMENT, MAX_PEM_BYTES))
    except (OSError, ValidationError, InvalidError) as error:
        raise DeviceError(f"{folder / _ENROLLMENT} cannot be read: {error}.", code="identity-broken") from None
    return Identity(folder, enrollment)


@dataclass(frozen=True, slots=True)
class EnrollmentToken:
    """The text that an operator hands to a device: it admits once, and pins the server's authority."""

    text: str
    #: SHA-256, hex, of the authority's certificate in DER.
    ca_sha256: str

    def __repr__(self) -> str:
        return f"EnrollmentToken(ca_sha256={self.ca_sha256!r})"


def parse_token(text: str) -> EnrollmentToken:
    """The token's parts. Raises: InvalidError that never repeats the token."""
    match = _TOKEN.fullmatch(text.strip())
    if match is None:
        raise InvalidError(
            "This is not an enrollment token.",
            hint="Wanted: mrg1.<tenant>.<id>.<secret>.<64 hex digits>, as `mooring device invite` prints it.",
        )
    return EnrollmentToken(text.strip(), match.group(4))


@dataclass(frozen=True, slots=True)
class EnrollmentWish:
    """What the device asks for."""

    server: str
    token: EnrollmentToken
    device_type: str
    device: str | None = None
    proxy: str | None = None
    timeout_s: float = 30.0
    agent_version: str = ""


def enroll(folder: Path, wish: EnrollmentWish, *, force: bool = False) -> Identity:
    """Make a key, let the server certify it, and write the identity folder: whole, or not at all.

    Raises: ConflictError when the device is enrolled already (`force` replaces that) or the id is taken; TrustError when the server
    is not the one that the token names; UnauthenticatedError on a wrong, used or expired token; ForbiddenError; InvalidError;
    TransferError when the server cannot be reached: then trying again is safe; DeviceError when the folder cannot be written.
    """
    _finish_replacement(folder)
    if folder.exists() and not force:
        raise ConflictError(
            f"This device is enrolled already: {folder}.", code="already-enrolled", hint="Use --force to give it a new identity."
        )
    pending = folder.with_name(f"{folder.name}.pending")
    try:
        pending.mkdir(parents=True, mode=0o700, exist_ok=True)
        key, sealing_key = _pending_keys(pending)
        try:
            answer = _ask(wish, key, sealing_key)
            _write(pending, wish, answer, key)
        except TransferError:
            raise  # the answer may have been lost on its way: the next attempt uses the same key
        except MooringError:
            shutil.rmtree(pending, ignore_errors=True)
            raise
        _swap_in(pending, folder)
    except OSError as error:
        hint = "Run it as root, or keep the agent's state elsewhere: --state-dir DIR, also for `mooring-agent run` and all other commands."
        raise DeviceError(f"The identity cannot be written to {folder}: {error.strerror}.", hint=hint, code="disk") from None
    return load_identity(folder)


def certificate_life(identity: Identity) -> tuple[datetime, datetime]:
    """From when until when the device's certificate is valid. Raises: DeviceError when it cannot be read."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(read_bounded(identity.certificate_path, MAX_PEM_BYTES))
    except (OSError, ValueError, InvalidError) as error:
        raise DeviceError(f"{identity.certificate_path} cannot be read: {error}.", code="identity-broken") from None
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def renewal_from(identity: Identity) -> datetime:
    """From when on, in system time, the device renews its certificate by itself: its last third. Raises: DeviceError."""
    start, end = certificate_life(identity)
    return end - (end - start) / 3


def is_renewal_due(identity: Identity, now: datetime) -> bool:
    """Whether less than a third of the certificate's life is left at the system time `now`. Raises: DeviceError."""
    return now > renewal_from(identity)


@dataclass(frozen=True, slots=True)
class Authorities:
    """Whom the device trusts: more than one while the authority is being replaced."""

    trusted: int
    #: Which of them issued the device's certificate, the first one being the one that issued then; None: none that it trusts.
    issuer: int | None
    pem: str


def read_authorities(identity: Identity) -> Authorities:
    """The authorities that the device trusts, as its files say. Raises: DeviceError when they cannot be read."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        data = read_bounded(identity.ca_path, MAX_PEM_BYTES)
        trusted = x509.load_pem_x509_certificates(data)
        own = x509.load_pem_x509_certificate(read_bounded(identity.certificate_path, MAX_PEM_BYTES))
    except (OSError, ValueError, InvalidError) as error:
        raise DeviceError(f"The authorities in {identity.folder} cannot be read: {error}.", code="identity-broken") from None
    for number, authority in enumerate(trusted):
        with suppress(ValueError, TypeError, InvalidSignature):
            own.verify_directly_issued_by(authority)
            return Authorities(len(trusted), number, data.decode())
    return Authorities(len(trusted), None, data.decode(errors="replace"))


def is_authority_changed(identity: Identity, client: "httpx.Client") -> bool:
    """Whether the server trusts or issues by other authorities than this device knows; asked over the verified connection.

    Raises: TransferError; AccessError; DeviceError.
    """
    text = read_answer(client, "GET", "/enroll/v1/ca", limit=MAX_PEM_BYTES).decode(errors="replace")
    try:
        return text != read_bounded(identity.ca_path, MAX_PEM_BYTES).decode(errors="replace")
    except (OSError, InvalidError) as error:
        raise DeviceError(f"{identity.ca_path} cannot be read: {error}.", code="identity-broken") from None


def renew_certificate(identity: Identity, client: "httpx.Client") -> None:
    """Replace the certificate, and the authority's if it changed; the key stays. The old one is valid until the new one is used.

    Raises: TrustError when the answer is not for this device and key; TransferError; AccessError; DeviceError.
    """
    key = identity.signing_key()
    request = CertificateRequest(csr_pem=_csr(key, identity.device))
    answer = _parse(CertificateAnswer, read_answer(client, "POST", "/device/v1/certificate", json_body=request.model_dump_json().encode()))
    _check_certificate(answer.certificate_pem, key, identity.device)
    try:
        write_atomically(identity.ca_path, answer.ca_pem.encode())
        write_atomically(identity.certificate_path, answer.certificate_pem.encode())
    except OSError as error:
        raise DeviceError(f"The renewed certificate cannot be written to {identity.folder}: {error.strerror}.", code="disk") from None


@contextmanager
def open_client(
    context: ssl.SSLContext, *, base_url: str, proxy: str | None, timeout_s: float, traffic: Traffic | None = None
) -> Iterator["httpx.Client"]:
    """An HTTPS client that follows no redirect, reads no proxy from the environment, and turns failures to connect into ours.

    What its connections carry is counted in `traffic`.

    Raises, inside the block: TransferError naming the URL; a certificate that is not valid yet or any more says so.
    """
    with _without_its_command_line():
        import httpx

    try:
        with (
            httpx.Client(base_url=base_url, verify=context, proxy=proxy, timeout=timeout_s, trust_env=False) as client,
            nullcontext() if traffic is None else traffic.counting(client),
        ):
            yield client
    except httpx.TransportError as error:
        raise _transfer_error(error, base_url) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidError(f"{base_url!r} is not a usable URL: {error}.", hint="Wanted: https://host[:port].") from None


@contextmanager
def _without_its_command_line() -> Iterator[None]:
    """The first import of httpx in the block leaves out `httpx._main`, with click, rich and pygments: 4 MiB that no agent needs."""
    if "httpx" in sys.modules:
        yield
        return
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # the import system's mark of what is not to be found
    try:
        yield
    finally:
        sys.modules.pop("httpx._main", None)


def read_answer(client: "httpx.Client", method: str, path: str, *, json_body: bytes | None = None, limit: int = MAX_ANSWER_BYTES) -> bytes:
    """The body of a 200. Raises: the error that the server's problem document names; TransferError on anything else."""
    headers = {"content-type": "application/json"} if json_body is not None else None
    with client.stream(method, path, content=json_body, headers=headers) as response:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > limit:
                raise TransferError(f"{response.url} answered with more than {limit} bytes.", code="too-large")
    if response.status_code != 200:
        raise problem_error(response.status_code, bytes(body), response.headers, url=str(response.url))
    return bytes(body)


def problem_error(status: int, body: bytes, headers: Mapping[str, str], *, url: str) -> MooringError:
    """The error of ours that an answer other than 200 stands for."""
    try:
        problem = Problem.model_validate_json(body)
        detail, hint, code = problem.detail or problem.title, problem.hint, problem.type.rpartition(":")[2]
    except ValidationError:
        detail, hint, code = f"{url} answered {status}.", None, None
    if status in {429, 502, 503, 504}:
        retry = headers.get("retry-after", "")
        return UnavailableError(detail, retry_after_s=float(retry) if retry.isdigit() else None)
    kinds: dict[int, type[MooringError]] = {
        401: UnauthenticatedError,
        403: ForbiddenError,
        404: ConflictError,
        409: ConflictError,
        413: InvalidError,
        422: InvalidError,
    }
    return kinds.get(status, TransferError)(detail, code=code, hint=hint)


# --- the steps of an enrollment ---

_Message = TypeVar("_Message", bound=BaseModel)


def _ask(wish: EnrollmentWish, key: "ec.EllipticCurvePrivateKey", sealing_key: bytes) -> EnrollResponse:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from protocol.sealed import sealing_public_key

    context = ssl.create_default_context(cadata=_pinned_authority(wish))
    public = sealing_public_key(sealing_key)
    try:
        request = EnrollRequest(
            token=wish.token.text,
            device=wish.device,
            device_type=wish.device_type,
            csr_pem=_csr(key, wish.device or "unnamed"),
            sealing_key=base64.b64encode(public).decode(),
            sealing_signature=base64.b64encode(key.sign(public, ec.ECDSA(hashes.SHA256()))).decode(),
            hardware=describe_hardware(),
            agent_version=wish.agent_version,
        )
    except ValidationError as error:
        field = error.errors(include_url=False)[0]
        raise InvalidError(f"{'.'.join(map(str, field['loc']))} {str(field['input'])[:80]!r}: {field['msg']}.") from None
    with open_client(context, base_url=wish.server, proxy=wish.proxy, timeout_s=wish.timeout_s) as client:
        body = read_answer(client, "POST", "/enroll/v1", json_body=request.model_dump_json().encode())
    return _parse(EnrollResponse, body)


def _pinned_authority(wish: EnrollmentWish) -> str:
    """The server's authority, fetched without trust and believed only when its digest is the one in the token."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    with open_client(blind, base_url=wish.server, proxy=wish.proxy, timeout_s=wish.timeout_s) as client:
        text = read_answer(client, "GET", "/enroll/v1/ca", limit=MAX_PEM_BYTES).decode(errors="replace")
    seen = []
    for pem in re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL):
        try:
            seen.append(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest())
        except (ValueError, binascii.Error):
            continue
        if seen[-1] == wish.token.ca_sha256:
            return str(pem)
    raise TrustError(
        f"{wish.server} shows the certificate authority {', '.join(digest[:16] for digest in seen) or 'none'}; the token names "
        f"{wish.token.ca_sha256[:16]}.",
        code="wrong-server",
        hint="Check the URL; if it is right, somebody may stand in between.",
    )


def _pending_keys(pending: Path) -> tuple["ec.EllipticCurvePrivateKey", bytes]:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from protocol.sealed import new_sealing_key

    if not (pending / _SEALING).is_file():
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(pending / _KEY, pem, mode=0o600)
        write_atomically(pending / _SEALING, new_sealing_key(), mode=0o600)
    return _load_key(pending / _KEY), read_bounded(pending / _SEALING, 32)


def _write(pending: Path, wish: EnrollmentWish, answer: EnrollResponse, key: "ec.EllipticCurvePrivateKey") -> None:
    """Check what the server gave and write it beside the keys. Raises: TrustError when it does not fit together."""
    _check_certificate(answer.certificate_pem, key, answer.device)
    roots = {_IMAGE_ROOT: answer.image_root, _DIRECTOR_ROOT: answer.director_root}
    try:
        decoded = {name: base64.b64decode(text, validate=True) for name, text in roots.items()}
        are_roots = all(json.loads(data)["signed"]["_type"] == "root" for data in decoded.values())
    except (ValueError, KeyError, TypeError) as error:
        raise TrustError(f"The server's trusted roots are malformed: {error}.", code="enrollment-answer") from None
    if not are_roots:
        raise TrustError("The server sent no trusted roots.", code="enrollment-answer")
    enrollment = Enrollment(
        device=answer.device,
        tenant=answer.tenant,
        group=answer.group,
        device_type=wish.device_type,
        server=wish.server,
        broker=answer.broker,
    )
    write_atomically(pending / _CERTIFICATE, answer.certificate_pem.encode())
    write_atomically(pending / _CA, answer.ca_pem.encode())
    for name, data in decoded.items():
        write_atomically(pending / name, data)
    write_atomically(pending / _ENROLLMENT, enrollment.model_dump_json(indent=2).encode())


def _check_certificate(pem: str, key: "ec.EllipticCurvePrivateKey", device: str) -> None:
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise TrustError(f"The server's certificate for this device is malformed: {error}.", code="enrollment-answer") from None
    names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if certificate.public_key() != key.public_key() or names != [device]:
        raise TrustError(f"The server's certificate is for another key or name; wanted this key and {device}.", code="enrollment-answer")


def _swap_in(pending: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    pending.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _finish_replacement(folder: Path) -> None:
    """After a cut inside `_swap_in`: the old identity is still the identity."""
    old = folder.with_name(f"{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)
        fsync_folder(folder.parent)


def _csr(key: "ec.EllipticCurvePrivateKey", name: str) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _load_key(path: Path) -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_bounded(path, MAX_PEM_BYTES), None)
    except (OSError, ValueError, TypeError, InvalidError) as error:
        raise DeviceError(f"{path} is not a readable key: {error}.", code="identity-broken") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeviceError(f"{path} holds a {type(key).__name__}; wanted an ECDSA P-256 key.", code="identity-broken")
    return key


def guess_device_type() -> str:
    """The device type of a machine that nobody gave one, e.g. "linux-x86-64"."""
    system = os.uname()
    machine = {"aarch64": "arm64", "armv7l": "armv7", "x86_64": "x86-64"}.get(system.machine, system.machine)
    return re.sub(r"[^a-z0-9-]+", "-", f"{system.sysname}-{machine}".lower())


def describe_hardware() -> dict[str, str]:
    """What kind of machine this is, in a few short texts without serial numbers."""
    system = os.uname()
    found = {"machine": system.machine, "kernel": f"{system.sysname} {system.release}", "cpus": str(os.cpu_count() or 0)}
    try:
        model = Path("/proc/device-tree/model").read_bytes()[:200]
        found["board"] = model.decode(errors="replace").strip("\0 \n")
    except OSError:
        pass
    return {key: value[:200] for key, value in found.items()}


def _parse(kind: type[_Message], body: bytes) -> _Message:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise TransferError(f"The server's answer is not a {kind.__name__}: {error.error_count()} fields are wrong.") from None


def _transfer_error(error: Exception, url: str) -> TransferError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    hint = "Check the address, the network, the proxy, and that the server runs."
    if isinstance(cause, ssl.SSLCertVerificationError):
        is_clock = cause.verify_code in _CLOCK_VERIFY_CODES
        hint = "Compare the system clock with the real time." if is_clock else "Check the URL's host name, or enroll again."
        return TransferError(f"The certificate of {url} was refused: {cause.verify_message}.", code="tls", hint=hint)
    return TransferError(f"{url} cannot be reached: {error or type(error).__name__}.", hint=hint)
