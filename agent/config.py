"""Every setting of the agent, in one frozen object: each checked, with its unit and its reason.

Loading them, and what the server and signed configuration lay over them: `agent/settings/`.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from agent.listening import parse_listen
from agent.orders import CameraSource, FolderSource, PipelineOrder, RuntimeOrder, SensorSource, StreamSource, VideoSource
from protocol.ids import NAME_PATTERN
from protocol.look import WHOLE_FRAME, Motion
from protocol.rules import Rules, Zones, need_tracks
from protocol.views import Roi
from protocol.windows import checked_zone

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
PROXY_SCHEMES = ("http", "socks5", "socks5h")


class Section(BaseModel):
    """Settings that belong together."""

    #: Validators are built when they are first used: each process of the agent uses some of them, and each is memory.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


# --- pipelines: source -> model line -> outputs ---


Source = Annotated[VideoSource | CameraSource | StreamSource | FolderSource | SensorSource, Field(discriminator="kind")]


class Keep(StrEnum):
    """Which predictions of a pipeline enter the outbox; the rest is class `ring`."""

    #: None: telemetry and events only.
    RING = "ring"
    #: Those that made an event.
    EVENTS = "events"
    #: Every one.
    ALL = "all"


class PipelineConfig(Section):
    """One pipeline of a device."""

    name: Name
    line: Name
    source: Source
    keep: Keep = Keep.RING
    #: Frames inferred per second at most; 0: as many as the source gives.
    max_fps: Annotated[float, Field(ge=0, le=1000)] = 0.0
    #: A top score at or above it makes an event, once per crossing; None: the model manifest's threshold.
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    #: Give detected objects tracking ids, also when no rule needs them.
    track: bool = False
    #: Parts of the frame, and event rules over them (docs/events.md).
    zones: Zones = ()
    rules: Rules = ()
    #: The part of the frame that is inferred, x0, y0, x1, y1 of 0 to 1; boxes are told in shares of the whole frame all the same.
    roi: Roi = WHOLE_FRAME
    #: Frames in which nothing moves are not inferred (docs/capture.md).
    motion: Motion = Motion()
    #: Annotated pictures may be asked for: `mooring-agent snapshot` and the server's command; nothing is ever stored.
    preview: bool = False

    @model_validator(mode="after")
    def _only_pictures_are_looked_at(self) -> "PipelineConfig":
        if isinstance(self.source, SensorSource) and (self.roi != WHOLE_FRAME or self.motion.min_area or self.preview):
            raise ValueError("`roi`, `motion` and `preview` are for pictures; this source gives readings")
        return self

    def for_inference(self) -> PipelineOrder:
        """The pipeline as the inference process needs it."""
        return PipelineOrder(
            name=self.name,
            line=self.line,
            source=self.source,
            max_fps=self.max_fps,
            min_score=self.min_score,
            track=self.track or need_tracks(self.rules),
            roi=self.roi,
            motion=self.motion,
        )


# --- the settings of the agent itself ---


class ServerConfig(Section):
    #: Base URL of the device API; None: the one that enrollment recorded.
    url: LongText | None = None
    #: http:// (CONNECT) or socks5:// proxy for HTTPS and, unless `broker.proxy` says otherwise, MQTT.
    proxy: LongText | None = None
    #: Seconds for one request; slow cellular links need many.
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0

    @field_validator("url")
    @classmethod
    def _https_only(cls, value: str | None) -> str | None:
        return None if value is None else _url_with_scheme(value, ("https",))

    @field_validator("proxy")
    @classmethod
    def _known_proxy(cls, value: str | None) -> str | None:
        return None if value is None else _url_with_scheme(value, PROXY_SCHEMES)


class BrokerConfig(Section):
    #: mqtts://host:8883 or wss://host:443/path; None: the addresses that enrollment recorded.
    url: LongText | None = None
    proxy: LongText | None = None
    #: Seconds, system time; below the usual 5 minutes of NAT tables.
    keep_alive_s: Annotated[int, Field(ge=5, le=3600)] = 60
    #: Unacknowledged QoS 1 messages at once; small, so that a cut loses little work.
    in_flight: Annotated[int, Field(ge=1, le=1000)] = 20
    #: Longest pause between two attempts to connect, in seconds of system time; full jitter below it.
    reconnect_max_s: Annotated[float, Field(gt=0, le=3600)] = 120.0

    @field_validator("url")
    @classmethod
    def _tls_only(cls, value: str | None) -> str | None:
        return None if value is None else _url_with_scheme(value, ("mqtts", "wss"))

    @field_validator("proxy")
    @classmethod
    def _known_proxy(cls, value: str | None) -> str | None:
        return None if value is None else _url_with_scheme(value, PROXY_SCHEMES)


class OutboxConfig(Section):
    #: Disk budget in MiB: about a week of telemetry of one pipeline every 10 s, and kind to a small eMMC.
    budget_mb: Annotated[float, Field(ge=0.25, le=65_536)] = 64.0
    #: Seconds without an `ack` before unacknowledged rows are sent again; doubles up to an hour (INTERFACES 1.6).
    resend_s: Annotated[float, Field(ge=1, le=3600)] = 300.0
    #: Predictions held for the uplink when the pipeline keeps none; the oldest goes first.
    ring_rows: Annotated[int, Field(ge=1, le=10_000)] = 256


class TelemetryConfig(Section):
    #: Seconds of one window of `tel/perf` and `tel/sys` (INTERFACES 1.2: 10 to 60).
    perf_s: Annotated[float, Field(ge=1, le=3600)] = 10.0
    sys_s: Annotated[float, Field(ge=1, le=3600)] = 10.0


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_ANY_DAY: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WALL_TIME = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


class WindowConfig(Section):
    """A stretch of the site's wall clock, e.g. `{ days = ["mon", "fri"], from = "22:00", to = "04:00" }`; it may pass midnight."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)
    #: Days on which it begins.
    days: Annotated[tuple[Day, ...], Field(min_length=1, max_length=7)] = _ANY_DAY
    #: From this minute on, and until just before that one; equal: the whole day.
    from_: Annotated[str, Field(alias="from"), StringConstraints(pattern=_WALL_TIME)]
    to: Annotated[str, StringConstraints(pattern=_WALL_TIME)]


