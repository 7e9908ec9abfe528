"""A device takes a configuration only if both repositories name it for its own tenant and group, and never an older one."""

from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from simulators.repository import target

from protocol.configuration import MAX_DOCUMENT_BYTES
from protocol.errors import TrustError
from protocol.trust.metadata import POLICY_PATTERN, POLICY_ROLE, ConfigurationOrder, PolicyTargetFields, write_fields

DATA = b'{"schema":"configuration.1"}'


def publish(world: Any, group: str = "doors", rev: int = 7, *, data: bytes = DATA, **fields: Any) -> str:
    """Put a file into the policy role; returns its path."""
    path = f"policy/{group}/{rev}/config.json"
    about = PolicyTargetFields(**({"tenant": "t0", "group": group, "rev": rev} | fields))
    world.image.delegated[POLICY_ROLE].targets[path] = target(path, data, write_fields(about))
    world.image.publish()
    return path


def assign(world: Any, path: str, group: str = "doors", rev: int = 7, *, data: bytes = DATA, attempt: int = 0) -> None:
    """Let the director name it beside the model."""
    world.director.targets.targets[path] = target(path, data)
    world.order(configuration=ConfigurationOrder(group=group, rev=rev, attempt=attempt))
    world.director.publish()


@pytest.fixture
def world(world: Any) -> Any:
    world.image.delegate(POLICY_ROLE, POLICY_PATTERN)
    world.image.publish()
    return world


def refused(world: Any, code: str, **facts: Any) -> str:
    with pytest.raises(TrustError) as caught:
        world.check(**facts)
    assert caught.value.code == code
    return caught.value.message


def test_both_repositories_name_it_and_the_model_line_is_still_there(world: Any):
    assign(world, publish(world), attempt=3)
    found = world.check()
    assert (found.configuration.group, found.configuration.rev, found.configuration.attempt) == ("doors", 7, 3)
    assert found.configuration.length == len(DATA)
    assert [line.line for line in found.lines] == ["digits"]


def test_none_named_means_none(world: Any):
    publish(world)
    assert world.check().configuration is None


def test_an_unsigned_configuration_is_refused(world: Any):
    assign(world, "policy/doors/7/config.json")
    assert "does not name policy/doors/7/config.json" in refused(world, "arbitrary-software")


def test_other_bytes_than_the_policy_key_signed_are_refused(world: Any):
    assign(world, publish(world), data=b'{"schema":"configuration.1","fleet":{}}')
    refused(world, "arbitrary-software")


def test_a_configuration_signed_by_a_line_key_is_refused(world: Any):
    path = "policy/doors/7/config.json"
    about = write_fields(PolicyTargetFields(tenant="t0", group="doors", rev=7))
    world.image.delegated["model.digits"].targets[path] = target(path, DATA, about)
    world.image.publish()
    assign(world, path)
    refused(world, "arbitrary-software")


def test_a_policy_role_signed_by_another_key_is_refused(world: Any):
    assign(world, publish(world))
    world.image.signers[POLICY_ROLE] = [CryptoSigner.generate_ed25519()]
    world.image.publish()
    refused(world, "bad-signature")


def test_another_groups_configuration_is_refused(world: Any):
    assign(world, publish(world, "yard"), "doors")
    assert "it says policy/doors/7/config.json" in refused(world, "mix-and-match")


def test_a_file_that_says_it_is_another_groups_is_refused(world: Any):
    path = publish(world)
    assign(world, path)
    about = write_fields(PolicyTargetFields(tenant="t0", group="yard", rev=7))
    world.image.delegated[POLICY_ROLE].targets[path] = target(path, DATA, about)
    world.image.publish()
    refused(world, "wrong-group")


def test_another_tenants_configuration_is_refused(world: Any):
    assign(world, publish(world, tenant="t1"))
    assert "t1/doors/7" in refused(world, "wrong-group")


def test_a_device_that_is_bound_to_a_group_takes_no_other(world: Any):
    assign(world, publish(world))
    assert world.check(group="doors").configuration.rev == 7
    assert "only those of yard" in refused(world, "wrong-group", group="yard")


def test_the_replay_of_an_older_one_is_refused(world: Any):
    old = publish(world, rev=6)
    publish(world, rev=7)
    assign(world, old, rev=6)
    world.configurations = {"doors": 7}
    assert "older than revision 7" in refused(world, "old-release")
    world.configurations = {"yard": 9, "doors": 6}  # another group's, and the same one again
    assert world.check().configuration.rev == 6


def test_two_configurations_at_once_are_refused(world: Any):
    assign(world, publish(world))
    assign(world, publish(world, rev=8))
    refused(world, "mix-and-match")


def test_a_named_configuration_that_is_not_listed_is_refused(world: Any):
    publish(world)
    world.order(configuration=ConfigurationOrder(group="doors", rev=7))
    world.director.publish()
    refused(world, "mix-and-match")


def test_a_listed_configuration_that_is_not_named_is_refused(world: Any):
    assign(world, publish(world))
    world.order()
    world.director.publish()
    refused(world, "mix-and-match")


def test_a_huge_configuration_is_refused_before_a_byte_is_fetched(world: Any):
    large = b" " * (MAX_DOCUMENT_BYTES + 1)
    assign(world, publish(world, data=large), data=large)
    refused(world, "endless-data")


def test_policies_of_a_later_version_are_left_alone(world: Any):
    path = "policy/doors/7/sampling.json"
    world.director.targets.targets[path] = target(path, DATA)
    world.director.publish()
    assert world.check().configuration is None


def test_a_configuration_that_another_role_lists_is_refused(world: Any):
    path = "policy/doors/7/config.json"
    about = write_fields(PolicyTargetFields(tenant="t0", group="doors", rev=7))
    world.image.targets.targets[path] = target(path, DATA, about)  # the targets holders are no policy holders
    world.image.publish()
    assign(world, path)
    refused(world, "arbitrary-software")
