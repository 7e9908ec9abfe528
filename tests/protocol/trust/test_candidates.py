"""A candidate beside a line's release passes every check that the release passes, and is never taken for it."""

from typing import Any

import pytest
from simulators.repository import target

from protocol.errors import TrustError
from protocol.trust.metadata import CandidateOrder, ImageLineFields, PipelineRun, line_role, write_fields

ORDER: dict[str, Any] = {"assignment": "as-2", "attempt": 3, "campaign": "ca-2", "release": "1.1", "cpu": 15}
RUN = PipelineRun.model_validate({"as": "shadow", "salt": "ca-2"})


def beside(world, *, counter: int = 11, is_published: bool = True, **image: Any) -> None:
    """Release 1.1 of the line as its candidate."""
    paths = world.release("1.1", counter, **image) if is_published else ["model/digits/1.1/onnx.model.onnx"]
    for path in paths:
        found = world.image.delegated[line_role("digits")].targets.get(path)
        world.director.targets.targets[path] = found or target(path, b"malware")
    world.order(candidates={"digits": CandidateOrder(**ORDER, run=RUN)})
    world.director.publish()


def refused(world, code: str, **facts: Any) -> None:
    with pytest.raises(TrustError) as caught:
        world.check(**facts)
    assert caught.value.code == code, caught.value


def test_a_candidate_is_told_apart_and_the_line_keeps_its_own(world):
    beside(world)
    found = world.check()
    assert [(line.release, line.assignment, line.attempt) for line in found.lines] == [("1.0", "as-1", 1)]
    (one,) = found.candidates
    assert (one.release.release, one.release.assignment, one.release.attempt, one.release.campaign) == ("1.1", "as-2", 3, "ca-2")
    assert (one.run.as_, one.run.salt, one.cpu) == ("shadow", "ca-2", 15)


def test_a_candidate_that_only_the_director_names_is_refused(world):
    beside(world, is_published=False)
    refused(world, "arbitrary-software")


def test_a_candidate_below_the_floor_is_refused(world):
    role = world.image.delegated[line_role("digits")]
    role.unrecognized_fields = write_fields(ImageLineFields(line="digits", floor=10))
    world.image.publish()
    beside(world, counter=9)
    refused(world, "old-release")


def test_a_candidate_for_other_hardware_is_refused(world):
    beside(world, device_types=("gateway",))
    refused(world, "wrong-hardware")


def test_a_candidate_without_one_of_its_files_is_refused(world):
    beside(world)
    del world.director.targets.targets["model/digits/1.1/onnx.manifest.json"]
    world.director.publish()
    refused(world, "mix-and-match")


def test_a_third_release_of_the_line_is_refused(world):
    beside(world)
    for path in world.release("1.2", 12):
        world.director.targets.targets[path] = world.image.delegated[line_role("digits")].targets[path]
    world.director.publish()
    refused(world, "mix-and-match")


def test_an_order_whose_release_is_not_listed_is_no_candidate(world):
    world.order(candidates={"digits": CandidateOrder(**ORDER, run=RUN)})
    world.director.publish()
    found = world.check()
    assert (len(found.lines), found.candidates) == (1, ())


@pytest.mark.parametrize("bad", [{"as": "else"}, {"share": 101}, {"until": -1}, {"share": "half"}])
def test_a_run_of_a_wrong_type_refuses_the_assignment(world, bad):
    beside(world)
    fields = world.director.targets.unrecognized_fields["mooring"]
    fields["candidates"]["digits"]["run"] |= bad
    world.director.publish()
    refused(world, "malformed-metadata")
