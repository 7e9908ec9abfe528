"""What the update machine does in each state. Every step first looks whether its effect exists, so it may run again after any cut.

A step returns an outcome, or a `Hold` when it has to wait; what it learned travels in the returned update. It fails by an exception.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from agent.update.applier import DeltaApplier
from agent.update.assignment import LineOffer, OfferedDelta, OfferedFile
from agent.update.delivery import Bases, Delivery, decide
from agent.update.fetch import SYNC_BYTES, Fetcher, StoppedError
from agent.update.installers import Installer
from agent.update.journal import Update
from agent.update.policy import Gate, Permission, Policy, Wait
from agent.update.probe import Judgment, ProbeRules, judge, warmed
from agent.update.states import Outcome, UpdateState
from protocol.clock import Clock
from protocol.delta.errors import DeltaError
from protocol.errors import DeviceError, TransferError, TrustError, UnavailableError
from protocol.ids import Digest, LineName
from runtime.selftest import Figures

#: Full jitter `U(0, 1.5^n)` seconds after the n-th failed transfer in a row, capped; a server that asks for more gets up to a day.
BACKOFF_BASE, BACKOFF_CAP_S, RETRY_AFTER_CAP_S = 1.5, 600.0, 86_400.0
#: Real seconds between two looks at the figures of a probe.
PROBE_TICK_S = 0.25
#: Seconds of the agent's clock for which an activation waits for figures of the old release: after a start it has none yet.
PEER_S = 60.0
#: Shorter rests of a wait, in seconds, are none.
LEAST_WAIT_S = 0.001
#: Seconds of the agent's clock between two looks at a window or consent.
WAITING_TICK_S = 30.0
#: Percent of a download between two signs of progress.
PROGRESS_STEP = 10
#: More bytes than this many times the planned ones end the update (UPDATES 3.4).
TRANSFER_BUDGET = 2
#: Answers of a server that does not have a blob any more.
_GONE = frozenset({"http-404", "http-410"})
#: What a transfer is that had other bytes than the signed ones.
_NOT_SIGNED = frozenset({"hash_mismatch", "endless-data"})
#: Self-test verdicts that speak about this device, not about the release.
_NOT_THE_RELEASE = frozenset({"file_mismatch", "timeout"})


@dataclass(frozen=True, slots=True)
class Hold:
    """The step waits; look again after this many seconds of the agent's clock."""

    seconds: float
    #: What it waits for, for people; `code` is set when something is wrong.
    text: str = ""
    code: str = ""
    #: The same for programs, and until when, if that is known.
    wait: Wait | None = None
    until: datetime | None = None


class ReleaseError(DeviceError):
    """The release itself does not hold on this device; it is refused until it is offered with a higher attempt."""


Result = tuple[Outcome | Hold, Update]


@dataclass(slots=True)
class _Probe:
    """A probe under way, in memory only: after a cut it begins from zero."""

    started: float
    first: Figures | None = None
    #: The first figures after the model had settled; memory grows from here.
    settled: Figures | None = None
    last: Figures | None = None
    #: The golden vectors passed on the back end that runs.
    is_tested: bool = False
    #: When the temperature was read last.
    read_s: float = 0.0

    def smoothed(self, figures: Figures | None, now_s: float) -> Figures | None:
        """The figures with the temperature of the latest minute in place of the moment's."""
        before, self_s, self.read_s = self.last, self.read_s, now_s
        if figures is None or before is None:
            return figures
        return replace(figures, temperature_c=warmed(before.temperature_c, figures.temperature_c, now_s - self_s))


