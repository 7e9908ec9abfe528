"""The probe's rules as a table of cases (UPDATES 4.4)."""

from dataclasses import replace

import pytest

from agent.update.probe import Judgment, ProbeRules, ProbeWishes, judge, warmed
from runtime.selftest import Figures

RULES = ProbeRules()
LIVE = {"fps": 10.0, "temperature_c": 60.0, "provider": "onnx:cpu"}
OLD = Figures(inferences=50_000, errors=10, p99_ms=40.0, rss_mb=80.0, top_share=0.5, healthy=49_990, **LIVE)
NEW = Figures(inferences=2_000, errors=0, p99_ms=41.0, rss_mb=80.0, top_share=0.5, healthy=2_000, **LIVE)


def verdict(new: Figures | None, *, old: Figures | None = OLD, first: Figures | None = NEW, rules=RULES, elapsed_s: float = 700.0):
    return judge(new, first=first, settled=first, last=first, old=old, rules=rules, elapsed_s=elapsed_s)


def test_enough_healthy_inferences_for_long_enough_are_healthy():
    assert verdict(NEW).judgment is Judgment.HEALTHY


@pytest.mark.parametrize(("healthy", "elapsed_s"), [(999, 700.0), (1000, 599.0), (0, 0.0)])
def test_too_few_or_too_early_is_no_verdict(healthy, elapsed_s):
    new = replace(NEW, inferences=healthy, healthy=healthy)
    found = verdict(new, first=None, elapsed_s=elapsed_s)
    assert found.judgment is Judgment.WAIT
    assert f"{healthy} of 1000" in found.text


@pytest.mark.parametrize("new", [None, replace(NEW, inferences=0, healthy=0)])
def test_no_frames_until_the_end_is_not_success(new):
    found = verdict(new, first=None, elapsed_s=3600.0)
    assert (found.judgment, found.code) == (Judgment.FAILED, "probe_timeout")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"p99_ms": 53.1}, "latency_worse"),
        ({"errors": 3, "healthy": 1_997}, "error_rate"),
        ({"healthy": 1_990}, "error_rate"),
        ({"top_share": 0.995}, "constant_output"),
        ({"rss_mb": 101.0}, "memory_growth"),
        ({"inferences": 1_999}, "inference_crashed"),
        ({"crashes": 1}, "inference_crashed"),
        ({"fps": 9.49}, "throughput_worse"),
        ({"temperature_c": 65.1}, "temperature_worse"),
        ({"temperature_c": 85.1}, "temperature_limit"),
    ],
)
def test_each_rule_fails_by_its_code_and_says_what_was_seen(change, code):
    found = verdict(replace(NEW, **change))
    assert (found.judgment, found.code) == (Judgment.FAILED, code)
    assert len(found.text) > 20


@pytest.mark.parametrize(
    "change",
    [
        {"p99_ms": 53.0},
        {"errors": 2, "healthy": 1_998},
        {"top_share": 0.99},
        {"rss_mb": 100.0},
        {"fps": 9.5},
        {"temperature_c": 65.0},
    ],
)
def test_the_edge_of_each_rule_still_holds(change):
    assert verdict(replace(NEW, **change)).judgment is Judgment.HEALTHY


def test_an_old_release_that_answered_one_class_lets_the_new_one_do_so():
    old = replace(OLD, top_share=1.0)
    assert verdict(replace(NEW, top_share=1.0), old=old).judgment is Judgment.HEALTHY


def test_errors_that_the_old_release_had_too_are_no_fault_of_the_new_one():
    old = replace(OLD, errors=5_000, healthy=45_000)
    assert verdict(replace(NEW, errors=150, healthy=1_850), old=old).judgment is Judgment.HEALTHY


def test_hopeless_errors_are_judged_early():
    new = replace(NEW, inferences=50, errors=50, healthy=0)
    found = verdict(new, first=None, elapsed_s=1.0)
    assert (found.judgment, found.code) == (Judgment.FAILED, "error_rate")


def test_a_model_that_stopped_running_fails_at_once():
    assert verdict(None, elapsed_s=10.0).code == "inference_down"


