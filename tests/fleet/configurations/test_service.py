"""From a section that somebody edits to what a device verifies, on both databases."""

import json
from typing import Any

import pytest
from registries import ANNA, BERT, T0

from fleet import loop
from fleet.audit import list_entries
from fleet.configurations import service
from fleet.configurations.model import ReleaseState, Scope
from fleet.devices import service as device_service
from fleet.registry import ceremony
from fleet.registry.policies import KEPT_REVISIONS, sign_policy_role
from fleet.registry.requests import check_published
from fleet.registry.signing import KeyName, create_role_key, load_key
from protocol.canonical import digest_of
from protocol.configuration import effective, from_bytes
from protocol.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, StaleRevisionError, TrustError
from protocol.ids import DeviceId, GroupName
from protocol.messages import Reported, ReportedConfiguration

DOORS, YARD = GroupName("doors"), GroupName("yard")


def read(site, found):
    """What the device would make of the file that it was assigned."""
    data = site.registry.blobs.read(found.sha256, limit=found.length)
    return effective(from_bytes(data), "doors-1")


def test_a_setting_reaches_the_device_signed_and_merged(site):
    site.set({"telemetry": {"perf_s": 30}, "log_level": "warning"})
    site.set({"pipelines": {"*": {"max_fps": 5}}}, Scope.GROUP, DOORS)
    site.set({"log_level": None, "pipelines": {"front": {"keep": "all"}}}, Scope.DEVICE, "doors-1")
    release = site.publish()
    assert release.state is ReleaseState.PUBLISHED
    assert {file.group for file in release.files} == {"default", "doors", "yard"}
    found = site.device("doors-1").check().configuration
    assert (found.group, found.rev, found.attempt) == ("doors", release.rev, 0)
    told = read(site, found)
    assert told.settings == {"telemetry": {"perf_s": 30.0}, "pipelines": {"*": {"max_fps": 5.0}, "front": {"keep": "all"}}}
    assert told.origins == {"telemetry.perf_s": "fleet", "pipelines.*.max_fps": "group", "pipelines.front.keep": "device"}
    assert site.device("yard-1").check().configuration.group == "yard"


def test_a_device_without_a_released_configuration_is_told_none(site):
    site.set({"log_level": "debug"}, Scope.GROUP, DOORS)
    site.publish()
    assert site.device("yard-1").check().configuration is None


def test_only_groups_that_differ_are_released(site):
    site.set({"log_level": "debug"})
    site.publish()
    site.set({"log_level": "info"}, Scope.GROUP, YARD)
    assert [file.group for file in site.publish().files] == ["yard"]
    with pytest.raises(ConflictError, match="Nothing differs"):
        site.propose()


def test_who_made_it_does_not_approve_it(site):
    site.set({"log_level": "debug"})
    release = site.propose()
    with pytest.raises(ForbiddenError, match="four eyes"):
        loop.decide_approval(
            site.registry, tenant=T0, approval=release.approval, verdict="approved", by=ANNA, permissions=["approver"], reason="mine"
        )


def test_nothing_is_signed_before_it_is_approved_and_nothing_after_a_no(site):
    site.set({"log_level": "debug"})
    release = site.propose()
    assert service.list_signing_requests(site.registry, T0) == []
    site.approve(release, "rejected")
    assert service.get_release(site.registry, T0, release.rev).state is ReleaseState.REJECTED
    assert service.list_signing_requests(site.registry, T0) == []
    site.publish()  # the same content may be asked for again


def test_a_signature_of_another_key_is_refused(site):
    site.set({"log_level": "debug"})
    release = site.propose()
    site.approve(release)
    folders = site.registry.folders
    create_role_key(folders, "model.stolen", passphrase=None)
    request = service.list_signing_requests(site.registry, T0)[0]
    other = load_key(folders.role_key_file("model.stolen"))
    signed = sign_policy_role(request.payload, previous=request.previous, approved=request.content_digest, signer=other)
    with pytest.raises(TrustError, match="not signed by any of the 1 keys of the role policy"):
        site.submit(release, signed)
    assert site.device("doors-1").check().configuration is None


def test_the_key_signs_only_what_was_approved(site):
    site.set({"log_level": "debug"})
    release = site.propose()
    site.approve(release)
    request = service.list_signing_requests(site.registry, T0)[0]
    key = load_key(site.registry.folders.role_key_file("policy"))
    with pytest.raises(TrustError, match="approved was sha256:00"):
        sign_policy_role(request.payload, previous=request.previous, approved=f"sha256:{'0' * 64}", signer=key)