class Steps:
    """The step of every state that is not final. `save` makes an update durable in the middle of a step."""

    def __init__(
        self,
        installer: Installer,
        fetcher: Fetcher,
        *,
        applier: DeltaApplier,
        clock: Clock,
        rules: ProbeRules,
        policy: Policy,
        chance: random.Random,
        save: Callable[[Update], None],
        on_progress: Callable[[LineName], None],
        should_stop: Callable[[LineName], bool],
    ) -> None:
        self._installer = installer
        self._fetcher = fetcher
        self._applier = applier
        self._clock = clock
        self._rules = rules
        self._policy = policy
        self._chance = chance
        self._save = save
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._failures: dict[LineName, int] = {}
        #: Back-off under way: a wake for another reason must not end it.
        self._backing_off: dict[LineName, tuple[float, Hold]] = {}
        #: Bases that were hashed for the line's update, and whether they were what their slot says.
        self._hashed: dict[LineName, dict[Path, bool]] = {}
        self._probes: dict[LineName, _Probe] = {}
        self._peers_since: dict[LineName, float] = {}
        #: Percent of the download, per line.
        self.progress: dict[LineName, int] = {}
        self._table: Mapping[UpdateState, Callable[[Update], Result]] = {
            UpdateState.IDLE: self._begin,
            UpdateState.DOWNLOADING: self._download,
            UpdateState.VERIFYING: self._verify,
            UpdateState.INSTALLING: self._install,
            UpdateState.WAITING: self._wait,
            UpdateState.ACTIVATING: self._activate,
            UpdateState.PROBING: self._probe,
            UpdateState.COMMITTING: self._commit,
            UpdateState.ROLLING_BACK: self._roll_back,
        }

    def run(self, update: Update) -> Result:
        """Do the step of the update's state. Raises: MooringError, OSError."""
        return self._table[update.state](update)

    def forget(self, line: LineName) -> None:
        """Forget what was kept in memory about the line's update."""
        self._failures.pop(line, None)
        self._backing_off.pop(line, None)
        self._hashed.pop(line, None)
        self._probes.pop(line, None)
        self._peers_since.pop(line, None)

    def _begin(self, update: Update) -> Result:
        self.progress[update.offer.line] = 0
        return Outcome.OK, update

    # --- downloading ---

    def _download(self, update: Update) -> Result:
        line, offer = update.offer.line, update.offer
        if self._installer.holds(offer):
            return Outcome.OK, update.with_context(delivery=update.context.delivery or Delivery())
        gate = self._policy.may_download(offer, self._clock.now())
        if gate.permission is not Permission.OPEN:
            return self._at_gate(update, gate)
        if (wait := self._still_backing_off(line)) is not None:
            return wait, update
        update, missing = self._decide(update)
        if refusal := self._policy.refusal(offer, missing):
            return Hold(WAITING_TICK_S, refusal, "full_download_refused", Wait.FULL_DOWNLOAD), self._kept_waiting(update)
        delivery = update.context.delivery or missing
        in_place = sum(self._fetcher.in_place({digest for _, digest in delivery.blobs}).values())
        update = self._note_gain(update, in_place)
        download = _Download(update, delivery, missing, in_place)
        try:
            for file, delta in missing.ways(offer):
                self._fetch(file, delta, download)
        except StoppedError:
            self._save(download.noted(update))
            return Hold(0.0), update
        except _DeltaGoneError as gone:
            # decided anew at once: from another base, or whole if the link may carry that
            setbacks = update.context.setbacks
            update = download.noted(update).with_context(setbacks=replace(setbacks, missing=(*setbacks.missing, gone.digest)))
            self._save(update)
            return Hold(0.0), update
        except TransferError as error:
            # a link that is down is no fault of the update, so restarts meanwhile do not count
            update = download.noted(update, is_slow=error.code == "slow-retrieval").restarted(saves=1)
            update = update.with_context(bytes_in_place=max(update.context.bytes_in_place, download.in_place))
            self._save(update)
            return self._back_off(line, error), update
        except _WrongDeltaError as wrong:
            self._save(_with_failed(download.noted(update), wrong.digest))
            raise
        except DeviceError:
            self._save(download.noted(update))
            raise
        self._failures.pop(line, None)
        return Outcome.OK, download.noted(update)

    def _at_gate(self, update: Update, gate: Gate) -> Result:
        """What a gate that is not open makes of the step."""
        if gate.permission is Permission.REFUSED:
            return Outcome.ABORTED, update.with_reason("consent", gate.text).with_context(is_aborted=True)
        return Hold(WAITING_TICK_S, gate.text, wait=gate.wait, until=gate.until), self._kept_waiting(update)

    def _kept_waiting(self, update: Update) -> Update:
        """The update, whose starts while it only waits do not count."""
        if update.saves > 1:
            update = update.restarted(saves=1)
            self._save(update)
        return update

    def _decide(self, update: Update) -> tuple[Update, Delivery]:
        """The update with what is fetched for it, durably, and what of it is missing yet; what a slot has is brought over first."""
        offer, context = update.offer, update.context
        present = {file.name for file in offer.files if self._find_or_adopt(file)}
        missing = decide(
            offer,
            present=present,
            bases=self._bases(offer, present),
            setbacks=context.setbacks,
            in_place=self._fetcher.in_place(offer.digests),
            prefers_deltas=self._policy.prefers_deltas(),
        )
        if context.delivery is None or not set(missing.blobs) <= set(context.delivery.blobs):
            update = update.with_context(delivery=missing, bytes_before=context.bytes_downloaded, bytes_in_place=0)
            self._save(update)
        return update, missing

    def _find_or_adopt(self, file: OfferedFile) -> bool:
        if self._fetcher.find(file) is not None:
            return True
        source = self._installer.find_file(file.sha256)
        return source is not None and self._fetcher.adopt(file, source)

    def _bases(self, offer: LineOffer, present: set[str]) -> Bases:
        """Files of the line's slots that the offered deltas start from, each hashed once per update."""
        wanted = {delta.base_sha256 for file in offer.files if file.name not in present for delta in file.deltas if not delta.is_full}
        hashed = self._hashed.setdefault(offer.line, {})
        whole, damaged = set[Digest](), set[Digest]()
        for digest in wanted:
            path = self._installer.find_base(offer.line, digest)
            if path is not None:
                if path not in hashed:
                    hashed[path] = self._installer.hash_file(path) == digest
                (whole if hashed[path] else damaged).add(digest)
        return Bases(frozenset(whole), frozenset(damaged))

    def _fetch(self, file: OfferedFile, delta: OfferedDelta | None, download: "_Download") -> None:
        line, offer = download.offer.line, download.offer
        blob = file if delta is None else delta.as_file(file.name)
        if self._fetcher.find(blob) is not None:
            return

        def should_stop() -> bool:
            if self._should_stop(line) or self._policy.may_download(offer, self._clock.now()).permission is not Permission.OPEN:
                return True
            return bool(self._policy.refusal(offer, download.missing))  # the link became a metered one

        try:
            self._fetcher.fetch(blob, on_bytes=lambda count: self._count(count, download), should_stop=should_stop)
        except TransferError as error:
            if delta is not None and error.code in _GONE:
                raise _DeltaGoneError(error, delta.sha256) from error
            raise
        except TrustError as error:
            if delta is not None and error.code in _NOT_SIGNED:
                raise _WrongDeltaError(error, delta.sha256) from error
            raise
        self._show(download)

    def _count(self, count: int, download: "_Download") -> None:
        download.add(count)
        if download.is_worth_saving():
            self._save(download.noted(download.update))
        self._show(download)

    def _show(self, download: "_Download") -> None:
        line, percent = download.offer.line, download.percent
        if percent >= self.progress.get(line, 0) + PROGRESS_STEP or percent < self.progress.get(line, 0):
            self.progress[line] = percent
            self._on_progress(line)

    def _note_gain(self, update: Update, in_place: int) -> Update:
        if in_place <= update.context.bytes_in_place:
            return update
        # a bad supply is no fault while bytes are gained
        update = update.restarted(saves=1).with_context(bytes_in_place=in_place)
        self._save(update)
        return update

    def _back_off(self, line: LineName, error: TransferError) -> Hold:
        n = self._failures[line] = self._failures.get(line, 0) + 1
        asked = error.retry_after_s if isinstance(error, UnavailableError) else None
        wait_s = self._chance.uniform(0.0, min(BACKOFF_CAP_S, BACKOFF_BASE ** min(n, 64)))
        hold = Hold(max(wait_s, min(asked or 0.0, RETRY_AFTER_CAP_S)), text=str(error), code=error.code, wait=Wait.SERVER)
        self._backing_off[line] = (self._clock.monotonic() + hold.seconds, hold)
        return hold

    def _still_backing_off(self, line: LineName) -> Hold | None:
        until, hold = self._backing_off.get(line, (0.0, Hold(0.0)))
        left = until - self._clock.monotonic()
        return replace(hold, seconds=left) if left > LEAST_WAIT_S else None

    # --- verifying, installing, waiting ---

    def _verify(self, update: Update) -> Result:
        self._installer.verify(update.offer, self._files(update))
        if not self._installer.holds(update.offer):
            for file, delta in self._to_be_made(update):
                self._check_delta(update, file, delta)
        return Outcome.OK, update

    def _check_delta(self, update: Update, file: OfferedFile, delta: OfferedDelta) -> None:
        """Whether the delta can make the file from what is here now. Raises: DeviceError `delta_failed`, `base_damaged`; OSError."""
        base = self._base_of(update, delta)
        if base is not None and self._installer.hash_file(base) != delta.base_sha256:
            text = f"The file that the delta of {file.name} starts from is damaged: {base.parent.name}/{base.name}."
            raise DeviceError(text, code="base_damaged")
        with self._blamed(update, delta):
            self._applier.check(file, delta, self._delta_path(file, delta))

    def _install(self, update: Update) -> Result:
        line = update.offer.line
        if not self._installer.holds(update.offer):
            try:
                for file, delta in self._to_be_made(update):
                    self._make(update, file, delta)
            except StoppedError:
                return Hold(0.0), update
            self._hashed.pop(line, None)  # the slot that is written now may have held a base
        self._installer.install(update.offer, self._files(update))
        if not update.context.self_tested:
            test = self._installer.self_test(update.offer)
            if not test.ok:
                kind = DeviceError if test.code in _NOT_THE_RELEASE else ReleaseError
                raise kind(test.text or "The self-test failed.", code=test.code or "self_test_failed")
            update = update.with_context(self_tested=True)
        self.progress[update.offer.line] = 100
        return Outcome.OK if update.offer.candidate is None else Outcome.ASIDE, update

    def _to_be_made(self, update: Update) -> list[tuple[OfferedFile, OfferedDelta]]:
        """Files that came as deltas and are not made yet."""
        ways = (update.context.delivery or Delivery()).ways(update.offer)
        return [(file, delta) for file, delta in ways if delta is not None and self._fetcher.find(file) is None]

    def _make(self, update: Update, file: OfferedFile, delta: OfferedDelta) -> None:
        """Put the file that the delta makes beside the other downloads. Raises: DeviceError; StoppedError; OSError."""
        line, result = update.offer.line, self._fetcher.begin_result()
        base = self._base_of(update, delta)
        with self._blamed(update, delta):
            self._applier.apply(file, self._delta_path(file, delta), base, result, should_stop=lambda: self._should_stop(line))
        self._fetcher.take_result(file, result)

    def _base_of(self, update: Update, delta: OfferedDelta) -> Path | None:
        if delta.is_full:
            return None
        base = self._installer.find_base(update.offer.line, delta.base_sha256)
        if base is None:
            raise DeviceError(f"No slot holds the base {delta.base_sha256} of the delta any more.", code="base_damaged")
        return base

    def _delta_path(self, file: OfferedFile, delta: OfferedDelta) -> Path:
        found = self._fetcher.find(delta.as_file(file.name))
        if found is None:
            raise DeviceError(f"The delta of {file.name} is not in the download folder any more.", code="download_lost")
        return found

    @contextmanager
    def _blamed(self, update: Update, delta: OfferedDelta) -> Iterator[None]:
        """What the delta itself is guilty of is remembered, so that the server can withdraw it."""
        try:
            yield
        except DeltaError:
            self._save(_with_failed(update, delta.sha256))
            raise

    def _files(self, update: Update) -> dict[str, Path]:
        found = {file.name: self._fetcher.find(file) for file in update.offer.files}
        return {name: path for name, path in found.items() if path is not None}

    def _wait(self, update: Update) -> Result:
        gate = self._policy.may_activate(update.offer, self._clock.now())
        return (Outcome.OK, update) if gate.permission is Permission.OPEN else self._at_gate(update, gate)

    # --- activating, probing, committing, rolling back ---

    def _activate(self, update: Update) -> Result:
        if update.context.peer is None and not self._installer.is_active(update.offer):
            peer = self._installer.figures(update.offer.line)
            if update.old_slot is not None and self._is_to_show_more(update.offer.line, peer):
                return Hold(PROBE_TICK_S * self._clock.speed, text="Waits for figures of the release that runs now."), update
            update = update.with_context(peer=peer)
            self._save(update)
        activation = self._installer.activate(update.offer)
        if not activation.ok:
            raise ReleaseError(activation.text, code=activation.code)
        return Outcome.OK, update

    def _is_to_show_more(self, line: LineName, peer: Figures | None) -> bool:
        """Whether the old release, just started, has yet to show what the new one is measured by; it gets a while for that."""
        since = self._peers_since.setdefault(line, self._clock.monotonic())
        wanted = min(self._rules.settle_inferences, self._rules.min_inferences)
        return (peer is None or peer.inferences < wanted) and self._clock.monotonic() - since < PEER_S

    def _probe(self, update: Update) -> Result:
        line, offer = update.offer.line, update.offer
        probe = self._probes.get(line)
        if probe is None:
            activation = self._installer.activate(offer)  # after a cut the inference process may not have got this far
            if not activation.ok:
                raise ReleaseError(activation.text, code=activation.code)
            self._probes[line] = _Probe(self._clock.monotonic())
            return Hold(PROBE_TICK_S * self._clock.speed), update
        figures = probe.smoothed(self._installer.figures(line), self._clock.monotonic())
        if figures is not None and figures.provider and not probe.is_tested:
            probe.is_tested = self._test_live(offer, figures.provider)
        rules = self._rules.stricter(self._installer.wishes(offer))
        elapsed_s = self._clock.monotonic() - probe.started
        verdict = judge(
            figures, first=probe.first, settled=probe.settled, last=probe.last, old=update.context.peer, rules=rules, elapsed_s=elapsed_s
        )
        probe.first, probe.last = probe.first or figures, figures
        if probe.settled is None and figures is not None and figures.healthy >= rules.settle_inferences:
            probe.settled = figures
        update = update.with_context(healthy=0 if figures is None else figures.healthy)
        match verdict.judgment:
            case Judgment.WAIT:
                return Hold(PROBE_TICK_S * self._clock.speed, text=verdict.text), update
            case Judgment.FAILED:
                raise ReleaseError(verdict.text, code=verdict.code)
            case Judgment.HEALTHY if figures is not None and figures.provider and not probe.is_tested:
                if elapsed_s >= rules.max_seconds:
                    raise ReleaseError("The golden vectors gave no answer while it ran.", code="probe_timeout")
                return Hold(PROBE_TICK_S * self._clock.speed, text="Its golden vectors have yet to answer."), update
            case Judgment.HEALTHY:
                return Outcome.OK, update.with_reason("", verdict.text)

    def _test_live(self, offer: LineOffer, provider: str) -> bool:
        """Whether the golden vectors pass on the back end that runs now, which may be another than at the installation.

        False: they gave no answer in time. Raises: ReleaseError, DeviceError.
        """
        test = self._installer.live_test(offer, provider)
        if test.ok or test.code == "timeout":
            return test.ok
        kind = DeviceError if test.code in _NOT_THE_RELEASE else ReleaseError
        raise kind(test.text or f"The golden vectors fail on {provider}.", code=test.code or "self_test_failed")

    def _commit(self, update: Update) -> Result:
        self._installer.commit(update.offer)
        return Outcome.OK, update

    def _roll_back(self, update: Update) -> Result:
        self._installer.roll_back(update.offer.line, update.old_slot)
        return Outcome.OK, update


