"""The desired half of a device's twin: composed from group, device, pipelines, secrets and the director's hint, and told to the device.

`desired_rev` grows only when the composed document changes, so a poll that changes nothing is one indexed read (`find_identity`).
What the device reports back is monitoring's.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from fleet import audit, db, jobs
from fleet.audit import Actor
from fleet.config import LimitsConfig
from fleet.devices import store
from fleet.devices.model import MAX_SECRET_BYTES, ConfigPatch, Consented, DeviceFilter, DriftPatch, Group, Pipeline, PipelineSpec, Twin
from protocol.canonical import canonical_json
from protocol.errors import InvalidError, NotFoundError
from protocol.ids import DeviceId, GroupName, LineName, TenantId, check_name
from protocol.messages import Consent, Desired, ManifestHint
from protocol.sealed import seal, secret_context
from protocol.topics import MAX_PACKET_BYTES

#: Jobs of this domain: tell one device of its new desired twin (`fleet.service` gives the handler); compose a group's twins anew.
PUBLISH_DESIRED, REFRESH_GROUP = "publish_desired", "refresh_group"
#: Devices whose twins one transaction composes.
REFRESH_PORTION = 200


def compose(group: ConfigPatch, device: ConfigPatch, pipelines: Sequence[PipelineSpec], secrets: Mapping[str, str]) -> dict[str, Any]:
    """The desired config: what the device's patch says, else what the group's says; own pipelines in place of the group's."""
    document: dict[str, Any] = {}
    for section in ("telemetry", "update", "drift"):
        merged = {**_said(getattr(group, section)), **_said(getattr(device, section))}
        if merged:
            document[section] = merged
    # none at all: the key is absent and the device keeps its local list
    wanted = list(pipelines) or group.pipelines
    if wanted is not None:
        document["pipelines"] = [spec.model_dump(mode="json", exclude_none=True) for spec in wanted]
    if secrets:
        document["secrets"] = dict(secrets)
    return document


def desired_of(twin: Twin) -> Desired:
    """The twin as the wire's message: body of GET /device/v1/desired and of `c/{device}/desired`."""
    hint = None
    if twin.manifest_url and twin.manifest_sha256:
        hint = ManifestHint(url=twin.manifest_url, sha256=twin.manifest_sha256, spread_s=twin.spread_s)
    consents = [Consent(line=line, assignment=one.assignment, given=one.is_given) for line, one in sorted(twin.consents.items())]
    return Desired(rev=twin.desired_rev, config=store.load_desired(twin), manifest=hint, consents=consents)


def desired_etag(desired_rev: int) -> str:
    """The strong ETag of a desired twin."""
    return f'"{desired_rev}"'


def get_desired(database: db.Database, tenant: TenantId, device: DeviceId) -> Desired:
    """What the device should be like. Raises: NotFoundError."""
    with database.reading() as tx:
        return desired_of(store.get_twin(tx, tenant, device))


def refresh(tx: db.Connection, tenant: TenantId, device: DeviceId, *, now: datetime, **changes: Any) -> Twin:
    """Compose the twin anew, with `changes` to its fields; when the result differs, count it and add the job that tells the device.

    Returns the twin now in force. Raises: NotFoundError.
    """
    before = store.get_twin(tx, tenant, device, is_held=True)
    owner = store.get_device(tx, tenant, device)
    group = store.get_group(tx, tenant, owner.group)
    twin = replace(before, **changes)
    own = [pipeline.spec for pipeline in store.list_pipelines(tx, tenant, device)]
    document = compose(group.config, twin.config, own, store.list_secrets(tx, tenant, device))
    twin = replace(twin, desired=canonical_json(document).decode(), updated_at=now)
    if _told(twin) != _told(before):
        twin = replace(twin, desired_rev=before.desired_rev + 1)
        announce(tx, tenant, device, now=now)
    store.put_twin(tx, twin)
    return twin


def announce(tx: db.Connection, tenant: TenantId, device: DeviceId, *, now: datetime) -> None:
    """Add the job that publishes the device's desired twin; one waiting job per device."""
    jobs.add(tx, tenant=tenant, kind=PUBLISH_DESIRED, payload={"tenant": tenant, "device": device}, key=device, now=now)


