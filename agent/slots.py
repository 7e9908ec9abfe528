"""Two slots per model line and the one small file that says which is active; safe against a power cut at any instruction.

    slots/{line}/pointer, pointer.prev      {active, committed, previous, trial, seq, crc32}
    slots/{line}/{a,b}/slot.json            what the slot holds; written last, removed first: without it the slot does not exist
    slots/{line}/{a,b}/model.onnx, …        the files, under plain names

Rules: the active and the committed slot are never written; a pointer is replaced atomically and carries a checksum; before a slot is
emptied, both pointer files forget it, so that no fallback ever leads to half-written files.
"""

import contextlib
import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from protocol.canonical import canonical_json
from protocol.errors import DeviceError, MooringError, TrustError
from protocol.files import CHUNK_BYTES, fsync_folder
from protocol.ids import DIGEST_PATTERN, NAME_PATTERN, VERSION_PATTERN, Digest, LineName, ReleaseVersion, check_name
from protocol.messages import SlotReport

POINTER, POINTER_PREV, SLOT_DOCUMENT = "pointer", "pointer.prev", "slot.json"
MODEL_FILES = ("model.onnx", "model.tflite")
#: The only names that may stand in a slot, beside slot.json.
SLOT_FILES = frozenset({*MODEL_FILES, "manifest.json", "golden.cbor", "profile.cbor", "card.json"})
#: slot.json and the pointer are a few hundred bytes; more is damage.
MAX_DOCUMENT_BYTES = 64 * 1024
D = TypeVar("D", bound=BaseModel)


class DurableFile(Protocol):
    """A file open for appending."""

    def write(self, data: bytes, /) -> None: ...

    def sync(self) -> None:
        """Make what was written durable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...


class Disk(Protocol):
    """What slots and downloads ask of a disk. All methods raise OSError."""

    def read_chunks(self, path: Path) -> Iterator[bytes]: ...

    def sizes(self, folder: Path) -> dict[str, int]:
        """Length in bytes of each plain file in the folder; empty when there is no such folder."""
        ...

    def folders(self, folder: Path) -> list[str]: ...

    def make_folder(self, folder: Path) -> None:
        """Make the folder and its parents, durably."""
        ...

    def append(self, path: Path) -> DurableFile: ...

    def replace(self, source: Path, target: Path) -> None: ...

    def remove(self, path: Path) -> None: ...

    def sync_folder(self, folder: Path) -> None: ...

    def free_bytes(self, folder: Path) -> int: ...


class LocalDisk:
    """The file system of this machine."""

    def read_chunks(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def sizes(self, folder: Path) -> dict[str, int]:
        try:
            return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)}
        except FileNotFoundError:
            return {}

    def folders(self, folder: Path) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def make_folder(self, folder: Path) -> None:
        missing = [step for step in (folder, *folder.parents) if not step.is_dir()]
        for step in reversed(missing):
            step.mkdir(exist_ok=True)
            fsync_folder(step.parent)

    def append(self, path: Path) -> DurableFile:
        return _LocalFile(path)

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        fsync_folder(folder)

    def free_bytes(self, folder: Path) -> int:
        room = os.statvfs(next(step for step in (folder, *folder.parents) if step.exists()))
        return room.f_bavail * room.f_frsize


class _LocalFile:
    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self._file.close()


class SlotName(StrEnum):
    """Which of a line's two slots."""

    A = "a"
    B = "b"

    @property
    def other(self) -> "SlotName":
        """The slot beside this one."""
        return SlotName.B if self is SlotName.A else SlotName.A


@dataclass(frozen=True, slots=True)
class SlotFile:
    """One file that is, or is to be, in a slot."""

    name: str
    sha256: Digest
    length: int


