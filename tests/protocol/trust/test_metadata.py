"""Our fields and the grammar of target paths: what is written is read back, what does not fit is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidError, TrustError
from protocol.ids import NAME_PATTERN, LineName, ReleaseVersion
from protocol.trust.metadata import (
    MODEL_FILES,
    DirectorFields,
    ImageTargetFields,
    PipelineRun,
    TargetPath,
    is_version_at_least,
    line_pattern,
    parse_target_path,
    read_fields,
    write_fields,
)

names = st.from_regex(NAME_PATTERN, fullmatch=True)
versions = st.from_regex(r"[0-9a-z]{1,8}(\.[0-9a-z]{1,4}){0,2}", fullmatch=True)


@given(line=names, release=versions, variant=names, name=st.sampled_from(sorted(MODEL_FILES)))
def test_a_target_path_that_was_built_is_parsed_back(line, release, variant, name):
    path = TargetPath(LineName(line), ReleaseVersion(release), variant, name)
    assert parse_target_path(str(path)) == path
    assert line_pattern(line).count("/") == str(path).count("/")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "model",
        "model/a/1.0/onnx.model.onnx/",
        "model/a/../onnx.model.onnx",
        "model/A/1.0/onnx.card.json",
        "model/a/1.0/.card.json",
        "policy/a/1/x.card.json",
    ],
)
def test_a_path_outside_the_grammar_is_refused(path):
    with pytest.raises(InvalidError):
        parse_target_path(path)


def test_director_fields_that_were_written_are_read_back():
    fields = DirectorFields(
        device="cam-1", tenant="t0", assignment="as-1", attempt=2, issued_at=5, run={"front": PipelineRun(**{"as": "shadow", "share": 10})}
    )
    written = write_fields(fields)
    assert written["mooring"]["run"] == {"front": {"as": "shadow", "share": 10, "salt": ""}}
    assert read_fields(DirectorFields, written, what="x") == fields


@pytest.mark.parametrize("holder", [None, {}, {"mooring": []}, {"mooring": {"line": 5}}, {"mooring": {"line": float("inf")}}])
def test_fields_that_are_missing_or_of_a_wrong_type_are_refused(holder):
    with pytest.raises(TrustError) as caught:
        read_fields(ImageTargetFields, holder, what="Target x")
    assert caught.value.code == "malformed-metadata"
    assert "Target x" in caught.value.message


@pytest.mark.parametrize(
    ("have", "wanted", "met"),
    [
        ("0.1.0", "", True),
        ("", "", True),
        ("", "1", False),
        ("1.10", "1.9", True),
        ("1.9", "1.10", False),
        ("1.1", "1.1.0", True),
        ("1.1-rc1", "1.1", False),
        ("2.0+build7", "2.0", True),
    ],
)
def test_versions_are_compared_by_their_numbers(have, wanted, met):
    assert is_version_at_least(have, wanted) is met
