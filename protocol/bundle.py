"""The folder on a stick that carries updates to a site without a network and signed reports back: UPDATES 1.7.

    mooring-bundle.json                      what it is and for whom; unsigned, a convenience: nothing is trusted because of it
    image/<file>.json                        the image repository's metadata, its root chain included
    director/<n>.root.json                   the director's root chain
    devices/<device>/<file>.json             the director's metadata of one device
    blobs/<sha256, 64 hex digits>            files and deltas
    reports/<device>.json                    what a device wrote back: version reports signed with its own key

Plain files with fixed names, nothing else. Readers follow no link and bound every read: whoever finds a stick may have changed it.
Parsing is pure: bytes in, values out.
"""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from protocol.errors import InvalidError
from protocol.ids import NAME_PATTERN, DeviceId, Digest
from protocol.messages import DsseEnvelope

INDEX, IMAGE, DIRECTOR, DEVICES, BLOBS, REPORTS = "mooring-bundle.json", "image", "director", "devices", "blobs", "reports"
FORMAT: Literal["mooring-bundle.1"] = "mooring-bundle.1"
REPORTS_FORMAT: Literal["mooring-reports.1"] = "mooring-reports.1"
#: Longest index, bytes: ten thousand names.
MAX_INDEX_BYTES = 1 << 20
MAX_DEVICES = 10_000
#: Longest metadata file, bytes: what python-tuf lets targets have.
MAX_METADATA_BYTES = 5_000_000
#: Longest file of reports, bytes, and how many it holds: one per model line.
MAX_REPORTS_BYTES, MAX_REPORTS = 4 << 20, 64
#: Names of metadata files.
METADATA_NAME = re.compile(r"(?:[0-9]{1,16}\.)?[a-z0-9][a-z0-9.-]{0,100}\.json")
ROOT_NAME = re.compile(r"[0-9]{1,9}\.root\.json")

_Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_UnixMs = Annotated[int, Field(ge=0, le=2**53 - 1)]


class BundleIndex(BaseModel):
    """What the stick says of itself."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    format: Literal["mooring-bundle.1"]
    tenant: _Name
    group: _Name
    created_at: _UnixMs
    #: When the first of its signatures ends.
    valid_until: _UnixMs
    devices: tuple[_Name, ...] = Field(max_length=MAX_DEVICES)


class ReportFile(BaseModel):
    """What a device wrote back; each envelope is signed by itself."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    format: Literal["mooring-reports.1"]
    device: _Name
    reports: tuple[DsseEnvelope, ...] = Field(max_length=MAX_REPORTS)


T = TypeVar("T", BundleIndex, ReportFile)


def read_bundle_index(data: bytes) -> BundleIndex:
    """The index in these bytes. Raises: InvalidError when they are too many or something else."""
    return _parse(BundleIndex, data, limit=MAX_INDEX_BYTES, what=INDEX)


def read_report_file(data: bytes) -> ReportFile:
    """The reports in these bytes, none of them verified. Raises: InvalidError when they are too many or something else."""
    return _parse(ReportFile, data, limit=MAX_REPORTS_BYTES, what="A file of reports")


def write_document(document: BundleIndex | ReportFile) -> bytes:
    """The bytes that its reader reads."""
    return document.model_dump_json().encode()


def blob_name(digest: Digest) -> str:
    """The name of the file with these bytes in `blobs`."""
    return digest.removeprefix("sha256:")


def report_name(device: DeviceId) -> str:
    """The name of the device's file in `reports`."""
    return f"{device}.json"


def _parse(kind: type[T], data: bytes, *, limit: int, what: str) -> T:
    if len(data) > limit:
        raise InvalidError(f"{what} has more than the {limit} bytes allowed.")
    try:
        return kind.model_validate_json(data)
    except (ValidationError, RecursionError, MemoryError) as error:
        text = "too deeply nested"
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            text = f"{'.'.join(map(str, first['loc'])) or 'its start'}: {first['msg']}"
        raise InvalidError(f"{what} is not what was wanted: {text[:300]}.") from None
