"""How a device gets its identity: an invitation of a person, used once, against a key that the device proves to have.

Who does not hold an invitation's secret learns nothing: not whether the invitation, its tenant or a device exists.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet import audit, db
from fleet.audit import Actor, ActorKind
from fleet.config import LimitsConfig
from fleet.devices import store, twins
from fleet.devices.model import ConfigPatch, Device, DeviceIdentity, DeviceState, EnrollmentToken, Twin
from fleet.devices.pki import ISSUING_LOCK, Authority, IssuedCertificate, check_request, public_key_pem
from protocol.errors import ConflictError, InvalidError, NotFoundError, UnauthenticatedError
from protocol.ids import DeviceId, DeviceTypeName, GroupName, TenantId, check_name, new_id
from protocol.messages import BrokerAddress, EnrollRequest, EnrollResponse

TOKEN_PREFIX = "mrg1"  # noqa: S105 - names the format
MAX_TOKEN_LENGTH = 300
#: An invitation ends, seconds: long enough for a trip to the site.
DEFAULT_VALID_S = 24 * 3600.0
MAX_VALID_S = 90 * 86_400.0
_SEALING_KEY_BYTES = 32
_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
_TOKEN = re.compile(rf"{TOKEN_PREFIX}\.({_NAME})\.({_NAME})\.([A-Za-z0-9_-]{{16,64}})\.([0-9a-f]{{64}})")


@dataclass(frozen=True, slots=True)
class Invite:
    """A fresh invitation. `text` is shown once and never stored."""

    token_id: str
    text: str
    group: GroupName
    device_type: DeviceTypeName
    device: DeviceId | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class PresentedToken:
    """What a token's text says; nothing in it is proven yet."""

    tenant: TenantId
    token_id: str
    secret: str
    pin: str


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """The trusted TUF roots of a tenant, exact bytes."""

    image: bytes
    director: bytes


def token_text(tenant: TenantId, token_id: str, secret: str, pin: str) -> str:
    """The text a person hands to a device: `mrg1.{tenant}.{token_id}.{secret}.{pin of the authority}`."""
    return f"{TOKEN_PREFIX}.{tenant}.{token_id}.{secret}.{pin}"


def parse_token(text: str) -> PresentedToken:
    """The parts of a token's text. Raises: InvalidError (code token-malformed) that does not repeat it."""
    found = _TOKEN.fullmatch(text.strip())
    if len(text) > MAX_TOKEN_LENGTH or found is None:
        raise InvalidError(
            f"The token is malformed: {len(text)} characters in {text.count('.') + 1} parts.",
            hint=f"Wanted: five parts joined by dots, starting with {TOKEN_PREFIX}; copy the whole text of `mooring device invite`.",
            code="token-malformed",
        )
    tenant, token_id, secret, pin = found.groups()
    return PresentedToken(TenantId(tenant), token_id, secret, pin)


def check_token(token: EnrollmentToken | None, presented: PresentedToken, request: EnrollRequest, *, now: datetime) -> EnrollmentToken:
    """The invitation, when the presented secret opens it for this request. Pure; whether it was used is the caller's.

    Raises: UnauthenticatedError (token-unknown) for a wrong secret as for no invitation; ConflictError (token-expired,
    token-type-mismatch, token-device-mismatch) once the secret is right.
    """
    known = token.secret_sha256 if token is not None else "0" * 64
    is_right = hmac.compare_digest(known, _sha256(presented.secret))
    if token is None or not is_right:
        raise UnauthenticatedError("The token is not known here.", hint="Ask for a new invitation.", code="token-unknown")
    if token.used_at is None and now >= token.expires_at:
        raise ConflictError(
            f"The token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC.", hint="Ask for a new invitation.", code="token-expired"
        )
    if request.device_type != token.device_type:
        raise ConflictError(
            f"The token is for device type {token.device_type!r}; this device says {request.device_type!r}.",
            hint="Ask for an invitation of that type, or correct `device_type` on the device.",
            code="token-type-mismatch",
        )
    if token.device is not None and request.device not in {None, token.device}:
        raise ConflictError(
            f"The token is for device {token.device!r}; this device asks for {request.device!r}.", code="token-device-mismatch"
        )
    return token


