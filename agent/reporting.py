"""What the device says about itself: the state topics `info`, `reported`, `model`, and the signed version reports.

The bodies are pure functions of what they are given. `Reporter` sends version reports on a thread of its own and tries again
until the server took them; only the newest state of a line is worth sending.
"""

import json
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agent.children import child_environment
from agent.conditions import Condition, Conditions
from agent.config import AgentConfig
from agent.configuration import Pointer
from agent.identity import Identity, is_authority_changed, is_renewal_due, read_answer, renew_certificate
from agent.inference.messages import PipelineStats
from agent.orders import mask
from agent.store import Store
from agent.twin import InForce
from agent.update.candidates import Candidates
from agent.update.machine import UpdateMachine
from agent.update.poller import CheckState
from protocol.clock import Clock, to_unix_ms
from protocol.configuration import Effective
from protocol.errors import AccessError, ConflictError, DeviceError, InvalidError, MooringError, TransferError, TrustError
from protocol.ids import LineName
from protocol.messages import DsseEnvelope, PipelineBackend, ReportAnswer, RuntimeInfo, VersionReport
from protocol.reports import sign_report

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("mooring.reporting")

#: What the agent can do, for servers that talk to several versions.
CAPABILITIES = ("anomaly", "classification", "desired", "detection", "regression", "rpc", "version-report.1")
#: First pause after a failed report, doubling up to the cap, full jitter below it; seconds of system time.
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 300.0
#: Settings left out that `reported` names.
MAX_IGNORED = 100
#: Steps of one line that the state topic shows.
SHOWN_STEPS = 16
#: Runtimes and providers that `info` names.
MAX_RUNTIMES = 32
#: Seconds for trying every runtime, each of which has a limit of its own; and how much the child may say about them.
PROBE_TIMEOUT_S = 300.0
MAX_PROBE_BYTES = 1 << 20
_COUNTER, _NONCE = "report.counter", "report.nonce"
_NO_LINE = ""
#: Goes before a line's name where the candidate beside its release is meant.
CANDIDATE = "candidate:"


def info_body(
    *,
    device_type: str,
    hardware: Mapping[str, str],
    agent_version: str,
    runtimes: Sequence[RuntimeInfo],
    stats: Sequence[PipelineStats],
) -> dict[str, Any]:
    """The body of `info`: which back end each pipeline asked for and which one really runs."""
    backends = [
        PipelineBackend(
            pipeline=one.pipeline,
            asked=one.asked,
            effective=one.effective,
            threads=one.threads,
            share=one.share,
            decoder=one.decoder[:200],
        )
        for one in stats
        if one.effective
    ]
    return {
        "device_type": device_type,
        "hardware": dict(hardware),
        "agent_version": agent_version,
        "runtimes": [runtime.model_dump() for runtime in runtimes[:MAX_RUNTIMES]],
        "backends": [backend.model_dump() for backend in backends],
        "capabilities": list(CAPABILITIES),
    }


def configuration_body(pointer: Pointer, signed: Effective, in_force: InForce) -> dict[str, Any]:
    """The part of `reported` about signed configuration: which one is in force, on which grounds, and what it makes of the own values."""
    offer, returned = pointer.in_force, pointer.returned
    state = "trial" if pointer.trial else "returned" if returned else "committed" if offer else "none"
    body: dict[str, Any] = {"state": state, "base": dict(in_force.base), "values": dict(in_force.values)}
    ignored = sorted(in_force.ignored.items())[:MAX_IGNORED]
    body |= {"origins": dict(signed.origins), "ignored": {key[:200]: text[:200] for key, text in ignored}}
    if offer is not None:
        body |= {"group": offer.group, "rev": offer.rev, "attempt": offer.attempt, "sha256": offer.sha256}
    if returned is not None:
        back = returned.offer
        why = {"reason": returned.reason, "text": returned.text, "at": returned.at_ms}
        body["returned"] = {"group": back.group, "rev": back.rev, "attempt": back.attempt, **why}
    return body


