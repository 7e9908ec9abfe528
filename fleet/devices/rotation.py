"""Replacing the certificate authority without losing a device: begin, switch, finish; at each moment every device that is known is trusted.

Between the steps devices renew their certificates by themselves and so learn whom to trust. Each step is one file written at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fleet import audit, db
from fleet.audit import Actor
from fleet.devices import store
from fleet.devices.pki import (
    ISSUING_LOCK,
    Authority,
    Generations,
    authority_files,
    create_authority,
    fingerprint,
    lock,
    open_authority,
    read_generations,
    write_generations,
)
from protocol.errors import ConflictError
from protocol.ids import DeviceId, TenantId

#: Devices that are named one by one when they hold a step up.
NAMED_LATECOMERS = 20


class Stage(StrEnum):
    """How far the rotation is."""

    SETTLED = "settled"
    #: The next authority is trusted, the old one still issues.
    BEGUN = "begun"
    #: The new authority issues, the former one is still trusted.
    SWITCHED = "switched"


@dataclass(frozen=True, slots=True)
class RotationStatus:
    """The authority and who has followed it."""

    stage: Stage
    #: SHA-256, hex, of the certificate that issues, and of the other one that is trusted (empty when there is none).
    issuing: str
    other: str
    ends_at: datetime
    #: Devices that are not revoked; those among them that have not renewed since the last step; the first of these by name.
    devices: int
    waiting: int
    latecomers: tuple[DeviceId, ...]


def read_status(database: db.Database, authority: Authority) -> RotationStatus:
    """How far the rotation is, and which devices have not followed yet."""
    with database.reading() as tx:
        return _status(tx, authority)


def _status(tx: db.Connection, authority: Authority) -> RotationStatus:
    counts = store.count_by_trust(tx)
    latecomers = store.list_by_trust(tx, unlike=authority.trust_digest, limit=NAMED_LATECOMERS)
    generations = read_generations(authority.folder)
    other = next(iter(authority.siblings), None)
    return RotationStatus(
        stage=_stage(generations),
        issuing=authority.pin,
        other="" if other is None else fingerprint(other.certificate),
        ends_at=authority.certificate.not_valid_after_utc,
        devices=sum(counts.values()),
        waiting=sum(count for digest, count in counts.items() if digest != authority.trust_digest),
        latecomers=tuple(latecomers),
    )


def begin(database: db.Database, authority: Authority, *, tenant: TenantId, by: Actor, now: datetime, reason: str = "") -> Authority:
    """Make the next authority and trust it beside the one that issues. Returns the authority as the next start opens it.

    Raises: ConflictError when a rotation is under way.
    """

    def step(old: Generations) -> Generations:
        number = max(old.trusted) + 1
        certificate, key = authority_files(authority.folder, number)
        create_authority(certificate, key, authority.config)
        return Generations(old.issuing, (old.issuing, number))

    return _take_step(database, authority, _Step("begin", Stage.SETTLED, step), tenant=tenant, by=by, now=now, reason=reason)


def switch(
    database: db.Database,
    authority: Authority,
    *,
    tenant: TenantId,
    by: Actor,
    now: datetime,
    reason: str = "",
    is_forced: bool = False,
) -> Authority:
    """Let the next authority issue from now on; server and services get its certificates at their next start.

    Raises: ConflictError out of order, or when devices do not trust it yet: these could not reach the server any more.
    """

    def step(old: Generations) -> Generations:
        other = next(number for number in old.trusted if number != old.issuing)
        return Generations(other, (other, old.issuing))

    return _take_step(
        database, authority, _Step("switch", Stage.BEGUN, step, is_checked=not is_forced), tenant=tenant, by=by, now=now, reason=reason
    )


def finish(
    database: db.Database,
    authority: Authority,
    *,
    tenant: TenantId,
    by: Actor,
    now: datetime,
    reason: str = "",
    is_forced: bool = False,
) -> Authority:
    """Trust the former authority no longer. Its key stays in the folder until somebody removes it; nothing uses it.

    Raises: ConflictError out of order, or when devices still have a certificate of it: these would have to enroll again.
    """
    step = _Step("finish", Stage.SWITCHED, lambda old: Generations(old.issuing, (old.issuing,)), is_checked=not is_forced)
    return _take_step(database, authority, step, tenant=tenant, by=by, now=now, reason=reason)


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    wanted: Stage
    apply: Callable[[Generations], Generations]
    #: Whether every device must have followed the step before.
    is_checked: bool = False


def _take_step(
    database: db.Database, authority: Authority, step: _Step, *, tenant: TenantId, by: Actor, now: datetime, reason: str
) -> Authority:
    folder = authority.folder
    with lock(folder):
        before = read_generations(folder)
        stage = _stage(before)
        if stage is not step.wanted:
            raise ConflictError(
                f"The authority's rotation is {stage}; `{step.name}` follows {step.wanted}.", hint="See: mooring authority status"
            )
        # the entry first: a change of trust that nobody recorded is worse than a record of one that a cut prevented
        with database.transaction() as tx:
            _check_followed(tx, authority, step)
            after = step.apply(before)
            detail = {"issuing": after.issuing, "trusted": list(after.trusted), "before": list(before.trusted)}
            subject = f"authority/{after.issuing}"
            audit.append(
                tx, tenant=tenant, actor=by, action=f"authority.{step.name}", subject=subject, now=now, reason=reason, detail=detail
            )
        try:
            # looked at once more, and changed, while nobody gets a certificate: one that was issued in between counts
            with database.transaction() as tx:
                db.lock(tx, ISSUING_LOCK)
                _check_followed(tx, authority, step)
                write_generations(folder, after)
        except ConflictError as error:
            with database.transaction() as tx:
                action = f"authority.{step.name}-prevented"
                audit.append(tx, tenant=tenant, actor=by, action=action, subject=subject, now=now, reason=error.message)
            raise
    return open_authority(folder, authority.config)


def _check_followed(tx: db.Connection, authority: Authority, step: _Step) -> None:
    if not step.is_checked:
        return
    status = _status(tx, authority)
    if status.waiting:
        names = ", ".join(status.latecomers)
        raise ConflictError(
            f"{status.waiting} of {status.devices} devices have not renewed their certificate since the last step: {names}.",
            hint="They do it by themselves within a day of being online. --force leaves them behind: they enroll again, on site.",
            code="devices-behind",
        )


def _stage(generations: Generations) -> Stage:
    if len(generations.trusted) == 1:
        return Stage.SETTLED
    return Stage.BEGUN if generations.issuing == min(generations.trusted) else Stage.SWITCHED
