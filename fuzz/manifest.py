"""What a release brings beside the model: `manifest.json` and `golden.cbor`, as a device reads them after their digest was right."""

import atheris

from fuzz.running import start

with atheris.instrument_imports(include=["protocol", "runtime"]):
    from protocol.errors import InvalidError
    from runtime import golden, manifest

MAX_BYTES = 64 << 10


def run(data: bytes) -> None:
    """One input; its first byte says which of the two files the rest is."""
    if not data:
        return
    (as_golden if data[0] & 1 else as_manifest)(data[1:])


def as_manifest(data: bytes) -> None:
    """What is accepted is written and read back as the same."""
    try:
        found = manifest.from_bytes(data)
    except InvalidError:
        return
    assert manifest.from_bytes(manifest.to_bytes(found)) == found
    assert found.spec.inputs
    found.budget_for("no-such-type")


def as_golden(data: bytes) -> None:
    """What is accepted is written back as the same bytes, and agrees with itself."""
    try:
        found = golden.decode(data)
    except InvalidError:
        return
    assert golden.encode(found) == data
    key = next(iter(found.outputs))
    assert golden.compare(found, found.outputs[key], key=key) == ()


if __name__ == "__main__":
    start("manifest", run, max_bytes=MAX_BYTES, dictionary=True)
