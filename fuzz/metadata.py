"""TUF metadata from a hostile mirror, server or key holder, through the whole check of a device; our fields; target paths; signed time.

The first byte of an input says which door it knocks at, see `DOORS`. Behind the doors of a key holder the input is a list of edits to
valid metadata, signed with the right key afterwards: random bytes alone would never come past a signature.
"""

import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import atheris

from fuzz.running import SIMULATORS, scratch_folder, start

sys.path.insert(0, str(SIMULATORS))

with atheris.instrument_imports(include=["protocol", "tuf"]):
    from securesystemslib.signer import CryptoSigner
    from simulators.repository import BASE_URL, RepositorySimulator, target

    from protocol.canonical import canonical_json
    from protocol.clock import to_unix_ms
    from protocol.errors import InvalidError, TransferError, TrustError
    from protocol.ids import DeviceId, DeviceTypeName, LineName, TenantId
    from protocol.trust.metadata import (
        MODEL_FILES,
        POLICY_PATTERN,
        POLICY_ROLE,
        DirectorFields,
        DirectorTargetFields,
        ImageLineFields,
        ImageTargetFields,
        PolicyTargetFields,
        configuration_path,
        line_pattern,
        line_role,
        parse_target_path,
        read_fields,
        write_fields,
    )
    from protocol.trust.updater import DeviceFacts, RepositoryAccess, verify_assignment, verify_signed_time

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
CAM, LINE = DeviceId("cam-1"), LineName("digits")
FACTS = DeviceFacts(CAM, TenantId("t0"), DeviceTypeName("camera"), {"onnx"}, agent_version="0.1.0", group="site")
CONFIGURATION = b'{"telemetry": {"perf_s": 30}}'
FIELDS = (DirectorFields, DirectorTargetFields, ImageLineFields, ImageTargetFields, PolicyTargetFields)
MAX_BYTES = 4096
#: What a field is set to that was something else.
VALUES = (b"5", b"-1", b"1e400", b"9223372036854775808", b'""', b'"../../x"', b"[]", b"{}", b"null", b"true", b'"9999-12-31T23:59:59Z"')
FOLDER = scratch_folder("metadata")


def _make_world() -> tuple[RepositorySimulator, RepositorySimulator]:
    """An image repository with one release and the director that assigns it."""
    image, director = RepositorySimulator(now=NOW), RepositorySimulator(now=NOW)
    role = image.delegate(line_role(LINE), line_pattern(LINE))
    role.unrecognized_fields = write_fields(ImageLineFields(line=LINE, floor=3))
    about = write_fields(
        ImageTargetFields(line=LINE, release="1.0", counter=10, variant="onnx", device_types=("camera",), runtime="onnx")  # type: ignore[arg-type]  # pydantic checks the names
    )
    for name in ("model.onnx", "manifest.json"):
        path = f"model/{LINE}/1.0/onnx.{name}"
        role.targets[path] = target(path, name.encode(), about)
        director.targets.targets[path] = target(path, name.encode(), write_fields(DirectorTargetFields(full_bytes_allowed=7)))
    policy = image.delegate(POLICY_ROLE, POLICY_PATTERN)
    path = configuration_path("site", 4)
    policy.targets[path] = target(path, CONFIGURATION, write_fields(PolicyTargetFields(tenant="t0", group="site", rev=4)))
    director.targets.targets[path] = target(path, CONFIGURATION)
    order = {"device": CAM, "tenant": "t0", "assignment": "as-1", "attempt": 1, "issued_at": to_unix_ms(NOW), "line_floor": {LINE: 5}}
    order["configuration"] = {"group": "site", "rev": 4, "attempt": 1}
    director.targets.unrecognized_fields = write_fields(DirectorFields.model_validate(order))
    for simulator in (image, director):
        simulator.publish()
        simulator.rotate_root()
    return image, director


