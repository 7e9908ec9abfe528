"""Who may do what: one literal table and one pure question. Permissions are per tenant and add up; nothing else decides access.

An action is "resource:verb", the same word an API token's scope uses.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum

from protocol.errors import ForbiddenError


class Permission(StrEnum):
    """What a user may be."""

    #: Reads all but audit, users, tokens, samples and snapshots.
    VIEWER = "viewer"
    #: Viewer who changes devices, groups, models, releases, alarms, runs and campaigns.
    OPERATOR = "operator"
    #: Viewer who decides approvals and signs, never what the same person made.
    APPROVER = "approver"
    #: Reads all, audit and its proof included; changes nothing.
    AUDITOR = "auditor"
    #: Users, tokens, keys, enrollment, tenants, rules; not an approver by itself.
    ADMIN = "admin"


PERMISSIONS: tuple[str, ...] = tuple(str(permission) for permission in Permission)

_V, _O, _P, _U, _A = Permission.VIEWER, Permission.OPERATOR, Permission.APPROVER, Permission.AUDITOR, Permission.ADMIN
_ALL = frozenset(Permission)
_OPERATOR, _APPROVER, _ADMIN = frozenset({_O}), frozenset({_P}), frozenset({_A})
_SEES_PEOPLE = frozenset({_U, _A})

#: Every action there is and who may do it. An action that is not here is nobody's.
ACTIONS: Mapping[str, frozenset[Permission]] = {
    # one's own account: password, own sessions
    "account:write": _ALL,
    # what everybody sees
    "devices:read": _ALL,
    "groups:read": _ALL,
    "configurations:read": _ALL,
    "sites:read": _ALL,
    "device-types:read": _ALL,
    "models:read": _ALL,
    "releases:read": _ALL,
    "artifacts:read": _ALL,
    "campaigns:read": _ALL,
    "approvals:read": _ALL,
    "alarms:read": _ALL,
    "rules:read": _ALL,
    "profiles:read": _ALL,
    "runs:read": _ALL,
    "datasets:read": _ALL,
    "jobs:read": _ALL,
    "operations:read": _ALL,
    "telemetry:read": _ALL,
    "metrics:read": _ALL,
    "settings:read": _ALL,
    # what only some see
    "audit:read": frozenset({_U}),
    "samples:read": frozenset({_U}),
    # one picture of a camera, asked for by name and audited: who sets up zones has to see where they are
    "snapshots:read": frozenset({_O, _U}),
    "users:read": _SEES_PEOPLE,
    "tokens:read": _SEES_PEOPLE,
    "enrollment:read": frozenset({_O, _U, _A}),
    "webhooks:read": _SEES_PEOPLE,
    # the operator's work
    "devices:write": _OPERATOR,
    "groups:write": _OPERATOR,
    "configurations:write": _OPERATOR,
    "models:write": _OPERATOR,
    "releases:write": _OPERATOR,
    "campaigns:write": _OPERATOR,
    "bundles:write": _OPERATOR,
    "alarms:write": _OPERATOR,
    "profiles:write": _OPERATOR,
    "runs:write": _OPERATOR,
    "datasets:write": _OPERATOR,
    "jobs:write": _OPERATOR,
    # asked for by who made the thing, decided by somebody else
    "approvals:request": _OPERATOR,
    "approvals:decide": _APPROVER,
    "releases:sign": _APPROVER,
    # the administrator's work
    "enrollment:write": _ADMIN,
    "sites:write": _ADMIN,
    "device-types:write": _ADMIN,
    "rules:write": _ADMIN,
    "users:write": _ADMIN,
    "tokens:write": _ADMIN,
    "keys:write": _ADMIN,
    "tenants:write": _ADMIN,
    "webhooks:write": _ADMIN,
    "settings:write": _ADMIN,
}

#: What an API token may be limited to.
SCOPES: tuple[str, ...] = tuple(ACTIONS)


def allows(permissions: Collection[str], action: str) -> bool:
    """Whether somebody with these permissions may do the action. Pure. Raises: LookupError when there is no such action."""
    return not granting(action).isdisjoint(permissions)


def granting(action: str) -> frozenset[str]:
    """The permissions of which one is enough. Raises: LookupError when there is no such action."""
    check_action(action)
    return frozenset(str(permission) for permission in ACTIONS[action])


def check_action(action: str) -> None:
    """Nothing when there is such an action. Raises: LookupError: asking for another one is a programmer's mistake."""
    if action not in ACTIONS:
        raise LookupError(f"There is no action {action!r}; known: {', '.join(ACTIONS)}")


def require(permissions: Collection[str], action: str) -> None:
    """Nothing when these permissions suffice. Raises: ForbiddenError naming one that would; LookupError."""
    if not allows(permissions, action):
        raise ForbiddenError(f"This needs one of: {', '.join(sorted(granting(action)))}.", hint="Ask an administrator.")
