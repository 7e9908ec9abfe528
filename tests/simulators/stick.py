"""A stick made of what an update server serves, on a real file system."""

from pathlib import Path

from simulators.update_api import UpdateApi

from protocol.bundle import BLOBS, DEVICES, DIRECTOR, FORMAT, IMAGE, INDEX, ROOT_NAME, BundleIndex, write_document
from protocol.clock import to_unix_ms


def write_stick(folder: Path, api: UpdateApi, *, device: str = "cam-1", names: tuple[str, ...] | None = None) -> Path:
    """Everything that the server serves to the device, as `mooring bundle create` lays it out."""
    for kind in (IMAGE, DIRECTOR, BLOBS, f"{DEVICES}/{device}"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, data in api.image.files.items():
        (folder / IMAGE / name).write_bytes(data)
    for name, data in api.director.files.items():
        place = DIRECTOR if ROOT_NAME.fullmatch(name) else f"{DEVICES}/{device}"
        (folder / place / name).write_bytes(data)
    for name, data in api.blobs.items():
        (folder / BLOBS / name).write_bytes(data)
    at = to_unix_ms(api.now)
    until = to_unix_ms(api.director.expires)
    index = BundleIndex(format=FORMAT, tenant="t0", group="site", created_at=at, valid_until=until, devices=names or (device,))
    (folder / INDEX).write_bytes(write_document(index))
    return folder
