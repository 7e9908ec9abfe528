"""How a pipeline looks at its camera, as plain values that processes without pydantic read too; how it is written in settings: `views`."""

from dataclasses import dataclass
from typing import Annotated

from protocol.decoding import Limits

Share = Annotated[float, Limits(ge=0, le=1)]
_Seconds = Annotated[float, Limits(ge=0, le=86_400)]

#: What pydantic is told where it checks one of these classes: what `protocol.decoding` does anyhow.
STRICT = {"extra": "forbid", "allow_inf_nan": False}
#: The region x0, y0, x1, y1 that is everything.
WHOLE_FRAME = (0.0, 0.0, 1.0, 1.0)
#: The narrowest region, as a share of the frame's width or height.
MIN_SIDE = 0.01
#: Bytes of the largest picture that an operator is shown: its base64 fits a packet beside its envelope.
MAX_JPEG_BYTES = 150 << 10


def checked_region(value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The region, which has a width and a height. Raises: ValueError."""
    x0, y0, x1, y1 = value
    if x1 - x0 < MIN_SIDE or y1 - y0 < MIN_SIDE:
        raise ValueError(f"wanted x0, y0, x1, y1 of 0 to 1 with x0 + {MIN_SIDE} <= x1 and y0 + {MIN_SIDE} <= y1")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """When frames are worth inferring; with `min_area` 0 all are."""

    __pydantic_config__ = STRICT
    #: Share of the picture that must have changed, e.g. 0.005; 0: there is no motion gate.
    min_area: Share = 0.0
    #: Levels of brightness (of 255) by which a pixel must differ from the running average.
    threshold: Annotated[float, Limits(ge=1, le=255)] = 20.0
    #: Seconds for which frames are still inferred after the last motion.
    hold_s: _Seconds = 2.0
    #: Seconds after which a frame is inferred without any motion.
    idle_s: _Seconds = 30.0
