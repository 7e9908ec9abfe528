"""One range of a file, or the whole, or a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.web.ranges import ByteRange, has_etag, requested_range
from protocol.errors import InvalidError

ETAG = '"sha256:aa"'


def ask(header: str | None, *, size: int = 100, if_range: str | None = None) -> ByteRange | None:
    return requested_range(header, if_range=if_range, etag=ETAG, size=size)


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=90-", 90, 100), ("bytes=-10", 90, 100), ("bytes=50-1000", 50, 100), ("bytes=-1000", 0, 100)],
)
def test_a_single_range_is_served(header: str, start: int, end: int):
    found = ask(header)
    assert found == ByteRange(start, end, 100)
    assert found.content_range == f"bytes {start}-{end - 1}/100"


@pytest.mark.parametrize("header", [None, "", "bytes=-", "bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b"])
def test_what_is_no_single_range_gets_the_whole(header: str | None):
    assert ask(header) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_without_any_byte_is_refused(header: str):
    with pytest.raises(InvalidError) as caught:
        ask(header)
    assert caught.value.code == "bad-range"


def test_a_range_of_another_version_gets_the_whole():
    assert ask("bytes=0-9", if_range='"sha256:bb"') is None
    assert ask("bytes=0-9", if_range=ETAG) == ByteRange(0, 10, 100)


@given(st.text(max_size=40), st.integers(0, 1000))
def test_no_header_leads_outside_the_file(header: str, size: int):
    try:
        found = requested_range(f"bytes={header}", if_range=None, etag=ETAG, size=size)
    except InvalidError:
        return
    assert found is None or 0 <= found.start < found.end <= size


def test_if_none_match_compares_weakly_and_knows_the_star():
    assert has_etag('W/"sha256:aa"', ETAG)
    assert has_etag('"x", "sha256:aa"', ETAG)
    assert has_etag("*", ETAG)
    assert not has_etag('"x"', ETAG)
    assert not has_etag(None, ETAG)
