"""A stick that somebody else wrote to: its index, its files of reports, and the whole import as a device does it.

The first byte of an input says which, see `DOORS`. For the import the input is a list of what was done to a valid stick: other bytes,
links, pipes, folders, files of eight gigabytes, other names.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

from fuzz import metadata as world
from fuzz.running import scratch_folder, start

with atheris.instrument_imports(include=["agent.update", "protocol"]):
    from simulators.clock import FakeClock

    from agent.identity import Enrollment
    from agent.update.bundle import IMPORTED
    from agent.update.check import CheckWish, check
    from protocol import bundle
    from protocol.clock import to_unix_ms
    from protocol.errors import InvalidError
    from protocol.messages import BrokerAddress

MAX_BYTES = 4096
FOLDER = scratch_folder("bundle")
STICK, STATE, SECRET = FOLDER / "stick", FOLDER / "state", FOLDER / "secret"
#: What is this device's own and no business of a stick.
SECRET_BYTES = b"the key of this device, or what a link may point at"
FILES = {"model.onnx": b"model.onnx", "manifest.json": b"manifest.json"}
BLOBS = {hashlib.sha256(data).hexdigest(): data for data in FILES.values()}
#: Families of errors that say something about the stick; another one would blame the device.
OF_THE_STICK = {"TrustError", "TransferError", "ConflictError", "InvalidError"}


def _good_stick() -> dict[str, bytes]:
    """Every file of a valid stick, by its path."""
    index = bundle.BundleIndex(
        format=bundle.FORMAT,
        tenant="t0",
        group="site",
        created_at=to_unix_ms(world.NOW),
        valid_until=to_unix_ms(world.DIRECTOR.expires),
        devices=("cam-1",),
    )
    files = {bundle.INDEX: bundle.write_document(index)}
    files |= {f"{bundle.IMAGE}/{name}": data for name, data in world.GOOD["image"].items()}
    for name, data in world.GOOD["director"].items():
        place = bundle.DIRECTOR if bundle.ROOT_NAME.fullmatch(name) else f"{bundle.DEVICES}/cam-1"
        files[f"{place}/{name}"] = data
    blobs = BLOBS | {hashlib.sha256(world.CONFIGURATION).hexdigest(): world.CONFIGURATION}
    return files | {f"{bundle.BLOBS}/{name}": data for name, data in blobs.items()}


GOOD = _good_stick()
#: Places in a fixed order that inputs count on: files, then folders.
PLACES = [*sorted(GOOD), bundle.IMAGE, bundle.DIRECTOR, bundle.DEVICES, f"{bundle.DEVICES}/cam-1", bundle.BLOBS]


def _enroll() -> None:
    identity = STATE / "identity"
    identity.mkdir(parents=True)
    broker = BrokerAddress(urls=["mqtts://127.0.0.1:9"])
    enrollment = Enrollment(device="cam-1", tenant="t0", device_type="camera", server="https://127.0.0.1:9", broker=broker)
    (identity / "enrollment.json").write_text(enrollment.model_dump_json())
    (identity / "image-root.json").write_bytes(world.GOOD["image"]["1.root.json"])
    (identity / "director-root.json").write_bytes(world.GOOD["director"]["1.root.json"])


_enroll()
WISH = CheckWish("https://127.0.0.1:9", device_type="camera", runtimes=("onnx",), agent_version="0.1.0", bundle=str(STICK), group="site")


def index(data: bytes) -> None:
    """The index."""
    try:
        found = bundle.read_bundle_index(data)
    except InvalidError:
        return
    assert bundle.read_bundle_index(bundle.write_document(found)) == found


def reports(data: bytes) -> None:
    """A file of reports."""
    try:
        found = bundle.read_report_file(data)
    except InvalidError:
        return
    assert bundle.read_report_file(bundle.write_document(found)) == found


def stick(data: bytes) -> None:
    """What was done to a valid stick: {u8 place, u8 deed, u8 length, bytes} again and again; then it is imported."""
    _reset()
    for place, deed, text in _deeds(data):
        path, done = STICK / PLACES[place % len(PLACES)], DEEDS[deed % len(DEEDS)]
        with contextlib.suppress(OSError, ValueError):  # what was done before may leave nothing to do it to
            if done not in TO_CONTENT or _is_plain(path):
                done(path, text)
    answer = check(STATE, WISH, clock=FakeClock(world.NOW))
    assert SECRET.read_bytes() == SECRET_BYTES
    assert {path.name for path in FOLDER.iterdir()} == {"stick", "state", "secret"}
    kept = {path.name: path.read_bytes() for path in (STATE / "downloads").glob("*")}
    assert kept.items() <= BLOBS.items(), "only whole files that were signed are kept"
    assert all(path.read_bytes() == world.CONFIGURATION for path in (STATE / IMPORTED).glob("*"))
    if answer.error is not None:
        assert answer.error.family in OF_THE_STICK, answer.error
    else:
        assert kept == BLOBS or not answer.assignment.lines


def _deeds(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= 3:
        yield data[0], data[1], data[3 : 3 + data[2]]
        data = data[3 + data[2] :]


def _reset() -> None:
    for folder in (STICK, *(STATE / name for name in ("trust", "downloads", IMPORTED))):
        shutil.rmtree(folder, ignore_errors=True)
    SECRET.write_bytes(SECRET_BYTES)
    for name, data in GOOD.items():
        (STICK / name).parent.mkdir(parents=True, exist_ok=True)
        (STICK / name).write_bytes(data)


def _is_plain(path: Path) -> bool:
    """Whether writing to it stays on the stick: who writes here is no attacker's victim."""
    try:
        place = path.resolve()
    except (OSError, RuntimeError):  # links that lead to each other
        return False
    return place.is_relative_to(STICK) and place.is_file()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def replace(path: Path, text: bytes) -> None:
    path.write_bytes(text)


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def overwrite(path: Path, text: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(int.from_bytes(text[:2], "big") % (path.stat().st_size + 1))
        file.write(text[2:])


def cut(path: Path, text: bytes) -> None:
    os.truncate(path, int.from_bytes(text[:2], "big") % (path.stat().st_size + 1))


def remove(path: Path, _text: bytes) -> None:
    _remove(path)


def link(path: Path, text: bytes) -> None:
    _remove(path)
    path.symlink_to((SECRET, "/dev/zero", path.parent, "../../secret", path)[text[0] % 5 if text else 0])


def pipe(path: Path, _text: bytes) -> None:
    _remove(path)
    os.mkfifo(path)


def folder(path: Path, _text: bytes) -> None:
    _remove(path)
    path.mkdir()


def swell(path: Path, _text: bytes) -> None:
    os.truncate(path, 8 << 30)  # sparse


def rename(path: Path, text: bytes) -> None:
    path.rename(path.with_name(os.fsdecode(text.replace(b"/", b"_").replace(b"\0", b"_")) or "x"))


def swap(path: Path, text: bytes) -> None:
    path.write_bytes(GOOD[PLACES[(text[0] if text else 0) % len(GOOD)]])


DEEDS = (replace, append, overwrite, cut, remove, link, pipe, folder, swell, rename, swap)
#: Those that write into the file that is there.
TO_CONTENT = (replace, append, overwrite, cut, swell, swap)
DOORS: dict[int, Callable[[bytes], None]] = dict(enumerate((stick, index, reports)))


def run(data: bytes) -> None:
    """One input."""
    if data:
        DOORS[data[0] % len(DOORS)](data[1:])


if __name__ == "__main__":
    start("bundle", run, max_bytes=MAX_BYTES, dictionary=True)
