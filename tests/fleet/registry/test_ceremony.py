"""Ceremonies over real files: holders sign a request, the server publishes it, a device that was born with the first root follows."""

import copy
import json
import random
import shutil

import pytest
from registries import ANNA, BERT, T0, add_release, pass_days
from securesystemslib.signer import CryptoSigner
from simulators.trust_device import TrustDevice
from tuf.api.metadata import Metadata, Root, Timestamp

from fleet import audit, loop
from fleet.db import Database
from fleet.registry import ceremony, recovery, service, store
from fleet.registry.director import Order, OrderedLine
from fleet.registry.model import ReleaseState
from fleet.registry.online import OnlineKeys
from fleet.registry.requests import KeyRequest, check_published, describe, parse, read_request, write_request
from fleet.registry.signing import KeyName, create_trust, load_key, make_key, save_key, sign_line_role
from protocol.canonical import digest_of
from protocol.errors import ConfigError, ConflictError, InvalidError, NotFoundError, TrustError
from protocol.ids import DeviceId, LineName, ReleaseVersion

LINE, CAM = LineName("digits"), DeviceId("cam-1")


@pytest.fixture(params=["sqlite"])
def database(request, database_templates, tmp_path):
    """Ceremonies are files; what they write into the database is tested on both where it is written."""
    shutil.copy(database_templates("sqlite"), tmp_path / "fleet.db")
    opened = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield opened
    opened.dispose()


class Holders:
    """People with keys of their own, each a file."""

    def __init__(self, folder) -> None:
        self.folder = folder
        folder.mkdir()
        self.signers: dict[str, CryptoSigner] = {}

    def make(self, *names: str) -> list:
        """The public halves."""
        for name in names:
            self.signers[name] = make_key()
            save_key(self.folder / f"{name}.pem", self.signers[name], passphrase=None)
        return [ceremony.holder_key(self.folder / f"{name}.pub") for name in names]

    def sign(self, request: KeyRequest, *names: str) -> KeyRequest:
        """As it travels on a stick from one to the next."""
        for name in names:
            request, _ = parse(request.to_bytes()).sign(self.signers[name])
        return request


@pytest.fixture
def holders(registry, tmp_path) -> Holders:
    """Those of the first start are "image-root", "image-targets" and "director-root"."""
    made = Holders(tmp_path / "holders")
    for name in (KeyName.IMAGE_ROOT, KeyName.IMAGE_TARGETS, KeyName.DIRECTOR_ROOT):
        made.signers[name] = load_key(registry.folders.key_file(name))
    return made


@pytest.fixture
def released(registry):
    """A published release of the line, which the director orders for every device."""
    return publish(registry, add_release(registry, "1.0"))


def publish(registry, release, *, key=None):
    with registry.database.transaction() as tx:
        service.mark_approved(registry, tx, service.mark_proposed(tx, release, approval="ap-1"), approved=release.content_digest)
    sign(registry, release, key=key)
    return service.publish_release(registry, tenant=T0, by=BERT, line=release.line, version=release.version)


def sign(registry, release, *, key=None):
    request = service.find_signing_request(registry, T0, release.line, release.version)
    signer = key or load_key(registry.folders.line_key_file(release.line))
    signed = sign_line_role(request.payload, previous=request.previous, line=release.line, approved=release.content_digest, signer=signer)
    return service.submit_signature(registry, tenant=T0, by=BERT, request_id=request.request, signed=signed)


class Follower(TrustDevice):
    """A device that keeps what it saw; `orders` is what the director wants of it."""

    def __init__(self, registry, folder) -> None:
        self.orders: list = []
        super().__init__(
            folder,
            registry.clock,
            registry.image.bootstrap,
            registry.director.bootstrap,
            registry.image.read,
            lambda name: service.director_file(registry, tenant=T0, device=CAM, name=name, source=self.source).data,
        )

    def source(self, _tx, device):
        lines = tuple(OrderedLine(one, one.variants[0], "as-1", 1, "ca-1", self.clock.now()) for one in self.orders)
        return Order(T0, device, lines), True

    def versions(self) -> dict:
        return dict(self.check().metadata_versions)


@pytest.fixture
def device(registry, released, tmp_path) -> Follower:
    made = Follower(registry, tmp_path / "device")
    made.orders = [released]
    assert made.check().lines[0].release == "1.0"
    return made


def begin(registry, repository="image"):
    return ceremony.start(registry, repository, reason="test")


def finish(registry, request):
    return ceremony.finish(request, now=registry.clock.now())


