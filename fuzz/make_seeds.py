"""Writes the seeds under fuzz/seeds again: `python -m fuzz.make_seeds`. Small, made by our own writers, the same bytes every time."""

import json
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zstandard

from fleet.registry import delta_encoder, delta_tensors, drafts
from protocol.canonical import canonical_json
from protocol.delta import frames
from protocol.delta.container import Method
from protocol.delta.expect import scan_model
from protocol.delta.plan import Reader
from protocol.delta.tensors import skeleton_of, varint
from runtime import golden, manifest
from runtime.base import ModelTensors, TensorSpec

SEEDS = Path(__file__).resolve().parent / "seeds"
GOLDEN = SEEDS.parent.parent / "tests" / "golden"
DIGITS = SEEDS.parent.parent / "examples" / "digits" / "models"
DIGEST = "sha256:" + "ab" * 32
#: Words that a mutation may put in, per target.
WORDS = {
    "metadata": (
        *(
            "signed",
            "signatures",
            "keyid",
            "sig",
            "_type",
            "root",
            "timestamp",
            "snapshot",
            "targets",
            "mooring-time",
            "version",
            "expires",
        ),
        *("spec_version", "1.0.31", "meta", "length", "hashes", "sha256", "keys", "roles", "keyids", "threshold", "delegations", "paths"),
        *(
            "path_hash_prefixes",
            "succinct_roles",
            "bit_length",
            "name_prefix",
            "terminating",
            "custom",
            "mooring",
            "device",
            "tenant",
            "now",
        ),
        *(
            "assignment",
            "attempt",
            "campaign",
            "issued_at",
            "line_floor",
            "lines",
            "run",
            "as",
            "share",
            "until",
            "line",
            "release",
            "counter",
        ),
        *(
            "kind",
            "variant",
            "device_types",
            "runtime",
            "requires",
            "firmware_min",
            "deltas",
            "base_sha256",
            "method",
            "full_bytes_allowed",
        ),
        *(
            "consistent_snapshot",
            "keytype",
            "scheme",
            "keyval",
            "public",
            "ed25519",
            "model/",
            "firmware/",
            "policy/",
            "onnx.model.onnx",
            "../",
        ),
        *("9007199254740993", "1e999", "-1", "null", "true", "[]", "{}", "2026-11-01T12:00:00Z", "0001-01-01T00:00:00Z", "cam-1", "digits"),
    ),
    "bundle": (
        *(
            "format",
            "mooring-bundle.1",
            "mooring-reports.1",
            "tenant",
            "group",
            "created_at",
            "valid_until",
            "devices",
            "device",
            "reports",
        ),
        *("payload", "payloadType", "signatures", "keyid", "sig", "signed", "version", "cam-1", "t0", "../", "secret", ".stick", "[[[[[[["),
    ),
    "serving": (
        *("inputs", "outputs", "name", "pixels", "ages", "on", "shape", "datatype", "data", "parameters", "id"),
        *("binary_data_size", "binary_data", "binary_data_output", "FP32", "INT8", "BOOL", "BYTES", "NaN", "1e39", "1e999"),
        *("POST", "HTTP/1.1", "HTTP/1.0", "/v2/models/m/infer", "/v2/health/ready", "Host: x", "Content-Length: 5"),
        *("Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: close", "%2e"),
    ),
    "manifest": (
        *(
            "schema",
            "model-manifest.1",
            "golden.1",
            "inputs",
            "outputs",
            "keys",
            "tolerances",
            "lsb",
            "atol",
            "rtol",
            "dtype",
            "shape",
            "data",
        ),
        *(
            "int8",
            "uint8",
            "int16",
            "int32",
            "float32",
            "preprocess",
            "postprocess",
            "labels",
            "budget",
            "probe",
            "lineage",
            "files",
            "runtime",
        ),
        *(
            "NHWC",
            "NCHW",
            "RGB",
            "GRAY",
            "scale",
            "zero_point",
            "top_k",
            "activation",
            "quantization",
            "device_types",
            "backends",
            "NaN",
            "1e400",
        ),
    ),
}