@pytest.mark.parametrize("old", [None, replace(OLD, inferences=0, errors=0, healthy=0)])
def test_on_a_first_install_only_the_absolute_rules_hold(old):
    assert verdict(replace(NEW, p99_ms=900.0, top_share=1.0), old=old).judgment is Judgment.HEALTHY
    rules = replace(RULES, p99_budget_ms=100.0, rss_budget_mb=70.0)
    assert verdict(replace(NEW, p99_ms=101.0), old=old, rules=rules).code == "latency_budget"
    assert verdict(NEW, old=old, rules=rules).code == "memory_budget"


def test_a_release_may_only_be_stricter_than_the_agent():
    lax = ProbeWishes(min_inferences=1, min_seconds=0.0, p99_ratio=9.0, max_top_share=1.0)
    assert RULES.stricter(lax) == RULES
    strict = ProbeWishes(min_inferences=5_000, min_seconds=900.0, p99_ratio=1.1, max_top_share=0.9, p99_budget_ms=30.0, rss_budget_mb=50.0)
    found = RULES.stricter(strict)
    assert (found.min_inferences, found.min_seconds, found.p99_ratio, found.max_top_share) == (5_000, 900.0, 1.1, 0.9)
    assert (found.p99_budget_ms, found.rss_budget_mb) == (30.0, 50.0)
    assert found.stricter(ProbeWishes(p99_budget_ms=40.0)).p99_budget_ms == 30.0


@pytest.mark.parametrize(
    ("backends", "provider", "is_fine"),
    [
        (("onnx",), "onnx:cpu", True),
        (("onnx",), "onnx:cuda", True),
        (("onnx:cuda", "onnx:cpu"), "onnx:cpu", True),
        (("onnx:cuda",), "onnx:cpu", False),
        (("litert",), "tflite:cpu", False),
        ((), "onnx:cpu", True),
        (("onnx:cuda",), "", True),
    ],
)
def test_it_must_run_on_a_back_end_that_it_was_released_for(backends, provider, is_fine):
    found = verdict(replace(NEW, provider=provider), rules=replace(RULES, backends=backends))
    assert (found.judgment is Judgment.HEALTHY) == is_fine
    if not is_fine:
        assert found.code == "backend_not_released"
        assert provider in found.text


def test_a_wrong_back_end_is_told_at_once():
    new = replace(NEW, inferences=1, healthy=1, provider="onnx:cpu")
    assert verdict(new, rules=replace(RULES, backends=("onnx:cuda",)), first=None, elapsed_s=1.0).code == "backend_not_released"


def test_heat_is_judged_only_after_five_minutes_and_never_without_a_sensor():
    hot = replace(NEW, temperature_c=99.0)
    assert verdict(hot, elapsed_s=299.0).judgment is Judgment.WAIT
    assert verdict(hot, elapsed_s=300.0).code == "temperature_limit"
    found = verdict(replace(NEW, temperature_c=None))
    assert found.judgment is Judgment.HEALTHY
    assert "no sensor" in found.text


def test_what_could_not_be_judged_is_said():
    assert "Not judged" not in verdict(NEW).text
    assert "frames per second" in verdict(replace(NEW, fps=None)).text
    assert "frames per second" in verdict(NEW, old=replace(OLD, fps=None)).text
    assert "no figures" in verdict(NEW, old=None).text
    assert "less than 300 s" in verdict(NEW, rules=replace(RULES, min_seconds=1.0), elapsed_s=2.0).text


def test_a_release_may_be_faster_than_the_one_before_and_cooler():
    assert verdict(replace(NEW, fps=30.0, temperature_c=20.0)).judgment is Judgment.HEALTHY


def test_one_busy_moment_is_no_heat():
    assert warmed(60.0, 90.0, 1.0) == pytest.approx(60.5)
    assert warmed(60.0, 90.0, 60.0) == 90.0
    assert warmed(60.0, 90.0, 600.0) == 90.0
    assert warmed(None, 90.0, 1.0) == 90.0
    assert warmed(60.0, None, 1.0) is None


def test_of_few_inferences_what_counts_is_what_the_percentile_surely_is():
    busy_once = replace(NEW, p99_ms=500.0, p99_low_ms=41.0)
    assert verdict(busy_once).judgment is Judgment.HEALTHY
    assert verdict(busy_once, rules=replace(RULES, p99_budget_ms=45.0)).judgment is Judgment.HEALTHY
    assert verdict(replace(busy_once, p99_low_ms=53.1)).code == "latency_worse"
    assert verdict(replace(busy_once, p99_low_ms=53.1), rules=replace(RULES, p99_noise_ms=6.0)).judgment is Judgment.HEALTHY
