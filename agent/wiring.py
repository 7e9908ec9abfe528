"""The parts of the control process, and who hears what of whom: everything is built and tied together here, nothing is started."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.budgets import Budgets
from agent.comparing import Comparing
from agent.conditions import Conditions
from agent.config import AgentConfig
from agent.configuration import ConfigurationOffer, SignedConfiguration, TrialRules
from agent.database.outbox import Draft
from agent.drift.desk import DriftDesk
from agent.duties.lines import LineNews
from agent.duties.measuring import Measuring, Sources
from agent.duties.pictures import Pictures
from agent.duties.predictions import Predictions
from agent.duties.runtimes import Runtimes
from agent.duties.trials import Trials
from agent.identity import Identity, load_identity, open_client, read_answer
from agent.importing import Importer
from agent.inference.process import InferenceProcess
from agent.inference.snapshots import Snapshots
from agent.reporting import Reporter
from agent.serving.messages import Task
from agent.serving.process import ServingProcess
from agent.slots import Slots
from agent.store import Store
from agent.telemetry import merge_windows, read_temperature_c
from agent.traffic import Traffic
from agent.twin import Twin
from agent.update.assembly import Assembly
from agent.update.bandwidth import TokenBucket
from agent.update.bundle import CANDIDATE_DOWNLOADS, DOWNLOADS, find_imported
from agent.update.candidates import Candidates, CandidateStore
from agent.update.check import CheckWish
from agent.update.machine import UpdateMachine
from agent.update.policy import Consents, UpdatePolicy
from agent.update.poller import CheckState, Poller, run_child, run_stick_child
from agent.update.site_time import SiteTime
from agent.update.store import UpdateStore
from agent.uplink import Inbox, Uplink
from protocol.clock import Clock, SystemClock, from_unix_ms
from protocol.errors import DeviceError, TrustError
from protocol.ids import LineName
from protocol.messages import Desired, RuntimeInfo

if TYPE_CHECKING:
    import httpx

#: No device of this code runs earlier, in Unix milliseconds: an earlier clock is not set.
BUILD_TIME_MS = 1_772_323_200_000


@dataclass(frozen=True, slots=True)
class Joined:
    """What runs only on an enrolled device."""

    identity: Identity
    configuration: SignedConfiguration
    trials: Trials
    uplink: Uplink
    poller: Poller
    reporter: Reporter
    importer: Importer


class Parts:
    """One of each for a state folder and an identity; when an identity appears, all is wired anew."""

    def __init__(
        self, config: AgentConfig, *, clock: Clock, version: str, probe: Callable[[], list[RuntimeInfo]], stop: threading.Event
    ) -> None:
        """Open the store. Raises: DeviceError when there is no place for it."""
        self.config, self.clock, self.version, self.stop = config, clock, version, stop
        self.conditions = Conditions(clock)
        self.store = Store(config.store_path, clock=clock, budget_mb=config.outbox.budget_mb, merge=merge_windows)
        self.traffic = Traffic()
        self.budgets = Budgets(load=self.store.get_value, save=self.store.set_value, clock=clock, limits=config.budget)
        self._identity = identity = self.find_identity()
        self._device = identity.device if identity else ""
        self.device_type = config.device_type or (identity.enrollment.device_type if identity else "")
        #: What events of this device name as their source.
        self.source = f"/mooring/{identity.tenant}/{identity.device}" if identity else "/mooring/unenrolled"
        self.twin = Twin(self.store, config, identity)
        self.site_time = SiteTime(clock, floor=self.time_floor)
        self._slots, self._beside = Slots(config.slots_dir), Slots(config.candidates_dir)
        self.drift = self._make_drift()
        self.predictions = Predictions(clock=clock, source=self.source, site_time=self.site_time)
        self.inference = self._make_inference()
        self.pictures = self._make_pictures()
        self.serving = self._make_serving()
        self.runtimes = Runtimes(probe, self.conditions, on_learned=self._hint)
        self.line_news = LineNews(self.conditions, self._request_report)
        self.bucket = TokenBucket(config.update.bandwidth_kib_s * 1024, clock=SystemClock())  # bytes on a real link take real time
        #: The settings `update` in force; `replace` changes them while all runs.
        self.policy = UpdatePolicy(config.update, Consents(self.store), site_time=self.site_time, on_change=self._on_policy_change)
        self.machine, self.candidates = self._make_machines()
        self.comparing = self._make_comparing()
        self.measuring = self._make_measuring()
        self.joined = None if identity is None else self._join(identity)
        #: The attack indicator of which the server was told.
        self._told_attack = ""

    def find_identity(self) -> Identity | None:
        """The identity that is there and can be used; why there is none is a condition."""
        try:
            identity = load_identity(self.config.identity_dir)
            identity.tls_context()
        except DeviceError as error:
            self.conditions.set("not_enrolled", str(error))
            return None
        return identity

    def time_floor(self) -> datetime:
        """It is not earlier than this."""
        check = self.joined.poller.state if self.joined else CheckState()
        return from_unix_ms(max(BUILD_TIME_MS, check.time_floor_ms))

    def has_schedules(self) -> bool:
        """Whether a rule in force goes by the site's time."""
        return any(rule.schedule for one in self.twin.in_force.config.pipelines for rule in one.rules)

    def ring_dropped(self) -> int:
        """Rows that the uplink's ring gave up."""
        return self.joined.uplink.ring_dropped if self.joined else 0

    def keep(self, drafts: Sequence[Draft]) -> None:
        """Store the rows. A disk that does not take them is the store's trouble, and a condition by that; it counts them as lost."""
        if drafts:
            with suppress(DeviceError):
                self.store.add_all(drafts)

    def condition_rows(self) -> list[dict[str, Any]]:
        """What is wrong now, worst first, each with what to do."""
        return [condition.report().model_dump() | {"advice": condition.advice} for condition in self.conditions.active()]

    # --- what goes on on every device ---

    def _make_drift(self) -> DriftDesk:
        has_profile = partial(_has_profile, self._slots)
        return DriftDesk(self.store, clock=self.clock, device=self._device, source=self.source, has_profile=has_profile)

    def _make_inference(self) -> InferenceProcess:
        return InferenceProcess(
            runtime=self.config.runtime,
            clock=self.clock,
            on_prediction=self.predictions.take,
            on_row=self.drift.add,
            records_dir=self.config.state_dir / "probe",
        )

    def _make_pictures(self) -> Pictures:
        snapshots = Snapshots(self.inference.snapshot, pipelines=lambda: self.twin.in_force.config.pipelines, clock=SystemClock())
        return Pictures(snapshots, source=self.source, keep=self.keep)

    def _make_serving(self) -> ServingProcess | None:
        """None: nothing is to be served."""
        config = self.config
        if not config.serving.listen:
            return None
        records = config.state_dir / "probe"
        task = Task(serving=config.serving, runtime=config.runtime, slots_dir=config.slots_dir, records_dir=records, version=self.version)
        return ServingProcess(task)

    def _make_machines(self) -> tuple[UpdateMachine, Candidates]:
        """What brings the releases of lines, and the candidates beside them."""
        assembly = Assembly(
            config=self.config,
            device_type=self.device_type,
            engine=self.inference,
            temperature_c=read_temperature_c,
            open_client=self._open_client,
            policy=self.policy,
            bucket=self.bucket,
            clock=self.clock,
        )
        slots, beside, memory = self._slots, self._beside, CandidateStore(self.store)
        machine = assembly.machine(UpdateStore(self.store), slots, beside=beside, downloads=DOWNLOADS, on_change=self._on_line)
        other = assembly.machine(memory, beside, beside=slots, downloads=CANDIDATE_DOWNLOADS, on_change=self._on_candidate)
        return machine, Candidates(other, beside, self.store, clock=self.clock, is_busy=machine.is_open, lines=slots)

    def _make_comparing(self) -> Comparing:
        return Comparing(
            self.candidates,
            self.inference,
            runtime=self.config.runtime,
            device=self._device,
            clock=self.clock,
            on_row=self.drift.add,
            row_step=self.drift.wished_step,
        )

    def _make_measuring(self) -> Measuring:
        sources = Sources(
            pipelines=self.inference.stats,
            served=lambda: self.serving.totals() if self.serving else [],
            ring_dropped=self.ring_dropped,
            lost_predictions=self.predictions.take_lost,
        )
        return Measuring(
            sources, store=self.store, conditions=self.conditions, budgets=self.budgets, traffic=self.traffic, clock=self.clock
        )

    # --- what goes on on an enrolled one ---

    def _join(self, identity: Identity) -> Joined:
        configuration = self._open_configuration(identity)
        uplink = self._make_uplink(identity)
        self.store.on_added = uplink.wake
        poller = self._make_poller(identity, configuration)
        reporter = self._make_reporter(identity, poller)
        importer = Importer(identity=identity, poller=poller, machine=self.machine, reporter=reporter, clock=self.clock, stop=self.stop)
        trials = Trials(
            configuration,
            conditions=self.conditions,
            clock=self.clock,
            twin=self.twin,
            inference=self.inference,
            predictions=self.predictions,
            uplink=uplink,
        )
        return Joined(identity, configuration, trials, uplink, poller, reporter, importer)

    def _open_configuration(self, identity: Identity) -> SignedConfiguration:
        wished = self.config.configuration
        rules = TrialRules(settle_s=wished.settle_s, trial_s=max(wished.trial_s, wished.settle_s))
        folder = self.config.state_dir / "configuration"
        return SignedConfiguration(folder, clock=self.clock, tenant=identity.tenant, device=identity.device, rules=rules)

    def _make_uplink(self, identity: Identity) -> Uplink:
        config = self.config
        inbox = Inbox(
            self._take_desired,
            self._take_job,
            {"ping": lambda _: {"version": self.version}, "conditions": lambda _: {"conditions": self.condition_rows()}},
            {"snapshot": self.pictures.take_for_server},
        )
        return Uplink(
            store=self.store,
            identity=identity,
            settings=config.broker,
            proxy=config.broker.proxy or config.server.proxy,
            resend_s=config.outbox.resend_s,
            ring_rows=config.outbox.ring_rows,
            conditions=self.conditions,
            clock=self.clock,
            traffic=self.traffic,
            held=lambda: self.budgets.held_streams,
            inbox=inbox,
        )

    def _make_poller(self, identity: Identity, configuration: SignedConfiguration) -> Poller:
        return Poller(
            self.machine,
            self.store,
            state_dir=self.config.state_dir,
            clock=self.clock,
            wish=partial(self._check_wish, identity, configuration),
            poll_s=lambda: self.twin.in_force.config.update.poll_s,
            on_check=self.on_check,
            on_traffic=self.traffic.add,
            name=identity.device,
            on_signed_time=self.site_time.hear,
            take_configuration=configuration.offer,
            take_candidates=self.candidates.offer,
            ask=partial(run_child, stop=self.stop),
            ask_stick=partial(run_stick_child, stop=self.stop),
        )

    def _make_reporter(self, identity: Identity, poller: Poller) -> Reporter:
        return Reporter(
            identity=identity,
            store=self.store,
            conditions=self.conditions,
            clock=self.clock,
            report_s=self.config.update.report_s,
            machine=self.machine,
            candidates=self.candidates,
            check=lambda: poller.state,
            open_client=self._open_client,
        )

    def _check_wish(self, identity: Identity, configuration: SignedConfiguration) -> CheckWish | None:
        """What the update check needs to know; None while the runtimes are not known."""
        kinds = self.runtimes.file_kinds()
        if kinds is None:
            return None
        return CheckWish(
            server=self._server(identity),
            device_type=self.device_type,
            runtimes=kinds,
            agent_version=self.version,
            proxy=self.config.server.proxy,
            timeout_s=self.config.server.timeout_s,
            min_bytes_per_s=self.config.update.min_bytes_per_s,
            wants_time=(self.policy.has_windows or self.has_schedules()) and self.site_time.wants_signed,
            configurations=tuple(sorted(configuration.floors().items())),
            group=self.config.configuration.group or "",
        )

    def bring_configuration(self, stop: threading.Event) -> None:
        """Fetch signed configuration whenever it is offered, until `stop` is set."""
        if self.joined is not None:
            self.joined.configuration.run(stop, self._fetch_configuration)

    def _fetch_configuration(self, offer: ConfigurationOffer) -> bytes:
        if (brought := find_imported(self.config.state_dir, offer)) is not None:
            return brought
        with self._open_client() as client:
            return read_answer(client, "GET", offer.url, limit=offer.length)

    def _server(self, identity: Identity) -> str:
        return self.config.server.url or identity.enrollment.server

    def _open_client(self) -> AbstractContextManager["httpx.Client"]:
        identity, server = self._identity, self.config.server
        if identity is None:
            raise DeviceError("This device is not enrolled.", code="not-enrolled")
        address = self._server(identity)
        return open_client(identity.tls_context(), base_url=address, proxy=server.proxy, timeout_s=server.timeout_s, traffic=self.traffic)

    # --- who hears what ---

    def on_check(self, state: CheckState) -> None:
        """On the poller's thread: a check that failed is a condition until one succeeds; what looks like an attack is reported at once."""
        error, code = state.error, "update_check_failed"
        if error is not None and error.family == TrustError.__name__:
            code = "metadata_stale" if error.code == "freeze" else "trust_refused"
        # the code first: it is the one that the page "why was my update refused" lists
        text = "" if error is None else error.text if code == "update_check_failed" else f"{error.code}: {error.text}"
        self.conditions.replace("check", [] if error is None else [(code, text, "")])
        if state.attack_indicator != self._told_attack:
            self._told_attack = state.attack_indicator
            for line in (*self.machine.lines(),) or ("",):
                self._request_report(line)

    def _on_line(self, line: LineName) -> None:
        self.line_news.changed(line, self.machine.state_of(line))

    def _on_candidate(self, line: LineName) -> None:
        self.line_news.candidate_changed(line, self.candidates.machine.state_of(line))

    def _on_policy_change(self) -> None:
        """What was forbidden may be allowed now: whoever waits looks again."""
        self.bucket.limit_to(self.policy.config.bandwidth_kib_s * 1024)
        self.machine.wake()
        self.candidates.machine.wake()

    def _take_desired(self, desired: Desired) -> None:
        for consent in desired.consents:
            self.machine.hear_consent(LineName(consent.line), consent.assignment, is_given=consent.given)
        if self.twin.take(desired) and self.joined is not None:
            hint = desired.manifest
            self.joined.poller.hint(spread_s=hint.spread_s if hint else 0.0, about=hint.sha256 if hint else "")

    def _take_job(self, _body: bytes) -> None:
        """A wake-up only: the truth is what the director says."""
        self._hint()

    def _hint(self) -> None:
        if self.joined is not None:
            self.joined.poller.hint()

    def _request_report(self, line: str) -> None:
        if self.joined is not None:
            self.joined.reporter.request(line)


def _has_profile(slots: Slots, line: str) -> bool:
    """Whether the release that the line runs came with a reference profile."""
    slot = slots.active(LineName(line))
    return slot is not None and any(file.name == "profile.cbor" for file in slot.content.files)
