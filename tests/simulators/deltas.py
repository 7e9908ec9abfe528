"""Deltas of a simulated device: real headers, a pretended codec, on a disk in memory that can be cut anywhere."""

import errno
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simulators.disk import Faults

from agent.slots import Disk
from agent.update.applier import check_header
from agent.update.assignment import NO_BASE, LineOffer, OfferedDelta, OfferedFile
from agent.update.fetch import StoppedError
from protocol.delta.container import HEADER_BYTES, Header, Method
from protocol.delta.errors import DeltaError
from protocol.ids import Digest


def digest_of(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def make_delta(old: bytes | None, new: bytes, *, method: Method | None = None, memory_kib: int = 64, payload: bytes | None = None) -> bytes:
    """A delta that `FakeApplier` makes `new` from; `payload` puts other bytes into it."""
    header = Header(
        method=method or (Method.FULL if old is None else Method.ONNX),
        window_log=0,
        old_bytes=len(old or b""),
        new_bytes=len(new),
        old_sha256=NO_BASE if old is None else digest_of(old),
        new_sha256=digest_of(new),
        memory_kib=memory_kib,
    )
    return header.pack() + (zlib.compress(new) if payload is None else payload)


def offered(data: bytes, *, base_url: str = "https://fleet.test", **changes: object) -> OfferedDelta:
    """The delta as the director names it."""
    header, digest = Header.parse(data[:HEADER_BYTES]), digest_of(data)
    url = f"{base_url}/blobs/sha256/{digest.removeprefix('sha256:')}"
    found = OfferedDelta(header.old_sha256, len(data), digest, int(header.method), url)
    return replace(found, **changes)  # type: ignore[arg-type]  # fields of OfferedDelta


def with_deltas(offer: LineOffer, *deltas: OfferedDelta, file: str = "model.onnx", **changes: object) -> LineOffer:
    """The offer whose file may come as these deltas."""
    files = tuple(replace(one, deltas=deltas) if one.name == file else one for one in offer.files)
    return replace(offer, files=files, **changes)  # type: ignore[arg-type]  # fields of LineOffer


class FakeApplier:
    """`agent.update.applier.ChildApplier` on a simulated disk: each of its writes can be cut and can fail."""

    def __init__(self, disk: Disk, faults: Faults, *, memory_mb: int = 64) -> None:
        self._disk, self._faults, self._memory_mb = disk, faults, memory_mb
        self.applied: list[str] = []

    def check(self, file: OfferedFile, offered: OfferedDelta, delta: Path) -> None:
        check_header(self._read(delta)[:HEADER_BYTES], file, offered, memory_mb=self._memory_mb)

    def apply(self, file: OfferedFile, delta: Path, base: Path | None, result: Path, *, should_stop: Callable[[], bool]) -> None:
        if should_stop():
            raise StoppedError("Stopped while a delta was applied.")
        self._faults.act("child: start", lambda: None, error=lambda: OSError(errno.ENOMEM, "simulated: no memory for a child"))
        data, old = self._read(delta), b"" if base is None else self._read(base)
        header = Header.parse(data[:HEADER_BYTES])
        if base is not None and digest_of(old) != header.old_sha256:
            raise DeltaError("The old file is another one.")
        try:
            new = zlib.decompress(data[HEADER_BYTES:])
        except zlib.error as error:
            raise DeltaError(f"The delta cannot be decoded: {error}.") from error
        if digest_of(new) != file.sha256:
            raise DeltaError(f"The result has digest {digest_of(new)}; {file.sha256} was wanted.")
        temporary = result.with_name(f".{result.name}.delta.part")
        with self._disk.append(temporary) as out:
            out.write(new)
            out.sync()
        self._disk.replace(temporary, result)
        self._disk.sync_folder(result.parent)
        self.applied.append(file.name)

    def _read(self, path: Path) -> bytes:
        return b"".join(self._disk.read_chunks(path))
