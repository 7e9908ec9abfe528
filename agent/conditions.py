"""What can be wrong on a device: one declared list, each with what to do, and the register of what is wrong now.

The register is gone with the process and with its cause, so the log keeps when something began and when it was over.
"""

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from protocol.clock import Clock, to_unix_ms
from protocol.messages import ConditionReport

MAX_TEXT = 2000
#: Seconds in which the same condition is logged once: what comes and goes would wear the flash and drown the rest.
LOG_AGAIN_S = 600.0
#: Characters of a condition's text in the log.
MAX_LOGGED = 500

log = logging.getLogger("mooring.conditions")


class Severity(StrEnum):
    """How bad a condition is."""

    #: Nothing to do, good to know.
    INFO = "info"
    #: Something works worse than it should.
    WARNING = "warning"
    #: Something does not work.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ConditionKind:
    """One declared thing that can be wrong; `code` is stored and sent, never renamed."""

    code: str
    severity: Severity
    #: What to do, a full sentence.
    advice: str


_ERROR, _WARNING, _INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
_LEVELS = {_ERROR: logging.ERROR, _WARNING: logging.WARNING, _INFO: logging.INFO}
#: Everything that can be wrong; raising any other code is a programmer's mistake.
KINDS: dict[str, ConditionKind] = {
    kind.code: kind
    for kind in (
        # capture and inference
        ConditionKind("source_lost", _ERROR, "Check the camera's cable, power, address and password; the agent keeps trying."),
        ConditionKind("source_ended", _INFO, "The recording is over; set `loop` to play it again."),
        ConditionKind("sensor_gap", _WARNING, "Readings are missing or malformed; check the sensor and its topic."),
        ConditionKind("camera_missing", _ERROR, "Install OpenCV: the extra `camera-headless` of this package."),
        ConditionKind(
            "decoder_fallback", _WARNING, "The wanted video decoder is not in use; check its driver, or set `hardware` of the source."
        ),
        ConditionKind(
            "accelerator_fallback", _WARNING, "The wanted accelerator is not in use; check its driver, or set `runtime.require`."
        ),
        ConditionKind("backend_quarantined", _WARNING, "A runtime crashed with this model and is left out until either changes."),
        ConditionKind("inference_crashed", _WARNING, "The inference process died and was started again; see the log for the signal."),
        ConditionKind("inference_hung", _WARNING, "The inference process stood still and was started again."),
        ConditionKind(
            "inference_trimmed", _INFO, "The inference process had grown beyond the models' budgets and was started again; nothing to do."
        ),
        ConditionKind(
            "candidate_failed", _WARNING, "A candidate that was to be compared does not run here; what the line runs is not touched."
        ),
        ConditionKind("slowed_by_heat", _WARNING, "The device is close to throttling; give it air, shade or a slower pace."),
        ConditionKind(
            "slowed_by_memory", _WARNING, "Memory is nearly used up; run fewer pipelines or smaller models, or raise `MemoryHigh`."
        ),
        ConditionKind("inference_down", _ERROR, "No runtime answers for this model; run `mooring-agent doctor`."),
        ConditionKind("inference_error", _WARNING, "Inferences fail; the model and this device may not fit each other."),
        ConditionKind("profile_invalid", _WARNING, "The release's profile cannot be used, so drift is not watched; build it again."),
        ConditionKind("frame_missing", _WARNING, "No frames reach the model; check the source, or the pipeline's pace."),
        ConditionKind("rate_low", _INFO, "Fewer frames than usual are inferred; drift is not judged meanwhile."),
        ConditionKind("frame_frozen", _WARNING, "Check the camera and what lies between: it sends one picture again and again."),
        ConditionKind("frame_black", _WARNING, "Check the light, the lens cap and the exposure of the camera."),
        ConditionKind("frame_white", _WARNING, "Check the exposure of the camera, and whether something dazzles it."),
        ConditionKind("frame_covered", _WARNING, "Look at the lens: something covers it."),
        ConditionKind("frame_out_of_focus", _WARNING, "Focus or clean the lens."),
        ConditionKind("shape_mismatch", _WARNING, "The camera or sensor was set to another size or kind of frame; set it back."),
        ConditionKind("nonfinite", _INFO, "Numbers are missing in the input or the answer; check the sensor and the model."),
        ConditionKind("extractor_failed", _WARNING, "Drift cannot be watched in full; report it as a bug of Mooring."),
        ConditionKind("value_stuck", _WARNING, "Check the sensor: a value that varies in the reference does not move."),
        ConditionKind("value_out_of_range", _WARNING, "Check the sensor: its readings are physically impossible."),
        ConditionKind("clock_unsynced", _INFO, "Set the system clock (NTP); drift is judged once it is right."),
        ConditionKind("clock_jumped", _INFO, "The clock was set anew; nothing to do."),
        ConditionKind("reference_degenerate", _WARNING, "Take a new reference for this device: `mooring drift rebaseline`."),
        ConditionKind("detector_failed", _WARNING, "Drift of a pipeline is not judged; report it as a bug of Mooring."),
        ConditionKind("grid_wanted", _INFO, "Release the model again with evaluation data that looks like this site."),
        ConditionKind("runtime_missing", _ERROR, "Install a runtime for the model: the extra `litert` or `onnx` of this package."),
        ConditionKind("runtime_conflict", _WARNING, "Keep one OpenCV package and one ONNX Runtime package per environment."),
        ConditionKind("no_model", _ERROR, "The line has no model yet; assign a release to this device's group."),
        ConditionKind("predictions_lost", _WARNING, "Predictions came faster than they could be handed on; lower `max_fps` or `keep`."),
        # updates
        ConditionKind("update_check_failed", _WARNING, "The server could not be asked for updates; the agent keeps what it has."),
        ConditionKind("metadata_stale", _WARNING, "No fresh signed metadata came; check the server and the way to it."),
        ConditionKind(
            "trust_refused", _ERROR, "The offer was refused, see the reason; nothing changes on this device. Tell whoever runs the server."
        ),
        ConditionKind(
            "full_download_refused",
            _WARNING,
            "A whole model is wanted and the link is metered: wait for a delta, connect another way, or allow it for this release.",
        ),
        ConditionKind("update_failed", _WARNING, "The last update did not succeed, see the reason; the version before keeps running."),
        ConditionKind("rollback_forbidden", _ERROR, "The version before is below the floor; a newer release is needed."),
        ConditionKind("slot_damaged", _WARNING, "Bytes of a stored model changed on the disk; offer the release again, check the disk."),
        ConditionKind("slot_fell_back", _WARNING, "The newest version does not load; the other slot runs. Offer a release that fits."),
        ConditionKind("journal_damaged", _WARNING, "The memory of an update was unreadable; the slots decide what runs."),
        ConditionKind("cleanup_failed", _WARNING, "What an update left behind could not be removed; check the disk."),
        ConditionKind("report_refused", _ERROR, "The server refused the signed version report; see the reason."),
        # the way to the server
        ConditionKind("not_enrolled", _ERROR, "Run `mooring-agent enroll --server URL --token-file FILE`."),
        ConditionKind("broker_unreachable", _WARNING, "Check network, proxy and firewall (8883 or 443); rows wait in the outbox."),
        ConditionKind(
            "broker_refused", _ERROR, "The broker does not accept this device; see the reason, check certificate and access rules."
        ),
        ConditionKind("broker_not_mqtt5", _ERROR, "Use a broker that speaks MQTT 5."),
        ConditionKind(
            "publish_refused", _ERROR, "The broker forbids a topic to this device; mend its access rules. The stream waits in the outbox."
        ),
        ConditionKind("subscribe_refused", _ERROR, "The broker lets this device hear no commands; mend its access rules."),
        ConditionKind("certificate_ending", _WARNING, "The device's certificate ends soon and could not be renewed; see the reason."),
        ConditionKind(
            "configuration_returned", _WARNING, "The newest signed configuration was not kept, see the reason; mend it, or offer it again."
        ),
        ConditionKind(
            "configuration_waits", _WARNING, "The signed configuration could not be brought here yet; the one before is in force."
        ),
        ConditionKind("desired_invalid", _WARNING, "Parts of the desired config cannot be applied; see `errors` in the reported twin."),
        # other programs on this device
        ConditionKind("serving_down", _WARNING, "Models are not served to other programs, see the reason; the agent keeps trying."),
        ConditionKind("serving_not_ready", _WARNING, "A line that is to be served has no model that answers; see the reason."),
        # the device itself
        ConditionKind("disk_full", _ERROR, "Free space on the disk of the state folder; what is stored is kept."),
        ConditionKind("store_failed", _ERROR, "Check the disk and who owns the state folder."),
        ConditionKind("outbox_recreated", _WARNING, "The outbox was unreadable and was moved aside; a new one was made."),
        ConditionKind("outbox_dropping", _WARNING, "The disk budget is used up; connect the device or raise `outbox.budget_mb`."),
        ConditionKind("budget_bytes", _WARNING, "Little of `budget.bytes_per_day` is left; it begins anew at midnight UTC, or raise it."),
        ConditionKind("budget_writes", _WARNING, "More is written than the flash should bear; see what writes, or raise the budget."),
        ConditionKind("clock_unset", _WARNING, "Set the system clock (NTP); TLS and timestamps need it."),
    )
}


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now; `subject` says with what, e.g. a pipeline."""

    code: str
    severity: Severity
    text: str
    subject: str
    since: datetime

    @property
    def advice(self) -> str:
        """What to do about it."""
        return KINDS[self.code].advice

    def report(self) -> ConditionReport:
        """How it is told to the server."""
        text = f"{self.subject}: {self.text}" if self.subject else self.text
        return ConditionReport(code=self.code, severity=self.severity.value, text=text[:MAX_TEXT], since=to_unix_ms(self.since))


class Conditions:
    """What is wrong now; may be used from any thread. `revision` grows with every change."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active: dict[tuple[str, str], Condition] = {}
        self._groups: dict[str, set[tuple[str, str]]] = {}
        #: When each condition was logged last, seconds of the monotonic clock, and which of those that are raised were.
        self._logged_s: dict[tuple[str, str], float] = {}
        self._is_logged: set[tuple[str, str]] = set()
        self.revision = 0

    def set(self, code: str, text: str, *, subject: str = "") -> None:
        """Raise the condition, or renew its text; `since` stays that of the first time. Raises: LookupError on an undeclared code."""
        kind = KINDS[code]
        with self._lock:
            old = self._active.get((code, subject))
            if old is None or old.text != text:
                since = self._clock.now() if old is None else old.since
                self._active[code, subject] = Condition(code, kind.severity, text, subject, since)
                self.revision += 1
            if old is None:
                self._log_begin(kind, text, subject)

    def clear(self, code: str, *, subject: str = "") -> None:
        """It is over. Clearing what is not raised changes nothing."""
        with self._lock:
            if self._active.pop((code, subject), None) is not None:
                self.revision += 1
                if (code, subject) in self._is_logged:
                    self._is_logged.discard((code, subject))
                    log.info("over: %s", _named(code, subject))

    def replace(self, group: str, found: Iterable[tuple[str, str, str]]) -> None:
        """Make (code, text, subject) all that is wrong in the group: what it raised before and is not found now is over."""
        wanted = {(code, subject): text for code, text, subject in found}
        for code, subject in self._groups.get(group, set()) - wanted.keys():
            self.clear(code, subject=subject)
        for (code, subject), text in wanted.items():
            self.set(code, text, subject=subject)
        self._groups[group] = set(wanted)

    def active(self) -> list[Condition]:
        """What is wrong now, worst first, then oldest first."""
        order = list(reversed(Severity))
        with self._lock:
            return sorted(self._active.values(), key=lambda condition: (order.index(condition.severity), condition.since, condition.code))

    def _log_begin(self, kind: ConditionKind, text: str, subject: str) -> None:
        key, now_s = (kind.code, subject), self._clock.monotonic()
        if (logged_s := self._logged_s.get(key)) is None or now_s - logged_s >= LOG_AGAIN_S:
            self._logged_s[key] = now_s
            self._is_logged.add(key)
            said = " ".join(text.split())  # a text may quote what came from outside: it stays one line
            log.log(_LEVELS[kind.severity], "%s: %s %s", _named(*key), said[:MAX_LOGGED], kind.advice)


def _named(code: str, subject: str) -> str:
    return f"{code} ({subject})" if subject else code
