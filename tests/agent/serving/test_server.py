"""The server over real sockets: the protocol's calls, and clients that mean no good."""

import gzip
import json
import socket
import ssl
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx
import numpy as np
import pytest
from simulators.authority import Authority
from simulators.color_models import Trait, make_slot
from simulators.oip import INFER, RED, head_of, infer_body, is_hung_up, read_answer
from waiting import wait_until

from agent.serving.connection import Patience
from agent.serving.http import MAX_HEAD_BYTES
from agent.serving.server import Guard, Limits, is_local

SMALL = Limits(body_bytes=64 * 1024, held_bytes=96 * 1024)


def ask(client: httpx.Client, *, path: str = INFER, headers: dict[str, str] | None = None, **request) -> httpx.Response:
    body, length = infer_body(**request)
    return client.post(path, content=body, headers={"Inference-Header-Content-Length": str(length)} | (headers or {}))


def scores_of(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["Inference-Header-Content-Length"])
    return np.frombuffer(answer.content[length:], "<f4").tolist()


# --- the calls ---


def test_what_is_alive_and_ready_says_so(serve):
    client = serve().client()
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/color/ready", "/v2/models/color/versions/1.0/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2").json() == {"name": "mooring-agent", "version": "1", "extensions": ["binary_tensor_data"]}


@pytest.mark.parametrize("path", ["/v2/models/color", "/v2/models/color/versions/1.0"])
def test_metadata_names_the_active_release_and_its_tensors(serve, path):
    assert serve().client().get(path).json() == {
        "name": "color",
        "versions": ["1.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 8, 8, 3]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 3]}],
    }


def test_binary_tensors_are_answered_in_binary(serve):
    answer = ask(serve().client(), id="seven", parameters={"binary_data_output": True})
    assert scores_of(answer) == [0.0, 0.0, 1.0]
    document = json.loads(answer.content[: int(answer.headers["Inference-Header-Content-Length"])])
    assert (document["id"], document["model_name"], document["model_version"]) == ("seven", "color", "1.0")


def test_a_unix_socket_carries_the_same_under_any_host(serve, tmp_path):
    answer = ask(serve(unix=tmp_path / "socket", guard=Guard(wants_local_host=False)).client(), parameters={"binary_data_output": True})
    assert scores_of(answer) == [0.0, 0.0, 1.0]


def test_json_is_answered_in_json(serve):
    document = {"inputs": [{"name": "pixels", "shape": [1, 8, 8, 3], "datatype": "FP32", "data": RED.ravel().tolist()}]}
    answer = serve().client().post(INFER, json=document)
    assert answer.headers["Content-Type"] == "application/json"
    assert "Inference-Header-Content-Length" not in answer.headers
    assert answer.json()["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [0.0, 0.0, 1.0]}]


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_bodies_are_unpacked(serve, coding, pack):
    body, length = infer_body(parameters={"binary_data_output": True})
    headers = {"Content-Encoding": coding, "Inference-Header-Content-Length": str(length)}
    assert scores_of(serve().client().post(INFER, content=pack(body), headers=headers)) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("path", "method", "status", "words"),
    [
        ("/v2/", "GET", 404, "not here"),
        ("/v2/models/other", "GET", 404, "there are color"),
        ("/v2/models/other/ready", "GET", 404, "there are color"),
        ("/v2/models/color/versions/2.0", "GET", 404, "runs release 1.0, not '2.0'"),
        ("/v2/models/color/versions/2.0/infer", "POST", 404, "runs release 1.0"),
        ("/v2/models/color/generate", "POST", 404, "not here"),
        ("/v2/models/color/config", "GET", 404, "extension"),
        ("/v2/models/color/stats", "GET", 404, "extension"),
        ("/v2/repository/index", "POST", 404, "Model control"),
        ("/v2/systemsharedmemory/status", "GET", 404, "Shared memory"),
        ("/v2/models/color", "POST", 405, "wanted GET"),
        (INFER, "GET", 405, "wanted POST"),
    ],
)
def test_what_is_not_there_is_told(serve, path, method, status, words):
    body, length = infer_body()
    headers = {"Inference-Header-Content-Length": str(length)}
    answer = serve().client().request(method, path, content=body if method == "POST" else None, headers=headers)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_head_request_gets_no_body(serve):
    answer = serve().client().head("/v2")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_line_without_a_model_is_not_ready_and_says_why(serve, tmp_path):
    served = serve(folder=tmp_path / "nothing")
    client = served.client()
    assert client.get("/v2/health/live").status_code == 200
    ready = client.get("/v2/health/ready")
    assert (ready.status_code, "color does not load" in ready.json()["error"]) == (503, True)
    answer = ask(client)
    assert answer.status_code == 503
    assert "does not load" in answer.json()["error"]
    assert [(one.line, one.release, one.refused) for one in served.server.totals()] == [("color", "", 1)]


@pytest.mark.parametrize(("trait", "words"), [(Trait.FAILS, "The model failed"), (Trait.NAN, "not finite")])
def test_a_model_that_fails_is_an_error_of_the_server_and_the_next_request_is_answered(serve, tmp_path, trait, words):
    served = serve(folder=make_slot(tmp_path / "bad", trait=trait))
    client = served.client()
    failed = ask(client, outputs=[{"name": "scores"}])
    assert failed.status_code == 500
    assert words in failed.json()["error"]
    assert ask(client, array=RED * 0).status_code == 200
    assert [(one.answered, one.failed) for one in served.server.totals()] == [(1, 1)]


# --- releases come and go ---


def test_no_request_is_lost_while_releases_are_swapped(serve, tmp_path):
    folders = [make_slot(tmp_path / release, release=release, scale=float(release)) for release in ("1.0", "2.0")]
    served = serve(folder=folders[0], limits=Limits(lanes=2, queue=64))
    swapped = threading.Event()

    def keep_asking(_: int) -> set[tuple[str, float]]:
        client, seen = served.client(), set()
        while not swapped.is_set():
            answer = ask(client)
            document = answer.json()
            assert answer.status_code == 200, document
            seen.add((document["model_version"], document["outputs"][0]["data"][2]))
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, number) for number in range(4)]
        for number in range(20):
            served.shelf.put("color", folders[(number + 1) % 2])
        wait_until(lambda: served.server.totals()[0].answered > 50, what="answers")
        swapped.set()
        seen = set().union(*(one.result() for one in asking))
    assert seen <= {("1.0", 1.0), ("2.0", 2.0)}  # each release answers as itself
    assert served.server.totals()[0].failed == 0