def invite(
    database: db.Database,
    authority: Authority,
    *,
    tenant: TenantId,
    group: GroupName,
    device_type: DeviceTypeName,
    by: Actor,
    now: datetime,
    device: DeviceId | None = None,
    valid_s: float = DEFAULT_VALID_S,
    limits: LimitsConfig | None = None,
    reason: str = "",
) -> Invite:
    """Make an invitation for one device, or for exactly `device`: only so may an id that exists enroll again.

    Raises: NotFoundError when group or type is not there; ConflictError; InvalidError.
    """
    if not 0 < valid_s <= MAX_VALID_S:
        raise InvalidError(f"An invitation for {valid_s:g} s is not possible; wanted at most {MAX_VALID_S / 86_400:g} days.")
    if device is not None:
        check_name(device, what="Device")
    most, secret = (limits or LimitsConfig()).pending_invites, secrets.token_urlsafe(24)
    token = EnrollmentToken(
        tenant, new_id("inv"), _sha256(secret), group, device_type, device, str(by), now, now + timedelta(seconds=valid_s)
    )
    with database.transaction() as tx:
        store.get_group(tx, tenant, group)
        store.get_device_type(tx, tenant, device_type)
        _check_reinvited(store.find_device(tx, tenant, device) if device else None, device_type)
        if store.count_open_tokens(tx, tenant, now=now) >= most:
            raise ConflictError(f"{most} invitations are open already (limits.pending_invites).", hint="Delete some, or let them expire.")
        store.insert_token(tx, token)
        detail = {"group": group, "device_type": device_type, "device": device, "expires_at": token.expires_at.isoformat()}
        audit.append(
            tx, tenant=tenant, actor=by, action="invite.created", subject=f"invite/{token.token_id}", now=now, reason=reason, detail=detail
        )
    text = token_text(tenant, token.token_id, secret, authority.pin)
    return Invite(token.token_id, text, group, device_type, device, token.expires_at)


def withdraw_invite(database: db.Database, *, tenant: TenantId, token_id: str, by: Actor, now: datetime, reason: str = "") -> None:
    """Make an unused invitation worthless. Raises: NotFoundError."""
    with database.transaction() as tx:
        if not store.delete_token(tx, tenant, token_id):
            raise NotFoundError(f"There is no unused invitation {token_id!r}.")
        audit.append(tx, tenant=tenant, actor=by, action="invite.withdrawn", subject=f"invite/{token_id}", now=now, reason=reason)


def list_invites(database: db.Database, tenant: TenantId, *, limit: int = 50) -> list[EnrollmentToken]:
    """The newest invitations first; without any secret."""
    with database.reading() as tx:
        return store.list_tokens(tx, tenant, limit=limit)


def enroll(
    database: db.Database,
    authority: Authority,
    request: EnrollRequest,
    *,
    broker: BrokerAddress,
    trust_roots: Callable[[TenantId], TrustRoots],
    now: datetime,
) -> EnrollResponse:
    """Use the invitation up and make the device a member, in one transaction with its audit entry; returns its identity.

    A device that lost the answer may ask again with the same token and key. Raises: InvalidError (token-malformed, csr-invalid,
    sealing-key-invalid); UnauthenticatedError (token-unknown); ConflictError (token-used, token-expired, token-type-mismatch,
    token-device-mismatch, device-exists); UnavailableError (authority-replaced) until this server is started again.
    """
    presented = parse_token(request.token)
    key = check_request(request.csr_pem)
    _check_sealing_key(request, key)
    with database.transaction() as tx:
        _hold_authority(tx, authority)
        token = check_token(store.find_token(tx, presented.tenant, presented.token_id), presented, request, now=now)
        if token.used_at is not None:
            device, issued = _repeat(tx, authority, token, request, key, now)
        else:
            device, issued = _join(tx, authority, token, request, key, now)
    roots = trust_roots(device.tenant)
    return EnrollResponse(
        device=device.device,
        tenant=device.tenant,
        group=device.group,
        certificate_pem=issued.pem,
        ca_pem=authority.ca_pem,
        broker=broker,
        image_root=base64.b64encode(roots.image).decode(),
        director_root=base64.b64encode(roots.director).decode(),
    )


