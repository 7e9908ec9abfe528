"""Messages as JSON, and orders read from it: what the ends of the links do without pydantic, which the inference process does not carry.

Who reads from the inference process does it with pydantic, see `hearing`: it reads a prediction in a fifth of the time.
"""

import json
from json.encoder import encode_basestring_ascii as _text
from typing import Any

from agent.inference.messages import Box, Prediction, ScoredLabel, ToWorker
from agent.inference.shadow_messages import Offered
from protocol.decoding import MisfitError, decode


def write(message: Any) -> bytes:
    """The message as JSON; any dataclass of `messages`, or the brief of a shadow."""
    return (_prediction(message) if isinstance(message, Prediction) else _ENCODER.encode(message)).encode()


def write_offered(offered: Offered) -> bytes:
    """The note beside a frame that is offered to a shadow."""
    layout = offered.layout
    shape, size = ",".join(map(str, layout.shape)), "null" if layout.size is None else f"[{layout.size[0]},{layout.size[1]}]"
    return (
        f'{{"answer":{_prediction(offered.answer)},"layout":{{"shape":[{shape}],"dtype":"{layout.dtype}",'
        f'"is_input":{_TRUTHS[layout.is_input]},"prepared_ms":{layout.prepared_ms!r},"size":{size}}},'
        f'"skipped":{offered.skipped},"too_large":{offered.too_large}}}'
    ).encode()


def read_order(data: bytes) -> ToWorker:
    """What the control process wants. Raises: MisfitError, which repeats nothing of it: there are passwords in it."""
    try:
        order: ToWorker = decode(ToWorker, json.loads(data))
    except (ValueError, RecursionError) as error:
        paths = ", ".join(path or "document" for path, _ in error.problems) if isinstance(error, MisfitError) else "no JSON"
        raise MisfitError([("", f"an order that does not fit: {paths}")]) from None
    return order


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


_ENCODER = json.JSONEncoder(default=_plain, separators=(",", ":"), check_circular=False)


def _prediction(one: Prediction) -> str:
    """One per frame: written by hand this takes a fifth of what looking for the fields of its class does, and as long as by pydantic."""
    return (
        f'{{"kind":"prediction","pipeline":{_text(one.pipeline)},"line":{_text(one.line)},"release":{_text(one.release)},'
        f'"session":{one.session},"frame":{one.frame},"at_ms":{one.at_ms},"lat_ms":{one.lat_ms!r},"age_ms":{one.age_ms!r},'
        f'"task":{_text(one.task)},"top":[{",".join(map(_label, one.top))}],"boxes":[{",".join(map(_box, one.boxes))}],'
        f'"value":{_or_null(one.value)},"unit":{_text(one.unit)},"is_anomaly":{_TRUTHS[one.is_anomaly]}}}'
    )


def _label(one: ScoredLabel) -> str:
    return f'{{"label":{_text(one.label)},"index":{one.index},"score":{one.score!r}}}'


def _box(one: Box) -> str:
    corners = f'"x0":{one.x0!r},"y0":{one.y0!r},"x1":{one.x1!r},"y1":{one.y1!r}'
    return f'{{"label":{_text(one.label)},"index":{one.index},"score":{one.score!r},{corners},"track":{_or_null(one.track)}}}'


def _or_null(number: float | None) -> str:
    return "null" if number is None else repr(number)


_TRUTHS = {None: "null", True: "true", False: "false"}