IMAGE, DIRECTOR = _make_world()
GOOD = {name: dict(simulator.files) for name, simulator in (("image", IMAGE), ("director", DIRECTOR))}
#: (repository, file name, role whose key signs it), in a fixed order that inputs count on.
FILES = [
    ("director", "timestamp.json", "timestamp"),
    ("director", "2.snapshot.json", "snapshot"),
    ("director", "2.targets.json", "targets"),
    ("director", "2.root.json", "root"),
    ("image", "timestamp.json", "timestamp"),
    ("image", "2.snapshot.json", "snapshot"),
    ("image", "2.targets.json", "targets"),
    ("image", "2.model.digits.json", "model.digits"),
    ("image", "2.root.json", "root"),
    ("image", f"2.{POLICY_ROLE}.json", POLICY_ROLE),
]
#: Keys that may put other files into the image repository: its root and targets, and the line's.
RELEASE_KEYS = {("image", "root"), ("image", "targets"), ("image", "model.digits"), ("image", POLICY_ROLE)}
RELEASED = {(path, file.length, file.hashes["sha256"]) for role in IMAGE.delegated.values() for path, file in role.targets.items()}


def fields(data: bytes) -> None:
    """Our fields, out of any JSON value."""
    try:
        value = json.loads(data[1:])
    except (ValueError, RecursionError):
        return
    try:
        found = read_fields(FIELDS[data[0] % len(FIELDS)], {"mooring": value}, what="It")
    except TrustError:
        return
    assert read_fields(type(found), write_fields(found), what="It") == found


def path(data: bytes) -> None:
    """A target path."""
    text = data.decode("utf-8", errors="surrogateescape")
    try:
        found = parse_target_path(text)
    except InvalidError:
        return
    assert str(found) == text
    assert found.name in MODEL_FILES
    assert ".." not in text.split("/")


def raw_time(data: bytes) -> None:
    """The bytes that answer the question for the time."""
    _read_time(data)


def signed_time(data: bytes) -> None:
    """Any JSON value, signed with the right key as the time."""
    try:
        body = json.loads(data)
        signature = DIRECTOR.signers["timestamp"][0].sign(canonical_json(body))
    except (ValueError, RecursionError, InvalidError):
        return
    _read_time(json.dumps({"signed": body, "signatures": [signature.to_dict()]}).encode())


def _read_time(document: bytes) -> None:
    _serve(GOOD)
    try:
        verify_signed_time(document, director=_access("director"), device=CAM, nonce="n1")
    except (TrustError, TransferError):
        return


def raw_file(data: bytes) -> None:
    """One file of a repository replaced by these bytes."""
    repository, name, _ = FILES[data[0] % len(FILES)]
    _check(_with({(repository, name): data[1:]}), thieves=set())


def edited(data: bytes) -> None:
    """Edits of what keys signed, signed again by them; each {u8 file, u16 place, u8 operation, u8 length, JSON text}."""
    bodies: dict[int, Any] = {}
    for index, place, operation, text in _edits(data):
        body = bodies.setdefault(index, json.loads(GOOD[FILES[index][0]][FILES[index][1]])["signed"])
        bodies[index] = _edit(body, place, operation, text)
    changes, thieves = {}, set()
    for index, body in bodies.items():
        repository, name, role = FILES[index]
        changes[repository, name] = _signed(body, (IMAGE if repository == "image" else DIRECTOR).signers[role])
        thieves.add((repository, role))
    _bind(changes)
    _check(_with(changes), thieves=thieves)


def sweep() -> Iterator[bytes]:
    """Every field of every signed document, taken away, and set to each of a few values: one edit an input."""
    for index, (repository, name, _) in enumerate(FILES):
        for place, _ in enumerate(_holders(json.loads(GOOD[repository][name])["signed"])):
            for operation, text in ((0, b""), *((3, text) for text in VALUES)):
                yield struct.pack(">BBHBB", EDITED, index, place, operation, len(text)) + text


