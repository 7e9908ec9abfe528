"""A stick as the update check sees it: the metadata of both repositories for this device, and the files that it assigns.

Whoever finds a stick may have changed it: the same verifier reads it as reads the server, plain files only, every read bounded, and
nothing of it is kept that was not signed. What is needed is copied before the machine hears of it, so the stick may be pulled at once.
"""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from agent.configuration import ConfigurationOffer
from agent.slots import Slots
from agent.update.assignment import Assignment, LineOffer
from protocol import bundle as layout
from protocol.bundle import BundleIndex
from protocol.errors import DeviceError, InvalidError, NotFoundError, TransferError, TrustError
from protocol.files import fsync_folder, read_bounded
from protocol.folders import UntrustedFolder
from protocol.ids import DeviceId, Digest, TenantId

#: Where a configuration that came on a stick waits for the one who takes it on trial.
IMPORTED = "imported"
#: Below the state folder: what was fetched for the lines' releases, and for the candidates beside them.
DOWNLOADS, CANDIDATE_DOWNLOADS = "downloads", "candidate-downloads"
#: How the name of a copy ends while it is made.
_COPYING = ".stick"
#: Free disk that stays when a stick's files are copied, bytes.
SPARE_BYTES = 16 << 20


class Bundle:
    """A stick, open. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises: NotFoundError when there is no folder; InvalidError when it is no bundle; TransferError when it cannot be read."""
        self._path = path
        with self._reading():
            self._folder = UntrustedFolder(path)
        try:
            with self._reading():
                data = self._folder.read(layout.INDEX, limit=layout.MAX_INDEX_BYTES)
            self.index: BundleIndex = layout.read_bundle_index(data)
        except BaseException:
            self._folder.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.__exit__()

    def check_is_for(self, tenant: TenantId, device: DeviceId) -> None:
        """Nothing when the stick carries metadata of this device. Raises: NotFoundError (code "not-on-stick"); TransferError."""
        with self._reading():
            is_there = self._folder.has(layout.DEVICES, device, "timestamp.json")
        if self.index.tenant != tenant or device not in self.index.devices or not is_there:
            raise NotFoundError(
                f"The stick is for {len(self.index.devices)} devices of group {self.index.group}; {device} is none of them.",
                code="not-on-stick",
                hint=f"Nothing was installed. Make one for this device's group: mooring bundle create --group GROUP {self._path}",
            )

    def image_file(self, name: str) -> bytes:
        """A file of the image repository's metadata. Raises: as `_metadata`."""
        return self._metadata(layout.IMAGE, name)

    def director_reader(self, device: DeviceId) -> Callable[[str], bytes]:
        """Reads the director's metadata of the device by file name. Raises: as `_metadata`."""

        def read(name: str) -> bytes:
            folder = (layout.DIRECTOR,) if layout.ROOT_NAME.fullmatch(name) else (layout.DEVICES, device)
            return self._metadata(*folder, name)

        return read

    def has_blob(self, digest: Digest) -> bool:
        """Whether a plain file of that name is there. Raises: TransferError."""
        with self._reading():
            return self._folder.has(layout.BLOBS, layout.blob_name(digest))

    def copy_blob(self, digest: Digest, length: int, target: Path) -> None:
        """Make `target` hold exactly the bytes with this digest, durably.

        Raises: NotFoundError, InvalidError: not there, or no such file; TrustError: other bytes; TransferError: the stick was pulled;
        OSError: this device's disk.
        """
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(6)}{_COPYING}")
        seen = hashlib.sha256()
        try:
            with temporary.open("xb") as out:
                for chunk in self._blob_chunks(digest, length):
                    seen.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            if f"sha256:{seen.hexdigest()}" != digest:
                raise TrustError(f"The stick holds other bytes under {digest} than were signed.", code="hash_mismatch")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(target.parent)

    def read_blob(self, digest: Digest, length: int) -> bytes:
        """A small file whole, checked. Raises: as `copy_blob`."""
        data = b"".join(self._blob_chunks(digest, length))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise TrustError(f"The stick holds other bytes under {digest} than were signed.", code="hash_mismatch")
        return data

    def _blob_chunks(self, digest: Digest, length: int) -> Iterator[bytes]:
        pieces = self._folder.chunks(layout.BLOBS, layout.blob_name(digest), length=length)
        while True:
            with self._reading():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _metadata(self, *names: str) -> bytes:
        """Raises: NotFoundError; InvalidError for a name or a file that is none of ours; TransferError."""
        if not layout.METADATA_NAME.fullmatch(names[-1]):
            raise NotFoundError(f"{names[-1][:80]!r} is no metadata file.")
        with self._reading():
            return self._folder.read(*names, limit=layout.MAX_METADATA_BYTES)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What the medium says is about the stick, never about this device's disk."""
        try:
            yield
        except OSError as error:
            raise TransferError(
                f"{self._path} cannot be read: {error.strerror or error}.", code="stick_lost", hint="Is the stick still in? Import again."
            ) from error


