"""Requests per second of the Open Inference Protocol endpoint beside MLServer, both serving the same ONNX model on this machine.

`rows()` starts `mooring-agent serve` and MLServer (without and with parallel workers; the better one of a round is the peer), checks that
all answer alike, and loads them in turn with one client process that keeps N connections busy. MLServer speaks JSON only, so the rows
compare the same JSON request; what the binary tensors of the protocol give on top is a row of its own, beside the same peer.

MLServer lives in an environment of its own: MOORING_SERVING_PYTHON, else .venv-serving (`make serving-tools`).
`python -m benchmarks.agent.oip` prints the rows; `python -m benchmarks.agent.oip load PORT REQUEST CLIENTS SECONDS` is the client.
"""

import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.record import Row, compare
from fleet.registry.drafts import complete, load_draft
from protocol.files import digest_of_file
from runtime.manifest import FileEntry, to_bytes
from runtime.probe import inspect_model

ROOT = Path(__file__).resolve().parents[2]
SERVING_VARIABLE = "MOORING_SERVING_PYTHON"
SERVING_PYTHON = Path(os.environ.get(SERVING_VARIABLE, ROOT / ".venv-serving" / "bin" / "python"))
DIGITS = ROOT / "examples" / "digits"
LINE = "digits"
CLIENTS = (1, 8)
ROUNDS = int(os.environ.get("MOORING_BENCH_OIP_ROUNDS", "5"))
SECONDS = float(os.environ.get("MOORING_BENCH_OIP_SECONDS", "3"))
START_S = 120.0
TARGET = ">= 3"
OK = b"HTTP/1.1 200 "
PEER = "MLServer"


@dataclass(frozen=True, slots=True)
class Load:
    """What a client process measured."""

    per_s: float
    p50_ms: float
    p99_ms: float


@dataclass
class Rounds:
    """Figures of all rounds at one number of clients."""

    ours: list[Load] = field(default_factory=list)
    ours_binary: list[Load] = field(default_factory=list)
    peers: dict[str, list[Load]] = field(default_factory=dict)

    def best_peer(self) -> list[float]:
        """Requests per second of the better peer, by its median."""
        return max(([one.per_s for one in loads] for loads in self.peers.values()), key=statistics.median)


def rows(*, rounds: int = ROUNDS, seconds: float = SECONDS) -> tuple[list[Row], dict[str, Any]]:
    """The rows `oip throughput N` and `oip throughput N, binary`, and every figure behind them. Raises: RuntimeError without MLServer."""
    if not SERVING_PYTHON.is_file():
        raise RuntimeError(f"{SERVING_PYTHON} is missing: `make serving-tools` installs MLServer and tritonclient there.")
    found: list[Row] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mooring-oip-") as name, ExitStack() as stack:
        folder = Path(name)
        slot = make_slot(folder / "slot")
        json_body, binary_body, json_length = request_bodies()
        (folder / "json").write_bytes(request_of(json_body, None))
        (folder / "binary").write_bytes(request_of(binary_body, json_length))
        ours = stack.enter_context(agent(slot))
        peers = {
            kind: stack.enter_context(mlserver(folder / kind.replace(" ", "-"), slot / "model.onnx", workers=workers))
            for kind, workers in (("in process", 0), ("parallel workers", os.cpu_count() or 1))
        }
        check_alike(json_body, ours, peers.values())
        for clients in CLIENTS:
            figures = Rounds(peers={kind: [] for kind in peers})
            for _ in range(rounds):
                figures.ours.append(load(ours, folder / "json", clients, seconds))
                for kind, port in peers.items():
                    figures.peers[kind].append(load(port, folder / "json", clients, seconds))
                figures.ours_binary.append(load(ours, folder / "binary", clients, seconds))
            peer = figures.best_peer()
            for what, loads in (("", figures.ours), (", binary", figures.ours_binary)):
                found.append(
                    compare(
                        f"oip throughput {clients}{what}",
                        ours=[one.per_s for one in loads],
                        peer=peer,
                        peer_name=PEER,
                        unit="/s",
                        target=TARGET,
                    )
                )
            details[f"oip {clients} clients"] = {
                "ours": shown(figures.ours),
                "ours, binary": shown(figures.ours_binary),
                **{f"{PEER}, {kind}": shown(loads) for kind, loads in figures.peers.items()},
            }
    return found, details


