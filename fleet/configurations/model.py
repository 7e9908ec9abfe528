"""Values of device configuration: sections that people edit, releases on their way to devices, what a release would change; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from protocol.configuration import leaves, origin_of
from protocol.errors import ConflictError, InvalidError
from protocol.ids import DeviceId, Digest, GroupName, TenantId


class Scope(StrEnum):
    """Whose section it is."""

    #: All devices of the tenant.
    FLEET = "fleet"
    GROUP = "group"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Section:
    """What one scope wishes to be different; goes to devices with the next release."""

    tenant: TenantId
    scope: Scope
    #: Group or device; empty for the fleet.
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    changed_by: str = ""
    changed_at: datetime | None = None
    #: 0: nobody has written it.
    revision: int = 0

    @property
    def id(self) -> str:
        """What audit entries call it, e.g. "configuration/group/door"."""
        return f"configuration/{self.scope}{f'/{self.name}' if self.name else ''}"


class ReleaseState(StrEnum):
    """How far a release of configuration has come."""

    #: An approval is asked for.
    PROPOSED = "proposed"
    #: Approved by somebody else than its author; waits for the policy key.
    APPROVED = "approved"
    #: Signed and in the image repository: devices get it with their next poll.
    PUBLISHED = "published"
    #: The approval was refused.
    REJECTED = "rejected"
    #: Taken back before it was published, by a person or by a newer one for the same group.
    WITHDRAWN = "withdrawn"


#: Every arrow that exists.
ARROWS: Mapping[ReleaseState, frozenset[ReleaseState]] = {
    ReleaseState.PROPOSED: frozenset({ReleaseState.APPROVED, ReleaseState.REJECTED, ReleaseState.WITHDRAWN}),
    ReleaseState.APPROVED: frozenset({ReleaseState.PUBLISHED, ReleaseState.WITHDRAWN}),
    ReleaseState.PUBLISHED: frozenset(),
    ReleaseState.REJECTED: frozenset(),
    ReleaseState.WITHDRAWN: frozenset(),
}
OPEN_STATES = frozenset({ReleaseState.PROPOSED, ReleaseState.APPROVED})


@dataclass(frozen=True, slots=True)
class GroupFile:
    """The file of one group in a release."""

    group: GroupName
    #: Bytes.
    length: int
    sha256: Digest


@dataclass(frozen=True, slots=True)
class ConfigurationRelease:
    """Files of one or more groups that are approved, signed and published together."""

    tenant: TenantId
    #: Grows over all tenants of the server: no two files ever have one target path.
    rev: int
    state: ReleaseState
    files: tuple[GroupFile, ...]
    #: Binds paths, lengths, digests and our fields of the files: what an approval approves and the key's holder recomputes.
    content_digest: Digest
    reason: str
    created_by: str
    created_at: datetime
    approval: str = ""
    published_at: datetime | None = None
    revision: int = 1

    @property
    def id(self) -> str:
        """What approvals and audit entries call it, e.g. "17"."""
        return str(self.rev)

    def moved(self, state: ReleaseState) -> "ConfigurationRelease":
        """The release in its new state. Raises: ConflictError when there is no such arrow."""
        if state not in ARROWS[self.state]:
            wanted = ", ".join(sorted(other for other, after in ARROWS.items() if state in after))
            raise ConflictError(f"Configuration {self.rev} is {self.state}; to become {state} it must be {wanted}.")
        return replace(self, state=state)


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """The policy role's next metadata, waiting for its key."""

    rev: int
    #: The metadata without signatures, exactly the bytes whose canonical form is signed.
    payload: bytes
    #: What is published now, signed; empty for the first release.
    previous: bytes
    content_digest: Digest
    approval: str


@dataclass(frozen=True, slots=True)
class Change:
    """One value that becomes another one on a device."""

    #: Dotted, e.g. "pipelines.front.max_fps".
    key: str
    before: Any
    after: Any
    #: Where the new value comes from: base, fleet, group or device.
    origin: str


@dataclass(frozen=True, slots=True)
class DeviceEffect:
    """What a release would do to one device."""

    device: DeviceId
    #: None: the device never said what its own values are, so only what is wished is known.
    is_known: bool
    changes: tuple[Change, ...]
    #: Pipelines that would start again.
    restarts: tuple[str, ...]
    #: All values after it, nested; for an unknown device only the wished ones.
    after: Mapping[str, Any]
    #: Pipelines that are named and not on the device.
    unused: tuple[str, ...] = ()


def with_values(settings: Mapping[str, Any], values: Mapping[str, Any], unset: Sequence[str] = ()) -> dict[str, Any]:
    """The section with these dotted keys set, and others no longer said at all. Raises: InvalidError for a key that leads nowhere."""
    changed: dict[str, Any] = _copied(settings)
    for key in unset:
        _take(changed, key.split("."))
    for key, value in values.items():
        place = changed
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InvalidError(f"{key!r}: {parent!r} holds a value, nothing is below it.", hint="See: mooring config keys")
        place[last] = value
    return changed


def changes_of(before: Mapping[str, Any], after: Mapping[str, Any], origins: Mapping[str, str]) -> tuple[Change, ...]:
    """What differs between two sets of nested values, by key."""
    old, new = dict(leaves(before)), dict(leaves(after))
    keys = sorted(key for key in old.keys() | new.keys() if (key in old, old.get(key)) != (key in new, new.get(key)))
    return tuple(Change(key, old.get(key), new.get(key), origin_of(key, origins)) for key in keys)


def restarts_of(changes: Sequence[Change]) -> tuple[str, ...]:
    """The pipelines that start again because of the changes: all others go on undisturbed."""
    return tuple(sorted({change.key.split(".")[1] for change in changes if change.key.startswith("pipelines.")}))


def _copied(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in settings.items()}


def _take(settings: dict[str, Any], path: Sequence[str]) -> None:
    if not isinstance(settings, dict) or path[0] not in settings:
        return
    if len(path) == 1:
        del settings[path[0]]
        return
    _take(settings[path[0]], path[1:])
    if settings[path[0]] == {}:
        del settings[path[0]]