@dataclass(frozen=True, slots=True)
class SlotContent:
    """What a slot holds, as the release says."""

    line: LineName
    release: ReleaseVersion
    counter: int
    variant: str
    files: tuple[SlotFile, ...]

    @property
    def model(self) -> SlotFile:
        """The model file itself. Raises: TrustError when the release has none or several."""
        models = [file for file in self.files if file.name in MODEL_FILES]
        if len(models) != 1:
            raise TrustError(
                f"Release {self.release} of {self.line} names {len(models)} model files; wanted exactly one.", code="bad_release"
            )
        return models[0]


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot that is complete on disk: every file was hashed while it was written."""

    name: SlotName
    folder: Path
    content: SlotContent
    #: Grows with every slot written in the line.
    written: int

    @property
    def model_path(self) -> Path:
        """Where the model file lies."""
        return self.folder / self.content.model.name


@dataclass(frozen=True, slots=True)
class Pointer:
    """The one fact about a line. `previous` is the other slot while it holds a release that was once committed."""

    active: SlotName | None = None
    committed: SlotName | None = None
    previous: SlotName | None = None
    #: The active slot has not been committed yet.
    trial: bool = False
    seq: int = 0


class _PointerDocument(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    active: SlotName | None
    committed: SlotName | None
    previous: SlotName | None
    trial: bool
    seq: Annotated[int, Field(ge=0)]
    crc32: int


class _FileDocument(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    sha256: Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
    length: Annotated[int, Field(ge=0)]


class _SlotDocument(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    schema_: Annotated[Literal["slot.1"], Field(alias="schema")]
    line: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    release: Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
    counter: Annotated[int, Field(ge=0)]
    variant: str
    written: Annotated[int, Field(ge=0)]
    files: dict[str, _FileDocument]
    crc32: int


class Slots:
    """The slots of all lines below one folder."""

    def __init__(self, root: Path, *, disk: Disk | None = None) -> None:
        self._root = root
        self._disk: Disk = LocalDisk() if disk is None else disk

    # --- looking ---

    def lines(self) -> tuple[LineName, ...]:
        """Lines that have a folder here."""
        return tuple(LineName(name) for name in self._disk.folders(self._root))

    def pointer(self, line: LineName) -> Pointer:
        """The pointer; when damaged `pointer.prev`; when that is damaged too, the slot written last."""
        for name in (POINTER, POINTER_PREV):
            found = self._load_pointer(line, name)
            if found is not None and (found.active is None or self.get(line, found.active) is not None):
                return found
        whole = [slot for slot in (self.get(line, name) for name in SlotName) if slot is not None]
        newest = max(whole, key=lambda slot: slot.written, default=None)
        return Pointer() if newest is None else Pointer(active=newest.name, committed=newest.name)

    def get(self, line: LineName, name: SlotName) -> Slot | None:
        """The slot when it is complete, else None."""
        folder = self.folder(line, name)
        document = _parse(_SlotDocument, self._read(folder / SLOT_DOCUMENT))
        if document is None or document.line != line:
            return None
        files = tuple(SlotFile(file, Digest(entry.sha256), entry.length) for file, entry in sorted(document.files.items()))
        sizes = self._disk.sizes(folder)
        if any(file.name not in SLOT_FILES or sizes.get(file.name) != file.length for file in files):
            return None
        content = SlotContent(line, ReleaseVersion(document.release), document.counter, document.variant, files)
        return Slot(name, folder, content, document.written)

    def active(self, line: LineName) -> Slot | None:
        """The slot that inference runs from, or None."""
        name = self.pointer(line).active
        return None if name is None else self.get(line, name)

    def committed(self, line: LineName) -> Slot | None:
        """The slot that a restart comes back to, or None."""
        name = self.pointer(line).committed
        return None if name is None else self.get(line, name)

    def inactive_name(self, line: LineName) -> SlotName:
        """The slot that the next release is written to."""
        active = self.pointer(line).active
        return SlotName.A if active is None else active.other

    def folder(self, line: LineName, name: SlotName) -> Path:
        """Where the slot's files lie. Raises: InvalidError when the line's name does not fit the grammar."""
        return self._root / check_name(line, what="Line") / name.value

    def find_digest(self, digest: Digest, *, line: LineName | None = None) -> Path | None:
        """A file with these bytes in any complete slot, or in those of one line, active slots first."""
        found: list[tuple[bool, Path]] = []
        for one in self.lines() if line is None else (line,):
            active = self.pointer(one).active
            for slot in filter(None, (self.get(one, name) for name in SlotName)):
                found.extend((slot.name is not active, slot.folder / file.name) for file in slot.content.files if file.sha256 == digest)
        return min(found)[1] if found else None

    def reports(self) -> list[SlotReport]:
        """Every complete slot, as displayed and as signed; `sha256` is the model's digest as it was hashed on this device."""
        reports = []
        for line in self.lines():
            pointer = self.pointer(line)
            for slot in filter(None, (self.get(line, name) for name in SlotName)):
                content = slot.content
                reports.append(
                    SlotReport(
                        line=line,
                        slot=slot.name.value,
                        active=pointer.active is slot.name,
                        committed=pointer.committed is slot.name,
                        release=content.release,
                        counter=content.counter,
                        sha256=content.model.sha256,
                    )
                )
        return reports

    def scrub(self, line: LineName, name: SlotName) -> list[str]:
        """Hash the slot's files again; returns the names of those that are damaged, or slot.json when that is."""
        slot = self.get(line, name)
        if slot is None:
            return [SLOT_DOCUMENT]
        return [file.name for file in slot.content.files if self._digest(slot.folder / file.name) != file.sha256]

    # --- writing the inactive slot ---

    def write(self, content: SlotContent, sources: Mapping[str, Path]) -> Slot:
        """Fill the inactive slot from the source files, hashing on the way; returns it once everything is durable.

        Raises: TrustError when a source's bytes are not the ones named; DeviceError `disk_full` or `disk_error`; then the slot is empty.
        """
        name = self._empty_inactive(content.line)
        folder = self.folder(content.line, name)
        try:
            for file in content.files:
                self._copy(sources[file.name], folder / file.name, file)
            self._disk.sync_folder(folder)
            self._save_slot(content, name)
        except (OSError, MooringError) as error:
            with contextlib.suppress(OSError):
                self._clear(folder)
            raise _device_error(error, f"release {content.release} of {content.line}") from error
        written = self.get(content.line, name)
        if written is None:
            raise DeviceError(f"Slot {name} of {content.line} does not read back as written.", code="disk_error")
        return written

    def discard_inactive(self, line: LineName) -> None:
        """Empty the inactive slot; nothing leads to it any more."""
        if line in self.lines():
            self._empty_inactive(line)

    def _empty_inactive(self, line: LineName) -> SlotName:
        pointer, name = self.pointer(line), self.inactive_name(line)
        if pointer.trial or pointer.committed is name:
            raise RuntimeError(f"Slot {name} of {line} is committed; only an idle slot may be written.")
        folder = self.folder(line, name)
        self._disk.make_folder(folder)
        # also on a first install: without a pointer that says "nothing yet", the slot written first would count as the active one
        forgotten = replace(pointer, previous=None, seq=pointer.seq + 1)
        self._save_pointer(line, POINTER, forgotten)
        self._save_pointer(line, POINTER_PREV, forgotten)
        self._clear(folder)
        return name

    def _clear(self, folder: Path) -> None:
        self._disk.remove(folder / SLOT_DOCUMENT)
        self._disk.sync_folder(folder)
        for file in self._disk.sizes(folder):
            self._disk.remove(folder / file)
        self._disk.sync_folder(folder)

    def _copy(self, source: Path, target: Path, wanted: SlotFile) -> None:
        if wanted.name not in SLOT_FILES:
            raise TrustError(
                f"The release names the file {wanted.name!r}; a slot holds {', '.join(sorted(SLOT_FILES))}.", code="bad_release"
            )
        digest, length = hashlib.sha256(), 0
        with self._disk.append(target) as out:
            for chunk in self._disk.read_chunks(source):
                digest.update(chunk)
                length += len(chunk)
                out.write(chunk)
            out.sync()
        if (length, found := f"sha256:{digest.hexdigest()}") != (wanted.length, wanted.sha256):
            raise TrustError(
                f"{wanted.name} has {length} bytes and {found}; wanted {wanted.length} bytes and {wanted.sha256}.", code="hash_mismatch"
            )

    def _save_slot(self, content: SlotContent, name: SlotName) -> None:
        beside = self.get(content.line, name.other)
        document = {
            "schema": "slot.1",
            "line": content.line,
            "release": content.release,
            "counter": content.counter,
            "variant": content.variant,
            "written": 1 if beside is None else beside.written + 1,
            "files": {file.name: {"sha256": file.sha256, "length": file.length} for file in content.files},
        }
        self._replace_file(self.folder(content.line, name) / SLOT_DOCUMENT, _sealed(document))

    # --- moving the pointer ---

    def activate(self, line: LineName, name: SlotName) -> Pointer:
        """Make the slot active on trial; the one committed stays committed. Returns the new pointer. Raises: DeviceError, OSError."""
        if self.get(line, name) is None:
            raise DeviceError(f"Slot {name} of {line} is not complete; it cannot become active.", code="slot_damaged")
        old = self.pointer(line)
        if old.active is name:
            return old
        return self._move(line, Pointer(active=name, committed=old.committed, previous=old.committed, trial=True, seq=old.seq + 1))

    def commit(self, line: LineName) -> Pointer:
        """Keep the active slot: a restart comes back to it. Returns the new pointer. Raises: OSError."""
        old = self.pointer(line)
        if not old.trial:
            return old
        return self._move(line, replace(old, committed=old.active, trial=False, seq=old.seq + 1))

    def roll_back(self, line: LineName, to: SlotName | None) -> Pointer:
        """Make `to` active and committed (None: the line has no model again). Returns the new pointer. Raises: DeviceError, OSError."""
        if to is not None and self.get(line, to) is None:
            raise DeviceError(f"Slot {to} of {line} is not complete; there is no way back to it.", code="slot_damaged")
        old = self.pointer(line)
        if old.active is to and old.committed is to and not old.trial:
            return old
        return self._move(line, Pointer(active=to, committed=to, seq=old.seq + 1))

    def _move(self, line: LineName, new: Pointer) -> Pointer:
        self._save_pointer(line, POINTER_PREV, self.pointer(line))
        self._save_pointer(line, POINTER, new)
        return new

    # --- files ---

    def _load_pointer(self, line: LineName, name: str) -> Pointer | None:
        document = _parse(_PointerDocument, self._read(self._root / check_name(line, what="Line") / name))
        if document is None:
            return None
        return Pointer(document.active, document.committed, document.previous, document.trial, document.seq)

    def _save_pointer(self, line: LineName, name: str, pointer: Pointer) -> None:
        fields = {
            "active": pointer.active,
            "committed": pointer.committed,
            "previous": pointer.previous,
            "trial": pointer.trial,
            "seq": pointer.seq,
        }
        self._replace_file(self._root / line / name, _sealed(fields))

    def _replace_file(self, path: Path, data: bytes) -> None:
        replace_file(self._disk, path, data)

    def _read(self, path: Path) -> bytes:
        data = b""
        try:
            for chunk in self._disk.read_chunks(path):
                data += chunk
                if len(data) > MAX_DOCUMENT_BYTES:
                    return b""
        except (FileNotFoundError, NotADirectoryError):
            return b""
        return data

    def _digest(self, path: Path) -> Digest:
        return digest_on(self._disk, path)


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """Make `path` hold exactly `data`, old or new after a cut: `protocol.files.write_atomically` on any disk. Raises: OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    disk.remove(temporary)
    with disk.append(temporary) as out:
        out.write(data)
        out.sync()
    disk.replace(temporary, path)
    disk.sync_folder(path.parent)


def digest_on(disk: Disk, path: Path) -> Digest:
    """The digest of the file's bytes. Raises: OSError."""
    digest = hashlib.sha256()
    for chunk in disk.read_chunks(path):
        digest.update(chunk)
    return Digest(f"sha256:{digest.hexdigest()}")


def _sealed(fields: Mapping[str, object]) -> bytes:
    return canonical_json({**fields, "crc32": zlib.crc32(canonical_json(fields))})


def _parse(kind: type[D], data: bytes) -> D | None:
    try:
        fields = json.loads(data)
        seal = fields.pop("crc32")
        if zlib.crc32(canonical_json(fields)) != seal:
            return None
        return kind.model_validate({**fields, "crc32": seal})
    except (ValueError, KeyError, AttributeError, TypeError, ValidationError, MooringError):
        return None


def _device_error(error: OSError | MooringError, what: str) -> MooringError:
    if isinstance(error, MooringError):
        return error
    return disk_error(error, what)


def disk_error(error: OSError, what: str) -> DeviceError:
    """The error of the disk in our words: `disk_full` names what to do, everything else is `disk_error`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DeviceError(
            f"The disk is full: {what} could not be written.",
            code="disk_full",
            hint="Free space on the state folder's disk, then offer it again.",
        )
    return DeviceError(f"The disk failed while writing {what}: {error.strerror or error}.", code="disk_error")