def put(registry, request):
    return ceremony.publish(registry, request, tenant=T0, by=ANNA, reason="test")


@pytest.fixture
def two_of_three(registry, holders, released):
    """The image repository's root and targets with anna, bert and cleo."""
    keys = holders.make("anna", "bert", "cleo")
    request = finish(registry, ceremony.init_root(begin(registry), keys, threshold=2))
    put(registry, holders.sign(request, "image-root", "anna", "cleo"))
    return holders


def test_root_and_targets_move_from_the_first_start_to_two_of_three_and_a_device_follows(registry, holders, device):
    keys = holders.make("anna", "bert", "cleo")
    request = finish(registry, ceremony.init_root(begin(registry), keys, threshold=2))
    assert list(request.documents) == ["root", "targets"]
    done = put(registry, holders.sign(request, "image-root", "anna", "cleo"))
    assert done.versions == {"root": 2, "targets": 3}
    assert done.bootstrap == digest_of(registry.image.bootstrap)
    assert done.newest_root == digest_of(registry.image.read("2.root.json"))
    seen = device.versions()
    assert (seen["image.root"], seen["image.targets"]) == (2, 3)
    assert device.check().lines[0].release == "1.0"
    with registry.database.reading() as tx:
        entry = audit.list_entries(tx, T0)[0]
    assert (entry.action, entry.subject, entry.reason) == ("keys.published", "keys/image", "test")
    assert sorted(entry.detail["signed_by"]["targets"]) == sorted(holders.signers[name].public_key.keyid for name in ("anna", "cleo"))


@pytest.mark.parametrize(
    "signed_by", [(), ("image-root",), ("anna", "bert", "cleo"), ("image-root", "anna"), ("image-root", "image-targets")]
)
def test_a_new_root_wants_the_thresholds_of_old_and_new_keys(registry, holders, signed_by):
    keys = holders.make("anna", "bert", "cleo")
    request = finish(registry, ceremony.init_root(begin(registry), keys, threshold=2))
    holders_that_may = [name for name in signed_by if name != "image-targets"]
    with pytest.raises(ConflictError) as caught:
        put(registry, holders.sign(request, *holders_that_may))
    assert caught.value.code == "signatures-missing"
    assert not (registry.folders.image / "2.root.json").exists()


@pytest.mark.parametrize(("signed_by", "missing"), [("director-root", "new root keys"), ("anna", "root keys until now")])
def test_one_side_alone_cannot_replace_a_root(registry, holders, signed_by, missing):
    request = finish(registry, ceremony.init_root(begin(registry, "director"), holders.make("anna"), threshold=1))
    with pytest.raises(ConflictError, match=missing):
        put(registry, holders.sign(request, signed_by))


def test_the_director_has_a_root_of_its_own(registry, holders, device):
    before = device.versions()
    keys = holders.make("dora", "emil", "fred")
    request = finish(registry, ceremony.init_root(begin(registry, "director"), keys, threshold=2))
    assert list(request.documents) == ["root"]
    put(registry, holders.sign(request, "director-root", "dora", "emil"))
    seen = device.versions()
    assert (seen["director.root"], seen["image.root"]) == (2, before["image.root"])
    assert seen["director.timestamp"] > before["director.timestamp"], "else devices would hear that nothing changed"


def test_one_lost_key_of_three_is_replaced_by_the_other_two(registry, two_of_three, device):
    holders = two_of_three
    (new,) = holders.make("dora")
    lost = holders.signers["cleo"].public_key.keyid
    request = ceremony.rotate_key(begin(registry), "image-root", lost[:12], new)
    request = finish(registry, ceremony.rotate_key(request, "image-targets", lost, new))
    put(registry, holders.sign(request, "anna", "bert"))
    assert device.versions()["image.root"] == 3
    assert lost not in Metadata[Root].from_bytes(registry.image.read("3.root.json")).signed.keys
    # dora counts from now on, cleo does not
    request = finish(registry, ceremony.renew(begin(registry), "image-root"))
    with pytest.raises(TrustError, match="signs nothing"):
        holders.sign(request, "cleo")
    put(registry, holders.sign(request, "anna", "dora"))
    assert device.versions()["image.root"] == 4


