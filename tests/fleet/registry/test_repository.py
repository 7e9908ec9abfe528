"""The image repository publishes nothing that a device would refuse, whatever is asked of it."""

import shutil

import pytest
from registries import ANNA, T0
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Delegations, Metadata

from fleet.blobs import open_blobs
from fleet.db import Database
from fleet.registry import service
from fleet.registry.model import FileRef, Release, ReleaseState, Variant
from fleet.registry.repository import RoleFile
from fleet.registry.signing import KeyName, create_line_key, create_trust, load_key
from protocol.canonical import digest_of
from protocol.errors import ConfigError, ConflictError, InvalidError, NotFoundError, TrustError
from protocol.ids import DeviceTypeName, LineName, ReleaseVersion

LINE = LineName("digits")


@pytest.fixture(params=["sqlite"])
def database(request, database_templates, tmp_path):
    """The repository is files: one database is enough."""
    shutil.copy(database_templates("sqlite"), tmp_path / "fleet.db")
    opened = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield opened
    opened.dispose()


def release(version="1.0", counter=1, content=b"x"):
    variant = Variant("onnx", "onnx", (DeviceTypeName("linux-x86-64"),), "m.1", (FileRef("model.onnx", len(content), digest_of(content)),))
    return Release(T0, LINE, ReleaseVersion(version), counter, ReleaseState.APPROVED, (variant,), digest_of(b""), None, "x", 1)


def signed(registry, made, *, key=None, edit=lambda _role: None):
    metadata = Metadata.from_bytes(registry.image.next_line_role(made, floor=0, now=registry.clock.now()))
    edit(metadata.signed)
    metadata.sign(key or load_key(registry.folders.line_key_file(LINE)))
    return metadata.to_bytes()


@pytest.fixture
def opened(registry):
    service.open_line(registry, tenant=T0, by=ANNA, line=LINE)
    return registry


def files(registry):
    return {path.name: path.read_bytes() for path in registry.folders.image.glob("*.json")}


def test_published_files_never_change_and_the_timestamp_names_the_newest(opened):
    before = files(opened)
    opened.image.publish_line(LINE, signed(opened, release()), opened.clock.now())
    after = files(opened)
    assert all(after[name] == data for name, data in before.items() if name != "timestamp.json")
    assert after["timestamp.json"] != before["timestamp.json"]
    assert "1.model.digits.json" in after


def delegate(role):
    role.delegations = Delegations({}, {})


def foreign_path(role):
    role.targets["model/other/1.0/onnx.model.onnx"] = next(iter(role.targets.values()))


def wrong_version(role):
    role.version += 1


def expired(role):
    role.expires = role.expires.replace(year=2020)


@pytest.mark.parametrize(
    ("edit", "kind"), [(delegate, TrustError), (foreign_path, TrustError), (wrong_version, ConflictError), (expired, TrustError)]
)
def test_what_a_device_would_refuse_is_not_published(opened, edit, kind):
    before = files(opened)
    with pytest.raises(kind):
        opened.image.publish_line(LINE, signed(opened, release(), edit=edit), opened.clock.now())
    assert files(opened) == before


def test_a_role_signed_by_another_key_is_not_published(opened):
    before = files(opened)
    with pytest.raises(TrustError):
        opened.image.publish_line(LINE, signed(opened, release(), key=CryptoSigner.generate_ed25519()), opened.clock.now())
    assert files(opened) == before


def test_a_published_path_keeps_its_content(opened):
    opened.image.publish_line(LINE, signed(opened, release()), opened.clock.now())
    with pytest.raises(ConflictError, match="other content"):
        opened.image.next_line_role(release(content=b"y"), floor=0, now=opened.clock.now())


def test_a_line_is_opened_once_and_only_by_the_targets_key(opened, registry):
    with pytest.raises(ConflictError):
        service.open_line(registry, tenant=T0, by=ANNA, line=LINE)
    other = LineName("other")
    key = create_line_key(registry.folders, other, passphrase=None)
    wrong = load_key(registry.folders.key_file(KeyName.IMAGE_ROOT))
    with pytest.raises(TrustError):
        registry.image.open_line(other, key, signer=wrong, now=registry.clock.now())
    assert not registry.image.has_line(other)


def test_a_release_of_a_line_that_is_not_open_is_refused_with_what_to_do(registry):
    with pytest.raises(ConflictError, match="mooring keys line digits"):
        registry.image.next_line_role(release(), floor=0, now=registry.clock.now())


@pytest.mark.parametrize("name", ["../../keys/online/image-timestamp.pem", ".lock", "9.root.json", "x", "", "a/b.json", "timestamp.json\n"])
def test_only_files_of_the_repository_are_read(registry, name):
    with pytest.raises(NotFoundError):
        registry.image.read(name)
    with pytest.raises(NotFoundError):
        registry.director.read_root(name)