def metadata() -> dict[str, bytes]:
    """One per door, and edits of each signed file."""
    director = {"device": "cam-1", "tenant": "t0", "assignment": "a", "attempt": 1, "issued_at": 1793534400000, "line_floor": {"digits": 1}}
    offer = {"base_sha256": DIGEST, "sha256": DIGEST, "length": 5, "method": 1}
    line = {"line": "digits", "floor": 2}
    image = {"line": "digits", "release": "1.0", "counter": 10, "variant": "onnx", "device_types": ["camera"], "runtime": "onnx"}
    policy = {"kind": "policy", "tenant": "t0", "group": "site", "rev": 4}
    documents = (director, {"deltas": [offer], "full_bytes_allowed": 9}, line, image, policy)
    seeds = {f"fields-{index}": bytes([0, index]) + canonical_json(document) for index, document in enumerate(documents)}
    seeds["path"] = b"\x01model/digits/1.0/onnx.model.onnx"
    body = {"_type": "mooring-time", "device": "cam-1", "nonce": "n1", "now": 1793534400000}
    seeds["raw-time"] = b"\x02" + canonical_json({"signed": body, "signatures": [{"keyid": "0" * 64, "sig": "00"}]})
    seeds["signed-time"] = b"\x03" + canonical_json(body)
    for index in range(10):
        seeds[f"raw-file-{index}"] = bytes([4, index]) + b'{"signed":{"_type":"timestamp","version":2},"signatures":[]}'
        seeds[f"edit-{index}-harmless"] = bytes([5]) + _edit(index, 0, 2, b"{}")
        for operation, text in ((0, b""), (1, b'"x"'), (2, b'{"a":[]}'), (3, b"2")):
            seeds[f"edit-{index}-{operation}"] = bytes([5]) + _edit(index, 3, operation, text) + _edit(index, 9, operation, text)
    return seeds


def _edit(index: int, place: int, operation: int, text: bytes) -> bytes:
    return struct.pack(">BHBB", index, place, operation, len(text)) + text


def serving() -> dict[str, bytes]:
    """A request in JSON, one in binary, heads and a packed body."""
    pixels = {"name": "pixels", "shape": [1, 2, 2], "datatype": "FP32"}
    ages, on = {"name": "ages", "shape": [3], "datatype": "INT8"}, {"name": "on", "shape": [2], "datatype": "BOOL"}
    whole = [{**pixels, "data": [0, 1.5, 2, -3]}, {**ages, "data": [1, 2, 3]}, {**on, "data": [True, False]}]
    sizes = [{**one, "parameters": {"binary_data_size": size}} for one, size in ((pixels, 16), (ages, 3), (on, 2))]
    text = json.dumps({"id": "7", "inputs": sizes, "parameters": {"binary_data_output": True}}).encode()
    return {
        "head": b"\x00POST /v2/models/m/versions/1/infer?x=1 HTTP/1.1\r\nHost: localhost:8000\r\nContent-Length: 12",
        "head-get": b"\x00GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close",
        "json": b"\x01" + json.dumps({"inputs": whole, "outputs": [{"name": "ages"}]}).encode(),
        "binary": b"\x02" + len(text).to_bytes(2) + text + bytes(21),
        "packed": b"\x03" + zlib.compress(text),
    }


def manifests() -> dict[str, bytes]:
    """A manifest per model format, and golden vectors of each kind of tensor."""
    seeds = {}
    for file_format, backend in (("tflite", "litert"), ("onnx", "onnx")):
        text = {"task": "classification", "labels": ["a", "b"], "preprocess": {"color": "RGB"}, "device_types": ["linux-x86-64"]}
        image, scores = TensorSpec("x", (1, 32, 32, 3), "int8", 1 / 255, -128), TensorSpec("y", (1, 2), "int8", 1 / 256, -128)
        tensors = ModelTensors(file_format, backend, "2.3.0", (image,), (scores,))
        files = {name: manifest.FileEntry(sha256=DIGEST, length=5) for name in (f"model.{file_format}", "golden.cbor")}
        whole = drafts.complete(
            drafts.parse_draft(text), tensors, line="digits", release="1.0", counter=1, variant=file_format, files=files
        )
        seeds[f"manifest-{file_format}"] = b"\x00" + manifest.to_bytes(whole)
    for dtype in ("int8", "int32", "float32"):
        tensor = np.arange(4, dtype=dtype).reshape(1, 4)
        made = golden.Goldens(({"x": tensor},), {"onnx/1.23/avx2": ({"y": tensor},)}, {"y": golden.Tolerance()})
        seeds[f"golden-{dtype}"] = b"\x01" + golden.encode(made)
    return seeds