def test_keys_are_added_and_removed_and_the_threshold_changes(registry, two_of_three, device):
    holders = two_of_three
    (new,) = holders.make("dora")
    request = finish(registry, ceremony.add_key(begin(registry), "image-root", new, threshold=3))
    put(registry, holders.sign(request, "anna", "bert", "dora"))
    request = ceremony.set_threshold(begin(registry), "image-root", 2)
    gone = holders.signers["anna"].public_key.keyid
    request = finish(registry, ceremony.remove_key(request, "image-root", gone))
    put(registry, holders.sign(request, "bert", "cleo", "dora"))
    role = Metadata[Root].from_bytes(registry.image.read("4.root.json")).signed.roles["root"]
    assert (role.threshold, len(role.keyids)) == (2, 3)
    assert device.versions()["image.root"] == 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda request, _key: ceremony.add_key(request, "image-root", request.root.keys[request.root.roles["root"].keyids[0]]),
            ConflictError,
        ),
        (lambda request, _key: ceremony.remove_key(request, "image-root", request.root.roles["root"].keyids[0]), InvalidError),
        (lambda request, _key: ceremony.remove_key(request, "image-root", "0" * 12), NotFoundError),
        (lambda request, key: ceremony.rotate_key(request, "image-root", "abc", key), InvalidError),
        (lambda request, _key: ceremony.set_threshold(request, "image-root", 2), InvalidError),
        (lambda request, key: ceremony.init_root(request, [key], threshold=0), InvalidError),
        (lambda request, key: ceremony.init_root(request, [key, key], threshold=2), InvalidError),
        (lambda request, key: ceremony.rotate_key(request, "director-root", "0" * 12, key), NotFoundError),
        (lambda request, key: ceremony.revoke(request, "model.other", [key]), NotFoundError),
        (lambda request, _key: ceremony.renew(request, "model.other"), NotFoundError),
        (lambda request, key: ceremony.revoke(request, "image-root", [key], floor=3), InvalidError),
        (lambda request, _key: request, InvalidError),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_before_anybody_signs(registry, holders, change, error):
    (key,) = holders.make("anna")
    with pytest.raises(error):
        finish(registry, change(begin(registry), key))


# --- online keys ---


def fresh_online_keys(registry, repository):
    keys = {}
    for name in ceremony.ONLINE_ROLES[repository]:
        signer = make_key()
        save_key(registry.folders.online / f"{name}-{signer.public_key.keyid[:12]}.pem", signer, passphrase=None)
        keys[name] = signer.public_key
    return keys


@pytest.mark.parametrize("are_lost", [False, True])
@pytest.mark.parametrize("repository", ["image", "director"])
def test_online_keys_stolen_or_lost_are_replaced_by_the_root_and_the_server_takes_the_new_ones_without_a_restart(
    registry, holders, device, repository, are_lost
):
    old = {name: OnlineKeys(registry.folders).signers(name)[0] for name in ceremony.ONLINE_ROLES[repository]}
    if are_lost:
        for name in old:
            registry.folders.key_file(name).unlink()
            registry.folders.key_file(name).with_suffix(".pub").unlink()
    request = ceremony.replace_online(begin(registry, repository), fresh_online_keys(registry, repository))
    put(registry, holders.sign(finish(registry, request), f"{repository}-root"))
    assert device.versions()[f"{repository}.root"] == 2
    pass_days(registry, 5)
    service.renew(registry)
    assert device.check().lines[0].release == "1.0"
    read = registry.image.read if repository == "image" else device.read_director
    stamp = Metadata[Timestamp].from_bytes(read("timestamp.json"))
    assert stamp.signatures.keys().isdisjoint(signer.public_key.keyid for signer in old.values())


def test_an_order_of_keys_that_the_root_dropped_is_signed_again_even_where_nobody_asked_for_it(registry, holders, device):
    request = ceremony.replace_online(begin(registry, "director"), fresh_online_keys(registry, "director"))
    request = holders.sign(finish(registry, request), "director-root")
    registry.director.publish_root(request.documents["root"].to_bytes(), registry.clock.now())
    assert device.versions()["director.root"] == 2


def test_targets_that_would_orphan_a_line_are_not_published(registry, holders, device):
    (new,) = holders.make("line")
    request = ceremony.rotate_key(begin(registry), "model.digits", load_key(registry.folders.line_key_file(LINE)).public_key.keyid, new)
    signed = holders.sign(finish(registry, request), "image-targets")
    with pytest.raises(TrustError, match="A device would refuse"):
        registry.image.publish_ceremony({"targets": signed.documents["targets"].to_bytes()}, registry.clock.now())
    assert device.check().lines[0].release == "1.0"


