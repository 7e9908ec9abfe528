"""A disk in memory behind the production interface `agent.slots.Disk`: it loses what was not synced, runs full, and fails on demand."""

import errno
import random
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")


class PowerCut(BaseException):
    """The power is gone. No code of ours catches it, as none would run."""


class Fault(StrEnum):
    """What happens at one effect of a simulated device."""

    CUT_BEFORE = "cut before"
    CUT_AFTER = "cut after"
    ERROR_BEFORE = "error before"
    ERROR_AFTER = "error after"


class Faults:
    """Counts the effects of a device and strikes at the planned ones. One object is shared by everything that has effects."""

    def __init__(self) -> None:
        self.plan: dict[int, Fault] = {}
        self.log: list[str] = []
        self.is_dead = False
        #: Says in which state the machine is when an effect is logged.
        self.where: Callable[[], str] = lambda: ""
        self.struck: list[tuple[str, str, Fault]] = []
        #: Strikes by what happens where, however often it comes to that.
        self.rule: Callable[[str, str], Fault | None] = lambda _where, _what: None
        #: Called after each effect, also after one that ends in a cut: looks at what must hold at every moment.
        self.witness: Callable[[], None] = lambda: None
        #: More effects than this are a machine that runs in circles.
        self.limit = 100_000

    def act(self, what: str, effect: Callable[[], T], *, error: Callable[[], Exception] | None = None) -> T:
        """Do the effect, or what the plan says of it. `error` makes the error to fail with; None: this effect cannot fail, only be cut."""
        if self.is_dead:
            raise PowerCut
        number, where = len(self.log), self.where()
        assert number < self.limit, f"the device runs in circles: {self.log[-6:]}"
        self.log.append(f"{where}: {what}")
        fault = self.plan.get(number) or self.rule(where, what)
        if error is None and fault in (Fault.ERROR_BEFORE, Fault.ERROR_AFTER):
            fault = None
        if fault is not None:
            self.struck.append((where, what, fault))
        if fault is Fault.CUT_BEFORE:
            self._cut()
        if fault is Fault.ERROR_BEFORE and error is not None:
            raise error()
        result = effect()
        self.witness()
        if fault is Fault.CUT_AFTER:
            self._cut()
        if fault is Fault.ERROR_AFTER and error is not None:
            raise error()
        return result

    def _cut(self) -> None:
        self.is_dead = True
        raise PowerCut


class _Inode:
    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = b""


#: What a flash chip writes as a whole: of a file that was not synced each may be old, new or zeros.
SECTOR_BYTES = 64


