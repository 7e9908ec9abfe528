"""What control and inference process say to each other, and what is handed to the service: frozen values, JSON only at the socket.

Both ends are the same version of the same code, so there is no schema number here; sizes are limited all the same. How the inference
process writes and reads them, without pydantic: `writing`; how the control process reads them: `hearing`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from agent.orders import PipelineOrder, RuntimeOrder
from agent.sources.states import Channel, SourceState
from runtime.answers import ClassScore

#: Longest message on the socket, in bytes.
MAX_MESSAGE_BYTES = 1 << 20


class WorkerState(StrEnum):
    """Where the inference process is."""

    #: Not started, or stopped on purpose.
    STOPPED = "stopped"
    #: Started, has not answered yet.
    STARTING = "starting"
    RUNNING = "running"
    #: Crashed or killed; waits for its back-off before the next start.
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong now in capture or inference; the service turns it into a declared condition."""

    #: source_lost, source_ended, camera_missing, decoder_fallback, sensor_gap, inference_error, predictions_lost, accelerator_fallback,
    #: inference_down, inference_crashed, inference_hung, inference_trimmed, backend_quarantined, profile_invalid; turns_lost, about a
    #: candidate's folder.
    code: str
    severity: Literal["info", "warning", "error"]
    text: str
    #: The pipeline or line it is about; empty for the process as a whole.
    subject: str = ""


#: One class of an answer, as it comes from the model.
ScoredLabel = ClassScore


@dataclass(frozen=True, slots=True)
class Box:
    """One object of an answer; corners in shares of the frame's width and height, 0..1."""

    label: str
    index: int
    score: float
    x0: float
    y0: float
    x1: float
    y1: float
    #: The same number for the same object over the frames of one session; None: nothing follows objects.
    track: int | None = None


@dataclass(slots=True)
class Prediction:
    """What the model answered for one frame or window: `top`, `boxes` or `value`, by `task`.

    Nobody changes one; it is not frozen because that would triple what making one costs, once per frame.
    """

    pipeline: str
    line: str
    release: str
    #: Grows with each reopening of the source, never reset while the control process lives.
    session: int
    #: Sequence number of the frame in its session.
    frame: int
    #: Moment of capture, Unix milliseconds of the agent's clock.
    at_ms: int
    #: Best first, at most the model manifest's top_k.
    top: tuple[ScoredLabel, ...]
    #: Milliseconds from pick-up to answer: preprocessing, inference, postprocessing.
    lat_ms: float
    #: Milliseconds from capture to answer.
    age_ms: float
    #: The model manifest's task: says which of `top`, `boxes` and `value` is meant.
    task: str = "classification"
    #: Detection: best first, at most the model manifest's max_detections.
    boxes: tuple[Box, ...] = ()
    #: Anomaly score or measured value, finite.
    value: float | None = None
    unit: str = ""
    #: Anomaly: whether the value is above the model manifest's threshold.
    is_anomaly: bool | None = None
    kind: Literal["prediction"] = "prediction"