def test_the_server_knows_which_of_its_keys_are_missing(registry):
    assert registry.keys.missing() == []
    registry.folders.key_file(KeyName.DIRECTOR_TARGETS).unlink()
    assert registry.keys.missing() == [KeyName.DIRECTOR_TARGETS]
    registry.clock.advance(days=1)
    assert loop.tick(registry) == 0, "what needs no such key goes on"
    with pytest.raises(ConfigError, match="has 0 of the 1 keys that sign director-targets"):
        registry.director.sign(Order(T0, CAM, ()), last_version=0, now=registry.clock.now())


def test_a_device_that_a_thief_sent_far_ahead_comes_back_after_the_rotation(registry, holders, device):
    stamp = Metadata[Timestamp].from_bytes(registry.image.read("timestamp.json"))
    thief = OnlineKeys(registry.folders).signers(KeyName.IMAGE_TIMESTAMP)[0]
    stamp.signed.version = 10**9
    stamp.sign(thief)
    (device.folder / "image" / "timestamp.json").write_bytes(stamp.to_bytes())
    with pytest.raises(TrustError) as caught:
        device.check()
    assert caught.value.code == "rollback"
    request = ceremony.replace_online(begin(registry), fresh_online_keys(registry, "image"))
    put(registry, holders.sign(finish(registry, request), "image-root"))
    assert device.check().lines[0].release == "1.0"


def test_metadata_of_the_old_online_keys_is_refused_by_a_device_that_saw_the_new_root(registry, holders, device):
    old = {path.name: path.read_bytes() for path in registry.folders.image.glob("*.json")}
    request = ceremony.replace_online(begin(registry), fresh_online_keys(registry, "image"))
    put(registry, holders.sign(finish(registry, request), "image-root"))
    device.check()
    stolen = Metadata[Timestamp].from_bytes(old["timestamp.json"])
    stolen.signed.version += 100
    stolen.sign(load_key(registry.folders.key_file(KeyName.IMAGE_TIMESTAMP)))
    device.read_image = lambda name: stolen.to_bytes() if name == "timestamp.json" else registry.image.read(name)
    with pytest.raises(TrustError) as caught:
        device.check()
    assert caught.value.code == "bad-signature"


def test_while_the_new_timestamp_is_out_and_the_root_is_not_yet_a_device_is_served(registry, holders, device):
    """The new timestamp is signed by old and new key, so a cut between the two files leaves a good repository."""
    request = ceremony.replace_online(begin(registry), fresh_online_keys(registry, "image"))
    put(registry, holders.sign(finish(registry, request), "image-root"))
    (registry.folders.image / "2.root.json").rename(registry.folders.image / "later")
    assert device.versions()["image.root"] == 1
    (registry.folders.image / "later").rename(registry.folders.image / "2.root.json")
    assert device.versions()["image.root"] == 2


def test_a_root_whose_online_keys_are_not_here_is_not_published(registry, holders):
    request = ceremony.replace_online(begin(registry), {KeyName.IMAGE_TIMESTAMP: make_key().public_key})
    with pytest.raises(ConfigError, match=r"docs/operations/keys\.md"):
        put(registry, holders.sign(finish(registry, request), "image-root"))
    assert not (registry.folders.image / "2.root.json").exists()


def test_a_director_root_whose_online_keys_are_not_here_is_not_published(registry, holders):
    request = ceremony.replace_online(begin(registry, "director"), {KeyName.DIRECTOR_TARGETS: make_key().public_key})
    with pytest.raises(ConfigError):
        put(registry, holders.sign(finish(registry, request), "director-root"))
    assert not (registry.folders.director / "2.root.json").exists()


def test_the_server_works_on_with_the_offline_keys_gone(registry, device):
    shutil.rmtree(registry.folders.offline)
    line_key = registry.folders.line_key_file(LINE).rename(registry.folders.data_dir / "stick.pem")
    pass_days(registry, 5)
    device.orders = [publish(registry, add_release(registry, "1.1"), key=load_key(line_key))]
    pass_days(registry, 4)
    assert device.check().lines[0].release == "1.1"


# --- lines ---


