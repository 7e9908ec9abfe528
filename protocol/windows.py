"""A stretch of a site's wall clock, as it is written in settings."""

from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
ANY_DAY: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WALL_TIME = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


class Window(BaseModel):
    """A stretch of the site's wall clock; it may pass midnight."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True, defer_build=True)
    #: Days on which it begins; not said: every day.
    days: Annotated[list[Day], Field(min_length=1, max_length=7)] = list(ANY_DAY)
    from_: Annotated[str, Field(alias="from"), StringConstraints(pattern=_WALL_TIME)]
    to: Annotated[str, StringConstraints(pattern=_WALL_TIME)]

    @model_validator(mode="after")
    def _say_all(self) -> Self:
        # a list replaces as a whole, so each of its windows has one form: with its days
        self.model_fields_set.add("days")
        return self


def checked_zone(value: str) -> str:
    """The name of a time zone. Raises: ValueError when the database does not know it."""
    if value != "UTC":
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("wanted a name of the time zone database, e.g. Europe/Berlin") from None
    return value
