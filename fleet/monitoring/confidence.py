"""How sure labels drawn at random make of an accuracy, whenever somebody looks (DRIFT 6). Pure."""

import math
from collections.abc import Callable

#: A confidence sequence misses the truth, at any time somebody looks, with this probability at most.
MISS_RATE = 0.05


def confidence_sequence(right: int, labels: int, *, miss_rate: float = MISS_RATE) -> tuple[float, float]:
    """Accuracies that `right` of `labels` random labels leave possible, valid whenever somebody stops to look (beta-binomial mixture).

    All θ with B(k+½, n-k+½)/B(½, ½) < θ^k·(1-θ)^(n-k) / miss_rate. Without labels: 0 to 1.
    """
    if labels <= 0:
        return 0.0, 1.0
    wrong = labels - right
    mixture = math.lgamma(right + 0.5) + math.lgamma(wrong + 0.5) - math.lgamma(labels + 1) - math.log(math.pi)
    least = mixture + math.log(miss_rate)

    def is_in(theta: float) -> bool:
        return _log_likelihood(right, wrong, theta) > least

    peak = right / labels
    return _edge(is_in, peak, 0.0), _edge(is_in, peak, 1.0)


def _log_likelihood(right: int, wrong: int, theta: float) -> float:
    if (right and theta <= 0) or (wrong and theta >= 1):
        return -math.inf
    return (right * math.log(theta) if right else 0.0) + (wrong * math.log1p(-theta) if wrong else 0.0)


def _edge(is_in: Callable[[float], bool], inside: float, outside: float) -> float:
    if is_in(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_in(middle) else (inside, middle)
    return outside