def test_a_release_that_does_not_load_is_not_answered_by_the_one_before(serve, tmp_path):
    served = serve()
    served.shelf.put("color", tmp_path / "damaged")
    assert ask(served.client()).status_code == 503
    served.shelf.put("color", make_slot(tmp_path / "color-2", release="2.0"))
    assert ask(served.client()).status_code == 200


# --- the queue ---


def test_a_full_queue_is_told_at_once_and_those_who_wait_are_answered(serve):
    served = serve(limits=Limits(queue=2))
    model = served.shelf.entry("color").model
    body, length = infer_body()
    with model.inferred({"pixels": RED}):  # the only copy is taken
        waiting = [served.connect() for _ in range(3)]
        for sock in waiting:
            sock.sendall(head_of(body, length) + body)
        wait_until(lambda: served.server.busy_s() > 0 and served.server.waiting() == 2, what="a full queue")
        client = served.client()
        refused = ask(client)
        assert refused.status_code == 503
        assert "2 requests wait already" in refused.json()["error"]
        assert refused.headers["Retry-After"] == "1"
        assert client.get("/v2/health/live").status_code == 200  # the listener goes on
    assert [read_answer(sock)[0] for sock in waiting] == [200] * 3


def test_too_many_connections_are_told_so(serve):
    served = serve(limits=Limits(connections=2))
    kept = [served.connect() for _ in range(2)]
    for sock in kept:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(sock)[0] == 200
    late = served.connect()
    assert read_answer(late)[0] == 503
    assert is_hung_up(late)
    kept[0].close()
    client = served.client()
    wait_until(lambda: client.get("/v2").status_code == 200, what="room")


# --- who may ask ---


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        (b"localhost", True),
        (b"LOCALHOST:8000", True),
        (b"localhost.", True),
        (b"127.0.0.1:1", True),
        (b"127.9.9.9", True),
        (b"[::1]:8000", True),
        (b"[::1]", True),
        (b"", False),
        (b"evil.example", False),
        (b"localhost.evil.example", False),
        (b"evil.example:127", False),
        (b"10.0.0.1", False),
        (b"0.0.0.0", False),
        (b"[::2]:1", False),
        (b"\xff", False),
    ],
)
def test_only_names_of_this_machine_are_local(host, is_ours):
    assert is_local(host) is is_ours


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://localhost:8000"}, {"Origin": "null"}])
def test_web_pages_are_refused(serve, headers):
    assert ask(serve().client(), headers=headers).status_code == 403


