"""What all request bodies of /api/v1 share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ShortText = Annotated[str, Field(max_length=200)]
Reason = Annotated[str, Field(max_length=2000)]


class Body(BaseModel):
    """Base of request bodies: unknown keys are refused, so that a typing mistake does not pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReasonBody(Body):
    """Why."""

    reason: Reason = ""
