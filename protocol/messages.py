"""Every JSON message that crosses the wire, versioned: INTERFACES 1.1 to 1.3 and 2.1.

Readers ignore unknown fields; writers never remove one.

Pydantic lives here because this is the border; past it no dict travels.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from protocol.fields import Count, DigestText, Name, ShortText, Text, UnixMs, Version

SCHEMA_MAJOR: Literal[1] = 1


class Wire(BaseModel):
    """Base of all wire messages: frozen, unknown fields ignored, no NaN. Validators are built when first used: a device uses few."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, defer_build=True)


class Asked(Wire):
    """Base of what the server reads from requests: built at once.

    The web framework wraps it before its first use, and would build what it wrapped then, with a warning in the log.
    """

    model_config = ConfigDict(defer_build=False)


# --- the envelope of every device message (INTERFACES 1.1) ---


class ClockState(StrEnum):
    """Whether the device trusts its own time."""

    OK = "ok"
    UNSET = "unset"


class Envelope(Wire):
    """What every JSON message of a device carries. `seq` and `floor` are absent on `inf`, `log` and `rpc-reply`."""

    v: Literal[1] = SCHEMA_MAJOR
    ts: UnixMs
    clk: ClockState = ClockState.OK
    boot: ShortText
    epoch: ShortText
    #: Counter per device, epoch and stream; stored with the row, never reset.
    seq: Count | None = None
    #: Smallest `seq` of this stream still in the outbox.
    floor: Count | None = None


class Presence(StrEnum):
    """Connection state of a device, sent on the topic `status`."""

    ONLINE = "online"
    OFFLINE = "offline"
    SLEEPING = "sleeping"


class Status(Envelope):
    """`status`, also the Will."""

    presence: Presence


class RuntimeInfo(Wire):
    """One runtime of the device and what it really runs on."""

    name: ShortText
    version: ShortText
    #: What a probe found: ok, missing, error.
    state: ShortText
    text: Text = ""


class PipelineBackend(Wire):
    """Which back end a pipeline asked for and which one runs (never assumed)."""

    pipeline: Name
    asked: ShortText
    effective: ShortText
    #: Processor threads of one inference; 0: not told.
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    #: Share of the model's operations on the accelerator; None: on the processor, or the runtime does not tell.
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    #: What decodes the pipeline's stream, in words; empty: nothing is decoded, or the device does not tell.
    decoder: Annotated[str, StringConstraints(max_length=200)] = ""


class ConditionReport(Wire):
    """One declared thing that is wrong."""

    code: ShortText
    severity: Literal["info", "warning", "error"]
    text: Text
    since: UnixMs


class Info(Envelope):
    """`info`: what the device is."""

    device_type: Name
    hardware: dict[ShortText, ShortText] = Field(default_factory=dict)
    agent_version: ShortText
    firmware_version: ShortText = ""
    runtimes: list[RuntimeInfo] = Field(default_factory=list, max_length=32)
    backends: list[PipelineBackend] = Field(default_factory=list, max_length=64)
    capabilities: list[ShortText] = Field(default_factory=list, max_length=64)


class ReturnedConfiguration(Wire):
    """A configuration that this device went back from; it is refused until it is offered with a higher attempt."""

    group: ShortText
    rev: Count
    attempt: Count
    #: Stable code: link_lost, inference_failed, frames_stopped, inference_errors, restarts, invalid, hash_mismatch, …
    reason: ShortText
    text: Text = ""
    at: UnixMs


class ReportedConfiguration(Wire):
    """The signed configuration that is in force, and what it makes of the device's own values."""

    #: none: only the device's own values; trial: watched, not kept yet; committed: kept; returned: the newest one was not kept.
    state: Literal["none", "trial", "committed", "returned"] = "none"
    #: What is in force now; empty and 0 when nothing is.
    group: ShortText = ""
    rev: Count = 0
    attempt: Count = 0
    sha256: ShortText = ""
    returned: ReturnedConfiguration | None = None
    #: Nested as `protocol.configuration.Settings`: the device's own values, and those in force.
    base: dict[str, Any] = Field(default_factory=dict)
    values: dict[str, Any] = Field(default_factory=dict)
    #: Dotted key -> fleet, group or device; all others are the device's own.
    origins: dict[ShortText, ShortText] = Field(default_factory=dict, max_length=1000)
    #: Dotted key -> why it is left out.
    ignored: dict[ShortText, Text] = Field(default_factory=dict, max_length=1000)


