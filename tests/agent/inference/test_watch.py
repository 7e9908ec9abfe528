"""Progress, not liveness."""

from agent.inference.messages import Beat, LineCount, PipelineCount
from agent.inference.watch import Watch
from agent.sources.states import SourceState

HANG_S = 5.0


def beat(
    *,
    inferred: int = 0,
    not_wanted: int = 0,
    model_unavailable: int = 0,
    instance: int = 1,
    p99_ms: float | None = None,
    is_inferring: bool = False,
) -> Beat:
    dropped = {"not_wanted": not_wanted, "model_unavailable": model_unavailable}
    grabbed = inferred + not_wanted + model_unavailable
    count = PipelineCount("front", instance, grabbed, inferred, dropped, 0, 0, 0, 1, SourceState.RUNNING, "", is_inferring=is_inferring)
    lines = () if p99_ms is None else (LineCount("color", "/x", "1.0", "a", "a", inferred, 0, 0, p99_ms, None),)
    return Beat((count,), lines, (), 1.0)


def ready_watch() -> Watch:
    watch = Watch(start_s=60, hang_s=HANG_S, now=0)
    watch.ready(0)
    return watch


def test_a_child_that_never_answers_is_hung_after_its_start_time():
    watch = Watch(start_s=60, hang_s=HANG_S, now=0)
    assert watch.verdict(59) is None
    assert "did not answer" in str(watch.verdict(61))


def test_a_silent_child_is_hung():
    watch = ready_watch()
    watch.heard(10)
    assert watch.verdict(14.9) is None
    assert "said nothing" in str(watch.verdict(15.1))


def test_frames_that_come_while_none_is_inferred_are_a_hang():
    watch = ready_watch()
    watch.beat(beat(inferred=5, not_wanted=1), 1)
    for second in range(2, 8):
        watch.beat(beat(inferred=5, not_wanted=second * 10), second)
    assert watch.verdict(6.9) is None
    assert "inferred nothing" in str(watch.verdict(7.1))


def test_progress_starts_the_time_anew():
    watch = ready_watch()
    watch.beat(beat(inferred=5, not_wanted=1), 1)
    watch.beat(beat(inferred=5, not_wanted=9), 5)
    watch.beat(beat(inferred=6, not_wanted=9), 6)
    watch.beat(beat(inferred=6, not_wanted=10), 7)
    assert watch.verdict(11.9) is None


def test_a_source_that_gives_nothing_is_no_hang_however_long():
    watch = ready_watch()
    for second in range(0, 1000, 4):
        watch.beat(beat(inferred=5, not_wanted=3), second)
        assert watch.verdict(second + 1) is None


def test_the_time_counts_from_the_first_frame_that_had_to_wait():
    watch = ready_watch()
    watch.beat(beat(inferred=5), 0)
    watch.beat(beat(inferred=5), 1000)
    watch.beat(beat(inferred=5, not_wanted=1), 1001)
    assert watch.verdict(1002) is None


def test_a_line_without_a_model_is_no_hang():
    watch = ready_watch()
    for second in range(20):
        watch.beat(beat(model_unavailable=second * 30), second)
    assert watch.verdict(19) is None


def test_a_slow_model_gets_twenty_times_its_usual_longest_inference():
    watch = ready_watch()
    for second in range(12):
        watch.beat(beat(inferred=5, not_wanted=second, p99_ms=500), second)
    assert watch.verdict(10.9) is None
    assert watch.verdict(11.5) is not None


def test_a_pipeline_that_was_configured_anew_starts_afresh():
    watch = ready_watch()
    watch.beat(beat(inferred=5, not_wanted=1), 1)
    watch.beat(beat(inferred=5, not_wanted=2), 2)
    watch.beat(beat(inferred=5, not_wanted=3, instance=2), 6.5)
    assert watch.verdict(9) is None


def test_a_model_that_is_being_loaded_may_keep_everything_waiting():
    watch = ready_watch()
    watch.heard(10)
    assert watch.verdict(16, loading_s=300) is None
    assert watch.verdict(311, loading_s=300) is not None


def test_the_time_that_a_model_took_in_its_self_test_counts_before_it_has_answered_here():
    watch = ready_watch()
    for second in range(30):
        watch.beat(beat(inferred=5, not_wanted=second), second)
    assert watch.verdict(20.9, expected_ms=1000) is None
    assert watch.verdict(21.5, expected_ms=1000) is not None
    assert watch.verdict(21.5, expected_ms=10) is not None


def test_an_overloaded_machine_is_given_more_time():
    watch = ready_watch()
    watch.heard(10)
    assert watch.verdict(24.9, strain=3.0) is None
    assert watch.verdict(25.1, strain=3.0) is not None


def test_an_inference_that_does_not_end_is_a_hang_though_no_frame_is_grabbed_meanwhile():
    watch = ready_watch()
    watch.beat(beat(inferred=5), 0)
    for second in range(1, 8):
        watch.beat(beat(inferred=5, is_inferring=True), second)
    assert watch.verdict(5.9) is None
    assert "inferred nothing" in str(watch.verdict(6.1))


def test_inferences_that_end_are_no_hang_however_often_one_is_seen():
    watch = ready_watch()
    for second in range(0, 100, 4):
        watch.beat(beat(inferred=second, is_inferring=True), second)
        assert watch.verdict(second + 1) is None
