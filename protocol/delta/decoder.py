"""Old file + delta = new file, bit by bit, or `DeltaError` and no file; memory does not grow with the model.

The caller has checked the delta's own digest, which signed metadata names. What counts is the digest of the result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.delta import patch, rebuild
from protocol.delta.container import DEFAULT_MEMORY_KIB, HEADER_BYTES, Header, Method
from protocol.delta.errors import DeltaError
from protocol.delta.files import Mapped, new_file
from protocol.ids import Digest


def apply(
    delta: Path,
    old: Path | None,
    new: Path,
    *,
    max_new_bytes: int,
    memory_kib: int = DEFAULT_MEMORY_KIB,
    expected_sha256: Digest | None = None,
) -> None:
    """Make `new` from `old` and the delta; after a cut at any instruction `new` is as before or whole.

    `max_new_bytes` is the signed length of the new file, `expected_sha256` its signed digest (None: what the delta says).
    Raises: DeltaError when the delta is damaged, too large for `memory_kib`, or made for another old file; OSError (disk full, unreadable).
    """
    with _mapped(delta) as packed:
        view = memoryview(packed.data)
        header = Header.parse(view)
        _check(header, max_new_bytes=max_new_bytes, memory_kib=memory_kib, expected=expected_sha256)
        payload = view[HEADER_BYTES:]
        if header.method is Method.FULL:
            with new_file(new, header.new_bytes, header.new_sha256) as output:
                patch.write_full(header, payload, output)
            return
        if old is None:
            raise DeltaError(f"The delta wants the old file {header.old_sha256}; none was given.")
        with _mapped(old) as base:
            _check_base(header, base)
            with new_file(new, header.new_bytes, header.new_sha256) as output:
                if header.method is Method.PATCH:
                    patch.write_patch(header, payload, base, output)
                else:
                    rebuild.write_tensors(header, payload, base, output, packed.let_go)


def _check(header: Header, *, max_new_bytes: int, memory_kib: int, expected: Digest | None) -> None:
    if header.new_bytes > max_new_bytes:
        raise DeltaError(f"The delta makes {header.new_bytes} bytes; at most {max_new_bytes} are wanted.")
    # a header that announces too little is not believed: tensor methods hold the new skeleton twice, the old one, and their scans
    needed = max(header.memory_kib, (patch if header.method <= Method.PATCH else rebuild).needed_kib(header))
    if needed > memory_kib:
        raise DeltaError(f"Decoding needs {needed} KiB of memory; {memory_kib} KiB are allowed.")
    if expected is not None and header.new_sha256 != expected:
        raise DeltaError(f"The delta makes {header.new_sha256}; {expected} is wanted.")


def _check_base(header: Header, base: Mapped) -> None:
    if base.size != header.old_bytes:
        raise DeltaError(f"The old file has {base.size} bytes; the delta was made for one of {header.old_bytes}.")
    if (seen := base.digest()) != header.old_sha256:
        raise DeltaError(f"The old file has digest {seen}; the delta was made for {header.old_sha256}.")


@contextmanager
def _mapped(path: Path) -> Iterator[Mapped]:
    file = Mapped(path)
    try:
        yield file
    finally:
        file.close()
