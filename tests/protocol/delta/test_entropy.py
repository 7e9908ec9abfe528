"""The coders alone: what the encoder writes comes back by any number of coders, and what is cut or changed does not pass."""

import numpy as np
import pytest

from fleet.registry.delta_coding import Recording
from protocol.delta.entropy import TABLE_SLOTS, Array, Bits, Phase, Symbols, Tables, Words, frequencies, packed_states, states_of
from protocol.delta.errors import DeltaError

#: Calls of the decoder: none, one, odd and even counts, fewer than there are coders and many more.
COUNTS = (1, 0, 7, 300, 2049, 4096, 31, 2, 5001)


def tables() -> Array:
    """Five tables: one certain symbol, a rare one, flat ones."""
    weights = np.random.default_rng(3).integers(0, 50, (5, 40))
    weights[0], weights[1] = 0, 0
    weights[0, 4], weights[1, :2] = 1, (100_000, 1)
    return frequencies(weights)


def recorded(slots: Array) -> Recording:
    random = np.random.default_rng(5)
    recording = Recording()
    for count in COUNTS:
        chosen = random.integers(0, len(slots), count)
        symbols = [random.choice(slots.shape[1], p=slots[table] / TABLE_SLOTS) for table in chosen]
        recording.put(chosen, np.array(symbols, np.uint8))
    return recording


def decoded(phases: list[Phase], data: bytes, slots: Array, calls: list[tuple[Array, Array]]) -> tuple[list[Array], bytes]:
    states, size = states_of(memoryview(data), phases[0].lanes)
    symbols = Symbols(phases, states, memoryview(data)[size:], Tables.of(slots))
    return [symbols.take_mixed(chosen * TABLE_SLOTS) for chosen, _ in calls], symbols.finish()


PHASES = {
    "one coder": [Phase(1, 0)],
    "a few": [Phase(8, 0)],
    "more than symbols of a call": [Phase(512, 0)],
    "fewer at the end": [Phase(256, 6001), Phase(32, 3000), Phase(8, 0)],
}


@pytest.mark.parametrize("phases", PHASES.values(), ids=PHASES)
def test_symbols_come_back_by_any_number_of_coders(phases):
    slots = tables()
    recording = recorded(slots)
    chosen, data, rode = recording.words(slots, 1 << 20, b"", choices=[phases])
    assert (chosen, rode) == (phases, 0)
    made, ridden = decoded(phases, data, slots, recording.calls)
    for (_, wanted), got in zip(recording.calls, made, strict=True):
        assert np.array_equal(wanted, got)
    assert ridden == bytes(3 * phases[-1].lanes)


@pytest.mark.parametrize("phases", PHASES.values(), ids=PHASES)
@pytest.mark.parametrize("from_end", [False, True])
def test_bytes_ride_in_the_last_states(phases, from_end):
    slots = tables()
    recording, riders = recorded(slots), bytes(range(1, 101))
    _, data, rode = recording.words(slots, 1 << 20, riders, from_end=from_end, choices=[phases])
    _, ridden = decoded(phases, data, slots, recording.calls)
    assert rode == min(3 * phases[-1].lanes, 100)
    assert ridden.rstrip(b"\0") == (riders[-rode:] if from_end else riders[:rode])


def test_raw_bits_go_on_in_what_is_given_when_they_end():
    bits = Bits(memoryview(b"\xab\xcd"), lambda: b"\xef\x01")
    assert bits.take(np.array([4, 8])).tolist() == [0xB, 0xDA]
    assert bits.take(np.array([12, 4])).tolist() == [0xEFC, 1]
    with pytest.raises(DeltaError, match="too early"):
        bits.take(np.array([5]))
    assert bytes(bits.rest()) == b""


def test_words_that_are_cut_or_too_many_are_refused():
    phases = PHASES["fewer at the end"]
    slots = tables()
    recording = recorded(slots)
    _, data, _ = recording.words(slots, 1 << 20, b"", choices=[phases])
    for damaged in (data[:-1], data[:-3], data[:2000], data[:100], data + b"\0", data + b"\0\0\0"):
        with pytest.raises(DeltaError):
            decoded(phases, damaged, slots, recording.calls)


def test_states_take_as_many_bits_as_they_have():
    states = np.concatenate(
        [np.array([1 << 24, (1 << 48) - 1, 1 << 47, (1 << 25) - 1]), np.random.default_rng(1).integers(1 << 24, 1 << 48, 29)]
    )
    low, shared, sizes, high = packed_states(states.astype(np.uint64))
    made = b"".join(int(one).to_bytes(3, "little") for one in low)
    for numbers, lengths in ((shared, np.full(len(shared), 23)), (high, sizes)):
        value = at = 0
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            value, at = value | number << at, at + length
        made += value.to_bytes((at + 7) // 8, "little")
    read, size = states_of(memoryview(made), len(states))
    assert np.array_equal(read, states)
    assert size == len(made)


def test_words_are_unpacked_a_part_at_a_time():
    words = Words(memoryview(bytes(3 << 20)))
    words.more(1)
    assert len(words.ahead) < 1 << 15
    words.at = len(words.ahead)
    words.more(1)
    assert len(words.ahead) - words.at >= 1
    with pytest.raises(DeltaError, match="too early"):
        words.more(2 << 20)