class Reported(Envelope):
    """`reported`: the device's half of the twin."""

    desired_rev: Count
    config: dict[str, Any] = Field(default_factory=dict)
    #: Per key of the desired config that could not be applied: why.
    errors: dict[ShortText, Text] = Field(default_factory=dict)
    conditions: list[ConditionReport] = Field(default_factory=list, max_length=64)
    #: None: an agent that knows no signed configuration.
    configuration: ReportedConfiguration | None = None


class SlotReport(Wire):
    """One slot of one line, as displayed and as signed (UPDATES 1.8)."""

    line: Name
    #: "c": a candidate beside what the line has; never active, never committed.
    slot: Literal["a", "b", "c"]
    active: bool
    committed: bool
    release: Version
    counter: Count
    sha256: DigestText


class BlockedRelease(Wire):
    """A release this device refuses until someone offers it again (UPDATES 4.5)."""

    line: Name
    release: Version
    attempt: Count
    reason: ShortText
    text: Text = ""
    at: UnixMs


class LineState(Wire):
    """Where one model line is on its way."""

    line: Name
    desired: Version | None = None
    installed: Version | None = None
    #: A state of the update machine.
    state: ShortText = "idle"
    #: Percent of the current download, 0..100.
    progress: Annotated[int, Field(ge=0, le=100)] = 0
    #: Stable code of the last failure, empty when there was none.
    reason: ShortText = ""
    text: Text = ""
    #: What it waits for: window, consent, clock, full_download, server; empty: nothing. `until`: when that is known to be over.
    waits_for: ShortText = ""
    until: UnixMs | None = None
    #: How the model comes: none (it is on the device), delta, full; empty: not decided. And the bytes that are fetched for the release.
    transfer: ShortText = ""
    bytes_needed: Count = 0


class ModelState(Envelope):
    """`model`: display only; campaigns count the signed report."""

    lines: list[LineState] = Field(default_factory=list, max_length=64)
    slots: list[SlotReport] = Field(default_factory=list, max_length=128)
    blocked: list[BlockedRelease] = Field(default_factory=list, max_length=64)
    #: Latest arrows of the update machine, oldest first: how it got there.
    history: list["UpdateStep"] = Field(default_factory=list, max_length=64)


class DriftFeature(Wire):
    """One feature's part in a drift score."""

    name: ShortText
    #: Of T²; the parts of all features sum to 1, single ones may be below 0.
    share: Annotated[float, Field(ge=-1e9, le=1e9)]


class DriftPipeline(Wire):
    """How the model version that runs on one pipeline stands against the device's own reference."""

    pipeline: Name
    line: Name
    release: Version | None = None
    #: First 16 bytes of the model file's digest, and the id of its grid, hexadecimal; empty: the release has no reference profile.
    model: ShortText = ""
    grid: ShortText = ""
    #: raised: the device's own check crossed its threshold; the server verifies that.
    state: Literal["ok", "raised", "acknowledged"] = "ok"
    #: off, none (no reference profile came with the release), collecting, provisional, calibrated.
    grade: ShortText = "none"
    #: Complete days that the reference has, or has so far.
    days: Count = 0
    #: Of the device's reference, hexadecimal; empty: it has none.
    reference: ShortText = ""
    step_s: Count = 0
    #: The ten-minute look's score of the latest sub-window that was judged, its tail probability, and what all looks say now against what
    #: raises: 1 / (p / share of the look), at most, and sub-windows of a year / false alarms a year.
    score: float | None = None
    p: Annotated[float, Field(ge=0, le=1)] | None = None
    evidence: float = 0.0
    threshold: float | None = None
    #: The look that crossed, else the one that says most now, and the sub-windows whose mean it judged.
    look: ShortText = ""
    stretch: Count = 0
    #: Start of the sub-window that crossed.
    raised_at: UnixMs | None = None
    #: Those with the largest part in the stretch that crossed, else in the one that says most now.
    features: list[DriftFeature] = Field(default_factory=list, max_length=8)
    #: Rows that were lost or skipped since the agent started: a crash, no time, no room.
    lost: Count = 0