def test_a_stolen_line_key_is_revoked_with_a_raised_floor_and_what_it_signed_is_refused(registry, holders, device, released):
    thief = load_key(registry.folders.line_key_file(LINE))
    second = publish(registry, add_release(registry, "1.1"))
    (new,) = holders.make("line")
    request = ceremony.revoke(begin(registry), "model.digits", [new], floor=2)
    text = "\n".join(describe(finish(registry, request)))
    assert "Floor 0 -> 2" in text
    assert f"- {thief.public_key.keyid[:12]}" in text
    done = put(registry, holders.sign(finish(registry, request), "image-targets", "line"))
    assert done.versions == {"targets": 3, "model.digits": 3}
    with pytest.raises(TrustError) as caught:
        device.check()
    assert caught.value.code == "old-release", "1.0 has counter 1, below the floor"
    device.orders = [second]
    pass_days(registry, 4)
    assert device.check().lines[0].release == "1.1"
    assert device.floors[LINE] == 2
    stolen = Metadata.from_bytes(registry.image.role_metadata("model.digits"))
    stolen.signed.version += 1
    stolen.sign(thief)
    with pytest.raises(TrustError):
        registry.image.publish_role("model.digits", stolen.to_bytes(), registry.clock.now())
    with registry.database.reading() as tx:
        assert store.find_line(tx, T0, LINE).floor == 2


def test_a_release_that_waited_while_the_lines_key_changed_is_signed_by_the_new_key(registry, holders, device):
    waiting = add_release(registry, "1.1")
    with registry.database.transaction() as tx:
        service.mark_approved(registry, tx, service.mark_proposed(tx, waiting, approval="ap-1"), approved=waiting.content_digest)
    (new,) = holders.make("line")
    request = ceremony.revoke(begin(registry), "model.digits", [new])
    put(registry, holders.sign(finish(registry, request), "image-targets", "line"))
    sign(registry, waiting, key=holders.signers["line"])
    done = service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=ReleaseVersion("1.1"))
    assert done.state is ReleaseState.PUBLISHED
    device.orders = [done]
    pass_days(registry, 4)
    assert device.check().lines[0].release == "1.1"


def test_a_rotated_line_key_signs_again_what_the_line_lists(registry, holders, device):
    (new,) = holders.make("line")
    old = load_key(registry.folders.line_key_file(LINE)).public_key.keyid
    request = finish(registry, ceremony.rotate_key(begin(registry), "model.digits", old[:8], new))
    assert list(request.documents) == ["targets", "model.digits"]
    put(registry, holders.sign(request, "image-targets", "line"))
    assert device.check().lines[0].release == "1.0"


def test_a_second_line_key_needs_no_new_signature_of_the_line_and_two_of_two_do(registry, holders, device):
    (new,) = holders.make("line")
    request = finish(registry, ceremony.add_key(begin(registry), "model.digits", new))
    assert list(request.documents) == ["targets"]
    put(registry, holders.sign(request, "image-targets"))
    assert device.check().lines[0].release == "1.0"
    holders.signers["first"] = load_key(registry.folders.line_key_file(LINE))
    request = finish(registry, ceremony.set_threshold(begin(registry), "model.digits", 2))
    assert list(request.documents) == ["targets", "model.digits"]
    with pytest.raises(ConflictError, match=r"1 more of the keys of model\.digits"):
        put(registry, holders.sign(request, "image-targets", "line"))
    put(registry, holders.sign(request, "image-targets", "line", "first"))
    assert device.check().lines[0].release == "1.0"


def test_a_release_of_a_line_with_two_of_two_waits_for_the_second_signature(registry, holders, device):
    (new,) = holders.make("line")
    holders.signers["first"] = load_key(registry.folders.line_key_file(LINE))
    request = ceremony.add_key(begin(registry), "model.digits", new, threshold=2)
    put(registry, holders.sign(finish(registry, request), "image-targets", "line", "first"))
    release = add_release(registry, "1.1")
    with registry.database.transaction() as tx:
        service.mark_approved(registry, tx, service.mark_proposed(tx, release, approval="ap-1"), approved=release.content_digest)
    assert sign(registry, release).state is ReleaseState.APPROVED
    with pytest.raises(ConflictError, match="signed this request already"):
        sign(registry, release)
    assert sign(registry, release, key=holders.signers["line"]).state is ReleaseState.SIGNED
    device.orders = [service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=release.version)]
    pass_days(registry, 4)
    assert device.check().lines[0].release == "1.1"


