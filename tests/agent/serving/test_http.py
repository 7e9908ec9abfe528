"""Request heads: what two readers could understand differently is refused."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving.http import MAX_HEADERS, RefusedError, answer_head, parse_head, problem


def refused(data: bytes) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse_head(data)
    return caught.value


def test_a_head_is_read():
    head = parse_head(
        b"POST /v2/models/a%2Db/infer?x=1 HTTP/1.1\r\nHost: localhost:8000\r\ncontent-length: 12\r\nX-Other:  y \r\nX-Other: z"
    )
    assert (head.method, head.path, head.length, head.is_kept_alive) == ("POST", "/v2/models/a-b/infer", 12, True)
    assert head.headers[b"host"] == b"localhost:8000"


@pytest.mark.parametrize(
    ("data", "is_kept"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: x", True),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Close", False),
        (b"GET /v2 HTTP/1.0\r\nHost: x", False),
        (b"GET /v2 HTTP/1.0", False),
    ],
)
def test_a_connection_is_kept_as_the_client_says(data, is_kept):
    assert parse_head(data).is_kept_alive is is_kept


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"GET /v2", 400),
        (b"GET  /v2 HTTP/1.1", 400),
        (b"GET v2 HTTP/1.1\r\nHost: x", 400),
        (b"GET http://x/v2 HTTP/1.1\r\nHost: x", 400),
        (b"G\xc3\xa4T /v2 HTTP/1.1\r\nHost: x", 400),
        (b"GET /v2 HTTP/2.0\r\nHost: x", 505),
        (b"GET /v2 HTTP/1.1", 400),  # no Host
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n folded: y", 400),
        (b"GET /v2 HTTP/1.1\r\nHost : x", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nnonsense", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\nX: y", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: +1", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40, 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked", 411),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", 411),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nExpect: tea", 417),
        (b"GET /v2 HTTP/1.1\r\nHost: x" + b"\r\nX: y" * MAX_HEADERS, 431),
    ],
)
def test_what_is_malformed_is_refused_and_ends_the_connection(data, status):
    error = refused(data)
    assert (error.status, error.ends) == (status, True)


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b"GET ", b"/v2", b" HTTP/1.1", b"\r\n", b"Host: x", b":", b" "])).map(b"".join))
def test_any_bytes_are_read_or_refused(data):
    with suppress(RefusedError):
        assert parse_head(data).path.startswith("/")


def test_a_problem_says_error_too():
    document = json.loads(problem(503, "Later."))
    assert document["error"] == document["detail"] == "Later."
    assert (document["type"], document["status"]) == ("urn:mooring:problem:unavailable", 503)


def test_an_answers_head_ends_with_an_empty_line():
    head = answer_head(200, length=3, is_kept_alive=False, headers=(("Content-Type", "application/json"),))
    assert head == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (b"GET /v2 HTTP/3", "'HTTP/3' is not spoken"),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: ten", "Content-Length is 'ten'"),
        (b"GET /v2 HTTP/1.1\r\nno colon", "line 'no colon' is malformed"),
    ],
)
def test_what_a_client_sent_is_shown_as_text(line, seen):
    with pytest.raises(RefusedError, match=seen):
        parse_head(line)
