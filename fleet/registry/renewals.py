"""Renewal of model lines: a line's role holds for a year, and a line without a release for that long is signed again as it is.

Only the expiry may change, so no approval is asked for; lines that several keys must sign are renewed by a ceremony (`mooring keys renew`).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from fleet import audit
from fleet.audit import Actor
from fleet.registry import service, store
from fleet.registry.service import Registry
from fleet.registry.signing import TARGETS_DAYS, expiry, parse_role, parse_signed_before
from protocol.errors import ConflictError, InvalidError, NotFoundError, TrustError
from protocol.ids import LineName, TenantId
from protocol.trust.metadata import line_role

#: A line is put up from so many days before its end.
DUE_DAYS = 60
#: One signature extends a line by at most this.
MAX_EXTENSION = timedelta(days=TARGETS_DAYS + 1)


@dataclass(frozen=True, slots=True)
class Renewal:
    """A line's role, to be signed again with a later expiry."""

    line: LineName
    expires_at: datetime
    payload: bytes
    previous: bytes


def list_renewals(registry: Registry, tenant: TenantId, *, line: LineName | None = None) -> list[Renewal]:
    """Lines that end within 60 days, or the one that is named whenever it ends. Lines that want several signatures are left out."""
    now = registry.clock.now()
    with registry.database.reading() as tx:
        names = [found.line for found in store.list_lines(tx, tenant) if line in {None, found.line}]
    found = []
    for name in names:
        published = registry.image.line_metadata(name)
        if not published or registry.image.threshold_of(line_role(name)) != 1:
            continue
        role = parse_role(published, "The published role").signed
        if line is None and role.expires - now > timedelta(days=DUE_DAYS):
            continue
        next_role = parse_role(published, "The published role").signed
        next_role.version, next_role.expires = role.version + 1, expiry(now, TARGETS_DAYS)
        found.append(Renewal(name, role.expires, Metadata(next_role).to_bytes(), published))
    return found


def sign_renewal(payload: bytes, *, previous: bytes, line: LineName, signer: Signer) -> bytes:
    """The payload with this key's signature.

    Raises: TrustError when this very key did not sign `previous`, or anything but version and expiry differs from it; InvalidError.
    """
    wanted, before = parse_role(payload, "The payload"), parse_signed_before(previous, signer)
    if before is None:
        raise InvalidError(f"Nothing of {line_role(line)} is published; there is nothing to renew.")
    _check(wanted.signed, before, line)
    wanted.sign(signer, append=True)
    return wanted.to_bytes()


def submit_renewal(registry: Registry, *, tenant: TenantId, by: Actor, line: LineName, signed: bytes) -> datetime:
    """Publish the renewed line; returns its new end. What waits for the line's signature is put up anew.

    Raises: NotFoundError; ConflictError (code "signature-outdated"); TrustError when it changes more, or the line's key did not sign.
    """
    now = registry.clock.now()
    with registry.database.reading() as tx:
        if store.find_line(tx, tenant, line) is None:
            raise NotFoundError(f"There is no line {line!r}.")
    published = registry.image.line_metadata(line)
    if not published:
        raise ConflictError(f"Nothing of line {line} is published.")
    role = parse_role(signed, "The signed role").signed
    _check(role, parse_role(published, "The published role").signed, line)
    registry.image.publish_line(line, signed, now)
    with registry.database.transaction() as tx:
        detail = {"version": role.version, "expires": role.expires.isoformat()}
        audit.append(tx, tenant=tenant, actor=by, action="line.renewed", subject=f"line/{line}", now=now, detail=detail)
    service.ask_for_signatures_again(registry, tenant=tenant, line=line, by=by, reason="The line was renewed.")
    return role.expires


def _check(wanted: Targets, before: Targets, line: LineName) -> None:
    same = (wanted.targets, wanted.unrecognized_fields, wanted.delegations) == (before.targets, before.unrecognized_fields, None)
    if not same:
        raise TrustError(f"The renewal of {line_role(line)} changes more than its expiry. Not signed.", code="not-approved")
    if wanted.version != before.version + 1:
        raise ConflictError(
            f"The renewal has version {wanted.version}; the next one is {before.version + 1}.",
            hint="Ask for it again.",
            code="signature-outdated",
        )
    if wanted.expires - before.expires > MAX_EXTENSION:
        raise TrustError(
            f"The renewal would hold until {wanted.expires:%Y-%m-%d}: more than {MAX_EXTENSION.days} days longer.", code="not-approved"
        )
