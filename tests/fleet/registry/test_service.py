"""From a file to a published release that a device finds: import, compose, approve, sign, publish."""

from dataclasses import replace

import pytest
from registries import ANNA, BERT, DIGITS, T0, pass_days
from simulators.trust_device import TrustDevice

from fleet import audit
from fleet.registry import service, store
from fleet.registry.director import Order, OrderedLine
from fleet.registry.drafts import load_draft
from fleet.registry.model import ModelVersion, ReleaseState
from fleet.registry.service import ReleaseModel
from fleet.registry.signing import load_key, sign_line_role
from protocol.errors import ConflictError, InvalidError, NotFoundError, TrustError
from protocol.ids import DeviceId, LineName, ReleaseVersion, TenantId
from runtime.golden import decode

LINE = LineName("digits")
CAM = DeviceId("cam-1")
LIMIT = 4 << 20


def create(registry, *models: ModelVersion, version="1.0"):
    return service.create_release(
        registry, tenant=T0, by=ANNA, line=LINE, version=version, models=[ReleaseModel(model.id) for model in models]
    )


def approve(registry, release):
    with registry.database.transaction() as tx:
        proposed = service.mark_proposed(tx, release, approval="ap-1")
        return service.mark_approved(registry, tx, proposed, approved=release.content_digest)


def sign(registry, release):
    request = service.find_signing_request(registry, T0, release.line, release.version)
    key = load_key(registry.folders.line_key_file(release.line))
    signed = sign_line_role(request.payload, previous=request.previous, line=release.line, approved=release.content_digest, signer=key)
    return service.submit_signature(registry, tenant=T0, by=BERT, request_id=request.request, signed=signed)


def publish(registry, release):
    approve(registry, release)
    sign(registry, release)
    return service.publish_release(registry, tenant=T0, by=BERT, line=release.line, version=release.version)


def test_a_model_is_imported_with_golden_vectors_and_a_card(registry, import_digits):
    model = import_digits(note="first", goldens=None)
    assert model.id == "digits-onnx.1"
    assert (model.format, model.file.name) == ("onnx", "model.onnx")
    goldens = decode(registry.blobs.read(model.golden.sha256, limit=LIMIT))
    assert 8 <= len(goldens.inputs) <= 64
    assert b'"note":"first"' in registry.blobs.read(model.card.sha256, limit=LIMIT)
    assert import_digits("1.1").version == 2
    assert service.get_model_version(registry, T0, "digits-onnx").version == 2
    with registry.database.reading() as tx:
        assert audit.list_entries(tx, T0)[0].action == "model.imported"


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "is empty"),
        (b"just text, not a model", "is no model file"),
        (b"\x08\x07garbage" * 50, "cannot be used"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 90, "cannot be used"),
    ],
)
def test_a_file_that_is_no_model_is_refused_and_nothing_is_kept(registry, tmp_path, content, seen):
    file = tmp_path / "upload"
    file.write_bytes(content)
    with pytest.raises(InvalidError, match=seen) as caught:
        service.import_model(registry, tenant=T0, by=ANNA, model="x", file=file, draft=load_draft(DIGITS / "onnx.toml"))
    assert caught.value.hint
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert service.list_model_versions(registry, T0) == []


def test_a_truncated_model_is_refused(registry, tmp_path):
    file = tmp_path / "model.onnx"
    whole = (DIGITS / "models/1.0/onnx/model.onnx").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidError, match="cannot be used"):
        service.import_model(registry, tenant=T0, by=ANNA, model="x", file=file, draft=load_draft(DIGITS / "onnx.toml"))


def test_a_draft_that_does_not_fit_the_model_is_refused_with_what_was_seen_and_wanted(registry):
    draft = load_draft(DIGITS / "onnx.toml")
    short = replace(draft, labels=draft.labels[:3])
    with pytest.raises(InvalidError, match=r"3 entries.*10 classes"):
        service.import_model(registry, tenant=T0, by=ANNA, model="x", file=DIGITS / "models/1.0/onnx/model.onnx", draft=short)


def test_the_authors_own_golden_vectors_are_taken_as_they_are(registry, import_digits):
    goldens = registry.blobs.read(import_digits().golden.sha256, limit=LIMIT)
    other = import_digits("1.1", goldens=goldens)
    assert registry.blobs.read(other.golden.sha256, limit=LIMIT) == goldens
    with pytest.raises(InvalidError):
        import_digits(goldens=b"not cbor")


def test_a_release_goes_from_draft_to_published_and_a_device_finds_exactly_its_variant(registry, import_digits, tmp_path, clock):
    release = create(registry, import_digits(), import_digits(kind="tflite"))
    assert (release.state, release.counter) == (ReleaseState.DRAFT, 1)
    assert [variant.variant for variant in release.variants] == ["onnx", "tflite"]
    published = publish(registry, release)
    assert published.state is ReleaseState.PUBLISHED
    assert service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=release.version) == published

    def source(_tx, device):
        variant = published.find_variant(device_type="linux-x86-64", runtimes=frozenset({"tflite"}))
        return Order(T0, device, (OrderedLine(published, variant, "as-1", 1, "ca-1", clock.now()),)), True

    device = TrustDevice(
        tmp_path / "device",
        clock,
        registry.image.bootstrap,
        registry.director.bootstrap,
        registry.image.read,
        lambda name: service.director_file(registry, tenant=T0, device=CAM, name=name, source=source).data,
        runtimes=frozenset({"tflite"}),
    )
    line = device.check().lines[0]
    assert (line.release, line.variant, line.counter, line.assignment) == ("1.0", "tflite", 1, "as-1")
    assert {file.name for file in line.targets} == {"model.tflite", "manifest.json", "golden.cbor", "card.json"}
    assert all(registry.blobs.read(file.sha256, limit=LIMIT) for file in line.targets)
    pass_days(registry, 3)
    before = service.director_file(registry, tenant=T0, device=CAM, name="timestamp.json", source=source)
    pass_days(registry, 2)
    assert service.director_file(registry, tenant=T0, device=CAM, name="timestamp.json", source=source).etag != before.etag
    clock.advance(days=60)
    assert not service.renew(registry), "the clock jumped, and nobody said that it is right"
    service.confirm_clock(registry, tenant=T0, by=ANNA, reason="the server was off")
    assert service.renew(registry)
    assert not service.renew(registry)
    assert device.check().lines[0].release == "1.0"


