"""Keys: who signs what, where the keys lie, the ceremony of the first start, and what a line's key signs.

Offline keys (image root and targets, director root, one per model line) are files encrypted with a passphrase that is shown once; they
are meant to be moved to another machine. Online keys sign snapshots, timestamps and the director's orders by themselves. A line's key
signs only a release whose approved content digest the holder recomputed from the payload itself.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from protocol.canonical import canonical_json, digest_of
from protocol.errors import ConfigError, ConflictError, InvalidError, TrustError
from protocol.files import fsync_folder, read_bounded, write_atomically
from protocol.ids import Digest, LineName, new_id
from protocol.trust.metadata import ImageLineFields, line_role, read_fields

#: Largest key file, bytes.
MAX_KEY_BYTES = 8192
#: Largest role metadata that a line may have: python-tuf's own limit, bytes.
MAX_ROLE_BYTES = 5_000_000
ROOT_DAYS = 365
#: Offline roles are signed again at least this often: a ceremony once a year.
TARGETS_DAYS = 365
SNAPSHOT_DAYS, TIMESTAMP_DAYS = 30, 7
#: Keys that may sign metadata (ADR 0018).
KEY_SCHEMES = frozenset({("ed25519", "ed25519"), ("ecdsa", "ecdsa-sha2-nistp256")})
PASSPHRASE_ENVIRONMENT = "MOORING_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


class KeyName(StrEnum):
    """The keys of a server, by the file name without suffix."""

    IMAGE_ROOT = "image-root"
    IMAGE_TARGETS = "image-targets"
    IMAGE_SNAPSHOT = "image-snapshot"
    IMAGE_TIMESTAMP = "image-timestamp"
    DIRECTOR_ROOT = "director-root"
    DIRECTOR_TARGETS = "director-targets"
    DIRECTOR_SNAPSHOT = "director-snapshot"
    DIRECTOR_TIMESTAMP = "director-timestamp"


OFFLINE = (KeyName.IMAGE_ROOT, KeyName.IMAGE_TARGETS, KeyName.DIRECTOR_ROOT)
ONLINE = tuple(name for name in KeyName if name not in OFFLINE)


@dataclass(frozen=True, slots=True)
class TrustFolders:
    """Where a server keeps keys and published metadata."""

    data_dir: Path

    @property
    def online(self) -> Path:
        return self.data_dir / "keys" / "online"

    @property
    def offline(self) -> Path:
        return self.data_dir / "keys" / "offline"

    @property
    def lines(self) -> Path:
        """Keys of model lines until somebody moves them; `mooring signer` of a demo reads them here."""
        return self.data_dir / "keys" / "lines"

    @property
    def image(self) -> Path:
        """The published image repository: plain files, any proxy or stick may hold a copy."""
        return self.data_dir / "tuf" / "image"

    @property
    def director(self) -> Path:
        """Roots of the director; the rest is made per device."""
        return self.data_dir / "tuf" / "director"

    def key_file(self, name: KeyName) -> Path:
        """Where that key is kept as long as nobody moved it."""
        return (self.offline if name in OFFLINE else self.online) / f"{name}.pem"

    def line_key_file(self, line: str) -> Path:
        """Where the key of that model line is kept as long as nobody moved it."""
        return self.role_key_file(line_role(line))

    def role_key_file(self, role: str) -> Path:
        """Where the key of a delegated role, e.g. "policy", is kept as long as nobody moved it."""
        return self.lines / f"{role}.pem"

    @property
    def clock_file(self) -> Path:
        """The time last seen right, by any process of the server."""
        return self.director / "clock.json"

    @property
    def image_bootstrap(self) -> Path:
        return self.image / "1.root.json"

    @property
    def director_bootstrap(self) -> Path:
        return self.director / "1.root.json"


def create_trust(data_dir: Path, *, demo: bool, now: datetime, passphrase: str | None = None) -> str | None:
    """Make all keys and both first roots, once. Returns the new passphrase of the offline keys, to be shown once and never stored.

    None when the trust already exists, when `demo` (the keys then lie unencrypted and must never serve a real fleet), or when the
    caller chose the passphrase. A cut in the middle leaves no first root, and the next start begins anew.
    Raises: OSError; ConfigError when the folder cannot be written.
    """
    folders = TrustFolders(data_dir)
    for folder in (folders.image, folders.director):
        finish_swap(folder)
    if folders.director_bootstrap.exists():
        return None
    chosen = None if demo else passphrase or new_passphrase()
    for folder in (folders.online, folders.offline, folders.lines, folders.image, folders.director):
        _make_folder(folder, private=folder not in (folders.image, folders.director))
    signers = {name: CryptoSigner.generate_ed25519() for name in KeyName}
    for name, signer in signers.items():
        save_key(folders.key_file(name), signer, passphrase=chosen if name in OFFLINE else None)
    for file, data in _first_image_files(signers, now).items():
        write_atomically(folders.image / file, data)
    # last: its presence says that all the rest is there
    root = _signed_root(signers, "director", now)
    write_atomically(folders.director_bootstrap, root)
    return chosen if passphrase is None else None


def fresh_folder(folder: Path) -> Path:
    """Where a repository is laid out whole before it takes the other's place."""
    return folder.with_name(f"{folder.name}.new")