def test_the_key_does_not_believe_what_is_called_published(site):
    site.set({"log_level": "debug"})
    site.publish()
    site.set({"log_level": "info"})
    release = site.propose()
    site.approve(release)
    request = service.list_signing_requests(site.registry, T0)[0]
    key = load_key(site.registry.folders.role_key_file("policy"))
    unsigned = request.payload  # the role's next metadata, which nobody signed, said to be published already
    with pytest.raises(TrustError, match="was not signed by this key"):
        sign_policy_role(request.payload, previous=unsigned, approved=request.content_digest, signer=key)


def test_a_release_that_was_overtaken_is_signed_again(site):
    site.set({"log_level": "debug"}, Scope.GROUP, DOORS)
    site.set({"log_level": "debug"}, Scope.GROUP, YARD)
    first, second = site.propose(DOORS), site.propose(YARD)
    site.approve(first)
    site.approve(second)
    early = site.sign(first)
    site.submit(second, site.sign(second))
    with pytest.raises(ConflictError, match="next one is 2"):
        site.submit(first, early)
    site.submit(first, site.sign(first))
    assert site.device("doors-1").check().configuration.rev == first.rev
    assert site.device("yard-1").check().configuration.rev == second.rev


def test_two_open_releases_for_one_group_are_refused(site):
    site.set({"log_level": "debug"})
    first = site.propose(DOORS)
    with pytest.raises(ConflictError, match="is proposed already"):
        site.propose()
    service.withdraw(site.registry, tenant=T0, by=ANNA, rev=first.rev, reason="wrong")
    site.publish()


def test_going_back_is_a_new_revision_with_older_content(site):
    site.set({"log_level": "debug"})
    site.set({"log_level": "error"}, Scope.DEVICE, "doors-1")
    good = site.publish()
    site.set({"log_level": "info", "update": {"poll_s": 5}})
    site.set({}, Scope.DEVICE, "doors-1")
    bad = site.publish()
    changed = service.restore(site.registry, tenant=T0, by=ANNA, rev=good.rev, reason="too chatty")
    assert {section.id for section in changed} == {"configuration/fleet", "configuration/device/doors-1"}
    again = site.publish()
    assert again.rev > bad.rev
    device = site.device("doors-1")
    assert read(site, device.check().configuration).settings == {"log_level": "error"}


def test_only_the_newest_revisions_of_a_group_stay_listed(site):
    for level in ("debug", "info", "warning", "error"):
        site.set({"log_level": level}, Scope.GROUP, DOORS)
        site.publish()
    listed = site.registry.image.role_metadata("policy").decode()
    assert listed.count("policy/doors/") == KEPT_REVISIONS
    assert site.device("doors-2").check().configuration.rev == 4


def test_a_device_that_moves_gets_the_configuration_of_its_new_group(site):
    site.set({"log_level": "debug"}, Scope.GROUP, DOORS)
    site.set({"log_level": "error"}, Scope.GROUP, YARD)
    site.publish()
    device = site.device("doors-1")
    assert device.check().configuration.group == "doors"
    device_service.move_device(
        site.registry.database,
        tenant=T0,
        device=DeviceId("doors-1"),
        by=ANNA,
        now=site.now,
        group=YARD,
        on_changed=loop.direct(site.registry),
    )
    assert device.check().configuration.group == "yard"


def test_offering_again_raises_the_attempt(site):
    site.set({"log_level": "debug"})
    site.publish()
    device = site.device("doors-1")
    assert device.check().configuration.attempt == 0
    name, on_changed = DeviceId("doors-1"), loop.direct(site.registry)
    assert service.offer_again(site.registry, tenant=T0, device=name, by=BERT, reason="link is back", on_changed=on_changed) == 1
    assert device.check().configuration.attempt == 1


def test_unknown_keys_and_wrong_values_are_refused_with_their_places(site):
    with pytest.raises(InvalidError, match=r"fleet: telemetry\.colour: unknown key; wanted one of perf_s, sys_s") as caught:
        site.set({"telemetry": {"colour": 1}, "update": {"poll_s": 0}})
    assert "update.poll_s" in str(caught.value)
    for settings in ({"server": {"url": "https://evil"}}, {"pipelines": {"front": {"source": {}}}}, {"telemetry": None}):
        with pytest.raises(InvalidError):
            site.set(settings)
    with pytest.raises(NotFoundError):
        site.set({}, Scope.GROUP, "nobody")


def test_an_edit_on_an_old_revision_is_refused(site):
    site.set({"log_level": "debug"})
    with pytest.raises(StaleRevisionError):
        service.set_section(site.registry.database, tenant=T0, scope=Scope.FLEET, settings={}, by=ANNA, now=site.now, expected_revision=0)