class UpdateConfig(Section):
    #: Seconds between two polls, ± 50 % (UPDATES 4.6).
    poll_s: Annotated[float, Field(ge=1, le=86_400)] = 900.0
    #: Seconds between two version reports when nothing changed (UPDATES 1.8).
    report_s: Annotated[float, Field(ge=1, le=604_800)] = 28_800.0
    #: Live probe (UPDATES 4.4): inferences and seconds before a verdict, and the seconds after which none is an error.
    min_inferences: Annotated[int, Field(ge=1, le=10**9)] = 1000
    min_seconds: Annotated[float, Field(ge=0, le=86_400)] = 600.0
    max_seconds: Annotated[float, Field(ge=1, le=604_800)] = 3600.0
    #: Milliseconds that the 99th percentile of a new release may be slower by, beside the fifth that UPDATES 4.4 allows: what other
    #: programs of the device take from it now and then.
    latency_noise_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    #: Degrees Celsius of the hottest sensor above which a new release is taken back; most boards throttle at 80 to 85 (UPDATES 4.4).
    max_temperature_c: Annotated[float, Field(ge=-40, le=150)] = 85.0
    #: Seconds a self-test in a child process may take; slow boards compile engines.
    self_test_s: Annotated[float, Field(ge=1, le=3600)] = 120.0
    #: MiB that stay free beyond the files of a release (UPDATES 3.3).
    spare_disk_mb: Annotated[float, Field(ge=0, le=65_536)] = 16.0
    #: Bytes per second below which a transfer, over a minute, is given up (UPDATES 1.3).
    min_bytes_per_s: Annotated[float, Field(ge=0)] = 1000.0
    #: Bytes over this device's link cost money.
    metered: bool = False
    #: What a metered link may carry (ADR 0013): nothing of an update; deltas of models; whole models up to `full_up_to_bytes` too.
    full_download: Literal["never", "delta_only", "full_up_to"] = "delta_only"
    full_up_to_bytes: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    #: MiB that decoding a delta may use: small boards have 512 for everything.
    memory_mb: Annotated[int, Field(ge=1, le=4096)] = 64
    #: KiB per second that all downloads of this device together may take; 0: as much as comes.
    bandwidth_kib_s: Annotated[float, Field(ge=0, le=2**30)] = 0.0
    #: Zone of the windows, a name like "Europe/Berlin".
    time_zone: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "UTC"
    #: When files may be fetched, and when a release may be activated; empty: always.
    download_windows: Annotated[tuple[WindowConfig, ...], Field(max_length=32)] = ()
    activation_windows: Annotated[tuple[WindowConfig, ...], Field(max_length=32)] = ()
    #: "site": somebody at the site says yes to each assignment before it is activated.
    consent: Literal["none", "site"] = "none"

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        return checked_zone(value)


