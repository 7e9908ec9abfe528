"""Keys in a PKCS#11 token (SoftHSM2): made there, sign there, never leave it; and references to key services."""

import os
import secrets
import subprocess

import pytest
from registries import ANNA, T0, pass_days
from tuf.api.metadata import Metadata, Root

from fleet.registry import ceremony
from fleet.registry.signing import KeyName, load_key, make_key, save_key
from fleet.registry.tokens import TokenKey, TokenSigner, open_signer, save_public_key, scheme_of
from protocol.errors import ConfigError, ConflictError
from protocol.files import write_atomically

pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is missing (pip install 'mooring[hsm]')")
pytestmark = pytest.mark.needs_softhsm
PIN = "56789"


@pytest.fixture(scope="session")
def token_folder(softhsm_module, tmp_path_factory):
    """Where this process's tokens lie: the module reads the variable once."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    return folder


@pytest.fixture
def uri(token_folder, softhsm_module, monkeypatch):
    """Makes the reference of a key in a token of the test's own."""
    name = f"t{secrets.token_hex(4)}"
    command = ["softhsm2-util", "--init-token", "--free", "--label", name, "--so-pin", "1234", "--pin", PIN]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    # a module that is loaded sees a new token after it began anew
    pkcs11.lib(str(softhsm_module)).reinitialize()
    monkeypatch.setenv("MOORING_PKCS11_MODULE", str(softhsm_module))
    monkeypatch.setenv("MOORING_KEY_PIN", PIN)
    return lambda label: f"pkcs11:token={name};object={label}"


def make_ecdsa(uri):
    """A key as tokens have it that know no Ed25519."""
    key = TokenKey.parse(uri)
    from pkcs11.util.ec import encode_named_curve_parameters

    token = pkcs11.lib(key.module).get_token(token_label=key.token)
    with token.open(rw=True, user_pin=PIN) as session:
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
        )
        parameters.generate_keypair(mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN, store=True, label=key.label)


def test_a_key_made_in_a_token_signs_there_and_its_public_half_verifies(uri, tmp_path):
    made = TokenSigner.create(TokenKey.parse(uri("root")), ask=None)
    assert (made.public_key.keytype, made.public_key.scheme) == ("ed25519", "ed25519")
    opened = open_signer(uri("root"))
    assert opened.public_key == made.public_key
    opened.public_key.verify_signature(opened.sign(b"what is signed"), b"what is signed")
    save_public_key(tmp_path / "root.pub", made.public_key)
    assert ceremony.holder_key(tmp_path / "root.pub").keyid == made.public_key.keyid


def test_a_token_without_ed25519_signs_with_ecdsa_on_p256(uri):
    make_ecdsa(uri("old"))
    opened = open_signer(uri("old"))
    assert (opened.public_key.keytype, opened.public_key.scheme) == ("ecdsa", "ecdsa-sha2-nistp256")
    for payload in (b"", b"x", b"y" * 10_000):
        opened.public_key.verify_signature(opened.sign(payload), payload)


def test_the_private_half_cannot_be_read_out_of_the_token(uri):
    TokenSigner.create(TokenKey.parse(uri("root")), ask=None)
    key = TokenKey.parse(uri("root"))
    with pkcs11.lib(key.module).get_token(token_label=key.token).open(user_pin=PIN) as session:
        private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label="root")
        with pytest.raises(pkcs11.exceptions.AttributeSensitive):
            private[pkcs11.Attribute.VALUE]


def test_a_root_of_two_tokens_and_a_file_is_signed_published_and_rotated(uri, registry):
    """Ed25519 and ECDSA side by side; the publication runs the device's own code over the result."""
    make_ecdsa(uri("bert"))
    signers = [TokenSigner.create(TokenKey.parse(uri("anna")), ask=None), open_signer(uri("bert")), make_key()]
    request = ceremony.init_root(ceremony.start(registry, "image"), [one.public_key for one in signers], threshold=2)
    request = ceremony.finish(request, now=registry.clock.now())
    for signer in (load_key(registry.folders.key_file(KeyName.IMAGE_ROOT)), *signers[:2]):
        request, _ = request.sign(signer)
    ceremony.publish(registry, request, tenant=T0, by=ANNA, reason="")
    root = Metadata[Root].from_bytes(registry.image.read("2.root.json")).signed
    assert {key.keytype for keyid, key in root.keys.items() if keyid in root.roles["root"].keyids} == {"ed25519", "ecdsa"}