def test_any_two_of_three_line_keys_sign_one_release_after_another(registry, holders, device):
    """The third key signs on top of what only the other two signed, once it knows where the chain of roots begins."""
    keys = holders.make("one", "two", "three")
    request = ceremony.revoke(begin(registry), "model.digits", keys, threshold=2)
    put(registry, holders.sign(finish(registry, request), "image-targets", "one", "two"))
    release = add_release(registry, "1.1")
    with registry.database.transaction() as tx:
        service.mark_approved(registry, tx, service.mark_proposed(tx, release, approval="ap-1"), approved=release.content_digest)
    with pytest.raises(TrustError, match="--bootstrap"):
        sign(registry, release, key=holders.signers["three"])
    asked = service.find_signing_request(registry, T0, LINE, release.version)
    published, born = begin(registry).to_bytes(), digest_of(registry.image.bootstrap)
    check_published(published, bootstrap=born, role="model.digits", previous=asked.previous)
    signed = sign_line_role(
        asked.payload,
        previous=asked.previous,
        line=LINE,
        approved=release.content_digest,
        signer=holders.signers["three"],
        is_previous_checked=True,
    )
    service.submit_signature(registry, tenant=T0, by=BERT, request_id=asked.request, signed=signed)
    assert sign(registry, release, key=holders.signers["one"]).state is ReleaseState.SIGNED
    with pytest.raises(TrustError, match="first root"):
        check_published(published, bootstrap=digest_of(b"another"), role="model.digits", previous=asked.previous)
    with pytest.raises(TrustError, match="not what the keys"):
        check_published(published, bootstrap=born, role="model.digits", previous=asked.payload)
    body = json.loads(published)
    body["published"]["model.digits"]["signed"]["mooring"]["floor"] = 7
    with pytest.raises(TrustError, match="does not verify"):
        check_published(json.dumps(body).encode(), bootstrap=born, role="model.digits", previous=asked.previous)


def test_two_holders_who_fetched_one_request_of_a_line_before_either_handed_in_both_count(registry, holders, device):
    keys = holders.make("one", "two", "three")
    request = ceremony.revoke(begin(registry), "model.digits", keys, threshold=2)
    put(registry, holders.sign(finish(registry, request), "image-targets", "one", "two"))
    release = add_release(registry, "1.1")
    with registry.database.transaction() as tx:
        service.mark_approved(registry, tx, service.mark_proposed(tx, release, approval="ap-1"), approved=release.content_digest)
    asked = service.find_signing_request(registry, T0, LINE, release.version)
    first, second = (
        sign_line_role(asked.payload, previous=asked.previous, line=LINE, approved=release.content_digest, signer=holders.signers[name])
        for name in ("one", "two")
    )
    for signed, state in ((first, ReleaseState.APPROVED), (second, ReleaseState.SIGNED)):
        assert service.submit_signature(registry, tenant=T0, by=BERT, request_id=asked.request, signed=signed).state is state
    device.orders = [service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=release.version)]
    assert device.check().lines[0].release == "1.1"


def test_a_line_is_opened_by_a_request_when_the_targets_have_several_holders(registry, two_of_three, tmp_path):
    holders = two_of_three
    with pytest.raises(ConflictError) as caught:
        service.open_line(registry, tenant=T0, by=ANNA, line=LineName("other"))
    assert caught.value.code == "ceremony-needed"
    (new,) = holders.make("other")
    request = finish(registry, ceremony.open_role(begin(registry), "model.other", [new]))
    assert "Opens model.other: 1 of 1 keys may list model/other/*/*." in "\n".join(describe(request))
    put(registry, holders.sign(request, "anna", "bert"))
    assert registry.image.has_line(LineName("other"))


def test_a_line_without_releases_for_long_is_renewed(registry, holders, device):
    holders.signers["line"] = load_key(registry.folders.line_key_file(LINE))
    registry.clock.advance(days=360)
    service.confirm_clock(registry, tenant=T0, by=ANNA, reason="nearly a year later")
    request = finish(registry, ceremony.renew(begin(registry), "model.digits"))
    put(registry, holders.sign(request, "line"))
    put(registry, holders.sign(finish(registry, ceremony.renew(begin(registry), "image-targets")), "image-targets"))
    put(registry, holders.sign(finish(registry, ceremony.renew(begin(registry), "image-root")), "image-root"))
    put(registry, holders.sign(finish(registry, ceremony.renew(begin(registry, "director"), "director-root")), "director-root"))
    pass_days(registry, 30)
    service.renew(registry)
    assert device.check().lines[0].release == "1.0"


# --- total loss ---