class FakeDisk:
    """Files and folders in memory. `lose_power` keeps what was synced and, of the rest, what chance keeps.

    Of a folder's entries (new files, renames, removals) that were not synced: the first few, in order, as journals keep them, or when
    `is_unordered` any of them, as file systems without one do. Of bytes: the old ones, a torn mix, or a longer file full of zeros.
    """

    def __init__(self, faults: Faults | None = None, *, chance: random.Random | None = None, capacity: int = 1 << 30) -> None:
        self.faults = Faults() if faults is None else faults
        self.capacity = capacity
        self.is_unordered = False
        self._chance = random.Random(0) if chance is None else chance  # noqa: S311 - a test's dice
        self._names: dict[Path, _Inode] = {}
        self._durable_names: dict[Path, _Inode] = {}
        self._pending: dict[Path, list[Callable[[dict[Path, _Inode]], object]]] = {}
        self._folders: set[Path] = set()

    # --- agent.slots.Disk ---

    def read_chunks(self, path: Path) -> Iterator[bytes]:
        if self.faults.is_dead:
            raise PowerCut
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        yield bytes(self._names[path].data)

    def sizes(self, folder: Path) -> dict[str, int]:
        return {path.name: len(inode.data) for path, inode in self._names.items() if path.parent == folder}

    def folders(self, folder: Path) -> list[str]:
        return sorted(path.name for path in self._folders if path.parent == folder)

    def make_folder(self, folder: Path) -> None:
        if folder not in self._folders:
            self._act(f"make folder {folder.name}", lambda: self._folders.update({folder, *folder.parents}))

    def append(self, path: Path) -> "_FakeFile":
        if path.parent not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        if path not in self._names:
            self._act(f"create {path.name}", lambda: self._link(path, _Inode()))
        return _FakeFile(self, path, self._names[path])

    def replace(self, source: Path, target: Path) -> None:
        def rename(names: dict[Path, _Inode]) -> None:
            if source in names:
                names[target] = names.pop(source)

        if source not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        self._act(f"rename to {target.name}", lambda: self._change(target.parent, rename))

    def remove(self, path: Path) -> None:
        if path in self._names:
            self._act(f"remove {path.name}", lambda: self._change(path.parent, lambda names: names.pop(path, None)))

    def sync_folder(self, folder: Path) -> None:
        self._act(f"sync folder {folder.name}", lambda: self._settle_folder(folder))

    def free_bytes(self, folder: Path) -> int:
        return self._act(f"ask for the room of {folder.name}", self._room)

    def _room(self) -> int:
        return max(0, self.capacity - sum(len(inode.data) for inode in self._names.values()))

    # --- the world ---

    def lose_power(self) -> None:
        """Forget what was not durable, as a disk may; the faults' device is alive again afterwards."""
        for operations in self._pending.values():
            for operation in self._kept(operations):
                operation(self._durable_names)
        self._pending.clear()
        for inode in {*self._names.values(), *self._durable_names.values()}:
            inode.data = bytearray(self._after_cut(inode))
            inode.durable = bytes(inode.data)
        self._names = dict(self._durable_names)
        self.faults.is_dead = False

    def damage(self, path: Path) -> None:
        """Flip the first byte of the file, as an old flash chip does."""
        inode = self._names[path]
        inode.data[0] ^= 0xFF
        inode.durable = bytes(inode.data)

    def peek(self, path: Path) -> bytes | None:
        """The bytes of the file now, None when there is none; no effect of the device."""
        return bytes(self._names[path].data) if path in self._names else None

    def copy_from(self, other: "FakeDisk") -> None:
        """Hold what the other disk holds, all of it durable."""
        self._folders = set(other._folders)
        for path in other.paths():
            self.put(path, other.peek(path) or b"")

    def paths(self) -> list[Path]:
        """Every file."""
        return sorted(self._names)

    def put(self, path: Path, data: bytes) -> None:
        """A durable file, without any effect counted."""
        inode = _Inode()
        inode.data, inode.durable = bytearray(data), data
        self._folders.update({path.parent, *path.parent.parents})
        self._names[path] = self._durable_names[path] = inode

    def _kept(self, operations: list[Callable[[dict[Path, _Inode]], object]]) -> list[Callable[[dict[Path, _Inode]], object]]:
        if self.is_unordered:
            return [operation for operation in operations if self._chance.random() < 0.5]
        return operations[: self._chance.randint(0, len(operations))]

    def _after_cut(self, inode: _Inode) -> bytes:
        written, durable = bytes(inode.data), inode.durable
        if written == durable:
            return durable
        cut = self._chance.randint(0, len(written))
        stretched = durable + bytes(max(0, len(written) - len(durable)))
        return self._chance.choice([durable, written, written[:cut], stretched, self._torn(written, stretched)])

    def _torn(self, written: bytes, stretched: bytes) -> bytes:
        sources = (written, stretched)
        starts = range(0, len(written), SECTOR_BYTES)
        return b"".join(self._chance.choice(sources)[start : start + SECTOR_BYTES] for start in starts)

    def _act(self, what: str, effect: Callable[[], T]) -> T:
        return self.faults.act(f"disk: {what}", effect, error=lambda: OSError(errno.EIO, "simulated input/output error"))

    def _link(self, path: Path, inode: _Inode) -> None:
        self._change(path.parent, lambda names: names.__setitem__(path, inode))

    def _change(self, folder: Path, operation: Callable[[dict[Path, _Inode]], object]) -> None:
        operation(self._names)
        self._pending.setdefault(folder, []).append(operation)

    def _settle_folder(self, folder: Path) -> None:
        for operation in self._pending.pop(folder, []):
            operation(self._durable_names)


class _FakeFile:
    def __init__(self, disk: FakeDisk, path: Path, inode: _Inode) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode

    def write(self, data: bytes, /) -> None:
        self._disk._act(f"write {self._path.name}", lambda: self._grow(data))

    def sync(self) -> None:
        def make_durable() -> None:
            self._inode.durable = bytes(self._inode.data)

        self._disk._act(f"sync {self._path.name}", make_durable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _grow(self, data: bytes) -> None:
        room = self._disk._room()
        self._inode.data += data[:room]
        if room < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