class Drift(Envelope):
    """`drift`: what the device's own check says; the server decides."""

    #: The worst of the pipelines.
    state: Literal["ok", "raised", "acknowledged"] = "ok"
    #: Who judges: twin setting `drift.check`.
    check: Literal["device", "server"] = "device"
    #: What its own check allows itself per year of this device, whoever said so; None: an agent that does not tell.
    false_alarms_per_year: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    pipelines: list[DriftPipeline] = Field(default_factory=list, max_length=64)


#: CloudEvents type of the event with which a device sends its own reference, once; `data` is a `ReferenceLearned`.
REFERENCE_LEARNED = "mooring.drift.reference.v1"


class ReferenceLearned(Wire):
    """`data` of the event `REFERENCE_LEARNED`."""

    pipeline: Name
    line: Name
    model: ShortText
    grid: ShortText
    reference: ShortText
    grade: ShortText
    #: Base64 of what protocol.sketches.reference encodes.
    body: Annotated[str, StringConstraints(max_length=244_000)]


class UpdateStep(Wire):
    """One arrow the update machine went."""

    line: Name
    release: Version
    state: ShortText
    at: UnixMs
    reason: ShortText = ""
    text: Text = ""


class TelPerf(Envelope):
    """`tel/perf`: one pipeline over one telemetry window."""

    pipeline: Name
    line: Name | None = None
    release: Version | None = None
    window_s: Annotated[float, Field(gt=0, le=86_400)]
    frames: Count
    fps: Annotated[float, Field(ge=0)]
    lat_ms_p50: float | None = None
    lat_ms_p95: float | None = None
    lat_ms_p99: float | None = None
    #: Frames not inferred, by reason (RUNTIMES, Capture).
    dropped: dict[ShortText, Count] = Field(default_factory=dict)
    errors: Count = 0
    backend: ShortText = ""
    source_state: ShortText = ""


class TelSys(Envelope):
    """`tel/sys`: the device over one telemetry window."""

    window_s: Annotated[float, Field(gt=0, le=86_400)]
    #: CPU of all the unit's processes, percent of one core.
    cpu_percent: float
    rss_mb: float
    temperature_c: float | None = None
    disk_free_mb: float
    outbox_rows: Count
    outbox_mb: float
    #: Rows given up because the disk budget was full, by class, since the outbox file was made.
    outbox_dropped: dict[ShortText, Count] = Field(default_factory=dict)
    #: Today (UTC, the device's clock): bytes sent to and received from the server, and bytes written to storage; None: not known.
    day_sent: Count | None = None
    day_received: Count | None = None
    day_written: Count | None = None


class TelSensor(Envelope):
    """`tel/sensor`: readings of a gateway's sensor source, summarized."""

    pipeline: Name
    window_s: Annotated[float, Field(gt=0, le=86_400)]
    #: Per channel: count, mean, min, max.
    channels: dict[ShortText, dict[ShortText, float]] = Field(default_factory=dict)


class TelServing(Envelope):
    """`tel/serving`: what other programs on the device asked of one line over one telemetry window (Open Inference Protocol)."""

    line: Name
    #: The release that answers; None: none does.
    release: Version | None = None
    window_s: Annotated[float, Field(gt=0, le=86_400)]
    #: Answered; wrong, by the client's or the model's fault; told to come again because too many waited or no model answers.
    answered: Count
    failed: Count = 0
    refused: Count = 0
    #: From a request's last byte to its answer, upper bounds of buckets that grow by a fifth.
    lat_ms_p50: float | None = None
    lat_ms_p95: float | None = None
    lat_ms_p99: float | None = None
    backend: ShortText = ""