@pytest.mark.parametrize("repository", ["image", "director"])
def test_after_total_loss_a_new_chain_is_followed_by_who_was_born_with_it_and_by_nobody_else(registry, device, repository, clock):
    done = recovery.start_again(registry, repository, tenant=T0, by=ANNA, reason="all root keys lost")
    again = service.open_registry(registry.folders.data_dir, database=registry.database, blobs=registry.blobs, clock=clock)
    device.read_image = again.image.read
    device.read_director = lambda name: service.director_file(again, tenant=T0, device=CAM, name=name, source=device.source).data
    with pytest.raises(TrustError):
        device.check()
    device.image_root, device.director_root = again.image.bootstrap, again.director.bootstrap
    found = device.check()
    assert found.lines[0].release == "1.0", "the line's release is as it was signed"
    born = again.image.bootstrap if repository == "image" else again.director.bootstrap
    assert done.bootstrap == digest_of(born)
    assert done.kept.is_dir()
    assert not registry.folders.key_file(KeyName.IMAGE_ROOT).stat().st_mode & 0o077
    with registry.database.reading() as tx:
        assert audit.list_entries(tx, T0)[0].action == "keys.started-again"


@pytest.mark.parametrize("repository", ["image", "director"])
def test_a_cut_between_taking_the_old_chain_away_and_putting_the_new_one_is_made_good_at_the_next_start(registry, repository, clock):
    done = recovery.start_again(registry, repository, tenant=T0, by=ANNA, reason="all root keys lost")
    folders = registry.folders
    folder = folders.image if repository == "image" else folders.director
    root = (folder / "1.root.json").read_bytes()
    keys = {path: path.read_bytes() for path in folders.data_dir.rglob("*.pem")}
    folder.rename(folder.with_name(f"{folder.name}.new"))  # as the cut leaves it
    assert create_trust(folders.data_dir, demo=True, now=clock.now()) is None
    assert (folder / "1.root.json").read_bytes() == root
    assert {path: path.read_bytes() for path in folders.data_dir.rglob("*.pem")} == keys
    assert done.kept.is_dir()


# --- the file on the stick ---


def test_two_holders_sign_copies_and_the_server_puts_them_together(registry, holders, device):
    keys = holders.make("anna", "bert", "cleo")
    request = holders.sign(finish(registry, ceremony.init_root(begin(registry), keys, threshold=2)), "image-root")
    first, second = holders.sign(request, "anna"), holders.sign(request, "bert")
    assert first.missing()
    merged = first.merged(second)
    assert not merged.missing()
    put(registry, merged)
    other = finish(registry, ceremony.renew(begin(registry), "image-targets"))
    with pytest.raises(ConflictError, match="copies"):
        merged.merged(other)


def test_a_request_survives_the_way_to_the_stick_and_back(registry, holders, tmp_path):
    keys = holders.make("anna")
    request = finish(registry, ceremony.init_root(begin(registry), keys, threshold=1))
    write_request(tmp_path / "r.json", request)
    read = read_request(tmp_path / "r.json")
    assert read.to_bytes() == request.to_bytes()
    assert read.bootstrap_digest == digest_of(registry.image.bootstrap)


def test_a_request_is_outdated_once_another_was_published(registry, holders):
    keys = holders.make("anna", "bert")
    old = holders.sign(finish(registry, ceremony.init_root(begin(registry), keys[:1], threshold=1)), "image-root", "anna")
    new = holders.sign(finish(registry, ceremony.init_root(begin(registry), keys[1:], threshold=1)), "image-root", "bert")
    put(registry, new)
    assert put(registry, new).versions == {"root": 2, "targets": 2}, "repeating it changes nothing"
    with pytest.raises(ConflictError) as caught:
        put(registry, old)
    assert caught.value.code == "signature-outdated"


def test_the_words_come_from_the_signed_bytes_not_from_the_file(registry, holders):
    (thief,) = holders.make("thief")
    request = finish(registry, ceremony.add_key(begin(registry), "image-root", thief))
    body = json.loads(request.to_bytes())
    body["reason"] = "harmless\x1b[2J\nroot: nothing changes"
    text = "\n".join(describe(parse(json.dumps(body).encode())))
    assert f"+ {thief.keyid[:12]} (ed25519, thief)" in text
    assert "\x1b" not in text
    assert "harmless?[2J?root" in text


def other_root(body):
    root = json.loads(body["chain"][0])
    root["signed"]["version"] = 7
    body["chain"] = [json.dumps(root)]


def change_document(role, change):
    def edit(body):
        change(body["documents"][role]["signed"])

    return edit


def foreign_paths(signed):
    signed["delegations"]["roles"][0]["paths"] = ["*"]


def add_file(signed):
    signed["targets"]["model/digits/9/onnx.model.onnx"] = {"length": 1, "hashes": {"sha256": "0" * 64}}


def key_under_a_foreign_name(signed):
    keys = signed["delegations"]["keys"]
    first, second = list(keys)[:2]
    keys[first] = keys[second]