class _Download:
    """Bytes of one update's delivery: in place, and fetched over the network."""

    def __init__(self, update: Update, delivery: Delivery, missing: Delivery, in_place: int) -> None:
        self.update = update
        self.offer = update.offer
        self.missing = missing
        self.in_place = in_place
        self._saved = update.context.bytes_downloaded
        self._planned_bytes = delivery.planned_bytes
        self._before = update.context.bytes_before
        self._fetched = update.context.bytes_downloaded

    def add(self, count: int) -> None:
        """Count bytes that came. Raises: DeviceError `transfer_budget` when far more came than was decided."""
        self.in_place += count
        self._fetched += count
        if self._fetched - self._before > TRANSFER_BUDGET * self._planned_bytes:
            text = f"{self._fetched - self._before} bytes were fetched where {self._planned_bytes} were planned."
            raise DeviceError(text, code="transfer_budget")

    def is_worth_saving(self) -> bool:
        """Whether so much came since the last time that a power cut must not forget it: it is paid for."""
        is_worth = self._fetched - self._saved >= SYNC_BYTES
        self._saved = self._fetched if is_worth else self._saved
        return is_worth

    @property
    def percent(self) -> int:
        """How much of it is in place, 0..100."""
        return min(100, max(0, 100 * self.in_place // max(1, self._planned_bytes)))

    def noted(self, update: Update, *, is_slow: bool = False) -> Update:
        """The update with what was fetched."""
        return update.with_context(bytes_downloaded=self._fetched, slow_retrieval=update.context.slow_retrieval or is_slow)


class _DeltaGoneError(TransferError):
    """The server does not have the delta any more."""

    def __init__(self, error: TransferError, digest: Digest) -> None:
        super().__init__(error.message, code=error.code)
        self.digest = digest


class _WrongDeltaError(DeltaError):
    """What came as the delta is not what the director named."""

    def __init__(self, error: TrustError, digest: Digest) -> None:
        super().__init__(error.message)
        self.digest = digest


def _with_failed(update: Update, digest: Digest) -> Update:
    setbacks = update.context.setbacks
    if digest in setbacks.failed:  # the step was cut after it had saved this
        return update
    return update.with_context(setbacks=replace(setbacks, failed=(*setbacks.failed, digest)))
