"""What a delta says about itself, for people and scripts, without decoding it."""

from pathlib import Path
from typing import Any

from protocol.delta.container import HEADER_BYTES, Header, Method
from protocol.delta.errors import DeltaError
from protocol.files import digest_of_file


def inspect(delta: Path) -> dict[str, Any]:
    """The header's fields, the delta's own digest, and its share of the new file. Raises: DeltaError; OSError."""
    length = delta.stat().st_size
    with delta.open("rb") as file:
        header = Header.parse(file.read(HEADER_BYTES))
    before = HEADER_BYTES + header.table_packed + header.skeleton_packed
    if length < before:
        raise DeltaError(f"The delta is cut: it has {length} bytes; its header, table and skeleton alone have {before}.")
    return {
        "method": int(header.method),
        "method_name": header.method.name.lower(),
        "length": length,
        "sha256": digest_of_file(delta),
        "base_sha256": header.old_sha256,
        "base_length": header.old_bytes,
        "new_sha256": header.new_sha256,
        "new_length": header.new_bytes,
        "share_of_new": round(length / header.new_bytes, 6) if header.new_bytes else None,
        "memory_kib": header.memory_kib,
        "window_log": header.window_log,
        "records": header.records,
        "bytes": {
            "header": HEADER_BYTES,
            "table": header.table_packed,
            "skeleton": header.skeleton_packed,
            "data": length - before,
        },
        "is_full": header.method is Method.FULL,
    }