def unknown_key(signed):
    signed["delegations"]["roles"][0]["keyids"].append("0" * 64)


def lower_floor(signed):
    signed["mooring"]["floor"] = -1


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda body: body.update(schema="other"), InvalidError),
        (lambda body: body.update(repository="third"), InvalidError),
        (lambda body: body.update(made_at="soon"), InvalidError),
        (lambda body: body.update(chain=[]), InvalidError),
        (lambda body: body.update(chain=["{"]), InvalidError),
        (lambda body: body.update(chain=["[" * 100_000]), InvalidError),
        (lambda body: body.update(documents=[]), InvalidError),
        (lambda body: body.update(documents={}), InvalidError),
        (lambda body: body["documents"].update(root={}), InvalidError),
        (lambda body: body["documents"].update(root=body["documents"]["targets"]), TrustError),
        (lambda body: body["published"].pop("targets"), TrustError),
        (lambda body: body.update(repository="director"), TrustError),
        (lambda body: body["documents"].update({"model.other": body["documents"]["model.digits"]}), TrustError),
        (other_root, TrustError),
        (change_document("targets", lambda signed: signed.update(version=9)), TrustError),
        (change_document("targets", lambda signed: signed.update(expires="2099-01-01T00:00:00Z")), TrustError),
        (change_document("targets", add_file), TrustError),
        (change_document("targets", foreign_paths), TrustError),
        (change_document("targets", key_under_a_foreign_name), TrustError),
        (change_document("targets", unknown_key), TrustError),
        (change_document("model.digits", add_file), TrustError),
        (change_document("model.digits", lower_floor), TrustError),
        (change_document("model.digits", lambda signed: signed.update(delegations={"keys": {}, "roles": []})), TrustError),
    ],
)
def test_a_request_that_was_tampered_with_is_neither_shown_nor_signed(registry, holders, released, edit, error):
    new = holders.make("line", "second")
    request = finish(registry, ceremony.revoke(begin(registry), "model.digits", new, floor=1))
    body = json.loads(request.to_bytes())
    edit(body)
    with pytest.raises(error):
        parse(json.dumps(body).encode())


JUNK = (None, True, -1, 2**70, 1.5, "", "\x00\x1b[", [], {}, [[]], {"a": 1}, "9999-12-31T23:59:59Z", "ed25519", ["*"])


def places(value, path=()):
    """The path of every value in a JSON document."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_in_a_request_only_named_errors_come_out(registry, holders, released, seed):
    new = holders.make("anna", "line")
    request = ceremony.init_root(ceremony.revoke(begin(registry), "model.digits", new[1:], floor=1), new[:1], threshold=1)
    body = json.loads(finish(registry, request).to_bytes())
    body["chain"] = [json.loads(root) for root in body["chain"]]
    chance, found = random.Random(seed), list(places(body))[1:]  # noqa: S311 - the same changes in each run
    seen = set()
    for _ in range(300):
        changed = copy.deepcopy(body)
        *parents, last = chance.choice(found)
        place = changed
        for key in parents:
            place = place[key]
        if isinstance(place, dict) and chance.random() < 0.3:
            value = place.pop(last)
            place[chance.choice(("root", "targets", "model.digits", "x", last))] = value
        else:
            place[last] = copy.deepcopy(chance.choice(JUNK))
        if isinstance(changed.get("chain"), list):
            changed["chain"] = [json.dumps(root) for root in changed["chain"]]
        try:
            parsed = parse(json.dumps(changed).encode())
            describe(parsed)
            parsed.missing()
            seen.add("read")
        except (InvalidError, TrustError) as error:
            seen.add(type(error).__name__)
    assert seen >= {"InvalidError", "TrustError"}


def test_a_root_that_weakens_the_repository_is_not_signed(registry, holders):
    (key,) = holders.make("anna")
    request = finish(registry, ceremony.init_root(begin(registry), [key], threshold=1))
    for change in (
        lambda signed: signed.update(consistent_snapshot=False),
        lambda signed: signed["roles"]["root"].update(threshold=5),
        lambda signed: next(iter(signed["keys"].values())).update(keytype="rsa", scheme="rsassa-pss-sha256"),
    ):
        body = json.loads(request.to_bytes())
        change(body["documents"]["root"]["signed"])
        with pytest.raises(TrustError):
            parse(json.dumps(body).encode())


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    with (tmp_path / "r.json").open("wb") as file:
        file.truncate(24_000_001)
    with pytest.raises(InvalidError, match="longer"):
        read_request(tmp_path / "r.json")