def test_with_encrypted_keys_a_line_opens_only_with_the_passphrase(tmp_path, database, clock):
    passphrase = create_trust(tmp_path / "real", demo=False, now=clock.now())
    registry = service.open_registry(tmp_path / "real", database=database, blobs=open_blobs(f"file://{tmp_path}/b"), clock=clock)
    assert not registry.is_demo
    with pytest.raises(ConfigError, match="encrypted"):
        service.open_line(registry, tenant=T0, by=ANNA, line=LINE)
    service.open_line(registry, tenant=T0, by=ANNA, line=LINE, passphrase=passphrase)
    assert registry.image.has_line(LINE)
    registry.folders.key_file(KeyName.IMAGE_TARGETS).unlink()
    with pytest.raises(ConfigError, match=r"cannot be read.*holders: mooring keys line b --public-key FILE --request FILE"):
        service.open_line(registry, tenant=T0, by=ANNA, line=LineName("b"), passphrase=passphrase)
    models = [service.ReleaseModel("none.1")]
    with pytest.raises(ConflictError, match="mooring keys line c"):
        service.create_release(registry, tenant=T0, by=ANNA, line=LineName("c"), version="1", models=models)


def test_a_line_whose_key_was_made_elsewhere_opens_with_its_public_half(registry, tmp_path):
    create_line_key(registry.folders, LINE, passphrase="secret")
    public = registry.folders.line_key_file(LINE).with_suffix(".pub").rename(tmp_path / "digits.pub")
    service.open_line(registry, tenant=T0, by=ANNA, line=LINE, public_key=public)
    assert registry.image.has_line(LINE)


def policy_files(*texts):
    return [RoleFile(f"policy/site/{number}/config.json", len(text), digest_of(text)) for number, text in enumerate(texts, 1)]


def signed_policy(registry, files, *, key=None):
    metadata = Metadata.from_bytes(registry.image.next_policy_role(files, now=registry.clock.now()))
    metadata.sign(key or load_key(registry.folders.role_key_file("policy")))
    return metadata.to_bytes()


def test_policies_are_published_by_keys_of_their_own(registry):
    with pytest.raises(ConflictError, match="mooring keys policy"):
        registry.image.next_policy_role([], now=registry.clock.now())
    service.open_role(registry, tenant=T0, by=ANNA, role="policy")
    with pytest.raises(ConflictError, match="open already"):
        service.open_role(registry, tenant=T0, by=ANNA, role="policy")
    registry.image.publish_policy(signed_policy(registry, policy_files(b"{}")), registry.clock.now())
    registry.image.publish_policy(signed_policy(registry, policy_files(b"{}", b"[]")), registry.clock.now())
    published = Metadata.from_bytes(registry.image.role_metadata("policy")).signed
    assert published.version == 2
    assert sorted(published.targets) == ["policy/site/1/config.json", "policy/site/2/config.json"]
    foreign = signed_policy(registry, policy_files(b"x"), key=CryptoSigner.generate_ed25519())
    with pytest.raises(TrustError):
        registry.image.publish_policy(foreign, registry.clock.now())


def test_a_policy_role_lists_policies_only(registry):
    service.open_role(registry, tenant=T0, by=ANNA, role="policy")
    model = RoleFile("model/digits/1.0/onnx.model.onnx", 1, digest_of(b"x"))
    with pytest.raises(TrustError, match="would not find"):
        registry.image.publish_policy(signed_policy(registry, [model]), registry.clock.now())


def test_two_of_three_keys_of_a_role_must_sign(registry):
    signers = [CryptoSigner.generate_ed25519() for _ in range(3)]
    targets = load_key(registry.folders.key_file(KeyName.IMAGE_TARGETS))
    registry.image.open_policy([one.public_key for one in signers], threshold=2, signers=[targets], now=registry.clock.now())
    once = signed_policy(registry, policy_files(b"{}"), key=signers[0])
    with pytest.raises(TrustError):
        registry.image.publish_policy(once, registry.clock.now())
    twice = Metadata.from_bytes(once)
    twice.sign(signers[2], append=True)
    registry.image.publish_policy(twice.to_bytes(), registry.clock.now())


@pytest.mark.parametrize(("keys", "threshold"), [(0, 1), (1, 0), (1, 2)])
def test_a_threshold_that_the_keys_cannot_reach_is_refused(registry, keys, threshold):
    made = [CryptoSigner.generate_ed25519().public_key for _ in range(keys)]
    targets = load_key(registry.folders.key_file(KeyName.IMAGE_TARGETS))
    with pytest.raises(InvalidError, match="threshold"):
        registry.image.open_policy(made, threshold=threshold, signers=[targets], now=registry.clock.now())


@pytest.mark.parametrize("role", ["root", "snapshot", "other.digits", "model.", "model.A/b", "firmware.../x"])
def test_only_roles_of_ours_are_delegated(registry, role):
    key = CryptoSigner.generate_ed25519().public_key
    targets = load_key(registry.folders.key_file(KeyName.IMAGE_TARGETS))
    with pytest.raises(InvalidError):
        registry.image.open_role(role, [key], signers=[targets], now=registry.clock.now())


def test_a_firmware_line_has_a_role_and_paths_of_its_own(registry):
    signer = CryptoSigner.generate_ed25519()
    targets = load_key(registry.folders.key_file(KeyName.IMAGE_TARGETS))
    registry.image.open_role("firmware.cam", [signer.public_key], signers=[targets], now=registry.clock.now())
    assert registry.image.has_role("firmware.cam")
    assert not registry.image.has_line(LineName("cam"))


def test_a_role_that_would_list_too_many_files_is_refused(registry):
    service.open_role(registry, tenant=T0, by=ANNA, role="policy")
    files = [RoleFile(f"policy/site/{number}/x", 1, digest_of(b"x")) for number in range(2001)]
    with pytest.raises(ConflictError, match="at most 2000"):
        registry.image.next_policy_role(files, now=registry.clock.now())