class RuntimeConfig(Section):
    #: Providers to try, best first; empty: CPU. Names of `runtime.providers`, e.g. "openvino-gpu", "edgetpu-usb", or ONNX Runtime's own.
    providers: Annotated[tuple[LongText, ...], Field(max_length=16)] = ()
    #: Options of a provider by its name, as its vendor documents them; `library` of "external" names the delegate's file.
    options: Annotated[dict[LongText, dict[LongText, LongText]], Field(max_length=16)] = {}
    #: Refuse to run when the effective provider is not the first one wanted.
    require: bool = False
    #: One thread: under contention two hurt (RUNTIMES, Threads).
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    #: Measure threads and providers when a release is installed and something may be gained; within so many seconds, of wall clock and
    #: of processor, at low priority.
    autotune: bool = True
    autotune_s: Annotated[float, Field(ge=1, le=3600)] = 20.0
    #: Milliseconds after which a frame is too old to be inferred.
    max_age_ms: Annotated[float, Field(ge=1, le=60_000)] = 1000.0
    #: Seconds without progress, at least, before the inference process is killed; slow models and busy machines get more.
    hang_s: Annotated[float, Field(ge=1, le=3600)] = 5.0
    #: Infer fewer frames while the device is hot or short of memory, instead of being stopped.
    slow_down: bool = True
    #: Share of one core that candidates may take to be compared with what runs, whoever assigns them; 0: none runs on this device.
    shadow_cpu_max: Annotated[float, Field(ge=0, le=1)] = 0.2
    #: "normal": candidates compete for their share of the processor, for devices on which nothing is ever idle.
    shadow_priority: Literal["idle", "normal"] = "idle"
    #: Seconds between two reports of such a comparison; it is reported at its end too.
    shadow_report_s: Annotated[float, Field(ge=1, le=86_400)] = 3600.0

    def for_inference(self) -> RuntimeOrder:
        """What of it the inference process needs."""
        return RuntimeOrder(
            providers=self.providers, options=self.options, require=self.require, threads=self.threads, max_age_ms=self.max_age_ms
        )


class ServingConfig(Section):
    """Models for other programs on this device, by the Open Inference Protocol (INTERFACES 4)."""

    #: "127.0.0.1:8000", "[::1]:8000" or "unix:/path"; empty: nothing is served. Beyond this machine: certificate, key and token_file too.
    listen: Annotated[str, StringConstraints(max_length=200)] = ""
    #: Model lines that are served; empty: all that this device has.
    lines: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    #: Requests inferred at once; each more costs a copy of the model, and takes a core from the pipelines.
    parallel: Annotated[int, Field(ge=1, le=16)] = 1
    #: Requests that wait for their turn; the next is answered 503.
    queue: Annotated[int, Field(ge=1, le=1024)] = 16
    connections: Annotated[int, Field(ge=1, le=1024)] = 64
    #: MiB of one request, packed and unpacked; four of them may be on their way at once.
    max_body_mb: Annotated[float, Field(gt=0, le=1024)] = 16.0
    #: PEM files, and a file with the token that clients send as `Authorization: Bearer TOKEN`.
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.listen and not parse_listen(self.listen).is_local and None in (self.certificate, self.key, self.token_file):
            raise ValueError(f"listen = {self.listen!r} is beyond this machine; wanted certificate, key and token_file too")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("only one of certificate and key is set; wanted both or neither")
        return self


