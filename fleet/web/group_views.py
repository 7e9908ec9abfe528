"""One group, as the console shows it: its members, what they shall have and how far they are, and what the next release would change."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleet.configurations import service as configurations
from fleet.configurations.model import Change, DeviceEffect
from fleet.configurations.service import Progress
from fleet.devices import groups
from fleet.devices.model import Group
from fleet.registry.service import Registry
from fleet.web import device_views
from fleet.web.device_views import DeviceQuery
from fleet.web.views import DeviceRow
from protocol.configuration import Configuration, Effective, effective, leaves, origin_of
from protocol.ids import DeviceId, GroupName, TenantId

#: Members in the table; the next release is tried on groups of so many at most.
MEMBERS_SHOWN, TRIED_MOST = 50, 200
#: Who went back, and changes of one device, that are told one by one.
RETURNED_SHOWN, CHANGES_SHOWN = 20, 20
#: Longest value in a table, characters.
VALUE_LENGTH = 120
#: Device of no name: nothing is said for it alone, so what is effective for it is what the group shares.
NOBODY = ""


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One device of the group, with how far it is with the configuration."""

    device: DeviceRow
    #: committed, trial, returned, waiting or silent; empty: nothing is published.
    state: str


@dataclass(frozen=True, slots=True)
class ReturnedRow:
    """A device that went back from what it shall have, and why."""

    device: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One value that the group's devices share, and who says it: fleet or group."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One value that would become another one; empty: not set."""

    key: str
    before: str
    after: str
    #: base, fleet, group or device.
    origin: str


@dataclass(frozen=True, slots=True)
class EffectRow:
    """What the next release would do to one device."""

    device: str
    #: Whether the device said what its own values are; else only what is wished is known.
    is_known: bool
    changes: tuple[ChangeRow, ...]
    #: Changes beyond those.
    more: int
    #: Pipelines that would start again.
    restarts: tuple[str, ...]
    #: Pipelines that are named and not on the device.
    unused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupPage:
    """What a page shows that answers "what does this group share, and who has it?"."""

    name: str
    description: str
    site: str
    devices: int
    #: None: nothing was published for the group.
    desired_rev: int | None
    #: State and how many devices are in it, those in none left out.
    counts: tuple[tuple[str, int], ...]
    returned: tuple[ReturnedRow, ...]
    members: tuple[MemberRow, ...]
    #: What is published: values that all share, who is told something of its own, what no device of this version knows.
    settings: tuple[SettingRow, ...]
    own: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    #: Whether the sections differ from what is published, and on which devices that would show.
    is_changed: bool
    effects: tuple[EffectRow, ...]
    #: Whether the group is too large to be tried here.
    is_untried: bool


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """All that is known of one group, before it is put into words."""

    group: Group
    progress: Progress
    members: Sequence[DeviceRow]
    published: Configuration | None
    is_changed: bool
    #: None: too many devices to try.
    effects: Sequence[DeviceEffect] | None


def load_facts(registry: Registry, tenant: TenantId, name: GroupName) -> GroupFacts:
    """Ask about the group. Raises: NotFoundError."""
    database = registry.database
    group = groups.get_group(database, tenant, name)
    progress = configurations.progress(database, tenant, name)
    with database.reading() as tx:
        published = configurations.read_published(registry, tx, tenant, name)
    is_changed = bool(configurations.diff(registry, tenant, name))
    is_small = len(progress.states) <= TRIED_MOST
    return GroupFacts(
        group=group,
        progress=progress,
        members=device_views.list_rows(database, tenant, DeviceQuery(group=name), after=None, limit=MEMBERS_SHOWN),
        published=published,
        is_changed=is_changed,
        effects=configurations.dry_run(registry, tenant=tenant, group=name) if is_small and is_changed else () if is_small else None,
    )


def group_page(facts: GroupFacts) -> GroupPage:
    """The group as its page shows it. Pure."""
    group, progress, published = facts.group, facts.progress, facts.published
    shared = Effective({}, {}, {}) if published is None else effective(published, NOBODY)
    states = progress.states if progress.desired_rev is not None else {}
    return GroupPage(
        name=group.name,
        description=group.description,
        site=group.site or "",
        devices=len(progress.states),
        desired_rev=progress.desired_rev,
        counts=tuple((state, count) for state, count in progress.counts.items() if count),
        returned=tuple(ReturnedRow(device, why.reason, why.text) for device, why in sorted(progress.returned.items())[:RETURNED_SHOWN]),
        members=tuple(MemberRow(row, states.get(DeviceId(row.device), "")) for row in facts.members),
        settings=setting_rows(shared),
        own=() if published is None else tuple(sorted(name for name, section in published.devices.items() if section)),
        ignored=tuple(sorted(shared.ignored.items())),
        is_changed=facts.is_changed,
        effects=tuple(effect_row(one) for one in facts.effects or () if one.changes or one.unused),
        is_untried=facts.effects is None,
    )


def setting_rows(shared: Effective) -> tuple[SettingRow, ...]:
    """Every value with who says it, by key. Pure."""
    rows = (SettingRow(key, value_words(value), origin_of(key, shared.origins)) for key, value in leaves(shared.settings))
    return tuple(sorted(rows, key=lambda row: row.key))


def effect_row(effect: DeviceEffect) -> EffectRow:
    """What would happen to a device, in words. Pure."""
    shown = effect.changes[:CHANGES_SHOWN]
    more = len(effect.changes) - len(shown)
    return EffectRow(effect.device, effect.is_known, tuple(_change_row(one) for one in shown), more, effect.restarts, effect.unused)


def value_words(value: Any) -> str:
    """A value as it is written in settings; nothing when it is not set. Pure."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}…"


def _change_row(change: Change) -> ChangeRow:
    return ChangeRow(change.key, value_words(change.before), value_words(change.after), change.origin)