def test_every_step_is_in_the_audit_log_with_who_and_why(site):
    site.set({"log_level": "debug"})
    release = site.publish()
    with site.registry.database.reading() as tx:
        found = [(entry.action, str(entry.actor)) for entry in reversed(list_entries(tx, T0, limit=100))]
    steps = [one for one in found if one[0].startswith("configuration.")]
    assert steps == [
        ("configuration.changed", "person:anna"),
        ("configuration.proposed", "person:anna"),
        ("configuration.approved", "person:bert"),
        ("configuration.published", "person:bert"),
    ]
    assert service.list_releases(site.registry, T0)[0] == release
    assert (release.created_by, release.reason) == ("person:anna", "quieter nights")


def test_a_server_whose_database_came_from_a_backup_never_uses_a_revision_twice(site):
    for level in ("debug", "info"):
        site.set({"log_level": level})
        site.publish()
    with site.registry.database.transaction() as tx:
        tx.execute(service.store.configuration_files.delete())
        tx.execute(service.store.configuration_releases.delete())
    site.set({"log_level": "error"})
    assert site.publish().rev == 3


def test_two_of_three_policy_keys_sign_one_after_the_other(site):
    registry = site.registry
    names = ("policy", "policy-b", "policy-c")
    keys = [create_role_key(registry.folders, name, passphrase=None) for name in names]
    targets = load_key(registry.folders.key_file(KeyName.IMAGE_TARGETS))
    registry.image.open_policy(keys, threshold=2, signers=[targets], now=site.now)
    site.set({"log_level": "debug"})
    release = site.propose()
    site.approve(release)
    signers = [load_key(registry.folders.role_key_file(name)) for name in names]

    def sign(signer):
        request = service.list_signing_requests(registry, T0)[0]
        return sign_policy_role(request.payload, previous=request.previous, approved=request.content_digest, signer=signer)

    assert site.submit(release, sign(signers[0])).state is ReleaseState.APPROVED
    assert site.device("doors-1").check().configuration is None
    with pytest.raises(ConflictError, match="signed this request already"):
        site.submit(release, sign(signers[0]))
    assert site.submit(release, sign(signers[2])).state is ReleaseState.PUBLISHED
    assert site.device("doors-1").check().configuration.rev == release.rev


def test_two_holders_who_fetched_one_request_before_either_handed_in_both_count(site):
    registry = site.registry
    names = ("policy", "policy-b", "policy-c")
    keys = [create_role_key(registry.folders, name, passphrase=None) for name in names]
    targets = load_key(registry.folders.key_file(KeyName.IMAGE_TARGETS))
    registry.image.open_policy(keys, threshold=2, signers=[targets], now=site.now)
    site.set({"log_level": "debug"})
    release = site.propose()
    site.approve(release)
    request = service.list_signing_requests(registry, T0)[0]
    copies = [
        sign_policy_role(
            request.payload,
            previous=request.previous,
            approved=request.content_digest,
            signer=load_key(registry.folders.role_key_file(name)),
        )
        for name in names
    ]
    assert site.submit(release, copies[1]).state is ReleaseState.APPROVED
    with pytest.raises(ConflictError, match="signed this request already"):
        site.submit(release, copies[1])
    assert site.submit(release, copies[2]).state is ReleaseState.PUBLISHED
    assert site.device("doors-1").check().configuration.rev == release.rev


def test_after_a_rotation_by_ceremony_the_new_policy_key_releases_and_the_old_one_cannot(site):
    site.set({"log_level": "debug"})
    site.publish()
    old, (key, new) = load_key(site.registry.folders.role_key_file("policy")), site.hold("new")
    site.hold_ceremony(lambda request: ceremony.rotate_key(request, "policy", old.public_key.keyid, key), new)
    site.set({"log_level": "info"})
    release = site.propose()
    site.approve(release)
    request = service.list_signing_requests(site.registry, T0)[0]
    with pytest.raises(TrustError, match="--bootstrap"):
        sign_policy_role(request.payload, previous=request.previous, approved=request.content_digest, signer=old)
    signed = sign_policy_role(request.payload, previous=request.previous, approved=request.content_digest, signer=new)
    assert site.submit(release, signed).state is ReleaseState.PUBLISHED
    assert site.device("doors-1").check().configuration.rev == release.rev