def shown(loads: Sequence[Load]) -> dict[str, float]:
    """Medians of the rounds."""
    return {name: round(statistics.median(getattr(one, name) for one in loads), 3) for name in ("per_s", "p50_ms", "p99_ms")}


# --- the servers ---


def make_slot(folder: Path) -> Path:
    """A slot folder with the example's ONNX model."""
    folder.mkdir()
    model = folder / "model.onnx"
    model.write_bytes((DIGITS / "models" / "1.1" / "onnx" / "model.onnx").read_bytes())
    files = {model.name: FileEntry(sha256=digest_of_file(model), length=model.stat().st_size)}
    draft = load_draft(DIGITS / "onnx.toml")
    manifest = complete(draft, inspect_model(model), line=LINE, release="1.1", counter=1, variant="onnx", files=files)
    (folder / "manifest.json").write_bytes(to_bytes(manifest))
    return folder


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def agent(slot: Path) -> Iterator[int]:
    """`mooring-agent serve` on a port, ready."""
    port = free_port()
    command = [sys.executable, "-m", "agent.cli", "serve", "--state-dir", str(slot.parent / "state"), "--model-dir", str(slot)]
    with running([*command, "--listen", f"127.0.0.1:{port}"], cwd=ROOT, log=slot.parent / "agent.log"):
        await_ready(port, slot.parent / "agent.log")
        yield port


@contextmanager
def mlserver(folder: Path, model: Path, *, workers: int) -> Iterator[int]:
    """MLServer on a port, ready: without access logs, metrics and compression, which cost it."""
    folder.mkdir()
    port, grpc, metrics = free_port(), free_port(), free_port()
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "metrics_endpoint": None,
        "parallel_workers": workers,
        "gzip_enabled": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    model_settings = {"name": LINE, "implementation": "mlserver_onnx.OnnxModel", "parameters": {"uri": str(model), "version": "1.1"}}
    (folder / "model-settings.json").write_text(json.dumps(model_settings))
    (folder / "mlserver_onnx.py").write_bytes(Path(__file__).with_name("mlserver_onnx.py").read_bytes())
    command = [str(SERVING_PYTHON.with_name("mlserver")), "start", str(folder)]
    with running(command, cwd=folder, log=folder / "log", PYTHONPATH=str(folder)):
        await_ready(port, folder / "log")
        yield port


@contextmanager
def running(command: list[str], *, cwd: Path, log: Path, **environment: str) -> Iterator[None]:
    """A process, ended in the end."""
    with log.open("wb") as out:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=out, env=env)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_ready(port: int, log: Path) -> None:
    """Returns when the model is ready. Raises: RuntimeError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/models/{LINE}/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"The server on port {port} was not ready within {START_S:g} s: {log.read_text(errors='replace')[-2000:]}")


# --- requests ---


def request_bodies() -> tuple[bytes, bytes, int]:
    """One picture as JSON, the same in binary, and the length of the latter's JSON."""
    picture = np.random.default_rng(1).random((1, 1, 32, 32)).astype(np.float32).round(4)
    entry: dict[str, Any] = {"name": "image", "shape": list(picture.shape), "datatype": "FP32"}
    as_json = json.dumps({"inputs": [{**entry, "data": [round(float(one), 4) for one in picture.ravel()]}]}).encode()
    entry["parameters"] = {"binary_data_size": picture.nbytes}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    return as_json, head + picture.tobytes(), len(head)


