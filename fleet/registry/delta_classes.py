"""Which classes of numbers a delta needs: tensors, or rows, whose residuals are spread alike share one, as far as that saves bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocol.delta import predict
from protocol.delta.entropy import NUMBER_RAW_BITS, NUMBER_SYMBOLS, Array, frequencies
from protocol.delta.plan import KERNEL_SYMBOLS, TAIL, NumberClass, kernel_codes, kernel_places

#: Bits that a code of a class costs in the plan, about.
_CODE_BITS = 6.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Symbols of a tensor, and where what was expected lay between two whole numbers."""

    symbols: Array
    fine: Array | None

    def counts(self, levels: int) -> Array:
        """How often each symbol occurs on each level."""
        level = predict.levels_of(self.fine, len(self.symbols), levels)
        flat = np.bincount(level * NUMBER_SYMBOLS + self.symbols, minlength=levels * NUMBER_SYMBOLS)
        return flat.reshape(levels, NUMBER_SYMBOLS)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A class and what it costs, in bits, for what it was made of; `bits` per level and symbol."""

    number_class: NumberClass
    cost: float
    bits: Array


def fit(counts: Array) -> Fitted:
    """The class for these counts {level, symbol}: symmetric or not, whichever is cheaper."""
    made = [_fit(counts, is_symmetric=flag) for flag in (True, False)]
    return min(made, key=lambda one: one.cost)


def _fit(counts: Array, *, is_symmetric: bool) -> Fitted:
    levels = len(counts)
    size = kernel_codes(levels)
    place = kernel_places(levels)
    place = place % size if is_symmetric else place
    seen = counts[:, KERNEL_SYMBOLS].astype(np.float64)
    hits = np.bincount(place.ravel(), seen.ravel(), minlength=2 * size)
    tails = counts[:, TAIL:].sum(axis=0).reshape(-1, 2).sum(axis=1).astype(np.float64)
    per_level = counts.sum(axis=1).astype(np.float64)
    kernel, tail = np.where(hits > 0, 1.0, 0.0), np.where(tails > 0, 0.1, 0.0)
    for _ in range(10 if levels > 1 else 4):
        z = kernel[place].sum(axis=1) + 2 * tail.sum()
        share = np.where(z > 0, per_level / np.where(z > 0, z, 1), 0)
        exposure = np.bincount(place.ravel(), np.repeat(share, len(KERNEL_SYMBOLS)), minlength=2 * size)
        kernel = np.where(hits > 0, hits / np.where(exposure > 0, exposure, 1), 0)
        tail = tails / (2 * share.sum()) if share.sum() > 0 else tail
    largest = max(kernel.max(initial=0), tail.max(initial=0))
    used = np.flatnonzero(tails)
    tail_codes = _codes(tail[: used[-1] + 1] if used.size else tail[:0], largest)
    kernel_all = _codes(kernel, largest)
    below = kernel_all[:size]
    above = below if is_symmetric else kernel_all[size:]
    made = NumberClass(levels, above, below, tail_codes)
    return priced(made, counts)


def priced(made: NumberClass, counts: Array) -> Fitted:
    """The class with its cost for these counts, codes included."""
    slots = frequencies(made.weights())[:, :NUMBER_SYMBOLS].astype(np.float64)
    with np.errstate(divide="ignore"):
        bits = np.where(slots > 0, 12 - np.log2(np.where(slots > 0, slots, 1)), 40.0) + NUMBER_RAW_BITS[:NUMBER_SYMBOLS]
    codes = len(made.kernel) + len(made.tail) + (0 if made.below == made.kernel else len(made.below))
    return Fitted(made, float((counts * bits).sum()) + _CODE_BITS * codes + 24, bits)


def _codes(weights: Array, largest: float) -> bytes:
    with np.errstate(divide="ignore"):
        steps = np.rint(16 * np.log2(largest / np.where(weights > 0, weights, 1)))
    return bytes(np.where(weights > 0, np.clip(1 + steps, 1, 255), 0).astype(np.uint8))


def fit_groups(samples: Sequence[Sample], levels: Sequence[int]) -> tuple[list[Fitted], list[int]]:
    """Classes for these tensors, and which class each takes: the cheapest that merging two by two finds."""
    best: tuple[float, list[Fitted], list[int]] | None = None
    for count in levels:
        counts = [sample.counts(count) for sample in samples]
        fits, groups = _merge(counts)
        cost = sum(one.cost for one in fits)
        if best is None or cost < best[0]:
            chosen = [next(number for number, group in enumerate(groups) if index in group) for index in range(len(samples))]
            best = cost, fits, chosen
    if best is None:
        raise RuntimeError("no levels were offered")
    return best[1], best[2]


def _merge(counts: list[Array], most: int = 12) -> tuple[list[Fitted], list[set[int]]]:
    groups: list[set[int]] = [{index} for index in range(len(counts))]
    if len(groups) > most:  # first by spread, so that the search stays small
        order = sorted(
            range(len(counts)),
            key=lambda index: float((counts[index].sum(axis=0) * np.arange(NUMBER_SYMBOLS)).sum() / max(1, counts[index].sum())),
        )
        groups = [set(map(int, part)) for part in np.array_split(np.array(order), most)]
    sums = [np.sum([counts[index] for index in group], axis=0) for group in groups]
    fits = [fit(one) for one in sums]
    gains: dict[tuple[int, int], tuple[float, Fitted]] = {}
    alive = list(range(len(groups)))
    while len(alive) > 1:
        for a in alive:
            for b in alive:
                if a < b and (a, b) not in gains:
                    both = fit(sums[a] + sums[b])
                    gains[a, b] = fits[a].cost + fits[b].cost - both.cost, both
        (a, b), (gain, both) = max(((pair, gains[pair]) for pair in gains), key=lambda item: item[1][0])
        if gain <= 0:
            break
        groups[a] |= groups[b]
        sums[a] = sums[a] + sums[b]
        fits[a] = both
        alive.remove(b)
        gains = {pair: value for pair, value in gains.items() if not {a, b} & set(pair)}
    return [fits[index] for index in alive], [groups[index] for index in alive]


@dataclass(frozen=True, slots=True)
class RowChoice:
    """Classes of int8 tensors: `chosen` for a whole tensor, or `rows` of it (then the numbers are coded by `ids`)."""

    classes: list[Fitted]
    chosen: list[int]
    rows: list[Array | None]
    ids: NumberClass | None
    cost: float


def fit_rows(samples: Sequence[Sample], rows: Sequence[int]) -> RowChoice:
    """One class for all, or classes per tensor or per row."""
    total = sum(len(sample.symbols) for sample in samples)
    best: RowChoice | None = None
    for levels in (1, 4) if any(sample.fine is not None for sample in samples) and total <= 1 << 19 else (1,):
        fitted, chosen = fit_groups(samples, (levels,))
        choice = RowChoice(fitted, chosen, [None] * len(samples), None, sum(one.cost for one in fitted))
        best = choice if best is None or choice.cost < best.cost else best
        for count in (4, 8, 16):
            if sum(rows) >= 8 * count:
                choice = _row_classes(samples, rows, levels, count)
                best = choice if choice.cost < best.cost else best
    if best is None:
        raise RuntimeError("no choice was tried")
    return best


def _row_classes(samples: Sequence[Sample], rows: Sequence[int], levels: int, count: int) -> RowChoice:
    """Rows sorted into `count` classes by what they would cost in each, again and again (Lloyd's way)."""
    every, place, width = _counts_of_rows(samples, rows, levels)
    is_told = every.reshape(len(every), levels, width)[:, :, 1:].any(axis=(1, 2))
    counts = every[is_told]
    symbols = np.tile(np.arange(width), levels)
    value = np.where(symbols % 4 % 2 == 1, 1, -1) * (symbols > 0) * (1 + symbols // 4)
    number = counts.sum(axis=1)
    mean, spread = (counts * value).sum(axis=1) / number, (counts * np.abs(value)).sum(axis=1) / number
    side = max(1, round(count**0.5))
    ids = _quantile(mean, side) * -(-count // side) + _quantile(spread, -(-count // side))
    fits: list[Fitted] = []
    for _ in range(6):
        used = np.unique(ids)
        ids = np.searchsorted(used, ids)
        sums = np.zeros((len(used), counts.shape[1]), np.int64)
        np.add.at(sums, ids, counts)
        fits = [fit(_widened(one, levels, width)) for one in sums]
        share = np.bincount(ids, minlength=len(used)) / len(ids)
        bits = np.stack([one.bits[:, :width].ravel() for one in fits], axis=1)
        ids = (counts @ bits - np.log2(share)).argmin(axis=1)
    used = np.unique(ids)
    ids = np.searchsorted(used, ids)
    sums = np.zeros((len(used), counts.shape[1]), np.int64)
    np.add.at(sums, ids, counts)
    fits = [fit(_widened(one, levels, width)) for one in sums]
    if not is_told.all():  # rows without a change are a class of their own, of which nothing is written
        told, ids = ids, np.full(len(every), len(used))
        ids[is_told] = told
        fits.append(Fitted(NumberClass(levels, b"", b"", b""), 0.0, np.zeros((levels, NUMBER_SYMBOLS))))
        used = np.arange(len(used) + 1)
    often = np.bincount(ids, minlength=len(used)).astype(np.float64)
    table = ids_of(ids, len(used))
    slots = frequencies(table.weights())[0, : len(used)]
    cost = sum(one.cost for one in fits) + float((often * (12 - np.log2(slots))).sum()) + 8 * len(used)
    return RowChoice(fits, [0] * len(samples), [ids[start:stop].astype(np.uint8) for start, stop in place], table, cost)


def ids_of(ids: Array, count: int) -> NumberClass:
    """The class that codes which of `count` classes each row is of."""
    often = np.bincount(ids, minlength=count).astype(np.float64)
    return NumberClass(1, b"", b"", _codes(often, often.max()), is_plain=True)


def _counts_of_rows(samples: Sequence[Sample], rows: Sequence[int], levels: int) -> tuple[Array, list[tuple[int, int]], int]:
    width = max(TAIL, 1 + max(int(sample.symbols.max(initial=0)) for sample in samples))
    made, place, at = [], [], 0
    for sample, count in zip(samples, rows, strict=True):
        level = predict.levels_of(sample.fine, len(sample.symbols), levels)
        row = np.repeat(np.arange(count), len(sample.symbols) // count)
        flat = np.bincount((row * levels + level) * width + sample.symbols, minlength=count * levels * width)
        made.append(flat.reshape(count, levels * width))
        place.append((at, at + count))
        at += count
    return np.concatenate(made), place, width


def _widened(flat: Array, levels: int, width: int) -> Array:
    made = np.zeros((levels, NUMBER_SYMBOLS), np.int64)
    made[:, :width] = flat.reshape(levels, width)
    return made


def _quantile(values: Array, parts: int) -> Array:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") * parts // len(values)
