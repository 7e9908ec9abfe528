"""What people do with rules and recipients, each with its audit entry; and the tick that evaluates rules."""

import base64
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from fleet import audit, db
from fleet.audit import Actor
from fleet.db import Database
from fleet.devices import store as device_store
from fleet.devices.model import DeviceFilter, DeviceState
from fleet.monitoring import rules as pure
from fleet.monitoring import service as monitoring
from fleet.monitoring.alerts import announcing, store
from fleet.monitoring.alerts.model import (
    RECIPIENT_TEST,
    RULE_FIRING,
    RULE_RECOVERED,
    Alert,
    FiringRow,
    KeyedState,
    Recipient,
    RecipientKind,
    RuleKey,
    StoredRule,
)
from fleet.monitoring.model import DeviceView
from fleet.monitoring.rules import METRICS, Firing, Level, Metric, Rule, RuleState, Sample, Scope
from protocol.errors import ConflictError, InvalidError, NotFoundError
from protocol.ids import DeviceId, GroupName, SiteName, TenantId, check_name, new_id
from protocol.messages import Presence

#: Limits per tenant: rules are evaluated every minute, and an alert goes to every recipient.
MAX_RULES, MAX_RECIPIENTS = 200, 50
#: Devices whose telemetry is read in one query, and rows of it at most: an hour of 100 devices that send every 10 seconds.
PORTION, MAX_ROWS = 100, 40_000
#: A test on history looks at so many devices and so far back at most.
TEST_DEVICES, TEST_HOURS = 100, 7 * 24.0
#: Rows of one device that a test reads at most: a week at one message per 10 seconds.
TEST_ROWS = 70_000
MAX_URL, MAX_ADDRESSES = 2000, 20
TOPICS = ("alarm", "rule", "server")
_MAIL = re.compile(r"^[A-Za-z0-9._%+'-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?$")
#: Bytes of a new webhook secret.
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Tried:
    """What a rule would have done on one device (and pipeline)."""

    key: RuleKey
    samples: int
    firings: tuple[Firing, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a rule would have done on history."""

    start: datetime
    end: datetime
    keys: tuple[Tried, ...]
    #: Devices in scope beyond those looked at.
    left_out: int


# --- rules ---


def list_rules(database: Database, tenant: TenantId) -> list[StoredRule]:
    """All rules by name. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_rules(tx, tenant)


def get_rule(database: Database, tenant: TenantId, name: str) -> StoredRule:
    """The rule. Raises: NotFoundError."""
    with database.reading() as tx:
        return store.get_rule(tx, tenant, name)


def create_rule(database: Database, *, tenant: TenantId, rule: Rule, by: Actor, now: datetime, reason: str = "") -> StoredRule:
    """Add the rule; it is evaluated from the next look on. Raises: InvalidError; NotFoundError for its scope; ConflictError."""
    check_name(rule.name, what="Rule")
    stored = StoredRule(replace(pure.checked(rule), revision=1), str(by), now)
    with database.transaction() as tx:
        _check_scope(tx, tenant, rule)
        if len(store.list_rules(tx, tenant)) >= MAX_RULES:
            raise ConflictError(f"There are {MAX_RULES} rules, and no more are evaluated.", hint="Delete some, or widen their scope.")
        store.insert_rule(tx, tenant, stored)
        _record(tx, tenant, "rule.created", f"rule/{rule.name}", by, now, reason, _rule_detail(stored.rule))
    return stored


def change_rule(
    database: Database, *, tenant: TenantId, rule: Rule, by: Actor, now: datetime, expected_revision: int | None, reason: str = ""
) -> StoredRule:
    """Make the rule of this name be as given. What fires by the old one ends, and the new one starts anew.

    Raises: NotFoundError; InvalidError; StaleRevisionError.
    """
    with database.transaction() as tx:
        before = store.get_rule(tx, tenant, rule.name)
        db.check_revision(before.rule.revision, expected_revision, what=f"Rule {rule.name}")
        saved = replace(pure.checked(rule), revision=before.rule.revision + 1)
        _check_scope(tx, tenant, saved)
        _end_all(tx, tenant, before.rule, now=now, ended_by="rule_changed")
        store.save_rule(tx, tenant, saved)
        _record(tx, tenant, "rule.changed", f"rule/{rule.name}", by, now, reason, _rule_detail(saved))
    return replace(before, rule=saved)


def delete_rule(
    database: Database, *, tenant: TenantId, name: str, by: Actor, now: datetime, expected_revision: int | None, reason: str = ""
) -> None:
    """Forget the rule; what it fired stays readable. Raises: NotFoundError; StaleRevisionError."""
    with database.transaction() as tx:
        before = store.get_rule(tx, tenant, name)
        db.check_revision(before.rule.revision, expected_revision, what=f"Rule {name}")
        _end_all(tx, tenant, before.rule, now=now, ended_by="rule_deleted")
        store.delete_rule(tx, tenant, name)
        _record(tx, tenant, "rule.deleted", f"rule/{name}", by, now, reason, _rule_detail(before.rule))


def list_firings(
    database: Database, tenant: TenantId, *, is_open: bool | None = None, rule: str | None = None, limit: int = 50
) -> list[FiringRow]:
    """What fired, the newest first. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_firings(tx, tenant, is_open=is_open, rule=rule, limit=limit)


def count_firing(database: Database, tenant: TenantId) -> int:
    """How many rules fire on how many devices or pipelines. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.count_open_firings(tx, tenant)


def list_states(database: Database, tenant: TenantId) -> list[KeyedState]:
    """Where every rule is. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_rule_states(tx, tenant)


def try_rule(database: Database, *, tenant: TenantId, rule: Rule, now: datetime, hours: float) -> Trial:
    """What the rule would have done in the last hours, had it been there. Changes nothing.

    Raises: InvalidError; NotFoundError for its scope.
    """
    if not 0 < hours <= TEST_HOURS:
        raise InvalidError(f"A test of {hours:g} hours is not possible.", hint=f"Wanted: more than 0, at most {TEST_HOURS:g}.")
    pure.checked(rule)
    start = now - timedelta(hours=hours)
    stream, reach = METRICS[rule.metric].stream or "sys", start - timedelta(seconds=rule.window_s)
    found: list[Tried] = []
    with database.reading() as tx:
        _check_scope(tx, tenant, rule)
        inside = _devices_in(tx, tenant, rule, limit=TEST_DEVICES)
        everything = device_store.count_devices(tx, tenant, _filter_of(rule)) if rule.scope is not Scope.DEVICE else 1
        for device in inside:
            rows = store.list_telemetry_of(tx, tenant, [device], name=stream, since=reach, limit=TEST_ROWS)
            by_pipeline: dict[str, list[Sample]] = {}
            for row in rows:
                by_pipeline.setdefault(row.pipeline or "", []).append(pure.sample_of(row.ts, row.body))
            for pipeline, samples in sorted(by_pipeline.items()):
                if rule.pipeline in {"", pipeline}:
                    fired = pure.replay(rule, samples, start=start, end=now)
                    found.append(Tried(RuleKey(device, pipeline), len(samples), tuple(fired)))
    return Trial(start, now, tuple(found), max(0, everything - len(inside)))


# --- the tick ---


def evaluate(database: Database, tenant: TenantId, *, now: datetime) -> int:
    """Look at all rules on all devices of their scopes; returns how many fired or recovered. Safe to repeat. Raises: UnavailableError."""
    rules = [one.rule for one in list_rules(database, tenant) if one.rule.is_enabled]
    changed = 0
    for rule in rules:
        values = _values(database, tenant, rule, now=now)
        with database.transaction() as tx:
            if store.find_rule_revision(tx, tenant, rule.name) == rule.revision:
                changed += _apply(tx, tenant, rule, values, now=now)
    return changed


def _values(database: Database, tenant: TenantId, rule: Rule, *, now: datetime) -> dict[RuleKey, float | None]:
    """The rule's metric on every key of its scope; None where nothing was heard."""
    values: dict[RuleKey, float | None] = {}
    for part in _portions(database, tenant, rule):
        if rule.metric is Metric.OFFLINE:
            views = monitoring.list_views(database, tenant, part)
            values |= {RuleKey(device): pure.minutes_since(_heard(view, now), now) for device, view in views.items()}
            continue
        since = now - timedelta(seconds=rule.window_s)
        with database.reading() as tx:
            rows = store.list_telemetry_of(tx, tenant, part, name=METRICS[rule.metric].stream, since=since, limit=MAX_ROWS)
        samples: dict[RuleKey, list[Sample]] = {RuleKey(device): [] for device in part} if METRICS[rule.metric].stream == "sys" else {}
        for row in rows:
            if rule.pipeline in {"", row.pipeline or ""}:
                samples.setdefault(RuleKey(row.device, row.pipeline or ""), []).append(pure.sample_of(row.ts, row.body))
        values |= {key: pure.value_of(rule, found, now=now) for key, found in samples.items()}
    return values


def _heard(view: DeviceView, now: datetime) -> datetime | None:
    """When an offline device was last there; one that is online or asleep is heard now."""
    if view.last_seen is None:
        return None
    return view.last_seen if view.presence is Presence.OFFLINE else now


def _apply(tx: db.Connection, tenant: TenantId, rule: Rule, values: Mapping[RuleKey, float | None], *, now: datetime) -> int:
    """Move every key of the rule by one look; returns how many changed level."""
    states = {one.key: one.state for one in store.list_rule_states(tx, tenant, rule.name)}
    inside = {key.device for key in values}
    gone = {key for key in states if key.device not in inside and not _is_in_scope(tx, tenant, rule, key.device)}
    open_firings = {row.key: row for row in store.list_firings(tx, tenant, is_open=True, rule=rule.name, limit=MAX_ROWS)}
    saved: list[KeyedState] = []
    changed = 0
    for key in sorted({*states, *values} - gone, key=lambda one: (one.device, one.pipeline)):
        before, value = states.get(key, RuleState()), values.get(key)
        after = pure.step(rule, before, value, now)
        if (before.level, before.pending_since) != (after.level, after.pending_since) or key not in states:
            saved.append(KeyedState(rule.name, key, after))
        firing = open_firings.get(key)
        if after.level is not before.level:
            changed += 1
            _turn(tx, tenant, rule, key, firing, after, now=now)
        elif firing is not None and value is not None and (worst := pure.worse(rule, value, firing.worst)) != firing.worst:
            store.worsen_firing(tx, tenant, firing.id, worst)
    store.save_rule_states(tx, tenant, saved)
    for key in gone & open_firings.keys():
        _end(tx, tenant, rule, open_firings[key], now=now, ended_by="out_of_scope")
    store.delete_rule_states(tx, tenant, rule.name, gone)
    return changed


def _turn(
    tx: db.Connection, tenant: TenantId, rule: Rule, key: RuleKey, firing: FiringRow | None, after: RuleState, *, now: datetime
) -> None:
    if after.level is Level.FIRING:
        value = after.value if after.value is not None else rule.threshold
        row = FiringRow(new_id("firing"), rule.name, key, rule.severity, now, None, value)
        store.insert_firing(tx, tenant, row)
        announcing.announce_open(tx, tenant, alert_of(rule, row, at=now), now=now)
    elif firing is not None:
        _end(tx, tenant, rule, firing, now=now, ended_by="recovered")


def _end(tx: db.Connection, tenant: TenantId, rule: Rule, firing: FiringRow, *, now: datetime, ended_by: str) -> None:
    store.end_firing(tx, tenant, firing.id, until=now, ended_by=ended_by)
    ended = replace(firing, until=now, ended_by=ended_by)
    announcing.announce_over(tx, tenant, alert_of(rule, ended, at=now), now=now)


def _end_all(tx: db.Connection, tenant: TenantId, rule: Rule, *, now: datetime, ended_by: str) -> None:
    for firing in store.list_firings(tx, tenant, is_open=True, rule=rule.name, limit=MAX_ROWS):
        _end(tx, tenant, rule, firing, now=now, ended_by=ended_by)
    store.delete_rule_states(tx, tenant, rule.name, {one.key for one in store.list_rule_states(tx, tenant, rule.name)})


def alert_of(rule: Rule, firing: FiringRow, *, at: datetime) -> Alert:
    """What people and machines are told of a firing that began or ended. Pure."""
    kind, place = METRICS[rule.metric], f"{firing.key.device}{f'/{firing.key.pipeline}' if firing.key.pipeline else ''}"
    is_over = firing.until is not None
    unit = f" {kind.unit}" if kind.unit else ""
    title = f"{rule.name} {'recovered' if is_over else 'fires'} on {place}"
    text = f"{kind.words} was {firing.worst:.6g}{unit}; the rule: {pure.words_of(rule)}."
    return Alert(
        id=f"{firing.id}-{'over' if is_over else 'fires'}",
        type=RULE_RECOVERED if is_over else RULE_FIRING,
        subject=f"rule/{rule.name}/{place}",
        time=at,
        title=title,
        text=text,
        severity=firing.severity,
        data={
            "rule": rule.name,
            "metric": str(rule.metric),
            "unit": kind.unit,
            "comparison": str(rule.comparison),
            "threshold": rule.threshold,
            "worst": firing.worst,
            "device": firing.key.device,
            "pipeline": firing.key.pipeline,
            "since": firing.since.isoformat(),
            "until": firing.until.isoformat() if firing.until else None,
            "ended_by": firing.ended_by,
        },
    )


# --- who is told ---


def list_recipients(database: Database, tenant: TenantId, kind: RecipientKind | None = None) -> list[Recipient]:
    """Who is told, by name. Raises: UnavailableError."""
    with database.reading() as tx:
        return store.list_recipients(tx, tenant, kind)


def get_recipient(database: Database, tenant: TenantId, name: str, kind: RecipientKind | None = None) -> Recipient:
    """The recipient. Raises: NotFoundError."""
    with database.reading() as tx:
        found = store.find_recipient(tx, tenant, name)
    if found is None or kind not in {None, found.kind}:
        raise NotFoundError(f"There is no {kind or 'recipient'} {name!r}.")
    return found


def create_recipient(database: Database, *, recipient: Recipient, by: Actor, now: datetime, reason: str = "") -> Recipient:
    """Add who is told; a webhook without a secret gets one, which the answer alone holds. Raises: InvalidError; ConflictError."""
    check_name(recipient.name, what="Recipient")
    if unknown := set(recipient.topics) - set(TOPICS):
        raise InvalidError(f"There are no alerts about {', '.join(sorted(unknown))}.", hint=f"Wanted: {', '.join(TOPICS)}; none for all.")
    if recipient.kind is RecipientKind.WEBHOOK:
        _check_url(recipient.address, allows_private=recipient.allows_private)
        secret = check_secret(recipient.secret) if recipient.secret else new_secret()
    else:
        secret = ""
        recipient = replace(recipient, address=",".join(mail_addresses(recipient.address)))
    made = replace(recipient, secret=secret, created_by=str(by), created_at=now, revision=1)
    with database.transaction() as tx:
        if len(store.list_recipients(tx, recipient.tenant)) >= MAX_RECIPIENTS:
            raise ConflictError(f"There are {MAX_RECIPIENTS} recipients, and no more are told.", hint="Delete some.")
        store.insert_recipient(tx, made)
        detail = {"address": shown_address(made), "topics": list(made.topics), "allows_private": made.allows_private}
        _record(tx, made.tenant, f"{made.kind}.created", f"{made.kind}/{made.name}", by, now, reason, detail)
    return made


def delete_recipient(
    database: Database,
    *,
    tenant: TenantId,
    name: str,
    kind: RecipientKind,
    by: Actor,
    now: datetime,
    expected_revision: int | None,
    reason: str,
) -> None:
    """Tell them no more. Raises: NotFoundError; StaleRevisionError."""
    with database.transaction() as tx:
        found = store.find_recipient(tx, tenant, name)
        if found is None or found.kind is not kind:
            raise NotFoundError(f"There is no {kind} {name!r}.")
        db.check_revision(found.revision, expected_revision, what=f"{kind} {name}")
        store.delete_recipient(tx, tenant, name)
        _record(tx, tenant, f"{kind}.deleted", f"{kind}/{name}", by, now, reason, {"address": shown_address(found)})


def try_recipient(database: Database, *, tenant: TenantId, name: str, kind: RecipientKind, by: Actor, now: datetime) -> str:
    """Queue a message that says that this is a test; returns the job. Raises: NotFoundError."""
    found = get_recipient(database, tenant, name, kind)
    alert = Alert(
        id=new_id("test"),
        type=RECIPIENT_TEST,
        subject=f"{kind}/{name}",
        time=now,
        title="A test of Mooring",
        text=f"{by.name} asked for this message. Nothing is wrong.",
        severity="info",
        data={"asked_by": by.name},
    )
    with database.transaction() as tx:
        made = announcing.queue(tx, [replace(found, is_enabled=True, topics=())], alert, now=now)
        _record(tx, tenant, f"{kind}.tested", f"{kind}/{name}", by, now, "", {})
    return made[0]


def shown_address(recipient: Recipient) -> str:
    """The address without what may be secret in it: a webhook's query."""
    if recipient.kind is RecipientKind.MAIL:
        return recipient.address
    return urlsplit(recipient.address)._replace(query="", fragment="").geturl()


def new_secret() -> str:
    """A secret in the form of Standard Webhooks: "whsec_" and base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def check_secret(text: str) -> str:
    """The secret itself. Raises: InvalidError, without naming it."""
    try:
        raw = base64.b64decode(text.removeprefix("whsec_"), validate=True) if text.startswith("whsec_") else b""
    except ValueError:
        raw = b""
    if not 24 <= len(raw) <= 64:
        raise InvalidError("The secret is not one of ours.", hint='Wanted: "whsec_" and 24 to 64 bytes in base64, or none for a new one.')
    return text


def mail_addresses(text: str) -> tuple[str, ...]:
    """The addresses, which have commas between. Raises: InvalidError naming the first that is none."""
    found = tuple(one.strip() for one in text.split(",") if one.strip())
    if not 1 <= len(found) <= MAX_ADDRESSES:
        raise InvalidError(f"{len(found)} mail addresses are not possible.", hint=f"Wanted: 1 to {MAX_ADDRESSES}.")
    for one in found:
        if not _MAIL.fullmatch(one):
            raise InvalidError(f"{one[:80]!r} is no mail address.", hint="Wanted: name@host, in ASCII.")
    return found


def _check_url(url: str, *, allows_private: bool) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in {"https", "http"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_good = False
    if not is_good or len(url) > MAX_URL or not url.isascii() or any(one.isspace() or not one.isprintable() for one in url):
        raise InvalidError(f"{url[:80]!r} is no address of a webhook.", hint="Wanted: https://host[:port]/path, in ASCII.")
    if parts.username is not None or parts.fragment:
        raise InvalidError("A webhook's address holds no name, password or fragment.", hint="Messages are signed; see docs/alerts.md.")
    if parts.scheme == "http" and not allows_private:
        raise InvalidError(
            "A webhook without TLS could be read on its way.", hint="Wanted: https, or --allow-private for one in your own network."
        )


# --- scope ---


def _check_scope(tx: db.Connection, tenant: TenantId, rule: Rule) -> None:
    lookups: Mapping[Scope, Callable[[], object]] = {
        Scope.ALL: lambda: None,
        Scope.DEVICE: lambda: device_store.get_device(tx, tenant, DeviceId(rule.subject)),
        Scope.GROUP: lambda: device_store.get_group(tx, tenant, GroupName(rule.subject)),
        Scope.SITE: lambda: device_store.get_site(tx, tenant, SiteName(rule.subject)),
    }
    lookups[rule.scope]()


def _filter_of(rule: Rule) -> DeviceFilter:
    return DeviceFilter(
        group=GroupName(rule.subject) if rule.scope is Scope.GROUP else None,
        site=SiteName(rule.subject) if rule.scope is Scope.SITE else None,
        state=DeviceState.ENROLLED,
    )


def _devices_in(tx: db.Connection, tenant: TenantId, rule: Rule, *, limit: int, after: DeviceId | None = None) -> list[DeviceId]:
    if rule.scope is Scope.DEVICE:
        found = device_store.find_device(tx, tenant, DeviceId(rule.subject))
        is_there = found is not None and found.state is DeviceState.ENROLLED and after is None
        return [DeviceId(rule.subject)] if is_there else []
    return [one.device for one in device_store.list_devices(tx, tenant, matching=_filter_of(rule), after=after, limit=limit)]


def _is_in_scope(tx: db.Connection, tenant: TenantId, rule: Rule, device: DeviceId) -> bool:
    found = device_store.find_device(tx, tenant, device)
    if found is None or found.state is not DeviceState.ENROLLED:
        return False
    names = {Scope.ALL: "", Scope.DEVICE: found.device, Scope.GROUP: found.group, Scope.SITE: found.site or ""}
    return names[rule.scope] == rule.subject


def _portions(database: Database, tenant: TenantId, rule: Rule) -> Iterator[Sequence[DeviceId]]:
    last: DeviceId | None = None
    while True:
        with database.reading() as tx:
            part = _devices_in(tx, tenant, rule, limit=PORTION, after=last)
        if part:
            yield part
        if len(part) < PORTION:
            return
        last = part[-1]


def _rule_detail(rule: Rule) -> dict[str, object]:
    return {"rule": pure.words_of(rule), "recovers_at": rule.recovers_at, "window_s": rule.window_s, "severity": rule.severity}


def _record(
    tx: db.Connection, tenant: TenantId, action: str, subject: str, by: Actor, now: datetime, reason: str, detail: Mapping[str, object]
) -> None:
    audit.append(tx, tenant=tenant, actor=by, action=action, subject=subject, now=now, reason=reason, detail=dict(detail))
