"""Who infers a frame: the thread that captured it, in place, or the pipeline's own, to which it is handed over. Pure: seconds go in.

Handing over wakes two threads for each frame, which costs more than a small model. It pays when the next frame can be decoded while one is
inferred, and when a live source gives frames faster than they are inferred: then somebody has to drain its queue, for the latest to win.
"""

from dataclasses import dataclass

#: Seconds between two decisions.
SPELL_S = 0.5
#: Share of its time that the capture thread may be busy when it begins, and when it goes on, to infer in place.
ENTER_BUSY, STAY_BUSY = 0.5, 0.75
#: Seconds per frame that two threads would have to save for handing over to pay; a recording waits for us, so nothing else counts there.
ENTER_SAVED_S, STAY_SAVED_S = 100e-6, 150e-6
#: An inference in place that took longer is handed over from then on: meanwhile a live source filled its queue.
LONG_S = 0.25
#: Every so many inferences in place the processor time of one is measured; of those that take so long, of each: what capturing costs is
#: the small difference that they leave, and there two system calls are nothing.
SAMPLE, SAMPLE_ALL_S = 8, 0.5e-3


@dataclass(frozen=True, slots=True)
class Spell:
    """What a capture thread and the inferences of its frames took."""

    elapsed_s: float
    #: Processor time of the capture thread, inferences not included.
    capture_s: float
    #: From pick-up to answer, of all inferences together.
    infer_s: float
    inferred: int


def decide(spell: Spell, *, is_in_place: bool, is_live: bool) -> bool:
    """Whether frames are inferred in place from now on; `is_in_place`: whether they were. A live source does not wait for us."""
    if spell.inferred <= 0:
        return is_in_place
    busy = (spell.capture_s + spell.infer_s) / spell.elapsed_s
    if busy <= (STAY_BUSY if is_in_place else ENTER_BUSY):
        return True
    saved_s = min(spell.capture_s, spell.infer_s) / spell.inferred
    return not is_live and saved_s <= (STAY_SAVED_S if is_in_place else ENTER_SAVED_S)


class Handover:
    """The decision of one capture thread, and the sums that it is made of."""

    def __init__(self, *, is_live: bool) -> None:
        #: Frames are inferred by the thread that captures them.
        self.is_in_place = False
        #: When the next decision is due, seconds of the capture's clock.
        self.due_s = 0.0
        self._is_live = is_live
        self._began_s: float | None = None
        self._capture_cpu_s = self._infer_s = 0.0
        self._inferred = self._count = 0
        self._place_s = self._sampled_s = self._sampled_cpu_s = self._took_s = 0.0

    @property
    def is_sample(self) -> bool:
        """Whether the processor time of the next inference in place is to be measured."""
        return self._took_s > SAMPLE_ALL_S or self._count % SAMPLE == 0

    def inferred_in_place(self, took_s: float, cpu_s: float | None) -> None:
        """Count an inference of the capture thread; `cpu_s`: its processor time, where that was measured."""
        self._count += 1
        self._took_s = took_s
        self._place_s += took_s
        if cpu_s is not None:
            self._sampled_s += took_s
            self._sampled_cpu_s += cpu_s
        if took_s > LONG_S and self._is_live:
            self.is_in_place = False

    def look(self, now_s: float, *, thread_cpu_s: float, infer_s: float, inferred: int) -> None:
        """Decide anew; the rest are totals: processor time of the capture thread, seconds and number of all inferences of its frames."""
        began_s, self._began_s, self.due_s = self._began_s, now_s, now_s + SPELL_S
        share = min(1.0, self._sampled_cpu_s / self._sampled_s) if self._sampled_s else 1.0
        capture_s = max(0.0, thread_cpu_s - self._capture_cpu_s - self._place_s * share)
        if began_s is not None and now_s > began_s:
            spell = Spell(now_s - began_s, capture_s, infer_s - self._infer_s, inferred - self._inferred)
            self.is_in_place = decide(spell, is_in_place=self.is_in_place, is_live=self._is_live)
        self._capture_cpu_s, self._infer_s, self._inferred = thread_cpu_s, infer_s, inferred
        self._count = 0
        self._place_s = self._sampled_s = self._sampled_cpu_s = 0.0