def open_bundle(path: Path) -> Bundle:
    """The stick. Raises: as `Bundle`."""
    return Bundle(path)


def bring(bundle: Bundle, assignment: Assignment, state_dir: Path) -> int:
    """Copy what the verified assignment needs and this device lacks; returns the bytes copied.

    Whole files come before deltas: a stick costs nothing per byte. Raises: as `Bundle.copy_blob`; DeviceError (disk_full, disk_error).
    """
    slots, copied = Slots(state_dir / "slots"), 0
    try:
        forget_copies(state_dir)
        for offers, name in ((assignment.lines, DOWNLOADS), (assignment.candidates, CANDIDATE_DOWNLOADS)):
            copied += _bring_files(bundle, offers, slots, state_dir / name)
        if assignment.configuration is not None:
            _bring_configuration(bundle, assignment.configuration, state_dir)
    except OSError as error:
        code = "disk_full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "disk_error"
        raise DeviceError(f"What is on the stick could not be copied to this device: {error.strerror or error}.", code=code) from error
    return copied


def forget_copies(state_dir: Path) -> None:
    """Remove what a child that was killed while it copied left unfinished. Raises: OSError."""
    for name in (DOWNLOADS, CANDIDATE_DOWNLOADS, IMPORTED):
        for left in (state_dir / name).glob(f"*{_COPYING}"):
            left.unlink(missing_ok=True)


def _bring_files(bundle: Bundle, offers: Sequence[LineOffer], slots: Slots, downloads: Path) -> int:
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = {digest: length for line in offers for digest, length in _wanted(bundle, line, slots, downloads).items()}
    _check_room(downloads, sum(wanted.values()))
    for digest, length in wanted.items():
        bundle.copy_blob(digest, length, downloads / layout.blob_name(digest))
    return sum(wanted.values())


def find_imported(state_dir: Path, offer: ConfigurationOffer) -> bytes | None:
    """The configuration's bytes when they came on a stick; None also when they are damaged: the server has them too."""
    try:
        data = read_bounded(state_dir / IMPORTED / layout.blob_name(offer.sha256), offer.length)
    except (OSError, InvalidError):
        return None
    return data if f"sha256:{hashlib.sha256(data).hexdigest()}" == offer.sha256 else None


def _wanted(bundle: Bundle, line: LineOffer, slots: Slots, downloads: Path) -> dict[Digest, int]:
    found: dict[Digest, int] = {}
    for file in line.files:
        if slots.find_digest(file.sha256) is not None or _is_here(downloads, file.sha256, file.length):
            continue
        if bundle.has_blob(file.sha256):
            found[file.sha256] = file.length
            continue
        deltas = {one.sha256: one.length for one in file.deltas if bundle.has_blob(one.sha256)}
        if not deltas:
            raise NotFoundError(
                f"The stick names {file.name} of {line.line} {line.release} and does not hold it.",
                code="stick_incomplete",
                hint="Copy the whole folder, or make it again: mooring bundle create.",
            )
        found |= {digest: length for digest, length in deltas.items() if not _is_here(downloads, digest, length)}
    return found


def _is_here(downloads: Path, digest: Digest, length: int) -> bool:
    path = downloads / layout.blob_name(digest)
    return path.is_file() and path.stat().st_size == length


def _check_room(folder: Path, needed: int) -> None:
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if needed and free < needed + SPARE_BYTES:
        raise DeviceError(
            f"The disk has {free >> 20} MiB free; copying from the stick needs {(needed + SPARE_BYTES) >> 20} MiB.", code="disk_full"
        )


def _bring_configuration(bundle: Bundle, offer: ConfigurationOffer, state_dir: Path) -> None:
    """The one that waits; older ones go."""
    folder, name = state_dir / IMPORTED, layout.blob_name(offer.sha256)
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name != name:
            old.unlink()
    bundle.copy_blob(offer.sha256, offer.length, folder / name)