def test_the_servers_own_key_may_lie_in_a_token(uri, registry):
    """A file with the URI and the public half beside it, where the key file was."""
    made = TokenSigner.create(TokenKey.parse(uri("timestamp")), ask=None)
    path = registry.folders.online / "image-timestamp-token.uri"
    write_atomically(path, uri("timestamp").encode(), mode=0o600)
    save_public_key(path.with_suffix(".pub"), made.public_key)
    request = ceremony.replace_online(ceremony.start(registry, "image"), {KeyName.IMAGE_TIMESTAMP: made.public_key})
    request, _ = ceremony.finish(request, now=registry.clock.now()).sign(load_key(registry.folders.key_file(KeyName.IMAGE_ROOT)))
    ceremony.publish(registry, request, tenant=T0, by=ANNA, reason="")
    pass_days(registry, 5)
    assert made.public_key.keyid in Metadata.from_bytes(registry.image.read("timestamp.json")).signatures


def test_a_name_that_is_taken_in_the_token_is_not_used_again(uri):
    TokenSigner.create(TokenKey.parse(uri("root")), ask=None)
    with pytest.raises(ConflictError, match="already"):
        TokenSigner.create(TokenKey.parse(uri("root")), ask=None)


def test_what_is_wrong_with_a_token_is_named_and_no_pin_is_shown(uri, monkeypatch, tmp_path):
    TokenSigner.create(TokenKey.parse(uri("root")), ask=None)
    with pytest.raises(ConfigError, match="has no key 'other'"):
        open_signer(uri("other"))
    with pytest.raises(ConfigError, match="Token nobody cannot be used"):
        open_signer("pkcs11:token=nobody;object=root")
    with pytest.raises(ConfigError, match="cannot be used"):
        open_signer(uri("root") + f"?module-path={tmp_path}/none.so")
    monkeypatch.setenv("MOORING_KEY_PIN", "99999")
    with pytest.raises(ConfigError, match="does not open") as caught:
        open_signer(uri("root"))
    assert "99999" not in str(caught.value)
    monkeypatch.delenv("MOORING_KEY_PIN")
    with pytest.raises(ConfigError, match="wants a PIN"):
        open_signer(uri("root"))
    (tmp_path / "pin").write_text(PIN + "\n")
    assert open_signer(f"{uri('root')}?pin-source=file:{tmp_path}/pin")
    assert open_signer(uri("root"), ask=lambda _: PIN)
    monkeypatch.delenv("MOORING_PKCS11_MODULE")
    monkeypatch.setenv("MOORING_KEY_PIN", PIN)
    with pytest.raises(ConfigError, match="Which PKCS#11 module"):
        open_signer(uri("root"))


@pytest.mark.parametrize(
    "text", ["pkcs11:", "pkcs11:token=a", "pkcs11:object=b", "pkcs11:token=a;object=b;serial=1", "pkcs11:token=a;object=b?pin-value=1"]
)
def test_a_uri_that_names_no_key_is_refused(text):
    with pytest.raises(ConfigError):
        TokenKey.parse(text)


def test_a_uri_is_read_as_rfc_7512_says(tmp_path):
    key = TokenKey.parse("pkcs11:token=My%20token;object=root%20key;id=%01%02;type=private?module-path=/lib/x.so&pin-source=file:/etc/pin")
    assert (key.token, key.label, key.key_id, key.module, str(key.pin_file)) == (
        "My token",
        "root key",
        b"\x01\x02",
        "/lib/x.so",
        "/etc/pin",
    )
    assert scheme_of("pkcs11:token=x") == "pkcs11"
    assert scheme_of("/media/stick/key.pem") == ""
    assert scheme_of("c:/key.pem") == ""


@pytest.mark.parametrize("scheme", ["awskms", "gcpkms", "azurekms", "hv"])
def test_a_key_service_needs_the_public_half_and_its_library(scheme, tmp_path):
    with pytest.raises(ConfigError, match="public half"):
        open_signer(f"{scheme}:some/key")
    save_key(tmp_path / "key.pem", make_key(), passphrase=None)
    with pytest.raises(ConfigError, match="cannot be"):
        open_signer(f"{scheme}:some/key", public=tmp_path / "key.pub", ask=lambda _: "")


def test_a_reference_file_must_hold_a_key_uri(tmp_path):
    path = tmp_path / "model.digits.uri"
    with pytest.raises(ConfigError, match="cannot be read"):
        open_signer(str(path))
    path.write_text("https://example.com/key")
    with pytest.raises(ConfigError, match="wanted a key URI"):
        open_signer(str(path))
