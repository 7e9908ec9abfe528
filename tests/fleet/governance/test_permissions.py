"""The one permission table: every action, every permission, and the sentences of the design."""

import pytest

from fleet.governance.permissions import ACTIONS, PERMISSIONS, SCOPES, Permission, allows, granting, require
from protocol.errors import ForbiddenError

HIDDEN_FROM_VIEWERS = {"audit:read", "users:read", "tokens:read", "samples:read", "snapshots:read", "enrollment:read", "webhooks:read"}


def _actions(permission):
    return {action for action in ACTIONS if allows([permission], action)}


def test_a_viewer_reads_all_but_what_is_about_people_and_changes_only_their_account():
    readable = {action for action in ACTIONS if action.endswith(":read")} - HIDDEN_FROM_VIEWERS
    assert _actions("viewer") == readable | {"account:write"}


@pytest.mark.parametrize("permission", PERMISSIONS)
def test_every_permission_may_at_least_what_a_viewer_may(permission):
    assert _actions("viewer") <= _actions(permission)


def test_an_operator_changes_devices_groups_alarms_runs_and_campaigns_but_decides_nothing():
    assert {"devices:write", "groups:write", "alarms:write", "runs:write", "campaigns:write"} <= _actions("operator")
    assert not {"approvals:decide", "releases:sign", "users:write", "keys:write", "audit:read"} & _actions("operator")


def test_an_approver_only_decides_and_signs():
    assert _actions("approver") - _actions("viewer") == {"approvals:decide", "releases:sign"}


def test_an_auditor_reads_all_and_changes_nothing_but_the_own_account():
    assert _actions("auditor") == {action for action in ACTIONS if action.endswith(":read")} | {"account:write"}


def test_an_administrator_is_no_approver_and_no_operator():
    assert {"users:write", "tokens:write", "keys:write", "enrollment:write", "tenants:write", "rules:write"} <= _actions("admin")
    assert not {"approvals:decide", "campaigns:write", "releases:sign", "audit:read"} & _actions("admin")


def test_permissions_add_up():
    assert allows(["viewer", "approver"], "approvals:decide")
    assert not allows(["viewer", "auditor"], "campaigns:write")


def test_nobody_and_unknown_permissions_may_nothing():
    assert not any(allows(who, action) for who in ([], ["root"]) for action in ACTIONS)


def test_every_action_belongs_to_somebody_and_is_a_scope():
    assert all(granting(action) <= {str(one) for one in Permission} for action in ACTIONS)
    assert all(granting(action) for action in ACTIONS)
    assert tuple(ACTIONS) == SCOPES


def test_an_action_that_does_not_exist_is_a_mistake_not_a_no():
    with pytest.raises(LookupError, match="fly:high"):
        allows(["admin"], "fly:high")


def test_a_missing_permission_is_named():
    require(["approver"], "approvals:decide")
    with pytest.raises(ForbiddenError, match="approver"):
        require(["operator"], "approvals:decide")
