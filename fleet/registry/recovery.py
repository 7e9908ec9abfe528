"""Total loss of a root at its threshold: a new chain of roots, which no device follows before it was born anew with the first of it.

What the lines' keys signed stays good: the new targets delegate to the same keys, so no release is signed again.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from fleet.audit import Actor
from fleet.registry.ceremony import record
from fleet.registry.online import role_of
from fleet.registry.repository import check_chain
from fleet.registry.requests import Repository
from fleet.registry.service import Registry
from fleet.registry.signing import (
    OFFLINE,
    ROOT_DAYS,
    SNAPSHOT_DAYS,
    TARGETS_DAYS,
    TIMESTAMP_DAYS,
    KeyName,
    TrustFolders,
    expiry,
    finish_swap,
    fresh_folder,
    meta_of,
    new_passphrase,
    save_key,
    sign_metadata,
)
from protocol.canonical import digest_of
from protocol.files import write_atomically
from protocol.ids import Digest, TenantId

MEANING: Mapping[Repository, str] = {
    "image": (
        "The image repository gets a new first root. What runs on the devices goes on running, but NO device installs anything before it\n"
        "was born anew: by firmware (or a visit) that brings the new first root, or by enrolling again. Releases stay as they are signed.\n"
        "Do this only when fewer root keys are left than must sign, or when so many were stolen."
    ),
    "director": (
        "The director gets a new first root. What runs on the devices goes on running, but NO device follows an assignment before it was\n"
        "born anew: by firmware (or a visit) that brings the new first root, or by enrolling again.\n"
        "Do this only when fewer root keys are left than must sign, or when so many were stolen."
    ),
}


@dataclass(frozen=True, slots=True)
class StartedAgain:
    """Where things are after a new chain was begun."""

    bootstrap: Digest
    #: Folder of the new offline keys.
    keys: Path
    #: The old chain, for the record.
    kept: Path
    #: Opens the new offline keys; shown once. None in a demo.
    passphrase: str | None


def start_again(registry: Registry, repository: Repository, *, tenant: TenantId, by: Actor, reason: str) -> StartedAgain:
    """Make new root, targets and online keys and a new chain from version 1, in place of the old one, which is kept beside it.

    Every delegated role stays with the keys that it has and with what they signed. Threshold is 1 of 1, as at a first start: move to more
    with `keys root init`. Raises: OSError; TrustError when a device would refuse the new chain; then nothing was changed.
    """
    folders, now = registry.folders, registry.clock.now()
    passphrase = None if registry.is_demo else new_passphrase()
    names = [name for name in KeyName if name.startswith(repository)]
    signers = {name: CryptoSigner.generate_ed25519() for name in names}
    folder = folders.image if repository == "image" else folders.director
    files = {"1.root.json": _root(repository, signers, now)}
    if repository == "image":
        files |= _image_files(registry, signers, now)
        check_chain(files, bootstrap=files["1.root.json"], now=now)
    fresh, kept = fresh_folder(folder), folder.with_name(f"{folder.name}.lost-{now:%Y%m%dT%H%M%S}")
    shutil.rmtree(fresh, ignore_errors=True)  # of an attempt that was cut before it changed anything
    fresh.mkdir()
    for name, data in files.items():
        write_atomically(fresh / name, data)
    _keep_old_keys(folders, names, now)
    for name, signer in signers.items():
        save_key(folders.key_file(name), signer, passphrase=passphrase if name in OFFLINE else None)
    folder.rename(kept)
    finish_swap(folder)  # a cut before it is made good at the next start
    bootstrap = digest_of(files["1.root.json"])
    record(
        registry,
        tenant=tenant,
        by=by,
        action="keys.started-again",
        subject=f"keys/{repository}",
        reason=reason,
        first_root=bootstrap,
        kept=kept.name,
    )
    return StartedAgain(bootstrap, folders.offline, kept, passphrase)


def _root(repository: Repository, signers: Mapping[KeyName, Signer], now: datetime) -> bytes:
    root = Root(version=1, expires=expiry(now, ROOT_DAYS), consistent_snapshot=True)
    for name, signer in signers.items():
        root.add_key(signer.public_key, role_of(name))
    return sign_metadata(root, [signers[KeyName(f"{repository}-root")]])


def _image_files(registry: Registry, signers: Mapping[KeyName, Signer], now: datetime) -> dict[str, bytes]:
    """Targets, snapshot and timestamp over the delegated roles as they are published, with versions above those of the lost chain."""
    published = registry.image.published_roles()
    targets = Metadata[Targets].from_bytes(published.pop(Targets.type)).signed
    targets.version += 1
    targets.expires = expiry(now, TARGETS_DAYS)
    files = {f"{targets.version}.targets.json": sign_metadata(targets, [signers[KeyName.IMAGE_TARGETS]])}
    meta = {"targets.json": meta_of(targets.version, files[f"{targets.version}.targets.json"])}
    for role, data in published.items():
        version = Metadata[Targets].from_bytes(data).signed.version
        files[f"{version}.{role}.json"] = data
        meta[f"{role}.json"] = meta_of(version, data)
    last = Metadata[Timestamp].from_bytes(registry.image.read("timestamp.json")).signed
    version = last.snapshot_meta.version + 1
    snapshot = sign_metadata(Snapshot(version=version, expires=expiry(now, SNAPSHOT_DAYS), meta=meta), [signers[KeyName.IMAGE_SNAPSHOT]])
    files[f"{version}.snapshot.json"] = snapshot
    timestamp = Timestamp(version=last.version + 1, expires=expiry(now, TIMESTAMP_DAYS), snapshot_meta=meta_of(version, snapshot))
    files["timestamp.json"] = sign_metadata(timestamp, [signers[KeyName.IMAGE_TIMESTAMP]])
    return files


def _keep_old_keys(folders: TrustFolders, names: Sequence[KeyName], now: datetime) -> None:
    """Key files of the lost chain leave the folders in which keys are looked for."""
    for name in names:
        folder = folders.key_file(name).parent
        for path in sorted({*folder.glob(f"{name}.*"), *folder.glob(f"{name}-*")}):
            kept = folder / f"lost-{now:%Y%m%dT%H%M%S}"
            kept.mkdir(mode=0o700, exist_ok=True)
            path.rename(kept / path.name)