def set_manifest(tx: db.Connection, tenant: TenantId, device: DeviceId, *, url: str, sha256: str, now: datetime, spread_s: int = 0) -> Twin:
    """Hint the device at new director metadata, in the caller's transaction; `spread_s`: it asks at a moment of its own within.

    Raises: NotFoundError.
    """
    return refresh(tx, tenant, device, now=now, manifest_url=url, manifest_sha256=sha256, spread_s=spread_s)


def set_consent(
    tx: db.Connection,
    tenant: TenantId,
    device: DeviceId,
    *,
    line: LineName,
    consented: Consented,
    by: Actor,
    now: datetime,
    reason: str = "",
) -> Twin:
    """Tell the device that it may, or may not, activate what one assignment brought. Raises: NotFoundError."""
    before = _checked(tx, tenant, device, None)
    twin = refresh(tx, tenant, device, now=now, consents={**before.consents, line: consented})
    action = "update.consent-given" if consented.is_given else "update.consent-refused"
    _record(tx, tenant, device, action, by, now, reason, {"line": line, "assignment": consented.assignment})
    return twin


def set_device_config(
    database: db.Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    config: ConfigPatch,
    by: Actor,
    now: datetime,
    expected_revision: int | None = None,
    reason: str = "",
) -> Twin:
    """Make this the device's own config patch; what the server tells a device of drift by itself stays where the patch does not name it.

    Raises: NotFoundError; StaleRevisionError; InvalidError when it holds pipelines, or references that no message can bring.
    """
    if config.pipelines is not None:
        raise InvalidError("A device's pipelines are set as its list of pipelines, not in its config.")
    with database.transaction() as tx:
        before = _checked(tx, tenant, device, expected_revision)
        whole = config.model_copy(update={"drift": _with_own(config.drift, before.config.drift)})
        twin = refresh(tx, tenant, device, now=now, config=whole, revision=before.revision + 1)
        if whole.drift.references != before.config.drift.references:
            _check_size(twin)
        detail = {"revision": twin.revision, "config": config.model_dump(mode="json", exclude_defaults=True)}
        _record(tx, tenant, device, "device.config-changed", by, now, reason, detail)
    return twin


def _with_own(asked: DriftPatch, before: DriftPatch) -> DriftPatch:
    """What somebody asks, with alarms taken, new normals and references lent before: commands put those there, which nobody repeats."""
    own = ("acknowledged", "rebaselined", "references")
    return asked.model_copy(update={name: getattr(before, name) for name in own if getattr(asked, name) is None})


def change_drift(
    tx: db.Connection, tenant: TenantId, device: DeviceId, change: Callable[[DriftPatch], DriftPatch], *, now: datetime
) -> Twin:
    """Change what the device is told of drift, in the caller's transaction, which records why.

    Raises: NotFoundError; InvalidError (too-large) when references that are lent to it make the twin longer than a message may be.
    """
    before = store.get_twin(tx, tenant, device, is_held=True)
    drift = change(before.config.drift)
    if drift == before.config.drift:
        return before
    config = before.config.model_copy(update={"drift": drift})
    twin = refresh(tx, tenant, device, now=now, config=config, revision=before.revision + 1)
    if drift.references != before.config.drift.references:
        _check_size(twin)
    return twin


def _check_size(twin: Twin) -> None:
    size = len(desired_of(twin).model_dump_json().encode())
    if size > MAX_PACKET_BYTES:
        lent = {name: len(text) for name, text in (twin.config.drift.references or {}).items()}
        raise InvalidError(
            f"With this reference the twin of {twin.device} has {size} bytes; a message holds at most {MAX_PACKET_BYTES}. "
            f"References in it: {', '.join(f'{name} {count}' for name, count in sorted(lent.items())) or 'none'}.",
            code="too-large",
            hint="Rebaseline a pipeline that is lent one, or bring them to the devices one after the other.",
        )