def finish_swap(folder: Path) -> None:
    """Take the last step of a swap of repositories that a cut prevented: the old one is away, the new one is whole beside it."""
    fresh = fresh_folder(folder)
    if not folder.exists() and fresh.exists():
        fresh.rename(folder)
        fsync_folder(folder.parent)


def ceremony_text(data_dir: Path, passphrase: str | None) -> str:
    """What the first start prints: the passphrase, once, and the commands that move the offline keys away from this machine."""
    folders = TrustFolders(data_dir)
    if passphrase is None:
        return (
            "WARNING: demo keys. Root, targets and line keys lie unencrypted on this machine; whoever reads them can sign models.\n"
            f"They are in {folders.offline} and {folders.lines}. Never use this folder for a real fleet."
        )
    return "\n".join(
        (
            "New signing keys were made. This passphrase opens the offline keys; it is shown once and stored nowhere:",
            "",
            f"    {passphrase}",
            "",
            "WARNING: as long as the offline keys are on this machine, whoever takes it over can sign models. Threshold is 1 of 1.",
            "Move them to a stick that is kept apart; nothing needs a restart, the server works on without them:",
            "",
            f"    mkdir -p /media/stick/mooring-keys && cp -a {folders.offline} {folders.lines} /media/stick/mooring-keys/ && sync",
            f"    find {folders.offline} {folders.lines} -name '*.pem' -exec shred -u {{}} +",
            "",
            "Better: give root and targets to three people, two of whom must sign. Each makes a key on a machine of his own; then here:",
            "",
            "    mooring keys new --role image-root --out NAME.pem",
            f"    mooring keys root init --data {data_dir} --repository image --threshold 2 A.pub B.pub C.pub --out request.json",
            "",
            "docs/operations/keys.md tells it step by step. Sign releases with: mooring release sign LINE VERSION --key FILE",
        )
    )


def new_passphrase() -> str:
    """A random passphrase of 100 bits, in groups that can be written down."""
    text = new_id("k").removeprefix("k-") + new_id("k").removeprefix("k-")[:5]
    return "-".join(text[start : start + 5] for start in range(0, 25, 5))


def make_key() -> CryptoSigner:
    """A new Ed25519 key, in memory only."""
    return CryptoSigner.generate_ed25519()


def save_key(path: Path, signer: CryptoSigner, *, passphrase: str | None) -> None:
    """Write the private key for its owner only (0600), encrypted when a passphrase is given, and its public half beside it (.pub)."""
    key = load_pem_private_key(signer.private_bytes, None)
    encryption: KeySerializationEncryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    write_atomically(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=0o600)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomically(path.with_suffix(".pub"), public)


def load_key(path: Path, *, passphrase: str | None = None) -> CryptoSigner:
    """The key in the file. Raises: ConfigError naming the file when it is missing, no Ed25519 key, or the passphrase does not open it."""
    try:
        data = read_bounded(path, MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(
            f"The key file {path} cannot be read: {error.strerror}.",
            hint="Bring back the offline keys, or name the file with --key.",
            code="key-missing",
        ) from error
    try:
        key = load_pem_private_key(data, passphrase.encode() if passphrase and b"ENCRYPTED" in data else None)
    except TypeError as error:
        raise ConfigError(
            f"The key file {path} is encrypted.", hint=f"Give its passphrase in {PASSPHRASE_ENVIRONMENT} or when asked.", code="key-locked"
        ) from error
    except ValueError as error:
        raise ConfigError(f"The key file {path} is no key, or the passphrase does not open it.", code="key-locked") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"The key in {path} is a {type(key).__name__}; wanted Ed25519.", code="key-missing")
    return CryptoSigner(key)