def renew_certificate(
    database: db.Database, authority: Authority, *, identity: DeviceIdentity, csr_pem: str, now: datetime
) -> IssuedCertificate:
    """A new certificate for a known device; the old one stays valid until the new one is first used.

    The key may be new. Raises: InvalidError (csr-invalid); NotFoundError; UnavailableError (authority-replaced).
    """
    key = check_request(csr_pem)
    with database.transaction() as tx:
        _hold_authority(tx, authority)
        device = store.get_device(tx, identity.tenant, identity.device, is_held=True)
        issued = authority.issue_device(device.device, key)
        if device.pending_serial is not None:
            store.add_revoked(tx, device, [device.pending_serial], now=now)
        pem = public_key_pem(key)
        # reports are signed with the key in use; the new key counts from the first use of its certificate
        store.put_pending_certificate(
            tx, device, serial=issued.serial, public_key=pem, ends_at=issued.not_after, trust_digest=authority.trust_digest
        )
        actor = Actor(ActorKind.DEVICE, device.device)
        detail = {"serial": issued.serial, "is_new_key": pem != device.public_key}
        subject = f"device/{device.device}"
        audit.append(tx, tenant=device.tenant, actor=actor, action="device.certificate-renewed", subject=subject, now=now, detail=detail)
    return issued


def authenticate(database: db.Database, *, device: str, serial: str, now: datetime) -> DeviceIdentity:
    """Whose certificate this is: common name and serial (decimal) as the verified TLS session had them. One indexed read.

    The first use of a renewed certificate makes the older one invalid.
    Raises: UnauthenticatedError (certificate-unknown, certificate-revoked, certificate-superseded).
    """
    with database.reading() as tx:
        found = store.find_identity(tx, DeviceId(device))
    if found is None:
        raise UnauthenticatedError(f"No device {device[:80]!r} is enrolled here.", hint="Enroll it again.", code="certificate-unknown")
    identity, state, current, pending = found
    if state is DeviceState.REVOKED:
        raise UnauthenticatedError(f"Device {device!r} was revoked.", hint="Ask for an invitation of its own.", code="certificate-revoked")
    if serial == current:
        return identity
    if serial != pending:
        raise UnauthenticatedError(
            f"A newer certificate of {device!r} is in use.", hint="Use it, or enroll again.", code="certificate-superseded"
        )
    return _promote(database, identity, serial, now)


def _promote(database: db.Database, identity: DeviceIdentity, serial: str, now: datetime) -> DeviceIdentity:
    with database.transaction() as tx:
        device = store.get_device(tx, identity.tenant, identity.device, is_held=True)
        if device.pending_serial == serial:
            store.add_revoked(tx, device, [device.serial], now=now)
            public_key = store.promote_pending_certificate(tx, device)
            return replace(identity, public_key=public_key)
    return identity


def _hold_authority(tx: db.Connection, authority: Authority) -> None:
    """Keep the authority from being replaced until this transaction ends. Raises: UnavailableError when it was replaced already."""
    db.share(tx, ISSUING_LOCK)
    authority.check_current()


def _join(
    tx: db.Connection,
    authority: Authority,
    token: EnrollmentToken,
    request: EnrollRequest,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
) -> tuple[Device, IssuedCertificate]:
    name = token.device or request.device or DeviceId(new_id("dev"))
    if not store.use_token(tx, token, DeviceId(name), now=now):
        raise _used()
    group = store.get_group(tx, token.tenant, token.group, is_held=True)
    issued = authority.issue_device(DeviceId(name), key)
    device = Device(
        tenant=token.tenant,
        device=DeviceId(name),
        device_type=token.device_type,
        group=token.group,
        site=group.site,
        state=DeviceState.ENROLLED,
        labels={},
        hardware={_clean(name): _clean(value) for name, value in request.hardware.items()},
        agent_version=_clean(request.agent_version),
        public_key=public_key_pem(key),
        sealing_key=request.sealing_key,
        serial=issued.serial,
        pending_serial=None,
        certificate_ends_at=issued.not_after,
        trust_digest=authority.trust_digest,
        enrolled_at=now,
    )
    old = store.find_device(tx, token.tenant, device.device, is_held=True) if token.device is not None else None
    if old is not None:
        device = _replace_identity(tx, old, device, now)
    elif store.insert_device(tx, device):
        store.put_twin(tx, Twin(device.tenant, device.device, ConfigPatch(), 1, 0, "{}", None, None, now))
    else:
        raise ConflictError(
            f"Device id {device.device!r} is taken.",
            hint="Choose another id. A device that is set up anew needs an invitation for its id.",
            code="device-exists",
        )
    twins.refresh(tx, device.tenant, device.device, now=now)
    _record(tx, device, "device.enrolled-again" if old else "device.enrolled", token, now)
    return device, issued


