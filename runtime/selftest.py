"""What is known about a model on this device: the self-test of a slot, an activation, the figures since then."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The verdict over one slot folder, made in a child process before anything is activated."""

    ok: bool
    #: "ok", or why not: file_mismatch, manifest_invalid, manifest_mismatch, golden_invalid, golden_mismatch, load_failed,
    #: infer_failed, no_backend, accelerator_fallback, crashed, timeout.
    code: str
    #: For people: which output differed by how much and how much was allowed, or what was seen and wanted.
    text: str
    #: "backend:provider" that passed, e.g. "litert:cpu"; empty when none did.
    provider: str = ""
    load_s: float = 0.0
    infer_ms_p50: float = 0.0
    infer_ms_p99: float = 0.0
    #: Peak of the child that loaded the model, megabytes.
    rss_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Activation:
    """Whether the inference process now answers with the model of a folder."""

    ok: bool
    #: "ok" or a stable reason code.
    code: str
    text: str
    provider: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the active model did since its activation; the update's probe compares old with new."""

    inferences: int
    errors: int
    p99_ms: float
    rss_mb: float
    #: Share of the most frequent top class, or of the most frequent number that other answers stand on, 0..1; 1.0: a constant answer.
    top_share: float
    #: Inferences whose outputs were finite and whose frame succeeded.
    healthy: int
    #: How often the inference process died since the activation with this model active.
    crashes: int = 0
    #: Inferences per second over the latest minute; None while too little was seen.
    fps: float | None = None
    #: Of the device's hottest sensor; None: it has none.
    temperature_c: float | None = None
    #: "backend:provider" that really runs; empty: not known yet.
    provider: str = ""
    #: What the 99th percentile is at least, with a confidence of 99 % (of few latencies the percentile is the slowest); None: not known.
    p99_low_ms: float | None = None