def _edits(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while len(data) >= 5:
        index, place, operation, length = data[0] % len(FILES), data[1] << 8 | data[2], data[3], data[4]
        yield index, place, operation, data[5 : 5 + length]
        data = data[5 + length :]


def _edit(body: Any, place: int, operation: int, text: bytes) -> Any:
    holders = list(_holders(body))
    if not holders:  # the edits before took everything away
        return body
    holder, key = holders[place % len(holders)]
    if operation % 4 == 0:
        del holder[key]
        return body
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text.decode("utf-8", errors="replace")
    if operation % 4 == 1 and isinstance(holder, dict):
        holder[value if isinstance(value, str) else str(key)] = holder.pop(key)  # another name for the same thing
    elif operation % 4 == 2 and isinstance(holder, dict):
        holder["mooring" if operation & 64 else "custom"] = value
    else:
        holder[key] = value
    return body


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, inner in items:
        yield value, key
        yield from _holders(inner)


def _signed(body: Any, signers: list[CryptoSigner]) -> bytes:
    try:
        signatures = [signer.sign(canonical_json(body)).to_dict() for signer in signers]
    except InvalidError:
        signatures = []
    return json.dumps({"signed": body, "signatures": signatures}).encode("utf-8", errors="surrogatepass")


def _bind(changes: dict[tuple[str, str], bytes]) -> None:
    """Let snapshots and timestamps that are not edited name the edited files: who stole a key of targets rarely comes alone."""
    for repository, simulator in (("image", IMAGE), ("director", DIRECTOR)):
        for upper, lowers in (
            ("2.snapshot.json", ("2.targets.json", "2.model.digits.json", f"2.{POLICY_ROLE}.json")),
            ("timestamp.json", ("2.snapshot.json",)),
        ):
            named = [lower for lower in lowers if (repository, lower) in changes]
            if not named or (repository, upper) in changes:
                continue
            body = json.loads(GOOD[repository][upper])["signed"]
            for lower in named:
                meta = body["meta"][lower.split(".", 1)[1]]
                data = changes[repository, lower]
                meta["length"], meta["hashes"] = len(data), {"sha256": _sha256(data)}
            changes[repository, upper] = _signed(body, simulator.signers["snapshot" if "snapshot" in upper else "timestamp"])


def _sha256(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()


def _with(changes: dict[tuple[str, str], bytes]) -> dict[str, dict[str, bytes]]:
    return {name: files | {file: data for (where, file), data in changes.items() if where == name} for name, files in GOOD.items()}


def _serve(files: dict[str, dict[str, bytes]]) -> None:
    for name, simulator in (("image", IMAGE), ("director", DIRECTOR)):
        simulator.files = files[name]
        simulator.requests.clear()


def _access(name: str) -> RepositoryAccess:
    simulator = IMAGE if name == "image" else DIRECTOR
    return RepositoryAccess(FOLDER / name, BASE_URL, GOOD[name]["1.root.json"], simulator)


def _check(files: dict[str, dict[str, bytes]], *, thieves: set[tuple[str, str]]) -> None:
    """What a device does; whoever holds no key of a release brings no other file onto it."""
    _serve(files)
    for name in ("image", "director"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    try:
        found = verify_assignment(
            image=_access("image"),
            director=_access("director"),
            facts=FACTS,
            now=NOW,
            time_floor=NOW,
            floors={LINE: 4},
            committed={LINE: 10},
            configurations={"site": 3},
        )
    except (TrustError, TransferError):
        return
    if (configuration := found.configuration) is not None:
        assert configuration.rev >= 3 or configuration.group != "site"
        if not thieves & RELEASE_KEYS:
            assert (configuration.path, configuration.length, configuration.sha256.removeprefix("sha256:")) in RELEASED
    for line in found.lines:
        assert line.counter >= found.floors[line.line] >= 4 or line.line != LINE
        for file in line.targets:
            assert file.name in MODEL_FILES
            assert file.length <= MODEL_FILES[file.name]
            if not thieves & RELEASE_KEYS:
                assert (file.path, file.length, file.sha256.removeprefix("sha256:")) in RELEASED


DOORS: dict[int, Callable[[bytes], None]] = dict(enumerate((fields, path, raw_time, signed_time, raw_file, edited)))
EDITED = 5


def run(data: bytes) -> None:
    """One input."""
    if len(data) >= 2:
        DOORS[data[0] % len(DOORS)](data[1:])


if __name__ == "__main__":
    start("metadata", run, max_bytes=MAX_BYTES, dictionary=True, sweep=sweep())