@dataclass(frozen=True, slots=True)
class Quality:
    """What was seen of a row's input: for conditions (DRIFT 1)."""

    #: Gray of 255 for pictures; deviations for readings.
    mean: float
    deviation: float
    #: Hexadecimal; equal inputs have equal ones.
    hash: str
    not_finite: int = 0
    #: Readings outside the range that the model manifest declares.
    out_of_range: int = 0


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row of what drift watches, from one frame or window; or why there is none."""

    pipeline: str
    line: str
    release: str
    #: The slot that the model was loaded from: there lies the profile with the grid.
    folder: str
    #: First 16 bytes of the model file's digest, and the id of the grid, hexadecimal.
    model: str
    grid: str
    #: Seconds of the agent's clock since its fixed moment, which all its processes share.
    at_s: float
    #: Seconds between two rows.
    step_s: float
    #: Base64 of little-endian float32, one per feature of the grid; empty when there is a fault.
    values: str
    #: Label of the best class, or of each object that was found.
    labels: tuple[str, ...] = ()
    #: Height and width of the frame, pixels; None for readings.
    size: tuple[int, int] | None = None
    quality: Quality | None = None
    #: "shape_mismatch: …" or "extractor_failed: …".
    fault: str = ""
    #: The step with which rows of this cost fit into their share of the processor, seconds; 0: not known yet.
    fitting_step_s: int = 0
    #: Rows of the pipeline left out since the one before, because there was no time for them.
    skipped: int = 0
    #: Who answered: 0 the active slot, 1 a candidate in the shadow (`protocol.sketches.codec.Source`).
    src: int = 0
    kind: Literal["row"] = "row"


@dataclass(frozen=True, slots=True)
class PipelineStats:
    """One pipeline over one telemetry window: what `tel/perf` and `tel/sensor` say."""

    pipeline: str
    line: str
    #: Release that infers now, None while there is no model.
    release: str | None
    #: Seconds of the agent's clock since the window before.
    window_s: float
    grabbed: int
    inferred: int
    #: Frames not inferred, by reason (RUNTIMES, Capture).
    dropped: dict[str, int]
    #: Inferences that failed or whose answer was not finite.
    errors: int
    #: Inferred frames per second of real time.
    fps: float
    lat_ms_p50: float | None
    lat_ms_p95: float | None
    lat_ms_p99: float | None
    #: Back end and provider asked for, e.g. "onnx:cuda"; empty while there is no model.
    asked: str
    #: Back end and provider that really run, e.g. "onnx:cpu".
    effective: str
    source_state: SourceState
    #: In words, e.g. why the source is lost; empty when there is nothing to say.
    source_text: str
    #: Predictions that did not fit the queue to the control process and are lost for telemetry (they were inferred).
    unsent: int
    #: Processor threads of one inference; 0 while there is no model.
    threads: int = 0
    #: Share of the model's operations on the accelerator; None: on the processor, or the runtime does not tell.
    share: float | None = None
    #: Per sensor field; empty for cameras.
    channels: dict[str, Channel] = field(default_factory=dict)
    #: What decodes the frames now, in words, e.g. "cpu: h264 640x360, sub-stream".
    decoder: str = ""


@dataclass(frozen=True, slots=True)
class PipelineCount:
    """Counters of one pipeline. Totals count since its start; the rest since the beat before."""

    pipeline: str
    #: Another number each time the pipeline is started: then its totals begin at 0 again.
    instance: int
    #: Totals: grabbed = inferred + sum of dropped + in_flight.
    grabbed: int
    inferred: int
    dropped: dict[str, int]
    in_flight: int
    errors: int
    unsent: int
    session: int
    source_state: SourceState
    source_text: str
    #: Since the beat before: milliseconds per inference, at most MAX_LATENCIES of them, evenly thinned.
    latencies_ms: tuple[float, ...] = ()
    channels: dict[str, Channel] = field(default_factory=dict)
    #: What decodes the frames now, in words, e.g. "cpu: h264 640x360, sub-stream".
    decoder: str = ""
    #: A frame is being inferred, in whichever thread.
    is_inferring: bool = False


@dataclass(frozen=True, slots=True)
class LineCount:
    """One line in the inference process; counts since its model was activated."""

    line: str
    folder: str
    release: str
    asked: str
    effective: str
    inferences: int
    errors: int
    #: Answers with NaN or infinity.
    invalid: int
    p99_ms: float | None
    #: Share of the most frequent top class, 0..1; None before the first answer.
    top_share: float | None
    #: Why better back ends do not run, e.g. "onnx:cuda: not available".
    refused: tuple[str, ...] = ()
    #: Processor threads of one inference.
    threads: int = 1
    #: Share of the graph on the accelerator, 0..1; None: on the processor, or the runtime does not say.
    share: float | None = None
    #: What the 99th percentile is at least, with a confidence of 99 %.
    p99_low_ms: float | None = None


# --- control to inference ---


@dataclass(frozen=True, slots=True)
class Configure:
    """The pipelines to run from now on; those that did not change go on undisturbed."""

    #: Never logged: their URLs hold credentials.
    pipelines: tuple[PipelineOrder, ...]
    runtime: RuntimeOrder
    #: First session number of sources opened from now on, so that (session, frame) stays unique across restarts.
    first_session: int
    kind: Literal["configure"] = "configure"


@dataclass(frozen=True, slots=True)
class Choice:
    """A setup that autotune measured to be better than the default."""

    #: "backend:provider", and the one that would run otherwise.
    candidate: str
    replaces: str
    threads: int


@dataclass(frozen=True, slots=True)
class Activate:
    """Load and warm the model of the folder beside the running one, then flip."""

    request: int
    line: str
    folder: str
    #: Record of the line in `Marks`.
    mark: int = 0
    #: "backend:provider" names not to use for this artifact, and those to try last, because they crashed or hung with it.
    quarantined: tuple[str, ...] = ()
    demoted: tuple[str, ...] = ()
    #: What autotune found for this artifact; None: as configured.
    choice: Choice | None = None
    kind: Literal["activate"] = "activate"


@dataclass(frozen=True, slots=True)
class Commit:
    """Close the model before the active one."""

    request: int
    line: str
    kind: Literal["commit"] = "commit"


@dataclass(frozen=True, slots=True)
class Rollback:
    """Flip back to the model before the active one."""

    request: int
    line: str
    kind: Literal["rollback"] = "rollback"


@dataclass(frozen=True, slots=True)
class Deactivate:
    """Run no model for the line; frames are dropped as `model_unavailable`."""

    request: int
    line: str
    kind: Literal["deactivate"] = "deactivate"


@dataclass(frozen=True, slots=True)
class Ease:
    """Infer one of so many due frames: the device is hot or short of memory, or is so no more."""

    stride: int
    kind: Literal["ease"] = "ease"


@dataclass(frozen=True, slots=True)
class SampleRows:
    """The pipelines of which rows are made from now on, with the seconds between two, of the agent's clock; 0: as the profile says."""

    steps: dict[str, float]
    kind: Literal["sample_rows"] = "sample_rows"