class BudgetConfig(Section):
    """What this device may use in a day (UTC). Near a limit telemetry becomes coarser, at that of bytes it waits."""

    #: Bytes sent to and received from the server, updates included; 0: no limit.
    bytes_per_day: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    #: MiB written to storage; 0: no limit. An eMMC of 8 GB that stands 3,000 writes of each cell lasts ten years at 6,500 MiB a day.
    writes_per_day_mb: Annotated[float, Field(ge=0, le=2**30)] = 0.0


class DriftConfig(Section):
    """What is watched of models whose release brings a reference profile (docs/drift-on-the-device.md); without one nothing is."""

    enabled: bool = True
    #: Seconds between two rows; None: as the profile says, and longer on a device that is too slow for that. A change: a new reference.
    step_s: Literal[1, 2, 4, 8] | None = None
    #: False alarms that are allowed per year of this device; the fewer, the later a true one comes. The server's word wins.
    false_alarms_per_year: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    #: Who judges: this device, also offline, or the server by what this device sends it.
    check: Literal["device", "server"] = "device"
    #: The place has no day and night, no weather: windows depend on each other for 6 hours, not for a day.
    indoor: bool = False
    #: Pipelines whose alarm somebody took.
    acknowledged: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    #: Per pipeline the moment, Unix ms, from which on what is seen is the new normal.
    rebaselined: Annotated[dict[Name, Annotated[int, Field(ge=0, le=2**53 - 1)]], Field(max_length=64)] = {}
    #: Per pipeline a reference learned elsewhere, base64, used until this device has one of its own; of another model it is left alone.
    references: Annotated[dict[Name, Annotated[str, StringConstraints(max_length=244_000)]], Field(max_length=64)] = {}


class ConfigurationConfig(Section):
    """How signed configuration is tried (seconds of the agent's clock)."""

    #: Only configurations of this group are taken; None: of the one that the server names, so that operators may move the device.
    group: Name | None = None
    #: Earliest moment at which a change is kept.
    settle_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    #: Without its link or its frames for this long after a change, the device goes back: a cellular modem needs minutes to come up.
    trial_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0


class AgentConfig(Section):
    """Everything the agent may be told by files, environment and flags."""

    state_dir: Path = Path("/var/lib/mooring/agent")
    run_dir: Path = Path("/run/mooring/agent")
    #: What artifacts this machine can run; None: the one that enrollment recorded.
    device_type: Name | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    server: ServerConfig = ServerConfig()
    broker: BrokerConfig = BrokerConfig()
    outbox: OutboxConfig = OutboxConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    update: UpdateConfig = UpdateConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    configuration: ConfigurationConfig = ConfigurationConfig()
    serving: ServingConfig = ServingConfig()
    budget: BudgetConfig = BudgetConfig()
    drift: DriftConfig = DriftConfig()
    #: Used until the server's desired config brings pipelines; then those win.
    pipelines: Annotated[tuple[PipelineConfig, ...], Field(max_length=64)] = ()

    @field_validator("pipelines")
    @classmethod
    def _names_differ(cls, value: tuple[PipelineConfig, ...]) -> tuple[PipelineConfig, ...]:
        names = [pipeline.name for pipeline in value]
        if len(set(names)) != len(names):
            raise ValueError(f"two pipelines have one name in {names}; wanted different ones")
        return value

    @property
    def store_path(self) -> Path:
        return self.state_dir / "outbox.db"

    @property
    def identity_dir(self) -> Path:
        return self.state_dir / "identity"

    @property
    def slots_dir(self) -> Path:
        return self.state_dir / "slots"

    @property
    def candidates_dir(self) -> Path:
        return self.state_dir / "candidates"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"


def _url_with_scheme(value: str, schemes: tuple[str, ...]) -> str:
    parts = urlsplit(value)
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"wanted {' or '.join(f'{scheme}://host[:port]' for scheme in schemes)}")
    return value