class Event(Envelope):
    """`event`: CloudEvents 1.0, structured mode. `id` = "{epoch}-{seq}", `source` = "/mooring/{tenant}/{device}"."""

    specversion: Literal["1.0"] = "1.0"
    id: ShortText
    source: ShortText
    type: ShortText
    datacontenttype: Literal["application/json"] = "application/json"
    subject: ShortText | None = None
    time: ShortText | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class Score(Wire):
    """One class with its score."""

    label: ShortText
    index: Count
    score: float


class DetectedBox(Wire):
    """One detected object."""

    label: ShortText
    index: Count
    score: float
    #: x0, y0, x1, y1 in 0..1 of the frame.
    box: Annotated[list[float], Field(min_length=4, max_length=4)]
    #: Tracking id, unique within pipeline and session; None: it has none.
    track: Count | None = None


class Inference(Envelope):
    """`inf/{pipeline}`: what the model answered for one frame or window: `top`, `boxes` or `value`, by `task`."""

    pipeline: Name
    line: Name
    release: Version
    session: Count
    frame: Count
    top: list[Score] = Field(default_factory=list, max_length=32)
    lat_ms: float
    #: The model manifest's task.
    task: ShortText = "classification"
    boxes: list[DetectedBox] = Field(default_factory=list, max_length=100)
    value: float | None = None
    unit: ShortText = ""
    is_anomaly: bool | None = None


# --- world to device (INTERFACES 1.3) ---


class AckStream(Wire):
    """What of one stream is committed: everything up to `upto`, and the ranges beyond (inclusive)."""

    upto: int = Field(ge=-1, le=2**53 - 1)
    ranges: list[tuple[int, int]] = Field(default_factory=list, max_length=1000)


class Ack(Wire):
    """`c/{device}/ack`: what the server has COMMITTED. Sketch keys are (pipeline, window, source, revision)."""

    v: Literal[1] = SCHEMA_MAJOR
    epoch: ShortText
    streams: dict[ShortText, AckStream] = Field(default_factory=dict)
    sketch: list[tuple[str, str, int, int]] = Field(default_factory=list, max_length=1000)


class ManifestHint(Wire):
    """Where the director's targets lie and their digest: a hint, TUF decides."""

    url: ShortText
    sha256: DigestText
    #: Seconds over which the devices that hear this spread their questions, each by its own name.
    spread_s: Count = 0


class Consent(Wire):
    """What somebody said at the console about one assignment of a device that asks before it activates (UPDATES 4.6)."""

    line: Name
    assignment: ShortText
    given: bool


class Desired(Wire):
    """`c/{device}/desired` and GET /device/v1/desired: the server's half of the twin. `config` is checked by the device."""

    v: Literal[1] = SCHEMA_MAJOR
    rev: Count
    config: dict[str, Any] = Field(default_factory=dict)
    manifest: ManifestHint | None = None
    #: The newest word per line; a device forgets nothing that it was told on site.
    consents: list[Consent] = Field(default_factory=list, max_length=64)


class RpcRequest(Wire):
    """`c/{device}/rpc/{method}`."""

    v: Literal[1] = SCHEMA_MAJOR
    id: ShortText
    exp: UnixMs
    args: dict[str, Any] = Field(default_factory=dict)


class RpcReply(Envelope):
    """`rpc-reply`."""

    id: ShortText
    ok: bool
    result: dict[str, Any] | None = None
    error: Text | None = None


# --- HTTPS device API (INTERFACES 2.1) ---


class EnrollRequest(Asked):
    """POST /enroll/v1. `sealing_signature`, made with the CSR's key over the raw bytes of `sealing_key`, binds the two."""

    v: Literal[1] = SCHEMA_MAJOR
    token: ShortText
    #: Wished id; the token or the server may fix another. None: the server makes one.
    device: Name | None = None
    device_type: Name
    csr_pem: Annotated[str, StringConstraints(max_length=8192)]
    #: Raw X25519 public key, base64.
    sealing_key: ShortText
    #: Base64 of the ECDSA P-256 SHA-256 signature (DER).
    sealing_signature: ShortText
    hardware: dict[ShortText, ShortText] = Field(default_factory=dict, max_length=32)
    agent_version: ShortText = ""