@dataclass(frozen=True, slots=True)
class ArmOrder:
    """A candidate that answers on a pipeline in some of the time blocks (`agent.inference.arms`)."""

    line: str
    pipeline: str
    folder: str
    #: Percent of the blocks.
    share: int
    salt: str
    device: str


@dataclass(frozen=True, slots=True)
class TakeTurns:
    """Exactly these candidates answer in turn with their lines' models from now on."""

    arms: tuple[ArmOrder, ...]
    kind: Literal["take_turns"] = "take_turns"


@dataclass(frozen=True, slots=True)
class ZoneShape:
    """A zone to be drawn: corners in shares of the frame."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_closed: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Answer with the pipeline's next frame, annotated."""

    request: int
    pipeline: str
    zones: tuple[ZoneShape, ...] = ()
    kind: Literal["snapshot"] = "snapshot"


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain and exit."""

    kind: Literal["stop"] = "stop"


# --- inference to control ---


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker runs and listens."""

    pid: int
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Answer:
    """Answers one request."""

    request: int
    ok: bool
    code: str = ""
    text: str = ""
    #: "backend:provider" that really runs.
    provider: str = ""
    #: Of a snapshot: a JPEG in base64, its width and height in pixels, and the moment of capture, Unix milliseconds.
    data: str = ""
    size: tuple[int, int] = (0, 0)
    at_ms: int = 0
    kind: Literal["answer"] = "answer"


@dataclass(frozen=True, slots=True)
class Beat:
    """Sent every `beat_s`: progress, which the watchdog reads, and figures."""

    pipelines: tuple[PipelineCount, ...]
    lines: tuple[LineCount, ...]
    findings: tuple[Finding, ...]
    rss_mb: float
    kind: Literal["beat"] = "beat"


#: Latencies that one beat carries of one pipeline.
MAX_LATENCIES = 256

ToWorker = Configure | Activate | Commit | Rollback | Deactivate | Ease | TakeTurns | Snapshot | SampleRows | Stop
FromWorker = Ready | Answer | Beat | Prediction | Sampled