def sketches() -> dict[str, bytes]:
    """Each golden file behind the door that reads it, and packed numbers."""
    doors = {"window.1": 0, "grid.1": 1, "profile.1": 2, "reference.3": 3, "evidence.1": 4}
    seeds = {name.partition(".")[0]: bytes([door]) + (GOLDEN / "sketches" / f"{name}.cbor").read_bytes() for name, door in doors.items()}
    return seeds | {"numbers": bytes.fromhex("0503018101b964"), "anything": bytes.fromhex("06a20182f93c00f6616120")}


def models() -> dict[str, bytes]:
    """A small network of int8 weights with scales, biases, half floats and values in varying length, and newer ones of it."""
    generator = np.random.default_rng(5)
    weights = generator.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)
    scales = generator.uniform(0.01, 0.02, 8).astype(np.float32)
    recalibrated = (scales * np.float32(1.01)).astype(np.float32)
    tuned = np.clip(weights.astype(np.int16) + generator.integers(-1, 2, weights.shape), -127, 127).astype(np.int8)
    rows = generator.integers(-127, 128, (160, 3, 3, 3)).astype(np.int8)
    is_moved = (generator.random(rows.shape) < 0.3) & (np.arange(160)[:, None, None, None] % 2 == 0)
    pruned = np.where(is_moved, generator.integers(-127, 128, rows.shape), rows).astype(np.int8)
    of_rows = generator.uniform(0.01, 0.02, 160).astype(np.float32)
    return {
        "rows.onnx": _onnx(rows, of_rows, 0.05, 3),
        "pruned.onnx": _onnx(pruned, of_rows, 0.05, 3),
        "old.onnx": _onnx(weights, scales, 0.05, 3),
        "recalibrated.onnx": _onnx(weights, recalibrated, 0.051, 4),
        "tuned.onnx": _onnx(tuned, scales, 0.05, 3),
        "rebuilt.onnx": _onnx(weights[:5], recalibrated[:5], 0.07, -9),
    }


