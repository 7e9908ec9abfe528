"""Who infers a frame, and who makes the model's input of it: the thread that captured it or the pipeline's own. Pure: seconds go in.

Handing over wakes two threads for each frame, which costs more than a small model. It pays when the next frame can be decoded while one is
inferred, and when a live source gives frames faster than they are inferred: then somebody has to drain its queue, for the latest to win.
Then whichever thread has less to do makes the inputs, so that the slower stage is as short as it can be.
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
#: How much more than capturing, with making inputs, inferring alone has to take before the capture thread begins to make them.
ENTER_SLOWER = 1.25
#: What is left at each decision of what an input was known to take: another model may take less.
REMEMBERED = 0.99
#: Every so many inferences in place the processor time of one is measured; of those that take so long, of each: what capturing costs is
#: the small difference that they leave, and there two system calls are nothing.
SAMPLE, SAMPLE_ALL_S = 8, 0.5e-3


@dataclass(frozen=True, slots=True)
class Spell:
    """What a capture thread and the inferences of its frames took."""

    elapsed_s: float
    #: Processor time of the capture thread, inferences and the making of inputs not included.
    capture_s: float
    #: From pick-up to answer, of all inferences together.
    infer_s: float
    inferred: int
    #: What making inputs took the capture thread.
    prepare_s: float = 0.0


def decide(spell: Spell, *, is_in_place: bool, is_live: bool) -> bool:
    """Whether frames are inferred in place from now on; `is_in_place`: whether they were. A live source does not wait for us."""
    if spell.inferred <= 0:
        return is_in_place
    infer_s = spell.infer_s + spell.prepare_s
    busy = (spell.capture_s + infer_s) / spell.elapsed_s
    if busy <= (STAY_BUSY if is_in_place else ENTER_BUSY):
        return True
    saved_s = min(spell.capture_s, infer_s) / spell.inferred
    return not is_live and saved_s <= (STAY_SAVED_S if is_in_place else ENTER_SAVED_S)


def prepares(spell: Spell, *, is_preparing: bool, each_s: float) -> bool:
    """Whether the capture thread makes the inputs of frames that it hands over from now on: inferring is the slower stage without it.

    `is_preparing`: whether it did; `each_s`: what one input takes, as far as that is known.
    """
    if spell.inferred <= 0:
        return is_preparing
    if is_preparing:
        return spell.infer_s >= spell.capture_s + spell.prepare_s
    moved_s = each_s * spell.inferred
    return spell.infer_s - moved_s >= ENTER_SLOWER * (spell.capture_s + moved_s)


class Handover:
    """The decision of one capture thread, and the sums that it is made of."""

    def __init__(self, *, is_live: bool) -> None:
        #: Frames are inferred by the thread that captures them.
        self.is_in_place = False
        #: The capture thread makes the inputs of frames that it hands over.
        self.is_preparing = False
        #: When the next decision is due, seconds of the capture's clock.
        self.due_s = 0.0
        self._is_live = is_live
        self._began_s: float | None = None
        self._capture_cpu_s = self._infer_s = self._prepare_s = 0.0
        #: Seconds that one input took the capture thread, fading.
        self._each_s = 0.0
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

    def look(self, now_s: float, *, thread_cpu_s: float, infer_s: float, inferred: int, prepare_s: float = 0.0) -> None:
        """Decide anew; the rest are totals.

        `thread_cpu_s`: processor time of the capture thread; `infer_s`, `inferred`: seconds and number of all inferences of its frames;
        `prepare_s`: seconds that it took to make inputs of frames that it handed over.
        """
        began_s, self._began_s, self.due_s = self._began_s, now_s, now_s + SPELL_S
        share = min(1.0, self._sampled_cpu_s / self._sampled_s) if self._sampled_s else 1.0
        prepared_s = prepare_s - self._prepare_s
        capture_s = max(0.0, thread_cpu_s - self._capture_cpu_s - self._place_s * share - prepared_s)
        if began_s is not None and now_s > began_s:
            spell = Spell(now_s - began_s, capture_s, infer_s - self._infer_s, inferred - self._inferred, prepared_s)
            self._each_s = prepared_s / spell.inferred if self.is_preparing and spell.inferred > 0 else self._each_s * REMEMBERED
            self.is_in_place = decide(spell, is_in_place=self.is_in_place, is_live=self._is_live)
            self.is_preparing = not self.is_in_place and prepares(spell, is_preparing=self.is_preparing, each_s=self._each_s)
        self._capture_cpu_s, self._infer_s, self._inferred, self._prepare_s = thread_cpu_s, infer_s, inferred, prepare_s
        self._count = 0
        self._place_s = self._sampled_s = self._sampled_cpu_s = 0.0
