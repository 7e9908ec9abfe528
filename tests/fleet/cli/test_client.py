"""Answers become errors, streams become documents; credentials come from where they should."""

import json
from pathlib import Path

import httpx
import pytest

from fleet.cli import credentials
from fleet.cli.client import Api, problem_of
from fleet.cli.release import parse_model
from fleet.cli.watch import summary
from protocol import errors


@pytest.mark.parametrize(
    ("status", "family"),
    [
        (401, errors.UnauthenticatedError),
        (403, errors.ForbiddenError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (412, errors.StaleRevisionError),
        (422, errors.InvalidError),
        (429, errors.UnavailableError),
        (503, errors.UnavailableError),
        (500, errors.MooringError),
    ],
)
def test_a_problem_is_an_error_of_the_one_tree(status: int, family: type[errors.MooringError]):
    body = {"type": "urn:mooring:problem:x", "detail": "what was seen", "hint": "what to do", "code": "a-code"}
    error = problem_of(httpx.Response(status, json=body))
    assert type(error) is family
    assert "what was seen" in str(error)
    assert error.code == "a-code"


@pytest.mark.parametrize("content", [b"", b"<html>", b"[1]", b'"text"'])
def test_an_answer_that_is_no_problem_document_still_is_an_error(content: bytes):
    assert "502" in str(problem_of(httpx.Response(502, content=content)))


@pytest.mark.parametrize("name", ["", ".", "..", "../devices", "a/../b", "a?next=b", "a#b", "a%2fb", "a\nb"])
def test_what_is_no_name_is_told_and_asks_the_server_for_nothing(name: str):
    def answer(request: httpx.Request) -> httpx.Response:
        pytest.fail(f"the server was asked for {request.url}")

    with Api("http://server", transport=httpx.MockTransport(answer)) as api, pytest.raises(errors.InvalidError, match="is no name"):
        api.get(f"/alarms/{name}")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_cannot_say_is_told(number: float):
    with (
        Api("http://server", transport=httpx.MockTransport(lambda _: httpx.Response(200, json={}))) as api,
        pytest.raises(errors.InvalidError, match="wanted a finite one"),
    ):
        api.send("POST", "/rules", {"threshold": number})


def test_all_pages_of_a_list_are_read():
    def answer(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("next")
        return httpx.Response(200, json={"items": [after], "next": {None: "a", "a": "b"}.get(after)})

    with Api("http://server", transport=httpx.MockTransport(answer)) as api:
        assert list(api.pages("/things")) == [None, "a", "b"]


def test_a_stream_is_read_event_by_event():
    text = 'retry: 5\n\nevent: message\ndata: {"a":1}\n\n: beat\n\nevent: ended\ndata: {}\n\n'
    with Api("http://server", transport=httpx.MockTransport(lambda _: httpx.Response(200, text=text))) as api:
        assert list(api.stream("/watch")) == [("message", {"a": 1}), ("ended", {})]


def test_the_environment_wins_over_the_last_login_and_a_flag_over_both(tmp_path: Path):
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(errors.UnauthenticatedError, match="mooring login"):
        credentials.load(environment=environment)
    credentials.save(credentials.Credentials("http://one", "t1"), environment)
    credentials.save(credentials.Credentials("http://two", "t2"), environment)
    assert credentials.load(environment=environment) == credentials.Credentials("http://two", "t2")
    assert credentials.load("http://one/", environment).token == "t1"
    chosen = credentials.load(environment={**environment, "MOORING_SERVER": "http://three", "MOORING_TOKEN": "t3"})
    assert chosen == credentials.Credentials("http://three", "t3")
    assert credentials.forget("http://two", environment)
    assert not credentials.forget("http://two", environment)


def test_a_damaged_login_file_is_named(tmp_path: Path):
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = credentials.config_file(environment)
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(errors.ConfigError, match=r"login\.json"):
        credentials.load(environment=environment)


def test_places_of_a_problem_are_named_once():
    errors_of = [{"pointer": "/body/valid_days", "reason": "too many"}, {"pointer": "/body/group", "reason": "missing"}]
    answer = httpx.Response(422, json={"detail": "/body/valid_days: too many", "errors": errors_of})
    assert problem_of(answer).message == "/body/valid_days: too many (/body/group: missing)"
    assert (
        problem_of(httpx.Response(422, json={"detail": "/body/valid_days: too many", "errors": errors_of[:1]})).message
        == "/body/valid_days: too many"
    )


def test_a_model_of_a_release_is_written_in_one_word():
    assert parse_model("digits.3") == {"model_id": "digits.3", "variant": "", "device_types": []}
    assert parse_model("digits.3:small@a,b") == {"model_id": "digits.3", "variant": "small", "device_types": ["a", "b"]}


def test_a_message_is_summed_up_in_a_few_words():
    perf = {"pipeline": "front", "fps": 9.54, "lat_ms_p50": 3.0, "backend": "onnx:cpu"}
    assert summary("tel/perf", perf) == "front: 9.5 frames/s, p50 3.0 ms, onnx:cpu"
    assert summary("status", {"presence": "online"}) == "online"
    assert summary("inf/front", {"top": [{"label": "7", "score": 0.91}], "release": "1.0"}) == "7 0.91 (1.0)"
    lines = [
        {"line": "digits", "desired": "1.1", "installed": "1.0", "state": "failed", "reason": "golden_mismatch"},
        {"line": "gauges", "desired": "2", "installed": "2", "state": "succeeded", "reason": ""},
        {"line": "new", "desired": "1", "state": "downloading"},
    ]
    said = "digits 1.0 -> 1.1 failed (golden_mismatch), gauges 2 succeeded, new nothing -> 1 downloading"
    assert summary("model", {"lines": lines}) == said
    assert summary("unknown/x", json.loads("{}")) == ""


def test_the_answer_of_every_task_is_summed_up():
    boxes = [{"label": "car", "score": 0.81, "track": 17}, {"label": "person", "score": 0.5, "track": None}]
    detection = {"task": "detection", "top": [], "release": "1.0"}
    assert summary("inf/yard", detection | {"boxes": boxes}) == "car #17 0.81, person 0.50 (1.0)"
    assert summary("inf/yard", detection) == "no object (1.0)"
    value = {"top": [], "value": 41.5, "unit": "mm", "is_anomaly": None, "release": "1.0"}
    assert summary("inf/level", value | {"task": "regression"}) == "41.5 mm (1.0)"
    assert summary("inf/pump", value | {"task": "anomaly", "is_anomaly": True, "unit": ""}) == "41.5, anomaly (1.0)"


def test_an_event_of_a_rule_is_summed_up_with_rule_zone_and_object():
    def event(kind: str, **data: object) -> str:
        return summary("event", {"type": f"mooring.{kind}.v1", "subject": "yard", "data": data})

    dwell = event("dwell.ended", rule="blocked", zone="gate", label="car", track=17, score=0.94, reason="outside")
    assert dwell == "mooring.dwell.ended.v1 yard blocked gate car #17 0.94 (outside)"
    assert event("line.crossed", rule="in", zone="entrance", direction="left", label="car") == (
        "mooring.line.crossed.v1 yard in entrance left car"
    )
    assert event("count.started", rule="full", count=5) == "mooring.count.started.v1 yard full 5 at once"
    assert event("value.started", rule="high", value=90.0, unit="mm") == "mooring.value.started.v1 yard high 90 mm"
    assert event("preview.taken", pipeline="yard") == "mooring.preview.taken.v1 yard"
