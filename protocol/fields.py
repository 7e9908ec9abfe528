"""Checked types of fields that wire messages, model manifests and settings share; apart from the messages, which cost much to import."""

from typing import Annotated

from pydantic import Field, StringConstraints

from protocol.ids import DIGEST_PATTERN, NAME_PATTERN, VERSION_PATTERN

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Version = Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
DigestText = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
Text = Annotated[str, StringConstraints(max_length=2000)]
ShortText = Annotated[str, StringConstraints(max_length=200)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
UnixMs = Annotated[int, Field(ge=0, le=2**53 - 1)]
