"""The draw between two releases is exact in the limit, the same for everybody, and another one for each campaign."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.arms import BLOCK_S, block_of, is_candidates_turn

BLOCKS = 20_000


def turns(share: int, *, salt: str = "ca-1", device: str = "cam-1", pipeline: str = "door") -> list[bool]:
    return [is_candidates_turn(salt=salt, device=device, pipeline=pipeline, block=block, share=share) for block in range(BLOCKS)]


@pytest.mark.parametrize("share", [1, 10, 50, 90])
def test_the_candidate_gets_its_share_of_the_blocks(share: int):
    deviation = (share / 100 * (1 - share / 100) / BLOCKS) ** 0.5
    assert sum(turns(share)) / BLOCKS == pytest.approx(share / 100, abs=4 * deviation)


def test_no_share_is_no_turn_and_a_full_one_is_every_turn():
    assert not any(turns(0))
    assert all(turns(100))


def test_a_larger_share_keeps_the_blocks_of_a_smaller_one():
    assert all(larger for smaller, larger in zip(turns(20), turns(60), strict=True) if smaller)


@pytest.mark.parametrize("other", [{"salt": "ca-2"}, {"device": "cam-2"}, {"pipeline": "yard"}])
def test_another_campaign_device_or_pipeline_draws_anew(other: dict[str, str]):
    same = sum(one == two for one, two in zip(turns(50), turns(50, **other), strict=True))
    assert same / BLOCKS == pytest.approx(0.5, abs=0.02)


@given(st.integers(0, 2**45))
def test_all_moments_of_a_block_have_one_turn(at_ms: int):
    first = at_ms - at_ms % (BLOCK_S * 1000)
    assert block_of(at_ms) == block_of(first) == block_of(first + BLOCK_S * 1000 - 1)
    assert block_of(first + BLOCK_S * 1000) == block_of(first) + 1
