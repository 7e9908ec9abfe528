"""How a pipeline looks at its camera, as it is written in settings: which part of the frame, and whether something has to move there."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from protocol.look import Share, checked_region

_Seconds = Annotated[float, Field(ge=0, le=86_400)]

#: Corners x0, y0, x1, y1 in shares of the frame's width and height, x to the right, y down.
Roi = Annotated[tuple[Share, Share, Share, Share], AfterValidator(checked_region)]


class MotionSettings(BaseModel):
    """`Motion`, each value set or not."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    min_area: Share | None = None
    threshold: Annotated[float, Field(ge=1, le=255)] | None = None
    hold_s: _Seconds | None = None
    idle_s: _Seconds | None = None
