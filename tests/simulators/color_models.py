"""Real little models in slot folders: the answer is the brightest color of the picture."""

from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fleet.registry.drafts import ModelDraft, complete, parse_draft
from protocol.files import digest_of_file
from runtime.base import ModelTensors, TensorSpec
from runtime.manifest import FileEntry, to_bytes

LABELS = ("blue", "green", "red")
SIDE = 8
#: What the file declares.
TENSORS = ModelTensors(
    format="onnx",
    backend="onnx",
    version="1",
    inputs=(TensorSpec("pixels", (1, SIDE, SIDE, 3), "float32"),),
    outputs=(TensorSpec("scores", (1, 3), "float32"),),
)


class Trait(StrEnum):
    """How the model misbehaves."""

    NONE = "none"
    #: A bright picture makes it fail.
    FAILS = "fails"
    #: A bright picture makes it compute for ever.
    HANGS = "hangs"
    #: It computes for ever, from its warm-up on.
    NEVER_WARM = "never-warm"
    #: Its answer to a bright picture is not finite.
    NAN = "nan"


def color_model(trait: Trait = Trait.NONE, *, scale: float = 1.0) -> onnx.ModelProto:
    """Mean brightness per channel of an 8 x 8 picture in BGR order, times `scale`."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["scores"]),
    ]
    constants = [numpy_helper.from_array(np.array([1, 2], np.int64), "axes"), numpy_helper.from_array(np.array(scale, np.float32), "scale")]
    match trait:
        case Trait.FAILS:  # reads beyond a table of one row
            nodes[-1].output[0] = "scaled"
            nodes += [
                *_bright_as_integer(1),
                helper.make_node("Gather", ["table", "bright"], ["read"]),
                helper.make_node("Add", ["scaled", "read"], ["scores"]),
            ]
            constants.append(numpy_helper.from_array(np.zeros(1, np.float32), "table"))
        case Trait.HANGS:
            nodes[-1].output[0] = "scaled"
            nodes += [*_bright_as_integer(2**60), helper.make_node("Loop", ["bright", "", "scaled"], ["scores"], body=_endless_body())]
        case Trait.NEVER_WARM:
            nodes[-1].output[0] = "scaled"
            nodes.append(helper.make_node("Loop", ["ages", "", "scaled"], ["scores"], body=_endless_body()))
        case Trait.NAN:  # 0 / (1 - bright)
            nodes[-1].output[0] = "scaled"
            nodes += [
                *_bright_as_integer(1),
                helper.make_node("Cast", ["bright"], ["bright_float"], to=TensorProto.FLOAT),
                helper.make_node("Sub", ["one", "bright_float"], ["rest"]),
                helper.make_node("Div", ["scaled", "rest"], ["scores"]),
            ]
            constants.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
        case Trait.NONE:
            pass
    constants += [
        numpy_helper.from_array(np.array(value, kind), name) for name, value, kind in _NUMBERS if any(name in node.input for node in nodes)
    ]
    graph = helper.make_graph(
        nodes,
        "color",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


_NUMBERS = (("factor", 2, np.float32), ("times", 1, np.int64), ("ages", 2**60, np.int64))


def _bright_as_integer(times: int) -> list[onnx.NodeProto]:
    """`bright` = 0, or `times` when any channel is above one half on average."""
    return [
        helper.make_node("ReduceMax", ["means"], ["highest"], keepdims=0),
        helper.make_node("Mul", ["highest", "factor"], ["doubled"]),
        helper.make_node("Cast", ["doubled"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Clip", ["whole", "", "times"], ["limited"]),
        helper.make_node("Mul", ["limited", "times" if times == 1 else "ages"], ["bright"]),
    ]


def _endless_body() -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Identity", ["value"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
    )


def make_slot(
    folder: Path, *, release: str = "1.0", counter: int = 1, trait: Trait = Trait.NONE, scale: float = 1.0, backends: tuple[str, ...] = ()
) -> Path:
    """A slot folder with the color model and its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    model.write_bytes(color_model(trait, scale=scale).SerializeToString())
    draft = parse_draft(
        {
            "task": "classification",
            "labels": LABELS,
            "preprocess": {"color": "BGR"},
            "device_types": ["test"],
            "top_k": 3,
            "backends": backends,
        }
    )
    write_manifest(folder, draft, tensors=TENSORS, release=release, counter=counter)
    return folder


def write_manifest(
    folder: Path, draft: ModelDraft, *, tensors: ModelTensors, release: str = "1.0", counter: int = 1, line: str = "color"
) -> None:
    """The manifest of the model file that lies in the folder."""
    name = f"model.{tensors.format}"
    files = {name: FileEntry(sha256=digest_of_file(folder / name), length=(folder / name).stat().st_size)}
    manifest = complete(draft, tensors, line=line, release=release, counter=counter, variant="v", files=files)
    (folder / "manifest.json").write_bytes(to_bytes(manifest))