def _replace_identity(tx: db.Connection, old: Device, new: Device, now: datetime) -> Device:
    """Same device, new keys: it keeps group, site and labels; secrets sealed to the lost key are gone."""
    store.add_revoked(tx, old, [serial for serial in (old.serial, old.pending_serial) if serial], now=now)
    store.delete_secrets(tx, old.tenant, old.device)
    wanted = replace(new, group=old.group, site=old.site, labels=old.labels, revision=old.revision)
    return store.save_device(tx, wanted)


def _repeat(
    tx: db.Connection,
    authority: Authority,
    token: EnrollmentToken,
    request: EnrollRequest,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
) -> tuple[Device, IssuedCertificate]:
    """The same key asks again with the token it used: the answer was lost. A new certificate takes the place of the lost one."""
    device = store.find_device(tx, token.tenant, token.used_by, is_held=True) if token.used_by else None
    is_same = device is not None and device.state is DeviceState.ENROLLED and device.public_key == public_key_pem(key)
    if device is None or not is_same or device.sealing_key != request.sealing_key or now >= token.expires_at:
        raise _used()
    issued = authority.issue_device(device.device, key)
    store.add_revoked(tx, device, [serial for serial in (device.serial, device.pending_serial) if serial], now=now)
    fresh = replace(
        device,
        serial=issued.serial,
        pending_serial=None,
        pending_ends_at=None,
        certificate_ends_at=issued.not_after,
        trust_digest=authority.trust_digest,
    )
    saved = store.save_device(tx, fresh)
    _record(tx, saved, "device.enrollment-repeated", token, now)
    return saved, issued


def _record(tx: db.Connection, device: Device, action: str, token: EnrollmentToken, now: datetime) -> None:
    detail = {"invite": token.token_id, "invited_by": token.created_by, "group": device.group, "device_type": device.device_type}
    actor = Actor(ActorKind.DEVICE, device.device)
    detail["serial"] = device.serial
    audit.append(tx, tenant=device.tenant, actor=actor, action=action, subject=f"device/{device.device}", now=now, detail=detail)


def _check_reinvited(existing: Device | None, device_type: DeviceTypeName) -> None:
    if existing is not None and existing.device_type != device_type:
        raise ConflictError(
            f"Device {existing.device!r} is of type {existing.device_type!r}, not {device_type!r}.",
            hint="Other hardware is another device: choose another id.",
        )


def _check_sealing_key(request: EnrollRequest, key: ec.EllipticCurvePublicKey) -> None:
    """The sealing key belongs to whoever has the certificate's key: else secrets could be sealed to somebody in between."""
    wanted = f"Wanted: a raw X25519 key of {_SEALING_KEY_BYTES} bytes, base64, signed with the request's key."
    try:
        raw = base64.b64decode(request.sealing_key, validate=True)
        key.verify(base64.b64decode(request.sealing_signature, validate=True), raw, ec.ECDSA(hashes.SHA256()))
    except (binascii.Error, ValueError, InvalidSignature) as error:
        raise InvalidError("The sealing key is not signed by the device's key.", hint=wanted, code="sealing-key-invalid") from error
    if len(raw) != _SEALING_KEY_BYTES:
        raise InvalidError(f"The sealing key has {len(raw)} bytes.", hint=wanted, code="sealing-key-invalid")


def _clean(text: str) -> str:
    return text.replace("\x00", "")  # PostgreSQL keeps no NUL


def _used() -> ConflictError:
    return ConflictError("The token was used already.", hint="Each device needs an invitation of its own.", code="token-used")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