def test_a_token_is_wanted_where_one_is_set(serve):
    client = serve(guard=Guard(wants_local_host=False, token=b"0123456789abcdef")).client()
    assert client.get("/v2", headers={"Host": "gateway.site"}).status_code == 401
    assert client.get("/v2", headers={"Authorization": "Bearer 0123456789abcdeg"}).status_code == 401
    assert client.get("/v2", headers={"Authorization": "Basic 0123456789abcdef"}).headers["WWW-Authenticate"] == "Bearer"
    assert ask(client, headers={"Authorization": "bearer 0123456789abcdef", "Host": "gateway.site"}).status_code == 200


def test_tls_carries_the_same(serve, tmp_path):
    authority = Authority()
    certificate, key = authority.issue(tmp_path, "gateway", hosts=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    served = serve(tls=context)
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    big = np.zeros((1, 8, 8, 3), np.float32)
    with httpx.Client(base_url=served.url.replace("http:", "https:"), verify=trusting, timeout=120, trust_env=False) as client:
        for _ in range(3):
            assert ask(client, array=big, id="x" * 400).json()["outputs"][0]["data"] == [0.0, 0.0, 0.0]
    with trusting.wrap_socket(served.connect(), server_hostname="127.0.0.1") as sock:  # two requests in one record
        sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        assert [read_one(sock) for _ in range(2)] == [200, 200]
    plain = served.connect()
    plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with suppress(ConnectionResetError):
        assert not plain.recv(100).startswith(b"HTTP")


def read_one(sock: socket.socket) -> int:
    """Status of one answer, and not a byte beyond it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while length:
        length -= len(sock.recv(length))
    return int(head.split(b" ", 2)[1])


# --- clients that mean no good ---


def test_a_body_that_is_too_long_is_refused_before_it_is_read(serve):
    served = serve(limits=SMALL)
    sock = served.connect()
    sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
    status, body = read_answer(sock)
    assert status == 413
    assert b"at most 65536" in body
    assert is_hung_up(sock)


def test_a_client_that_sends_a_long_body_first_reads_why_it_was_refused(serve):
    sock = serve(limits=replace(SMALL, patience=Patience(linger_s=120))).connect()
    body = bytes(4 << 20)
    sender = threading.Thread(target=send_all, args=(sock, head_of(body, 10) + body))
    sender.start()
    assert read_answer(sock)[0] == 413
    sender.join()


def send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


def test_a_body_that_unpacks_to_too_much_is_refused(serve):
    bomb = gzip.compress(bytes(1 << 20))
    answer = serve(limits=SMALL).client().post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("content", "coding", "status"),
    [
        pytest.param(b"nonsense", "gzip", 400, id="nonsense"),
        pytest.param(gzip.compress(b"{}")[:-4], "gzip", 400, id="cut"),
        pytest.param(gzip.compress(b"{}") + b"more", "gzip", 400, id="more behind its end"),
        pytest.param(b"{}", "br", 415, id="unknown coding"),
        pytest.param(b"{}", "gzip, gzip", 415, id="packed twice"),
    ],
)
def test_a_body_that_is_not_what_it_says_is_refused_and_the_connection_goes_on(serve, content, coding, status):
    client = serve().client()
    assert client.post(INFER, content=content, headers={"Content-Encoding": coding}).status_code == status
    assert ask(client).status_code == 200


def test_all_bodies_together_are_bounded(serve):
    served = serve(limits=SMALL)
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n".encode()
    first, second = served.connect(), served.connect()
    first.sendall(head + b"x")
    wait_until(lambda: served.server.held_bytes() >= 60_000, what="the first body's memory")
    second.sendall(head)
    assert read_answer(second)[0] == 503
    first.close()
    wait_until(lambda: served.server.held_bytes() == 0, what="its return")


def test_a_head_that_never_ends_is_refused(serve):
    sock = serve().connect()
    sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * MAX_HEAD_BYTES)
    assert read_answer(sock)[0] == 431


@pytest.mark.parametrize(
    ("sent", "patience"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: loc", Patience(head_s=0.1, sweep_s=0.05)),
        (f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc".encode(), Patience(body_s=0.1, sweep_s=0.05)),
    ],
)
def test_a_client_that_dawdles_is_told_and_cut_off(serve, sent, patience):
    sock = serve(limits=Limits(patience=patience)).connect()
    sock.sendall(sent)
    assert read_answer(sock)[0] == 408
    assert is_hung_up(sock)


def test_a_client_that_says_nothing_is_hung_up_on(serve):
    served = serve(limits=Limits(patience=Patience(idle_s=0.1, sweep_s=0.05)))
    assert is_hung_up(served.connect())


def test_a_client_that_does_not_read_its_answers_is_hung_up_on(serve, tmp_path):
    served = serve(unix=tmp_path / "socket", limits=Limits(patience=Patience(write_s=0.1, sweep_s=0.05)))
    sock = served.connect()
    body, length = infer_body(id="x" * 500)
    sender = threading.Thread(target=send_all, args=(sock, (head_of(body, length) + body) * 2000))
    sender.start()
    wait_until(lambda: served.server.connections() == 0, what="the hang-up")
    sock.close()
    sender.join()


def test_a_request_that_comes_byte_by_byte_is_answered(serve):
    body, length = infer_body(id="slow")
    sock = serve().connect()
    for byte in head_of(body, length):
        sock.sendall(bytes([byte]))
    for start in range(0, len(body), 97):
        sock.sendall(body[start : start + 97])
    assert read_answer(sock)[0] == 200


def test_requests_sent_ahead_are_answered_in_their_order(serve):
    sock = serve().connect()
    requests = [infer_body(id=f"{number}") for number in range(20)]
    sock.sendall(b"".join(head_of(body, length) + body for body, length in requests))
    stream, ids = sock.makefile("rb"), []
    for _ in requests:
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
        headers = dict(line.rstrip().split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
        ids.append(json.loads(stream.read(int(headers[b"Content-Length"])))["id"])
    stream.close()
    assert ids == [str(number) for number in range(20)]


def test_each_head_of_a_connection_counts_for_itself(serve):
    sock = serve(guard=Guard(token=b"a" * 16)).connect()
    body, length = infer_body()
    allowed, other = (head_of(body, length, extra=f"Authorization: Bearer {letter * 16}\r\n") for letter in "ab")
    for _ in range(3):
        sock.sendall(allowed + body)
        assert read_answer(sock)[0] == 200
    longer, longer_length = infer_body(id="longer")
    sock.sendall(head_of(longer, longer_length, extra=f"Authorization: Bearer {'a' * 16}\r\n") + longer)
    assert read_answer(sock)[0] == 200
    sock.sendall(other + body)  # as long as the one before, and not allowed
    assert read_answer(sock)[0] == 401
    assert is_hung_up(sock)


def test_the_client_is_told_to_go_on_when_it_waits_for_that(serve):
    body, length = infer_body()
    sock = serve().connect()
    sock.sendall(head_of(body, length, extra="Expect: 100-continue\r\n"))
    assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(body)
    assert read_answer(sock)[0] == 200


@pytest.mark.parametrize("cut", [1, 30, -800, -1])
def test_clients_that_go_away_leave_nothing_behind(serve, cut):
    served = serve()
    body, length = infer_body()
    for _ in range(5):
        sock = served.connect()
        sock.sendall((head_of(body, length) + body)[:cut])
        sock.close()
    sock = served.connect()
    sock.sendall(head_of(body, length) + body)
    sock.close()  # without reading
    wait_until(lambda: served.server.connections() == 0, what="all to be gone")
    assert served.server.held_bytes() == 0
    assert ask(served.client()).status_code == 200


def test_a_client_that_hangs_up_while_it_is_inferred_for_is_forgotten(serve):
    served = serve()
    body, length = infer_body()
    with served.shelf.entry("color").model.inferred({"pixels": RED}):
        sock = served.connect()
        sock.sendall(head_of(body, length) + body)
        wait_until(lambda: served.server.busy_s() > 0, what="a request in its lane")
        sock.close()
        assert served.client().get("/v2").status_code == 200
    wait_until(lambda: served.server.connections() <= 1, what="it to be gone")


def test_chunked_bodies_are_refused_with_what_to_do(serve):
    answer = serve().client().post(INFER, content=iter([b"{}"]))
    assert answer.status_code == 411
    assert "Content-Length" in answer.json()["error"]
