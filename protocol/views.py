"""How a pipeline looks at its camera, as it is written in settings: which part of the frame, and whether something has to move there."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

#: The narrowest region, as a share of the frame's width or height.
MIN_SIDE = 0.01

_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(ge=0, le=86_400)]


def _checked_region(value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = value
    if x1 - x0 < MIN_SIDE or y1 - y0 < MIN_SIDE:
        raise ValueError(f"wanted x0, y0, x1, y1 of 0 to 1 with x0 + {MIN_SIDE} <= x1 and y0 + {MIN_SIDE} <= y1")
    return value


#: Corners x0, y0, x1, y1 in shares of the frame's width and height, x to the right, y down.
Roi = Annotated[tuple[_Share, _Share, _Share, _Share], AfterValidator(_checked_region)]
WHOLE_FRAME = (0.0, 0.0, 1.0, 1.0)
#: Bytes of the largest picture that an operator is shown: its base64 fits a packet beside its envelope.
MAX_JPEG_BYTES = 150 << 10


class Motion(BaseModel):
    """When frames are worth inferring; with `min_area` 0 all are."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    #: Share of the picture that must have changed, e.g. 0.005; 0: there is no motion gate.
    min_area: _Share = 0.0
    #: Levels of brightness (of 255) by which a pixel must differ from the running average.
    threshold: Annotated[float, Field(ge=1, le=255)] = 20.0
    #: Seconds for which frames are still inferred after the last motion.
    hold_s: _Seconds = 2.0
    #: Seconds after which a frame is inferred without any motion.
    idle_s: _Seconds = 30.0


class MotionSettings(BaseModel):
    """The same, each value set or not."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    min_area: _Share | None = None
    threshold: Annotated[float, Field(ge=1, le=255)] | None = None
    hold_s: _Seconds | None = None
    idle_s: _Seconds | None = None