def read_passphrase(file: Path | None = None, environment: Mapping[str, str] | None = None) -> str | None:
    """The passphrase from the file, else from MOORING_KEY_PASSPHRASE, else None: then the caller may ask for it.

    Raises: ConfigError when the file cannot be read.
    """
    if file is None:
        return (os.environ if environment is None else environment).get(PASSPHRASE_ENVIRONMENT) or None
    try:
        return read_bounded(file, MAX_KEY_BYTES).decode().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The passphrase file {file} cannot be read: {error}.") from error


def load_public_key(path: Path) -> SSlibKey:
    """The public key in a .pub file. Raises: ConfigError, also for a kind of key that devices are not meant to trust."""
    try:
        key = SSlibKey.from_crypto(load_pem_public_key(read_bounded(path, MAX_KEY_BYTES)))
    except (OSError, ValueError, InvalidError) as error:
        raise ConfigError(f"{path} holds no public key: {error}.", code="key-missing") from error
    return check_scheme(key, str(path))


def check_scheme(key: SSlibKey, what: str) -> SSlibKey:
    """The key, when it is Ed25519, or ECDSA on P-256 as tokens and key services have it. Raises: ConfigError."""
    if (key.keytype, key.scheme) not in KEY_SCHEMES:
        raise ConfigError(f"The key in {what} is {key.keytype} with {key.scheme}; wanted Ed25519 or ECDSA on P-256.", code="key-missing")
    return key


def content_digest(targets: Iterable[TargetFile]) -> Digest:
    """Binds path, length, digests and our fields of a release's files: what is approved, and what the holder of the key recomputes."""
    return digest_of(canonical_json({target.path: target.to_dict() for target in targets}))


def sign_line_role(
    payload: bytes, *, previous: bytes, line: LineName, approved: Digest, signer: Signer, is_previous_checked: bool = False
) -> bytes:
    """The line's next role metadata with this key's signature added; returns the bytes to hand in.

    Reads the payload itself: beyond what this very key signed before (`previous`) it may hold exactly the approved release. On top of
    what only the line's other keys signed it signs when the caller checked that (`requests.check_published`).
    Raises: TrustError (code "not-approved") naming what the payload holds that was not approved; InvalidError when it is malformed.
    """
    wanted = parse_role(payload, "The payload")
    before = (
        parse_role(previous, "The published role").signed if previous and is_previous_checked else parse_signed_before(previous, signer)
    )
    _check_is_next(wanted.signed, before, line)
    added = [target for path, target in wanted.signed.targets.items() if before is None or before.targets.get(path) != target]
    if not added or (found := content_digest(added)) != approved:
        seen = "nothing new" if not added else f"{', '.join(target.path for target in added)[:300]} with digest {found}"
        raise TrustError(f"The payload for {line_role(line)} holds {seen}; approved was {approved}. Not signed.", code="not-approved")
    wanted.sign(signer, append=True)
    return wanted.to_bytes()


def _check_is_next(wanted: Targets, before: Targets | None, line: LineName) -> None:
    fields = read_fields(ImageLineFields, wanted.unrecognized_fields, what="The payload")
    if fields.line != line:
        raise TrustError(f"The payload is for line {fields.line}; asked was a signature for {line}.", code="not-approved")
    if wanted.delegations is not None:
        raise TrustError("The payload delegates to other keys, which nobody approved.", code="not-approved")
    if before is None:
        return
    if lost := before.targets.keys() - wanted.targets.keys():
        raise TrustError(f"The payload drops {min(lost)}, which is published; nobody approved that.", code="not-approved")
    floor = read_fields(ImageLineFields, before.unrecognized_fields, what="The published role").floor
    if wanted.version != before.version + 1 or fields.floor < floor:
        raise TrustError(
            f"The payload has version {wanted.version} and floor {fields.floor}; after version {before.version} with floor {floor} "
            f"wanted version {before.version + 1} and no lower floor.",
            code="not-approved",
        )


def parse_role(data: bytes, what: str) -> Metadata[Targets]:
    """Targets metadata out of foreign bytes. Raises: InvalidError naming `what`."""
    if len(data) > MAX_ROLE_BYTES:
        raise InvalidError(f"{what} has {len(data)} bytes; at most {MAX_ROLE_BYTES} are allowed.")
    try:
        metadata = Metadata[Targets].from_bytes(data)
    except DeserializationError as error:
        raise InvalidError(f"{what} is no TUF metadata.") from error
    if not isinstance(metadata.signed, Targets):
        raise InvalidError(f"{what} is TUF metadata of type {metadata.signed.type}; wanted targets.")
    return metadata


