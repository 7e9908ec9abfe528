"""Names of things and their grammar. A value of one of these types has been checked; a plain `str` has not."""

import re
import secrets
from typing import NewType

from protocol.errors import InvalidError

TenantId = NewType("TenantId", str)
DeviceId = NewType("DeviceId", str)
GroupName = NewType("GroupName", str)
SiteName = NewType("SiteName", str)
DeviceTypeName = NewType("DeviceTypeName", str)
PipelineName = NewType("PipelineName", str)
LineName = NewType("LineName", str)
#: A release's version within its line, e.g. "1.1"; a path element of TUF target files.
ReleaseVersion = NewType("ReleaseVersion", str)
#: "sha256:<64 hex digits>"
Digest = NewType("Digest", str)

#: One MQTT level, one certificate common name (limit 64), one path element: INTERFACES 1.1.
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
VERSION_PATTERN = r"^[0-9a-z][0-9a-z.+-]{0,62}$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
_NAME, _VERSION, _DIGEST = re.compile(NAME_PATTERN), re.compile(VERSION_PATTERN), re.compile(DIGEST_PATTERN)

#: The tenant of an embedded server that nobody told otherwise.
DEFAULT_TENANT = TenantId("t0")


def check_name(value: str, *, what: str) -> str:
    """The value itself when it fits the grammar of names. Raises: InvalidError naming `what`, the value and the grammar."""
    if not _NAME.fullmatch(value):
        raise InvalidError(
            f"{what} {value[:80]!r} is not a valid name.",
            hint="Wanted: 1 to 63 of a-z, 0-9 and '-', not starting with '-'.",
        )
    return value


def check_version(value: str) -> ReleaseVersion:
    """The value as a release version. Raises: InvalidError naming the value and the grammar."""
    if not _VERSION.fullmatch(value) or ".." in value:
        raise InvalidError(
            f"Release version {value[:80]!r} is not valid.",
            hint="Wanted: 1 to 63 of a-z, 0-9, '.', '+', '-', such as 1.1.",
        )
    return ReleaseVersion(value)


def check_digest(value: str) -> Digest:
    """The value as a digest. Raises: InvalidError naming the value and the grammar."""
    if not _DIGEST.fullmatch(value):
        raise InvalidError(f"Digest {value[:80]!r} is not valid.", hint="Wanted: 'sha256:' and 64 lower-case hex digits.")
    return Digest(value)


def new_id(prefix: str) -> str:
    """A new random identifier of 80 bits, e.g. "op-3f9c…"; fits the grammar of names."""
    return f"{prefix}-{secrets.token_hex(10)}"