def test_what_waits_for_the_policy_key_while_it_is_rotated_is_put_up_again_for_the_new_one(site):
    site.set({"log_level": "debug"})
    site.publish()
    site.set({"log_level": "info"})
    release = site.propose()
    site.approve(release)
    old, (key, new) = load_key(site.registry.folders.role_key_file("policy")), site.hold("new")
    site.hold_ceremony(lambda request: ceremony.rotate_key(request, "policy", old.public_key.keyid, key), new)
    request = service.list_signing_requests(site.registry, T0)[0]
    signed = sign_policy_role(request.payload, previous=request.previous, approved=request.content_digest, signer=new)
    assert site.submit(release, signed).state is ReleaseState.PUBLISHED


def test_any_two_of_three_policy_keys_sign_one_configuration_after_another(site):
    """The third key signs on top of what only the other two signed, once that was checked from the first root on."""
    site.set({"log_level": "debug"})
    site.publish()
    keys, signers = zip(*(site.hold(name) for name in ("one", "two", "three")), strict=True)
    site.hold_ceremony(lambda request: ceremony.revoke(request, "policy", keys, threshold=2), *signers[:2])
    site.set({"log_level": "info"})
    release = site.propose()
    site.approve(release)

    def sign(signer, *, is_checked: bool = False) -> bytes:
        request = service.list_signing_requests(site.registry, T0)[0]
        approved = request.content_digest
        return sign_policy_role(
            request.payload, previous=request.previous, approved=approved, signer=signer, is_previous_checked=is_checked
        )

    with pytest.raises(TrustError, match="--bootstrap"):
        sign(signers[2])
    previous = service.list_signing_requests(site.registry, T0)[0].previous
    published = ceremony.start(site.registry, "image").to_bytes()
    check_published(published, bootstrap=digest_of(site.registry.image.bootstrap), role="policy", previous=previous)
    assert site.submit(release, sign(signers[2], is_checked=True)).state is ReleaseState.APPROVED
    assert site.submit(release, sign(signers[0])).state is ReleaseState.PUBLISHED
    assert site.device("doors-1").check().configuration.rev == release.rev


def test_a_group_that_is_named_gets_an_empty_file_so_that_devices_let_go_what_they_had(site):
    site.set({"log_level": "debug"}, Scope.GROUP, DOORS)
    site.publish()
    with pytest.raises(ConflictError, match="Nothing differs"):
        site.propose(DOORS)
    release = site.publish(YARD)
    assert [file.group for file in release.files] == ["yard"]
    assert read(site, site.device("yard-1").check().configuration).settings == {}


def told(group: str, rev: int, state: str, back_from: int = 0) -> Reported:
    back: Any = {"group": group, "rev": back_from, "attempt": 0, "reason": "link_lost", "at": 1} if back_from else None
    configuration = ReportedConfiguration(state=state, group=group, rev=rev, returned=back)
    return Reported(ts=1, clk="ok", boot="b", epoch="e", seq=0, floor=0, desired_rev=1, config={}, configuration=configuration.model_dump())


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (None, "silent"),
        (told("doors", 2, "committed"), "committed"),
        (told("doors", 2, "trial"), "trial"),
        (told("doors", 1, "committed"), "waiting"),
        (told("yard", 2, "committed"), "waiting"),
        (told("doors", 1, "returned", 2), "returned"),
        (told("doors", 1, "returned", 1), "waiting"),
        (told("", 0, "none"), "waiting"),
    ],
)
def test_where_a_device_is_on_its_way_follows_from_what_it_says(report, state):
    assert service._state_of(report, DOORS, 2) == state


def test_the_progress_of_a_group_counts_its_devices(site):
    site.set({"log_level": "debug"})
    release = site.publish()
    found = service.progress(site.registry.database, T0, DOORS)
    assert (found.desired_rev, found.counts["silent"], found.returned) == (release.rev, 2, {})


@pytest.mark.parametrize("what", ["another group's file is dropped", "an old revision stays"])
def test_the_key_signs_nothing_that_changes_what_others_have(site, what):
    for level in ("debug", "info"):
        site.set({"log_level": level})
        site.publish()
    site.set({"log_level": "error"}, Scope.GROUP, DOORS)
    release = site.propose(DOORS)
    site.approve(release)
    request = service.list_signing_requests(site.registry, T0)[0]
    payload, published = json.loads(request.payload), json.loads(request.previous)["signed"]["targets"]
    if what == "an old revision stays":
        payload["signed"]["targets"]["policy/doors/1/config.json"] = published["policy/doors/1/config.json"]
    else:
        del payload["signed"]["targets"]["policy/yard/2/config.json"]
    key = load_key(site.registry.folders.role_key_file("policy"))
    with pytest.raises(TrustError, match=r"differs in policy/(doors/1|yard/2)/config\.json"):
        sign_policy_role(json.dumps(payload).encode(), previous=request.previous, approved=request.content_digest, signer=key)
