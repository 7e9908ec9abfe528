"""What devices and releases send for drift: windows, grids, profiles, references, evidence, and the sums that are made of packed numbers.

The first byte of an input says which, see `DOORS`.
"""

import atheris
import numpy as np

from fuzz.running import ROOT, start

with atheris.instrument_imports(include=["protocol"]):
    from protocol.errors import InvalidError
    from protocol.sketches import cbor, codec, counts, evidence, grid, leb128, profile, reference
    from protocol.sketches.summary import summary

MAX_BYTES = 16 << 10
GRID = grid.decode_grid((ROOT / "tests" / "golden" / "sketches" / "grid.1.cbor").read_bytes())
PLAN = evidence.Plan((evidence.Detector("a", 4, 0.5), evidence.Detector("b", 2, 0.5)))


def window(data: bytes) -> None:
    """What is accepted holds together and comes back the same."""
    head = codec.read_head(data)
    assert len(head.scores) == head.nsub
    found = codec.open_head(head, GRID)
    assert codec.decode(codec.encode(found), GRID) == found
    assert codec.sum_cells([head.cells] * 3, GRID.cells).tolist() == (3 * found.counts.cells).tolist()
    assert len(summary(found.counts, GRID)) == 9
    assert codec.merged([found], GRID).counts == found.counts


def a_grid(data: bytes) -> None:
    """What is accepted has these bytes alone."""
    assert grid.decode_grid(data).encoded == data


def a_profile(data: bytes) -> None:
    """What is accepted has these bytes alone."""
    found = profile.decode_profile(data)
    assert profile.encode_profile(found) == data


def a_reference(data: bytes) -> None:
    """What is accepted has these bytes alone and judges."""
    found = reference.decode_reference(data, GRID)
    assert reference.decode_reference(found.encoded, GRID).reference_id == found.reference_id
    rows = np.stack([summary(counts.empty(GRID), GRID), np.full(9, 0.5)])
    p = found.p_values(found.scores(rows))
    assert len(p) == 2
    assert not (p > 1).any()
    values = found.judged(np.repeat(rows, 20, axis=0))
    assert np.isnan(values[:20]).all()
    assert np.isfinite(values[20:]).all()
    assert len(found.contributions(rows, found.leading(rows))) == len(found.coordinates)


def a_state(data: bytes) -> None:
    """What is accepted goes on."""
    found = evidence.decode_evidence(data, PLAN)
    assert evidence.decode_evidence(evidence.encode_evidence(found), PLAN) == found
    latest = max(state.block * state.subwindows for state in found.states)
    again = found.step(max(0, latest) + 7, 2.0)
    assert again.urgency(PLAN, 1.0) >= 0
    assert evidence.decode_evidence(evidence.encode_evidence(again), PLAN) == again


def numbers(data: bytes) -> None:
    """What one reader accepts the other one adds up."""
    count = max(1, data[0] % 8) if data else 1
    found = leb128.decode(data[1:], count)
    assert leb128.encode(found) == data[1:]
    if found.max() < 1 << 60:
        assert leb128.summed([data[1:]] * 2, count).tolist() == (2 * found).tolist()


def anything(data: bytes) -> None:
    """What is accepted is canonical."""
    assert cbor.encode(cbor.decode(data, max_bytes=MAX_BYTES, what="This")) == data


DOORS = (window, a_grid, a_profile, a_reference, a_state, numbers, anything)


def run(data: bytes) -> None:
    """One input."""
    if not data:
        return
    try:
        DOORS[data[0] % len(DOORS)](data[1:])
    except InvalidError as error:
        assert error.code != "invalid", "each refusal has a name"  # noqa: PT017 - this is no test


if __name__ == "__main__":
    start("sketch", run, max_bytes=MAX_BYTES)
