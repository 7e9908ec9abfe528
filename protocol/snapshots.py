"""The command `snapshot`: one annotated picture of a pipeline, asked for by a person, answered in `rpc-reply`, stored by nobody."""

import base64
import binascii
from typing import Annotated, Self

from pydantic import Field

from protocol.errors import InvalidError
from protocol.fields import Name, UnixMs
from protocol.look import MAX_JPEG_BYTES
from protocol.messages import Wire

#: Last level of the command's topic.
METHOD = "snapshot"
_Side = Annotated[int, Field(ge=1, le=65_535)]


class SnapshotRequest(Wire):
    """`args` of the command."""

    pipeline: Name


class SnapshotAnswer(Wire):
    """`result` of the reply. A device that does not give pictures replies with an `error` instead."""

    #: Base64.
    jpeg: Annotated[str, Field(max_length=(MAX_JPEG_BYTES + 2) // 3 * 4)]
    #: Pixels.
    width: _Side
    height: _Side
    #: When the frame was captured.
    at: UnixMs

    @classmethod
    def of(cls, picture: bytes, *, width: int, height: int, at: int) -> Self:
        """The answer with this picture. Raises: InvalidError when it is too large."""
        if len(picture) > MAX_JPEG_BYTES:
            raise InvalidError(f"The picture has {len(picture)} bytes; at most {MAX_JPEG_BYTES} are sent.", code="too-large")
        return cls(jpeg=base64.b64encode(picture).decode(), width=width, height=height, at=at)

    def picture(self) -> bytes:
        """The JPEG. Raises: InvalidError when it is none."""
        try:
            data = base64.b64decode(self.jpeg, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidError("The device's picture is not base64.") from None
        if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
            raise InvalidError(f"The device's picture is no JPEG: {len(data)} bytes, beginning {data[:4].hex()}.")
        return data