def reported_body(
    *,
    desired_rev: int,
    config: AgentConfig,
    errors: Mapping[str, str],
    conditions: Iterable[Condition],
    configuration: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of `reported`: what is in force, without secrets, and what could not be applied."""
    parts = config.model_dump(mode="json", include={"pipelines": True, "telemetry": True, "update": {"poll_s"}})
    return {
        "desired_rev": desired_rev,
        "config": mask(parts),
        "errors": {key[:200]: text[:2000] for key, text in errors.items()},
        "conditions": [condition.report().model_dump() for condition in conditions][:64],
        "configuration": None if configuration is None else dict(configuration),
    }


def model_body(machine: UpdateMachine) -> dict[str, Any]:
    """The body of `model`: where each line is on its way, which slot holds what, and how it got there."""
    lines = machine.lines()
    history = [step for line in lines for step in machine.history(line, SHOWN_STEPS)]
    return {
        "lines": [machine.state_of(line).model_dump() for line in lines],
        "slots": [slot.model_dump() for slot in machine.slot_reports()],
        "blocked": [blocked.model_dump() for blocked in machine.blocked()][:64],
        "history": [step.model_dump() for step in sorted(history, key=lambda step: step.at)[-64:]],
    }


@dataclass(frozen=True, slots=True)
class ReportStamp:
    """What makes one report unlike every other."""

    counter: int
    nonce: str
    boot_id: str
    now_ms: int


def version_report(
    identity: Identity, machine: UpdateMachine, check: CheckState, stamp: ReportStamp, line: str, candidates: Candidates | None = None
) -> VersionReport:
    """The report of one line's update, with the slots of all lines; "" reports a device that has no line yet.

    A line behind CANDIDATE reports the candidate beside its release.
    """
    name, of = LineName(line.removeprefix(CANDIDATE)), candidates.machine if candidates and line.startswith(CANDIDATE) else machine
    facts = of.report_facts(name) if name else None
    update = (
        {}
        if facts is None
        else {
            "assignment": facts.assignment,
            "attempt": facts.attempt,
            "reason": facts.reason[:200],
            "text": facts.text[:2000],
            "healthy_inferences": facts.healthy_inferences,
            "bytes_downloaded": facts.bytes_downloaded,
            "transfer": facts.transfer,
            "bytes_needed": facts.bytes_needed,
            "failed_deltas": list(facts.failed_deltas)[-64:],
        }
    )
    return VersionReport(
        device=identity.device,
        tenant=identity.tenant,
        boot_id=stamp.boot_id,
        report_counter=stamp.counter,
        nonce=stamp.nonce,
        time=stamp.now_ms,
        time_floor=check.time_floor_ms,
        update_state="idle" if facts is None else facts.update_state,
        slots=[*machine.slot_reports(), *(candidates.slot_reports() if candidates else ())],
        metadata_versions=dict(check.metadata_versions),
        attack_indicator=check.attack_indicator,
        slow_retrieval=check.is_slow or (facts is not None and facts.slow_retrieval),
        **update,
    )


def probe_in_child(config: AgentConfig) -> list[RuntimeInfo]:
    """The runtimes of this device, tried in children of a child, so that no runtime and no numpy enters this process."""
    command = [sys.executable, "-m", "agent.cli", "probe", "--json", "--state-dir", str(config.state_dir)]
    command += ["--set", f"runtime.providers={json.dumps(config.runtime.providers)}"]
    command += ["--set", f"runtime.options={json.dumps(config.runtime.options)}"]
    try:
        done = subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=PROBE_TIMEOUT_S, env=child_environment()
        )
        return [RuntimeInfo.model_validate(one) for one in json.loads(done.stdout[:MAX_PROBE_BYTES])]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [RuntimeInfo(name="probe", version="", state="error", text=f"The runtimes could not be tried: {error}"[:2000])]


def find_conflicts() -> list[list[str]]:
    """Distributions that share one folder and overwrite each other (RUNTIMES, Packages), in groups of two or more."""
    from importlib import metadata

    names = {distribution.name.lower() for distribution in metadata.distributions()}
    groups = [sorted(name for name in names if name.startswith(family)) for family in ("opencv-python", "onnxruntime")]
    return [group for group in groups if len(group) > 1]


class Reporter:
    """Signs and sends version reports: on every change of a line, and every `report_s` seconds of the agent's clock.

    With the regular ones it looks after the certificate that it reports with.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        store: Store,
        conditions: Conditions,
        clock: Clock,
        report_s: float,
        machine: UpdateMachine,
        candidates: Candidates | None = None,
        check: Callable[[], CheckState],
        open_client: Callable[[], AbstractContextManager["httpx.Client"]],
        chance: random.Random | None = None,
    ) -> None:
        self._identity, self._store, self._conditions, self._clock = identity, store, conditions, clock
        self._report_s, self._machine, self._check, self._open_client = report_s, machine, check, open_client
        self._candidates = candidates
        self._chance = chance or random.Random()  # noqa: S311 - jitter
        self._lock, self._wake = threading.Lock(), threading.Event()
        #: Lines to report, oldest request first; "" stands for a device that has none yet.
        self._pending: dict[str, None] = {}
        #: Reports that the server took.
        self.sent = 0

    def request(self, line: str) -> None:
        """The line changed: report it soon."""
        with self._lock:
            self._pending[line] = None
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Send what is asked for until `stop` is set; call `request` after setting it."""
        failures, due = 0, self._clock.monotonic()
        while not stop.is_set():
            self._wake.clear()
            if self._clock.monotonic() >= due:
                due = self._clock.monotonic() + self._report_s
                self._renew_when_due()
                for line in (*self._machine.lines(),) or (_NO_LINE,):
                    self.request(line)
                for line in self._candidates.machine.lines() if self._candidates else ():
                    self.request(f"{CANDIDATE}{line}")
            failures = 0 if self._send_pending() else failures + 1
            if failures:
                stop.wait(self._chance.uniform(0.0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 20))))
            elif not self._pending:
                self._clock.wait(self._wake, max(0.0, due - self._clock.monotonic()))

    def _renew_when_due(self) -> None:
        """Renew the certificate in its last third, or when the authority changes; tried again with the next regular report."""
        is_due = False
        try:
            is_due = is_renewal_due(self._identity, datetime.now(UTC))  # certificates go by system time
            with self._open_client() as client:
                if is_due or is_authority_changed(self._identity, client):
                    renew_certificate(self._identity, client)
                    log.info("identity.renewed")
        except TransferError as error:
            # a link that is down is nobody's alarm while the certificate has most of its life
            self._conditions.replace("renewal", [("certificate_ending", str(error), "")] if is_due else [])
        except MooringError as error:
            self._conditions.replace("renewal", [("certificate_ending", str(error), "")])
        else:
            self._conditions.replace("renewal", [])

    def _send_pending(self) -> bool:
        """Send every report that is asked for; returns False when the server could not be reached."""
        while True:
            with self._lock:
                line = next(iter(self._pending), None)
                if line is None:
                    return True
                del self._pending[line]
            try:
                self._send(line)
            except (TransferError, DeviceError) as error:
                log.info("report.deferred text=%s", error)
                with self._lock:
                    self._pending.setdefault(line)
                return False

    def sign(self, line: str) -> DsseEnvelope:
        """The line's newest report, signed, with a counter of its own; "" for a device without lines. Raises: DeviceError."""
        now_ms = to_unix_ms(self._clock.now())
        # at least the time in seconds: a store that was lost and made anew must not fall behind what the server has seen
        counter = self._store.next_counter(_COUNTER, at_least=now_ms // 1000)
        stamp = ReportStamp(counter, self._store.get_value(_NONCE) or "", self._store.boot_id, now_ms)
        return sign_report(
            self._identity.signing_key(), version_report(self._identity, self._machine, self._check(), stamp, line, self._candidates)
        )

    def _send(self, line: str, *, is_again: bool = False) -> None:
        envelope = self.sign(line)
        try:
            with self._open_client() as client:
                body = read_answer(client, "POST", "/device/v1/report", json_body=envelope.model_dump_json().encode())
            answer = ReportAnswer.model_validate_json(body)
            self._store.set_value(_NONCE, answer.nonce)
        except (AccessError, ConflictError, InvalidError, TrustError) as error:
            self._conditions.set("report_refused", str(error))
        except ValidationError:
            raise TransferError("The answer to a version report is malformed.") from None
        else:
            self._conditions.clear("report_refused")
            self.sent += 1
            if answer.stale and is_again:
                raise TransferError("The server gave two nonces and took neither: another report of this device came in between.")
            if answer.stale:  # the nonce was lost, here or there: once more, with the one just given
                self._send(line, is_again=True)