def parse_signed_before(data: bytes, signer: Signer) -> Targets | None:
    """The role that this very key signed before; None for no bytes. What is only called published is believed with its signature alone.

    Raises: TrustError (code "not-approved"); InvalidError.
    """
    if not data:
        return None
    metadata = parse_role(data, "The published role")
    signature = metadata.signatures.get(signer.public_key.keyid)
    if signature is None:
        raise TrustError(
            "The published role was not signed by this key.",
            hint="Is it the line's? If other keys of the line signed last, name your repository's first root: --bootstrap DIGEST.",
            code="not-approved",
        )
    try:
        signer.public_key.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError as error:
        raise TrustError("The published role's signature does not verify; nothing is signed on top of it.", code="not-approved") from error
    return metadata.signed


def key_id_of(key: SSlibKey) -> str:
    """The id that follows from the key itself; empty when it is no key of ours. Metadata may call a key by another name."""
    try:
        return SSlibKey.from_crypto(key._crypto_key()).keyid  # noqa: SLF001 - the one place that turns its key into a cryptography key
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        return ""


def is_encrypted(path: Path) -> bool:
    """Whether the key file asks for a passphrase. Raises: ConfigError when it cannot be read."""
    try:
        return b"ENCRYPTED" in read_bounded(path, MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be read: {error.strerror}.", code="key-missing") from error


def create_line_key(folders: TrustFolders, line: LineName, *, passphrase: str | None) -> Key:
    """Make the model line's key where nobody made one before; returns its public half. Raises: ConflictError when the file exists."""
    return create_role_key(folders, line_role(line), passphrase=passphrase)


def create_role_key(folders: TrustFolders, role: str, *, passphrase: str | None) -> Key:
    """Make the key of a delegated role where nobody made one before; returns its public half.

    Raises: ConflictError when the file exists.
    """
    path = folders.role_key_file(role)
    if path.exists():
        raise ConflictError(f"{path} exists already.", hint="A role keeps its key; move the file away to make another one.")
    _make_folder(folders.lines, private=True)
    signer = CryptoSigner.generate_ed25519()
    save_key(path, signer, passphrase=passphrase)
    return signer.public_key


def _first_image_files(signers: Mapping[KeyName, CryptoSigner], now: datetime) -> dict[str, bytes]:
    targets = sign_metadata(Targets(version=1, expires=expiry(now, TARGETS_DAYS)), [signers[KeyName.IMAGE_TARGETS]])
    snapshot = Snapshot(version=1, expires=expiry(now, SNAPSHOT_DAYS), meta={"targets.json": meta_of(1, targets)})
    snapshot_bytes = sign_metadata(snapshot, [signers[KeyName.IMAGE_SNAPSHOT]])
    timestamp = Timestamp(version=1, expires=expiry(now, TIMESTAMP_DAYS), snapshot_meta=meta_of(1, snapshot_bytes))
    return {
        "1.root.json": _signed_root(signers, "image", now),
        "1.targets.json": targets,
        "1.snapshot.json": snapshot_bytes,
        "timestamp.json": sign_metadata(timestamp, [signers[KeyName.IMAGE_TIMESTAMP]]),
    }


def _signed_root(signers: Mapping[KeyName, CryptoSigner], repository: str, now: datetime) -> bytes:
    root = Root(version=1, expires=expiry(now, ROOT_DAYS), consistent_snapshot=True)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(signers[KeyName(f"{repository}-{role}")].public_key, role)
    return sign_metadata(root, [signers[KeyName(f"{repository}-root")]])


def meta_of(version: int, data: bytes) -> MetaFile:
    """How a snapshot or timestamp names a file: always with length and sha256."""
    return MetaFile.from_data(version, data, ["sha256"])


def sign_metadata(signed: Root | Timestamp | Snapshot | Targets, signers: Sequence[Signer]) -> bytes:
    """The metadata as bytes with the signatures of all these keys."""
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def expiry(now: datetime, days: int) -> datetime:
    """When metadata signed now expires, in whole seconds."""
    return (now + timedelta(days=days)).replace(microsecond=0)


def _make_folder(folder: Path, *, private: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if private:
        folder.chmod(0o700)
    fsync_folder(folder.parent)