def set_pipelines(
    database: db.Database,
    *,
    tenant: TenantId,
    device: DeviceId,
    specs: Sequence[PipelineSpec],
    by: Actor,
    now: datetime,
    limits: LimitsConfig | None = None,
    expected_revision: int | None = None,
    reason: str = "",
) -> list[Pipeline]:
    """Make this the device's ordered list of pipelines; an empty one gives it back to its group or itself.

    Raises: NotFoundError; StaleRevisionError against the twin's revision; InvalidError when there are too many or two of one name.
    """
    most = (limits or LimitsConfig()).pipelines
    if len(specs) > most:
        raise InvalidError(f"{len(specs)} pipelines are more than the {most} allowed per device (limits.pipelines).")
    if len({spec.name for spec in specs}) != len(specs):
        raise InvalidError("Two pipelines have the same name.", hint="Give each a name of its own.")
    with database.transaction() as tx:
        before = _checked(tx, tenant, device, expected_revision)
        store.replace_pipelines(tx, tenant, device, specs)
        refresh(tx, tenant, device, now=now, revision=before.revision + 1)
        found = store.list_pipelines(tx, tenant, device)
        document = [spec.model_dump(mode="json", exclude_none=True) for spec in specs]
        _record(tx, tenant, device, "device.pipelines-changed", by, now, reason, {"pipelines": document})
    return found


def set_secret(
    database: db.Database, *, tenant: TenantId, device: DeviceId, name: str, plaintext: bytes, by: Actor, now: datetime, reason: str = ""
) -> None:
    """Seal the secret to the device's key and make it part of the desired twin; the plain form is kept nowhere.

    Raises: NotFoundError; InvalidError when name or size do not fit.
    """
    check_name(name, what="Secret")
    if not 0 < len(plaintext) <= MAX_SECRET_BYTES:
        raise InvalidError(f"The secret has {len(plaintext)} bytes; wanted 1 to {MAX_SECRET_BYTES}.")
    with database.transaction() as tx:
        before = _checked(tx, tenant, device, None)
        owner = store.get_device(tx, tenant, device)
        sealed = seal(base64.b64decode(owner.sealing_key), plaintext, context=secret_context(device, name))
        store.put_secret(tx, tenant, device, name, sealed, now=now)
        refresh(tx, tenant, device, now=now, revision=before.revision + 1)
        _record(tx, tenant, device, "device.secret-set", by, now, reason, {"name": name})


def delete_secret(
    database: db.Database, *, tenant: TenantId, device: DeviceId, name: str, by: Actor, now: datetime, reason: str = ""
) -> None:
    """Take the secret out of the desired twin. Raises: NotFoundError."""
    with database.transaction() as tx:
        before = _checked(tx, tenant, device, None)
        if store.delete_secrets(tx, tenant, device, name) == 0:
            raise NotFoundError(f"Device {device!r} has no secret {name!r}.")
        refresh(tx, tenant, device, now=now, revision=before.revision + 1)
        _record(tx, tenant, device, "device.secret-deleted", by, now, reason, {"name": name})


def queue_group(tx: db.Connection, group: Group, *, now: datetime) -> None:
    """Add the job that composes the twins of all devices of the group anew."""
    payload = {"tenant": group.tenant, "group": group.name}
    jobs.add(tx, tenant=group.tenant, kind=REFRESH_GROUP, payload=payload, key=group.name, now=now)


def refresh_group(database: db.Database, *, tenant: TenantId, group: GroupName, now: datetime) -> int:
    """Compose the twins of all devices of the group anew, a portion per transaction; returns how many changed. Safe to repeat."""
    changed, last = 0, None
    while True:
        with database.transaction() as tx:
            portion = store.list_devices(tx, tenant, matching=DeviceFilter(group=group), after=last, limit=REFRESH_PORTION)
            for one in portion:
                rev = store.find_desired_rev(tx, tenant, one.device)
                changed += refresh(tx, tenant, one.device, now=now).desired_rev != rev
        if len(portion) < REFRESH_PORTION:
            return changed
        last = portion[-1].device


def _said(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_none=True)


def _told(twin: Twin) -> tuple[object, ...]:
    """What the device hears of the twin."""
    return (twin.desired, twin.manifest_url, twin.manifest_sha256, dict(twin.consents))


def _checked(tx: db.Connection, tenant: TenantId, device: DeviceId, expected: int | None) -> Twin:
    twin = store.get_twin(tx, tenant, device, is_held=True)
    db.check_revision(twin.revision, expected, what=f"Device {device}")
    return twin


def _record(
    tx: db.Connection, tenant: TenantId, device: DeviceId, action: str, by: Actor, now: datetime, reason: str, detail: Mapping[str, Any]
) -> None:
    audit.append(tx, tenant=tenant, actor=by, action=action, subject=f"device/{device}", now=now, reason=reason, detail=detail)
