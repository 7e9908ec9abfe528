"""What request bodies and queries of /api/v1 share."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

ShortText = Annotated[str, Field(max_length=200)]
Reason = Annotated[str, Field(max_length=2000)]
Since = Annotated[datetime | None, Query(description="Start, ISO 8601; a day before the end when not given.")]
Until = Annotated[datetime | None, Query(description="End, ISO 8601; now when not given.")]


class Body(BaseModel):
    """Base of request bodies: unknown keys are refused, so that a typing mistake does not pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReasonBody(Body):
    """Why."""

    reason: Reason = ""


def utc(moment: datetime | None) -> datetime | None:
    """The moment; one without a zone is taken as UTC."""
    return moment if moment is None or moment.tzinfo is not None else moment.replace(tzinfo=UTC)