class BrokerAddress(Wire):
    """Where and how to reach the broker: mqtts://host:port or wss://host:port/path."""

    urls: list[ShortText] = Field(min_length=1, max_length=8)
    prefix: Name = "mooring"


class EnrollResponse(Wire):
    """200 of POST /enroll/v1."""

    v: Literal[1] = SCHEMA_MAJOR
    device: Name
    tenant: Name
    group: Name | None = None
    certificate_pem: Annotated[str, StringConstraints(max_length=16_384)]
    #: Certificate authority of server and broker, PEM, possibly several.
    ca_pem: Annotated[str, StringConstraints(max_length=65_536)]
    broker: BrokerAddress
    #: The trusted TUF roots of the two repositories, base64 of the exact bytes.
    image_root: Annotated[str, StringConstraints(max_length=700_000)]
    director_root: Annotated[str, StringConstraints(max_length=700_000)]


class CertificateRequest(Asked):
    """POST /device/v1/certificate: renewal over the certificate in use; the key may be new."""

    v: Literal[1] = SCHEMA_MAJOR
    csr_pem: Annotated[str, StringConstraints(max_length=8192)]


class CertificateAnswer(Wire):
    """200 of POST /device/v1/certificate. The certificate in use stays valid until this one is first used."""

    v: Literal[1] = SCHEMA_MAJOR
    certificate_pem: Annotated[str, StringConstraints(max_length=16_384)]
    ca_pem: Annotated[str, StringConstraints(max_length=65_536)]


class VersionReport(Wire):
    """The payload of the device-signed DSSE envelope: UPDATES 1.8. The only evidence that a campaign counts."""

    v: Literal[1] = SCHEMA_MAJOR
    device: Name
    tenant: Name
    boot_id: ShortText
    report_counter: Count
    nonce: ShortText = ""
    time: UnixMs
    time_floor: UnixMs
    assignment: ShortText = ""
    attempt: Count = 0
    update_state: ShortText
    reason: ShortText = ""
    text: Text = ""
    slots: list[SlotReport] = Field(default_factory=list, max_length=128)
    booted_firmware_slot: ShortText = ""
    healthy_inferences: Count = 0
    metadata_versions: dict[ShortText, Count] = Field(default_factory=dict, max_length=256)
    attack_indicator: ShortText = ""
    slow_retrieval: bool = False
    bytes_downloaded: Count = 0
    #: As in `LineState`.
    transfer: ShortText = ""
    bytes_needed: Count = 0
    #: Deltas that did not make what they should on this device: the server withdraws them.
    failed_deltas: list[DigestText] = Field(default_factory=list, max_length=64)


class DsseSignature(Wire):
    """One signature of a DSSE envelope."""

    keyid: ShortText
    sig: ShortText


class DsseEnvelope(Asked):
    """DSSE v1.0 envelope (github.com/secure-systems-lab/dsse): POST /device/v1/report."""

    payload: Annotated[str, StringConstraints(max_length=200_000)]
    payloadType: ShortText  # noqa: N815 - the specification's spelling
    signatures: list[DsseSignature] = Field(min_length=1, max_length=4)


class ReportAnswer(Wire):
    """200 of POST /device/v1/report: the counter now recorded and the nonce for the next report."""

    v: Literal[1] = SCHEMA_MAJOR
    report_counter: Count
    nonce: ShortText
    #: The report carried neither of the two nonces given last: it counts for nothing; send it again with this one.
    stale: bool = False


class Problem(Wire):
    """application/problem+json (RFC 9457)."""

    type: ShortText
    title: ShortText
    status: int
    detail: Text = ""
    hint: Text | None = None
    errors: list[dict[str, str]] = Field(default_factory=list)
    trace_id: ShortText = ""
