"""One pipeline in the inference process: its share of a capture, an inference thread, three buffers between them, and what is counted."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace

from agent.inference.captures import JOIN_S, Captures, SharedSource
from agent.inference.engine import Line
from agent.inference.feeds import Feed
from agent.inference.frames import Frame, FrameBuffers
from agent.inference.memory import Memory
from agent.inference.messages import MAX_LATENCIES, Answer, Box, Finding, PipelineCount, Prediction, Snapshot
from agent.inference.model import Sample
from agent.inference.motion import MotionGate
from agent.inference.preview import Previews
from agent.inference.regions import Region
from agent.inference.rows import RowSampler
from agent.inference.shadow_feed import ShadowPort
from agent.inference.tracking import Tracker
from agent.orders import PipelineOrder, RuntimeOrder, SensorSource
from agent.sources.base import Need
from agent.sources.states import DropReason, SourceState
from protocol.clock import Clock, SystemClock
from protocol.errors import InvalidError
from protocol.look import WHOLE_FRAME
from runtime.base import BackendError

#: Seconds for which lost predictions are worth a finding.
LASTING_S = 60.0
_INSTANCES = itertools.count(1)


class Pipeline:
    """Runs from `start` to `stop`."""

    def __init__(
        self,
        config: PipelineOrder,
        line: Line,
        *,
        captures: Captures,
        runtime: RuntimeOrder,
        on_prediction: Callable[[Prediction], bool],
        pace: Clock | None = None,
        shadow: ShadowPort | None = None,
        on_snapshot: Callable[[Answer], None] = lambda _: None,
        rows: RowSampler | None = None,
    ) -> None:
        self.config = config
        self.line = line
        #: Of the pipeline: a configuration takes long to look it up.
        self._name = config.name
        self._instance = next(_INSTANCES)
        self._captures = captures
        self._runtime = runtime
        self._pace = SystemClock() if pace is None else pace
        self._on_prediction = on_prediction
        self._shadow = ShadowPort() if shadow is None else shadow
        self._buffers = FrameBuffers(max_age_s=runtime.max_age_ms / 1000.0, now=self._pace.monotonic)
        self._region = None if config.roi == WHOLE_FRAME else Region(*config.roi)
        self._feed = Feed(
            self._buffers,
            max_fps=config.max_fps,
            has_model=line.has_model,
            need=self._need,
            region=self._region,
            gate=MotionGate(config.motion) if config.motion.min_area else None,
            infer=self._infer,
            prepare=lambda frame: line.prepare(frame.data, frame.inputs),
            now=self._pace.monotonic,
        )
        self._previews = Previews(on_snapshot)
        self._rows = rows
        self._source: SharedSource | None = None
        self._stop = threading.Event()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name=f"inference-{config.name}", daemon=True)
        self._sample = Sample(MAX_LATENCIES)
        self._sample_lock = threading.Lock()
        self._memory = Memory()
        self._tracker = Tracker(high_score=config.min_score) if config.track else None
        #: Boxes are told as the model gives them.
        self._is_whole = self._tracker is None and self._region is None
        self._errors = 0
        self._unsent = 0
        self._unsent_s = 0.0
        #: The last failed inference, in words; empty when the latest one worked.
        self._fault = ""

    def start(self) -> None:
        """Look at the source and infer."""
        self._thread.start()
        self._source = self._captures.look(self.config, self._feed)

    def ease(self, stride: int) -> None:
        """Infer one of so many due frames from now on."""
        self._feed.ease(stride)

    def watch(self, step_s: float | None) -> None:
        """Make a row of what drift watches each so many seconds, 0: as the model's profile says; None: none."""
        if self._rows is not None:
            self._rows.watch(step_s)

    def show(self, request: Snapshot) -> None:
        """Answer with the next frame, whatever its pace and the motion gate say, and also when there is no model."""
        self._previews.ask(request)
        self._feed.want_one()

    def stop(self) -> None:
        """Look no more, finish the frame that is being inferred, count the rest as `shutdown`. May be called twice."""
        self._stop.set()
        self._buffers.close()
        if self._source is not None and not self._is_stopped:
            self._is_stopped = True
            self._captures.leave(self._source, self._feed)
        self._thread.join(JOIN_S)

    def count(self) -> PipelineCount:
        """Totals now, and what came since the last call."""
        total, capture = self._buffers.total(), self._source.capture if self._source is not None else None
        with self._sample_lock:
            latencies = self._sample.take()
        return PipelineCount(
            pipeline=self.config.name,
            instance=self._instance,
            grabbed=total.grabbed,
            inferred=total.inferred,
            dropped={str(reason): count for reason, count in total.dropped.items()},
            in_flight=total.in_flight,
            errors=self._errors,
            unsent=self._unsent,
            session=capture.session if capture is not None else 0,
            source_state=capture.state if capture is not None else SourceState.OPENING,
            source_text=capture.text[:1000] if capture is not None else "",
            latencies_ms=latencies,
            decoder=capture.source.decoder if capture is not None else "",
            channels=dict(capture.source.take_channels()) if capture is not None else {},
            is_inferring=self._feed.is_inferring,
        )

    def findings(self) -> list[Finding]:
        """What is wrong with source or inference now."""
        found = self._source_findings(self._source) if self._source is not None else []
        if self._fault:
            found.append(Finding("inference_error", "error", self._fault[:1000], self.config.name))
        if self._unsent and self._pace.monotonic() - self._unsent_s < LASTING_S:
            text = f"{self._unsent} predictions since the start found the queue to the control process full."
            found.append(Finding("predictions_lost", "warning", text, self.config.name))
        return found

    def _need(self) -> Need | None:
        need = self.line.need
        return need if need is None or self._region is None else self._region.need_of_frame(need)

    def _source_findings(self, source: SharedSource) -> list[Finding]:
        capture, name = source.capture, self.config.name
        if capture.state is SourceState.LOST:
            code = "camera_missing" if capture.code == "camera_missing" else "source_lost"
            return [Finding(code, "error", capture.text[:1000], name)]
        if source.stuck:
            text = f"{source.stuck} attempts to read the source never came back from the driver; it was opened again."
            return [Finding("source_lost", "error", text, name)]
        if capture.state is SourceState.ENDED:
            return [Finding("source_ended", "info", capture.text[:1000], name)]
        if isinstance(self.config.source, SensorSource) and capture.text:
            return [Finding("sensor_gap", "warning", capture.text[:1000], name)]
        if refused := capture.source.refused:
            return [Finding("decoder_fallback", "warning", f"The processor decodes. {refused}"[:1000], name)]
        return []

    def _run(self) -> None:
        while not self._stop.is_set():
            frame = self._buffers.pick(timeout_s=1.0)
            if frame is not None:
                self._feed.infer(frame)

    def _infer(self, frame: Frame) -> None:
        shadow, rows = self._shadow, self._rows
        offer = shadow.begin(self._name, frame.data) if shadow.feed is not None else None
        glimpse = rows.begin(self.line.watched) if rows is not None and rows.step_s is not None else None
        started_s = self._pace.monotonic()
        try:
            answer = self.line.infer(
                frame.data,
                offer=offer,
                memory=self._memory,
                session=frame.session,
                pipeline=self._name,
                at_ms=frame.at_ms,
                shared=frame.inputs,
                glimpse=glimpse,
            )
        except (BackendError, InvalidError) as error:
            if offer is not None:
                offer.cancel()
            self._errors += 1
            self._fault = str(error)
            if glimpse is not None and self._rows is not None and isinstance(error, InvalidError) and error.code == "input_mismatch":
                self._rows.refused(self.line.watched, frame.data.shape, error)
            self._previews.serve(frame, None)
            self._buffers.finish(frame, DropReason.INFERENCE_ERROR)
            self.line.replace_failing(self._runtime)
            return
        if answer is None:
            if offer is not None:
                offer.cancel()
            self._previews.serve(frame, None)
            self._buffers.finish(frame, DropReason.MODEL_UNAVAILABLE)
            return
        ended_s = self._pace.monotonic()
        lat_ms = int((ended_s - started_s) * 1e6 + 0.5) / 1000.0  # to the microsecond; `round` would cost ten times as much
        prediction = Prediction(
            pipeline=self._name,
            line=self.line.name,
            release=answer.release,
            session=frame.session,
            frame=frame.seq,
            at_ms=frame.at_ms,
            top=answer.top,
            lat_ms=lat_ms,
            age_ms=int((ended_s - frame.captured_s) * 1e6 + 0.5) / 1000.0,
            task=answer.task,
            boxes=answer.boxes if self._is_whole else self._followed(answer.boxes, frame),
            value=answer.value,
            unit=answer.unit,
            is_anomaly=answer.is_anomaly,
        )
        self._fault = ""
        with self._sample_lock:
            self._sample.add(lat_ms)
        if not self._on_prediction(prediction):
            self._unsent += 1
            self._unsent_s = self._pace.monotonic()
        if self._previews.waiting:
            self._previews.serve(frame, prediction)
        if offer is not None:
            offer.finish(prediction if self._region is None else replace(prediction, boxes=answer.boxes), frame.data)
        session = frame.session
        self._buffers.finish(frame)
        if glimpse is not None and self._rows is not None:
            self._rows.finish(glimpse, session=session)

    def _followed(self, boxes: tuple[Box, ...], frame: Frame) -> tuple[Box, ...]:
        """The objects in the whole frame, with tracking ids where the pipeline follows them; a frame without any counts too."""
        if self._region is not None:
            boxes = self._region.boxes_in_frame(boxes)
        return boxes if self._tracker is None else self._tracker.update(boxes, session=frame.session, at_s=frame.captured_s)