def request_of(body: bytes, json_length: int | None) -> bytes:
    """The whole HTTP request."""
    lines = [f"POST /v2/models/{LINE}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    if json_length is None:
        lines.append("Content-Type: application/json")
    else:
        lines += ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {json_length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def check_alike(body: bytes, ours: int, peers: Any) -> None:
    """Returns when all servers give the same answer. Raises: RuntimeError."""
    answers = [answer_of(port, body) for port in (ours, *peers)]
    for other in answers[1:]:
        if not np.allclose(answers[0], other, rtol=1e-4, atol=1e-5):
            raise RuntimeError(f"The servers do not answer alike: {answers[0]} and {other}.")


def answer_of(port: int, body: bytes) -> list[float]:
    """The numbers that a server answers."""
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/{LINE}/infer", content=body, headers=headers, trust_env=False, timeout=30)
    return list(answer.raise_for_status().json()["outputs"][0]["data"])


# --- the client ---


def load(port: int, request: Path, clients: int, seconds: float) -> Load:
    """One measurement by a client process."""
    command = [sys.executable, "-m", "benchmarks.agent.oip", "load", str(port), str(request), str(clients), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return Load(**json.loads(done.stdout))


def keep_busy(port: int, request: bytes, clients: int, seconds: float) -> Load:
    """Each connection sends its next request when the answer is there; the first tenth of the time warms up. Raises: RuntimeError.

    The same request has answers of the same length, so that after the first one the client hardly looks into them: its own work shares
    the processor with the server that is measured.
    """
    poll, connections, sent_s = select.epoll(), dict[int, socket.socket](), dict[int, float]()
    for _ in range(clients):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
    length = answer_length(next(iter(connections.values())), request)
    for fd, sock in connections.items():
        sent_s[fd] = time.perf_counter()
        sock.sendall(request)
    begin_s = time.perf_counter()
    counted_s, end_s = begin_s + seconds / 10, begin_s + seconds * 1.1
    latencies: list[float] = []
    buffer, left = bytearray(length + 1), dict.fromkeys(connections, length)
    while time.perf_counter() < end_s:
        for fd, _ in poll.poll(1.0):
            count = connections[fd].recv_into(buffer)
            is_first = left[fd] == length
            left[fd] -= count
            if count <= 0 or left[fd] < 0 or (is_first and not buffer.startswith(OK)):
                raise RuntimeError(f"The server answered {bytes(buffer[:300])!r}, {length - left[fd]} bytes where {length} were wanted.")
            if left[fd]:
                continue
            now, left[fd] = time.perf_counter(), length
            if now >= counted_s:
                latencies.append(now - sent_s[fd])
            sent_s[fd] = now
            connections[fd].sendall(request)
    for sock in connections.values():
        sock.close()
    latencies.sort()
    return Load(len(latencies) / seconds, 1e3 * latencies[len(latencies) // 2], 1e3 * latencies[int(len(latencies) * 0.99)])


def answer_length(sock: socket.socket, request: bytes) -> int:
    """Bytes of the answer to the request, with its head. Raises: RuntimeError when it is none of the wanted kind."""
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data and (part := sock.recv(262_144)):
        data += part
    head = data.partition(b"\r\n\r\n")[0]
    if not head.startswith(OK):
        raise RuntimeError(f"The server answered {data[:300]!r}.")
    start = head.lower().index(b"content-length:") + 15
    whole = len(head) + 4 + int(head[start : start + 20].split(b"\r", 1)[0])
    while len(data) < whole:
        data += sock.recv(262_144)
    return whole


def main() -> None:
    """See the module's text."""
    if sys.argv[1:2] == ["load"]:
        found = keep_busy(int(sys.argv[2]), Path(sys.argv[3]).read_bytes(), int(sys.argv[4]), float(sys.argv[5]))
        print(json.dumps({"per_s": found.per_s, "p50_ms": found.p50_ms, "p99_ms": found.p99_ms}))
        return
    table, details = rows()
    for row in table:
        print(f"{row.what:28} {row.ours:8.0f}/s  {PEER} {row.peer or 0:6.0f}/s  {row.ratio or 0:6.2f} ± {row.spread:.2f}  {row.target}")
    print(json.dumps(details, indent=2))


if __name__ == "__main__":
    main()
