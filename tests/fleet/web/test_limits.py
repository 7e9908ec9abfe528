"""Bodies and calls are bounded per caller."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from serving import serving

from fleet.web import problems
from fleet.web.limits import MAX_CALLERS, BodyLimit, RateLimit
from protocol.errors import ConfigError, ConflictError, StaleRevisionError, TrustError, UnavailableError

START = datetime(2026, 3, 1, tzinfo=UTC)


class Body(BaseModel):
    text: str


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(BodyLimit, limit=100, upload_limit=1000, is_upload=lambda scope: scope["path"] == "/upload")

    @app.post("/json")
    @app.post("/upload")
    def take(body: Body) -> int:
        return len(body.text)

    @app.get("/raise/{kind}")
    def fail(kind: str, request: Request) -> None:
        raise {
            "stale": StaleRevisionError("seen 1, wanted 2"),
            "conflict": ConflictError("no", code="token-used", hint="Ask again."),
            "trust": TrustError("bad signature"),
            "away": UnavailableError("the database is away", retry_after_s=7),
            "config": ConfigError("secret path /etc/x"),
            "crash": ValueError("a secret"),
        }[kind]

    with serving(app) as client:
        yield client


def test_a_body_within_the_limit_is_read_and_a_longer_one_refused_before_it_is(http: httpx.Client):
    assert http.post("/json", json={"text": "x" * 50}).json() == 50
    answer = http.post("/json", json={"text": "x" * 200})
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:mooring:problem:too-large")
    assert http.post("/upload", json={"text": "x" * 200}).status_code == 200


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(http: httpx.Client):
    def pieces():
        yield b'{"text":"'
        for _ in range(100):
            yield b"x" * 50
        yield b'"}'

    answer = http.post("/json", content=pieces(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:mooring:problem:too-large")


def test_a_refusal_reaches_a_caller_who_is_still_sending(http: httpx.Client):
    """When the connection was closed with bytes unread, about one of four of those in pieces was lost."""
    for _ in range(60):
        assert http.post("/json", content=iter([b"x" * 50] * 100)).status_code == 413
        assert http.post("/json", json={"text": "x" * 200}).status_code == 413


@pytest.mark.parametrize(
    ("kind", "status", "slug", "code"),
    [
        ("stale", 412, "precondition-failed", "precondition-failed"),
        ("conflict", 409, "conflict", "token-used"),
        ("trust", 403, "forbidden", "trust"),
        ("away", 503, "unavailable", "unavailable"),
        ("config", 500, "internal", "internal"),
        ("crash", 500, "internal", "internal"),
    ],
)
def test_each_family_of_errors_has_its_status_and_slug(http: httpx.Client, kind: str, status: int, slug: str, code: str):
    answer = http.get(f"/raise/{kind}", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    body = answer.json()
    assert (answer.status_code, body["status"], body["type"], body["code"]) == (status, status, f"urn:mooring:problem:{slug}", code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["trace_id"] == "ab" * 16
    assert "secret" not in answer.text


def test_an_error_for_the_caller_says_what_to_do_and_when(http: httpx.Client):
    assert http.get("/raise/conflict").json()["hint"] == "Ask again."
    assert http.get("/raise/away").headers["retry-after"] == "7"


def test_malformed_input_names_the_place_by_json_pointer(http: httpx.Client):
    body = http.post("/json", json={"text": 1}).json()
    assert (body["status"], body["errors"][0]["pointer"]) == (422, "/body/text")


def test_unknown_paths_and_methods_are_problems_too(http: httpx.Client):
    assert http.get("/nowhere").json()["type"] == "urn:mooring:problem:not-found"
    assert http.get("/json").json()["type"] == "urn:mooring:problem:method-not-allowed"


def test_calls_beyond_the_burst_wait_for_their_turn():
    now = [START]
    limit = RateLimit(burst=3, per_minute=60, now=lambda: now[0])
    for _ in range(3):
        limit.take("a")
    with pytest.raises(UnavailableError) as caught:
        limit.take("a")
    assert (caught.value.code, caught.value.retry_after_s) == ("rate-limited", 1.0)
    limit.take("b")
    now[0] += timedelta(seconds=1)
    limit.take("a")


def test_only_so_many_callers_are_remembered():
    limit = RateLimit(burst=1, per_minute=1, now=lambda: START)
    for number in range(MAX_CALLERS + 5):
        limit.take(str(number))
    limit.take("0")