def test_nothing_is_signed_before_the_approval(registry, import_digits):
    model = import_digits()
    release = create(registry, model)
    with pytest.raises(ConflictError, match="draft"):
        service.find_signing_request(registry, T0, release.line, release.version)
    with pytest.raises(ConflictError, match="is draft"):
        service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=release.version)
    with registry.database.transaction() as tx:
        proposed = service.mark_proposed(tx, release, approval="ap-1")
        with pytest.raises(ConflictError, match="approval is for"):
            service.mark_approved(registry, tx, proposed, approved=model.file.sha256)


def test_the_holder_of_the_key_signs_nothing_but_what_was_approved(registry, import_digits):
    first = create(registry, import_digits())
    publish(registry, first)
    second = create(registry, import_digits("1.1"), version="1.1")
    approve(registry, second)
    request = service.find_signing_request(registry, T0, LINE, second.version)
    key = load_key(registry.folders.line_key_file(LINE))
    for approved in (first.content_digest, import_digits().file.sha256):
        with pytest.raises(TrustError) as caught:
            sign_line_role(request.payload, previous=request.previous, line=LINE, approved=approved, signer=key)
        assert caught.value.code == "not-approved"
    with pytest.raises(TrustError, match="approved was"):
        sign_line_role(request.payload, previous=b"", line=LINE, approved=second.content_digest, signer=key)
    assert sign(registry, second).state is ReleaseState.SIGNED


def test_a_signature_of_another_key_or_of_another_payload_is_refused(registry, import_digits):
    release = create(registry, import_digits())
    approve(registry, release)
    request = service.find_signing_request(registry, T0, LINE, release.version)
    foreign = load_key(registry.folders.key_file("image-root"))
    signed = sign_line_role(request.payload, previous=b"", line=LINE, approved=release.content_digest, signer=foreign)
    with pytest.raises(TrustError):
        service.submit_signature(registry, tenant=T0, by=BERT, request_id=request.request, signed=signed)
    with pytest.raises(InvalidError):
        service.submit_signature(registry, tenant=T0, by=BERT, request_id=request.request, signed=b"{}")
    with pytest.raises(NotFoundError):
        service.submit_signature(registry, tenant=T0, by=BERT, request_id="sr-none", signed=signed)
    assert service.get_release(registry, T0, LINE, release.version).state is ReleaseState.APPROVED


def test_a_release_overtaken_by_another_of_its_line_is_signed_again(registry, import_digits):
    first, second = create(registry, import_digits()), create(registry, import_digits("1.1"), version="1.1")
    for release in (first, second):
        approve(registry, release)
        sign(registry, release)
    service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=second.version)
    with pytest.raises(ConflictError) as caught:
        service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=first.version)
    assert caught.value.code == "signature-outdated"
    sign(registry, first)
    assert service.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=first.version).counter == 1


def test_a_release_never_changes(registry, import_digits):
    create(registry, import_digits())
    with pytest.raises(ConflictError, match="exists already"):
        create(registry, import_digits("1.1"))
    assert create(registry, import_digits("1.1"), version="1.1").counter == 2


def test_two_models_of_one_runtime_for_one_device_type_are_refused(registry, import_digits):
    first, second = import_digits(), import_digits("1.1")
    models = [ReleaseModel(first.id, variant="a"), ReleaseModel(second.id, variant="b")]
    with pytest.raises(InvalidError, match="both onnx models"):
        service.create_release(registry, tenant=T0, by=ANNA, line=LINE, version="1.0", models=models)
    with pytest.raises(InvalidError, match="named 'onnx'"):
        create(registry, first, second)


def test_another_tenants_model_and_line_are_not_there(registry, import_digits):
    model = import_digits()
    create(registry, model)
    other = TenantId("t1")
    with pytest.raises(NotFoundError):
        service.get_model_version(registry, other, model.id)
    with pytest.raises(NotFoundError):
        service.get_release(registry, other, LINE, ReleaseVersion("1.0"))
    with pytest.raises(ConflictError, match="taken on this server"):
        service.create_release(registry, tenant=other, by=ANNA, line=LINE, version="2.0", models=[ReleaseModel(model.id)])


def test_a_withdrawn_release_is_final(registry, import_digits):
    release = publish(registry, create(registry, import_digits()))
    withdrawn = service.withdraw_release(registry, tenant=T0, by=BERT, line=LINE, version=release.version, reason="bad")
    assert withdrawn.state is ReleaseState.WITHDRAWN
    with pytest.raises(ConflictError):
        service.withdraw_release(registry, tenant=T0, by=BERT, line=LINE, version=release.version, reason="again")


def test_the_store_lists_what_waits_for_a_signature_oldest_first(registry, import_digits, clock):
    for number, version in enumerate(("1.0", "1.1")):
        approve(registry, create(registry, import_digits(version), version=version))
        clock.advance(number + 1)
    assert [request.version for request in service.list_signing_requests(registry, T0)] == ["1.0", "1.1"]
    with registry.database.reading() as tx:
        assert store.list_open_signing_requests(tx, TenantId("t1")) == []
