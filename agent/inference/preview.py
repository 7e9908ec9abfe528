"""A picture on demand, in the inference process: the next frame of a pipeline with what the model said of it. It is never stored."""

import base64
import threading
from collections import deque
from collections.abc import Callable

from agent.inference.frames import Frame
from agent.inference.messages import Answer, Prediction, Snapshot
from agent.sources.base import Pixels
from agent.sources.drawing import Jpeg, Marked, Shape, annotated_jpeg
from protocol.look import MAX_JPEG_BYTES

#: Requests of one pipeline that wait; their askers gave up long ago when there are more.
MAX_WAITING = 4


class Previews:
    """Who waits for the next frame of one pipeline. `serve` is called by the inference thread."""

    def __init__(self, send: Callable[[Answer], None]) -> None:
        self._send = send
        #: Requests that wait for a frame.
        self.waiting: deque[Snapshot] = deque(maxlen=MAX_WAITING)

    def ask(self, request: Snapshot) -> None:
        """Answer it with the next frame; any thread."""
        self.waiting.append(request)

    def serve(self, frame: Frame, prediction: Prediction | None) -> None:
        """Take the frame's pixels and answer all who wait, if anybody does, in a thread of its own: inference goes on meanwhile."""
        requests = []
        while self.waiting:
            requests.append(self.waiting.popleft())
        if not requests:
            return
        pixels = (frame.picture.data if frame.picture is not None else frame.data).copy()
        threading.Thread(target=self._answer, args=(requests, pixels, frame.at_ms, prediction), name="preview", daemon=True).start()

    def _answer(self, requests: list[Snapshot], pixels: Pixels, at_ms: int, prediction: Prediction | None) -> None:
        for request in requests:
            try:
                picture = draw(pixels, prediction, request)
            except ValueError as error:
                self._send(Answer(request.request, ok=False, code="snapshot_failed", text=str(error)[:1000]))
            else:
                data, size = base64.b64encode(picture.data).decode(), (picture.width, picture.height)
                self._send(Answer(request.request, ok=True, code="ok", data=data, size=size, at_ms=at_ms))


def draw(pixels: Pixels, prediction: Prediction | None, request: Snapshot) -> Jpeg:
    """A JPEG of at most MAX_JPEG_BYTES. Raises: ValueError when it does not fit."""
    shapes = [Shape(zone.points, zone.is_closed, zone.name) for zone in request.zones]
    boxes = (
        []
        if prediction is None
        else [Marked((box.x0, box.y0, box.x1, box.y1), _said(box.label, box.score, box.track)) for box in prediction.boxes]
    )
    return annotated_jpeg(pixels, lines=_lines(prediction), boxes=boxes, shapes=shapes, max_bytes=MAX_JPEG_BYTES)


def _said(label: str, score: float, track: int | None = None) -> str:
    return f"{label} {score:.2f}" if track is None else f"{label} {score:.2f} #{track}"


def _lines(prediction: Prediction | None) -> list[str]:
    """What is written at the top: no model, the best class, or the value."""
    if prediction is None:
        return ["no model"]
    if prediction.value is not None:
        return [f"{prediction.value:.4g} {prediction.unit}".strip() + (" anomaly" if prediction.is_anomaly else "")]
    return [_said(prediction.top[0].label, prediction.top[0].score)] if prediction.top else []