def _onnx(weights: np.ndarray, scales: np.ndarray, in_scale: float, zero: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    bias = np.arange(len(scales), dtype=np.int32) * 100
    kept = {
        "w": weights,
        "ws": scales,
        "wz": np.zeros(len(scales), np.int8),
        "xs": np.float32(in_scale),
        "b": bias,
        "h": scales.astype(np.float16),
    }
    kept["bs"] = (np.float32(in_scale) * scales).astype(np.float32)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in kept.items()]
    tensors.append(helper.make_tensor("xz", TensorProto.INT8, [], [zero]))  # written in varying length
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["y"]),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.INT8, [1, 3, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(scales), 6, 6])
    graph = helper.make_graph(nodes, "small", [image], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString(deterministic=True)


def deltas(folder: Path) -> dict[str, bytes]:
    """What our encoder makes of the models, once whole and once from where each door begins."""
    seeds = {}
    pairs = [(folder / "old.onnx", folder / f"{name}.onnx", Method.ONNX) for name in ("recalibrated", "tuned", "rebuilt")]
    pairs.append((*(DIGITS / release / "tflite" / "model.tflite" for release in ("1.1", "1.2")), Method.TFLITE))
    pairs.append((folder / "rows.onnx", folder / "pruned.onnx", Method.ONNX))
    pairs.append((*(DIGITS / release / "onnx" / "model.onnx" for release in ("1.0", "1.1")), Method.ONNX))
    for index, (old, newer, method) in enumerate(pairs):
        parts, packed = delta_tensors.build(method, old, newer), delta_tensors.build(method, old, newer, is_packed=True)
        streams = _with_plain_plan(parts.streams)
        for name, one in (("streams", parts), ("packed", packed)):
            seeds[f"{name}-{index}"] = bytes([6 if one.has_places else 2, index]) + _with_plain_plan(one.streams)
        seeds[f"gaps-{index}"] = bytes([5, index, 2, 0, 3]) + b"\x00\x03" + b"abc" + streams
        edits = _edits_between(_skeleton(old, method), _skeleton(newer, method)) if parts.skeleton else b""
        seeds[f"skeleton-{index}"] = bytes([3, index]) + len(edits).to_bytes(2, "big") + edits + streams
        out = folder / "delta"
        seeds[f"scan-{index}"] = bytes([4, method is Method.TFLITE]) + newer.read_bytes()
        if method is Method.ONNX:
            for name, base in (("full", None), ("whole", old)):
                delta_encoder.encode(base, newer, out)
                seeds[f"{name}-{index}"] = b"\x00" + out.read_bytes()
            compressor = zstandard.ZstdCompressor(level=19)
            seeds[f"frame-{index}"] = bytes([1, 20 << 1]) + compressor.compress(newer.read_bytes())
            out.unlink()
    return seeds


def sticks() -> dict[str, bytes]:
    """Each deed at places of each kind, and the documents."""
    about = {"format": "mooring-bundle.1", "tenant": "t0", "group": "site", "created_at": 1, "valid_until": 2, "devices": ["cam-1"]}
    envelope = {"payload": "e30=", "payloadType": "application/vnd.mooring.report", "signatures": [{"keyid": "k", "sig": "c2ln"}]}
    reports = {"format": "mooring-reports.1", "device": "cam-1", "reports": [envelope]}
    seeds = {"nothing": b"\x00", "index": b"\x01" + canonical_json(about), "reports": b"\x02" + canonical_json(reports)}
    for deed in range(11):
        for place in (0, 3, 8, 12, 17, 20):
            seeds[f"deed-{deed}-{place}"] = bytes([0, place, deed, 3]) + b"\x00\x04x"
    return seeds


def _skeleton(path: Path, method: Method) -> bytes:
    data = path.read_bytes()
    return skeleton_of(lambda at, stop: data[at:stop], len(data), scan_model(method, data))[0]


def _edits_between(old: bytes, new: bytes) -> bytes:
    """Take all away, put all in: {u16 at, u8 count, u8 length, bytes}…."""
    gone = [bytes([0, 0, min(255, len(old) - at), 0]) for at in range(0, len(old), 255)]
    put = [at.to_bytes(2, "big") + bytes([0, len(new[at : at + 255])]) + new[at : at + 255] for at in range(0, len(new), 255)]
    return b"".join(gone + put)


def _with_plain_plan(streams: bytes) -> bytes:
    """The streams with their plan as it is: so a mutation reaches it."""
    reader = Reader(streams[:32])
    raw, packed, words, bits = (reader.number(1 << 32) for _ in range(4))
    plan = streams[reader.at : reader.at + packed]
    if packed != raw:
        plan = frames.decode(memoryview(plan), raw, window_log=20)
    head = b"".join(varint(number) for number in (raw, raw, words, bits))
    return head + plan + streams[reader.at + packed :]


def main() -> None:
    """Write them all."""
    _write("models", models())
    _write("sketch", sketches())
    made = {"metadata": metadata(), "manifest": manifests(), "delta": deltas(SEEDS / "models"), "bundle": sticks(), "serving": serving()}
    for name, seeds in made.items():
        _write(name, seeds)
        if name in WORDS:
            (SEEDS / f"{name}.dict").write_text("".join(f"{json.dumps(word)}\n" for word in WORDS[name]))


def _write(name: str, seeds: Mapping[str, bytes]) -> None:
    folder = SEEDS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for seed, data in seeds.items():
        (folder / seed).write_bytes(data)


if __name__ == "__main__":
    main()
