"""Candidates beside champions, from assignment to report: says what runs in shadow and what takes turns, adds up what comes of it.

Figures of the shadow process and predictions of both arms come on other threads; reports leave as events of class `stored`, one per window
and one at the end. Nothing here is part of the champions' health.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agent.config import PipelineConfig, RuntimeConfig
from agent.database.outbox import Draft
from agent.events.bodies import event_body
from agent.inference.messages import ArmOrder, Prediction, Sampled
from agent.inference.process import InferenceProcess
from agent.inference.shadow_messages import Candidate
from agent.inference.shadow_pairs import ArmTally
from agent.inference.shadow_process import ShadowProcess
from agent.inference.shadow_reports import Compared
from agent.update.candidates import CandidatePlan, Candidates
from protocol.clock import Clock, to_unix_ms
from protocol.shadow import EVENT_TYPE, Arm, Comparison, ShadowReport, summed

RunAs = Literal["shadow", "ab"]
#: Comparisons kept open at once: pipelines, times releases that were champion within one window.
MAX_OPEN = 256
#: Seconds of system time between two looks at what is to run.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Key:
    """What one report is about."""

    assignment: str
    pipeline: str
    champion: str


@dataclass(slots=True)
class _Open:
    """One window of one comparison."""

    plan: CandidatePlan
    run_as: RunAs
    since_ms: int
    figures: Comparison = field(default_factory=Comparison)
    champion: ArmTally = field(default_factory=ArmTally)
    candidate: ArmTally = field(default_factory=ArmTally)
    #: Failed inferences of both when the window began; the pipelines of a line share them.
    errors: tuple[int, int] = (0, 0)

    def comparison(self, errors: tuple[int, int]) -> Comparison:
        """All that was counted in the window; `errors`: failed inferences of both until now, since their models were loaded."""
        if self.run_as == "shadow":
            return self.figures
        # a model that was loaded anew counts from 0
        failed = [now - before if now >= before else now for now, before in zip(errors, self.errors, strict=True)]
        return Comparison(champion=_with_errors(self.champion.arm(), failed[0]), candidate=_with_errors(self.candidate.arm(), failed[1]))


class Comparing:
    """Runs candidates on this device. `tick` is called by the control loop; the rest from any thread."""

    def __init__(
        self,
        candidates: Candidates,
        inference: InferenceProcess,
        *,
        runtime: RuntimeConfig,
        device: str,
        clock: Clock,
        on_row: Callable[[Sampled], None] = lambda _: None,
        row_step: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`on_row`: takes what drift watches of candidates in the shadow; `row_step`: seconds between two rows, None: there are none."""
        self._candidates, self._inference = candidates, inference
        self._runtime, self._device, self._clock = runtime, device, clock
        self._shadow = ShadowProcess(bring=inference.bring_shadow, on_compared=self._hear, on_row=on_row)
        self._row_step = row_step
        self._lock = threading.Lock()
        self._plans: dict[tuple[str, str], CandidatePlan] = {}
        self._open: dict[_Key, _Open] = {}
        #: Comparisons whose end, or giving up, was told.
        self._told: set[tuple[str, str]] = set()
        self._looked_s = self._reported_s = clock.monotonic()

    def stop(self, *, source: str) -> list[Draft]:
        """End the shadow process; returns the reports of what was counted until now."""
        self._shadow.stop()
        with self._lock:
            keys = [*self._open]
        return [_draft(report, source) for report in self._reports(keys)]

    def tick(self, pipelines: Sequence[PipelineConfig], *, source: str, may_act: bool) -> list[Draft]:
        """Bring what runs in line with what is assigned; returns the reports that are due. `may_act`: candidates may answer for real.

        Raises: DeviceError, OSError when a disk does not answer; then nothing changed.
        """
        now_s = self._clock.monotonic()
        if now_s - self._looked_s < LOOK_S * self._clock.speed:
            return []
        self._looked_s = now_s
        self._candidates.tend()
        plans = self._candidates.plans() if self._runtime.shadow_cpu_max > 0 else []
        wanted = {(plan.offer.assignment, one.name): plan for plan in plans for one in pipelines if one.line == plan.offer.line}
        self._run_shadow(plans, wanted)
        self._run_arms(wanted, may_act=may_act)
        reports = self._ended(wanted)
        with self._lock:
            self._plans = wanted
        reports += self._given_up(wanted, may_act=may_act)
        if now_s - self._reported_s >= self._runtime.shadow_report_s:
            self._reported_s = now_s
            with self._lock:
                keys = [*self._open]
            reports += self._reports(keys)
        return [_draft(report, source) for report in reports]

    def observe(self, prediction: Prediction) -> None:
        """Count a prediction of a pipeline whose two releases take turns."""
        with self._lock:
            plan = next((plan for (_, name), plan in self._plans.items() if name == prediction.pipeline), None)
            if plan is None or self._candidates.runs_as(plan, prediction.pipeline) != "ab":
                return
            is_candidate = prediction.release == plan.release
            active = plan.champion if is_candidate else prediction.release
            window = self._window(_Key(plan.offer.assignment, prediction.pipeline, active), plan, "ab")
            if window is not None:
                (window.candidate if is_candidate else window.champion).answered(prediction)

    def conditions(self) -> list[tuple[str, str, str]]:
        """(code, text, line) of candidates that do not run on this device."""
        failed = [(one.line, given.text) for one, given in self._shadow.given_up().items()]
        failed += [(line, text) for line, text in self._inference.lost_arms().items()]
        return [("candidate_failed", text[:2000], line) for line, text in failed]

    @property
    def pid(self) -> int | None:
        """The shadow's process id while it runs."""
        return self._shadow.pid

    # --- what is to run ---

    def _run_shadow(self, plans: Sequence[CandidatePlan], wanted: dict[tuple[str, str], CandidatePlan]) -> None:
        found: list[Candidate] = []
        cpu = 0
        for plan in plans:
            names = sorted(
                name
                for (assignment, name) in wanted
                if assignment == plan.offer.assignment and self._candidates.runs_as(plan, name) == "shadow"
            )
            if names:
                found.append(Candidate(plan.offer.line, plan.release, plan.folder, tuple(names)))
                cpu = max(cpu, plan.run.cpu)
        share = min(self._runtime.shadow_cpu_max, cpu / 100)
        runtime = self._runtime
        self._shadow.configure(
            tuple(found),
            providers=runtime.providers,
            threads=runtime.threads,
            cpu_share=share,
            priority=runtime.shadow_priority,
            row_step_s=self._row_step(),
        )

    def _run_arms(self, wanted: dict[tuple[str, str], CandidatePlan], *, may_act: bool) -> None:
        arms = [
            ArmOrder(plan.offer.line, name, plan.folder, plan.run.share, plan.run.salt or plan.offer.assignment, self._device)
            for (_, name), plan in sorted(wanted.items())
            if may_act and self._candidates.runs_as(plan, name) == "ab"
        ]
        self._inference.take_turns(tuple(arms))

    # --- what comes of it ---

    def _hear(self, compared: Compared) -> None:
        """On the reader thread of the shadow."""
        with self._lock:
            for (assignment, name), plan in self._plans.items():
                if name == compared.pipeline and plan.release == compared.candidate:
                    window = self._window(_Key(assignment, name, compared.champion), plan, "shadow")
                    if window is not None:
                        window.figures = summed([window.figures, compared.figures])

    def _window(self, key: _Key, plan: CandidatePlan, run_as: RunAs) -> _Open | None:
        found = self._open.get(key)
        if found is None and len(self._open) < MAX_OPEN:
            found = self._open[key] = _Open(plan, run_as, to_unix_ms(self._clock.now()), errors=self._errors(plan))
        return found

    def _ended(self, wanted: dict[tuple[str, str], CandidatePlan]) -> list[ShadowReport]:
        """The last reports of comparisons that are not to run any more."""
        with self._lock:
            keys = [*self._open]
        gone = [key for key in keys if (key.assignment, key.pipeline) not in wanted]
        return self._reports(gone, state="ended", reason="assignment_ended")

    def _given_up(self, wanted: dict[tuple[str, str], CandidatePlan], *, may_act: bool) -> list[ShadowReport]:
        """One report for each comparison that cannot run here, as soon as that is known."""
        self._told &= wanted.keys()
        reports = []
        shadows = {(one.line, one.release): given for one, given in self._shadow.given_up().items()}
        arms = self._inference.lost_arms()
        for key, plan in wanted.items():
            run_as = self._candidates.runs_as(plan, key[1])
            given = shadows.get((plan.offer.line, plan.release))
            if key in self._told or run_as == "active":
                continue
            if run_as == "shadow" and given is not None:
                reports += self._give_up(key, plan, run_as, given.code, given.text)
            elif run_as == "ab" and plan.offer.line in arms:
                reports += self._give_up(key, plan, run_as, "candidate_failed", arms[plan.offer.line])
            elif run_as == "ab" and not may_act:
                text = "This site has to agree before a release may act, and nobody is asked for a candidate."
                reports += self._give_up(key, plan, run_as, "consent", text)
        return reports

    def _give_up(self, key: tuple[str, str], plan: CandidatePlan, run_as: RunAs, reason: str, text: str) -> list[ShadowReport]:
        self._told.add(key)
        with self._lock:
            if not any((one.assignment, one.pipeline) == key for one in self._open):
                self._window(_Key(*key, plan.champion), plan, run_as)
            keys = [one for one in self._open if (one.assignment, one.pipeline) == key]
        return self._reports(keys, state="gave_up", reason=reason, text=text)

    def _reports(
        self, keys: Sequence[_Key], *, state: Literal["running", "ended", "gave_up"] = "running", reason: str = "", text: str = ""
    ) -> list[ShadowReport]:
        now_ms = to_unix_ms(self._clock.now())
        with self._lock:
            closed = [(key, window) for key in keys if (window := self._open.pop(key, None)) is not None]
        return [
            ShadowReport(
                pipeline=key.pipeline,
                line=window.plan.offer.line,
                run_as=window.run_as,
                champion=key.champion,
                candidate=window.plan.release,
                assignment=key.assignment,
                campaign=window.plan.offer.campaign,
                since=window.since_ms,
                until=max(now_ms, window.since_ms),
                budget_permille=self._budget_permille(window) if window.run_as == "shadow" else 0,
                state=state,
                reason=reason[:200],
                text=text[:2000],
                figures=window.comparison(self._errors(window.plan)),
            )
            for key, window in closed
        ]

    def _errors(self, plan: CandidatePlan) -> tuple[int, int]:
        line = plan.offer.line
        return self._inference.errors_of(line, plan.champion_folder), self._inference.errors_of(line, plan.folder)

    def _budget_permille(self, window: _Open) -> int:
        return round(1000 * min(self._runtime.shadow_cpu_max, window.plan.run.cpu / 100))


def _with_errors(arm: Arm, errors: int) -> Arm:
    return arm.model_copy(update={"frames": arm.frames + errors, "errors": errors})


def _draft(report: ShadowReport, source: str) -> Draft:
    return Draft("event", (), event_body(EVENT_TYPE, source=source, subject=report.pipeline, data=report.model_dump(mode="json")))
