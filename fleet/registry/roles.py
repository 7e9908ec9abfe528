"""Which tensor of a model file plays which part, where the author's draft does not say: found by names and shapes, never guessed."""

import math
from collections.abc import Mapping, Sequence

from protocol.errors import InvalidError
from runtime.base import TensorSpec
from runtime.heads import Axes

#: What TensorFlow's detection op calls its outputs, in their fixed order.
_TF_OPERATION = "TFLite_Detection_PostProcess"
_TF_ORDER = ("boxes", "classes", "scores", "count")
#: Words in names of outputs that have a number per box.
_WORDS = {"classes": ("class", "label", "categor"), "scores": ("score", "conf", "prob")}


def shown(tensors: Sequence[TensorSpec]) -> str:
    """The tensors in words, with type and shape."""
    return ", ".join(f"{tensor.name!r} {tensor.dtype}{list(tensor.shape)}" for tensor in tensors) or "none"


def only(tensors: Sequence[TensorSpec], *, name: str | None, what: str, remedy: str) -> TensorSpec:
    """The tensor of that name, or the only one there is. Raises: InvalidError naming all that there are."""
    if name is not None:
        for tensor in tensors:
            if tensor.name == name:
                return tensor
        raise InvalidError(f"{what} is named {name!r}; the model has {shown(tensors)}.", hint="Correct the name.")
    if len(tensors) != 1:
        raise InvalidError(f"{what} should be one tensor; the model has {len(tensors)}: {shown(tensors)}.", hint=remedy)
    return tensors[0]


def ssd_roles(outputs: Sequence[TensorSpec], written: Mapping[str, str | None]) -> dict[str, str]:
    """Names of boxes, classes, scores and, where there is one, count. Raises: InvalidError when names and shapes do not tell them apart."""
    found = {role: name for role, name in written.items() if name is not None}
    left = [tensor for tensor in outputs if tensor.name not in found.values()]
    for role in ("boxes", "count", "classes", "scores"):  # what shapes tell, then what words tell
        if role not in found:
            named = [tensor for tensor in left if _plays(tensor, role)]
            if role == "boxes":  # four scores in a row look like one box; boxes are four times as many
                largest = max((math.prod(tensor.shape) for tensor in named), default=0)
                named = [tensor for tensor in named if math.prod(tensor.shape) == largest]
            if len(named) == 1:
                found[role] = named[0].name
                left.remove(named[0])
    missing = [role for role in ("boxes", "classes", "scores") if role not in found]
    if missing:
        raise InvalidError(
            f"Names and shapes of the outputs do not show which is {' and '.join(missing)}: {shown(outputs)}.",
            hint="Write the names in the draft under [detection]: "
            + ", ".join(f'{role} = "…"' for role in missing)
            + "; a model with one raw output is head = 'yolo'.",
        )
    return found


def yolo_form(output: TensorSpec, labels: int, *, axes: Axes | None, objectness: bool | None) -> tuple[Axes, bool]:
    """How the numbers of a raw head lie and whether there is one for "an object at all".

    Raises: InvalidError when the shape fits no form, or several.
    """
    shape = output.shape[-2:] if len(output.shape) in (2, 3) else (0, 0)
    forms = [
        (one, has)
        for one, size in ((Axes.CHANNELS_BOXES, shape[0]), (Axes.BOXES_CHANNELS, shape[1]))
        for has in (False, True)
        if size == 4 + has + labels and axes in (None, one) and objectness in (None, has)
    ]
    if len(forms) == 1:
        return forms[0]
    if forms:
        raise InvalidError(
            f"Output {output.name!r} {list(output.shape)} can be read in {len(forms)} ways with {labels} labels.",
            hint="Write axes = 'channels-boxes' or 'boxes-channels', and objectness = true or false, under [detection].",
        )
    raise InvalidError(
        f"Output {output.name!r} has the shape {list(output.shape)}; {labels} labels want 1 x {4 + labels} x boxes or 1 x boxes x "
        f"{4 + labels}, or {5 + labels} with objectness.",
        hint="Check that labels are as many as the model's classes, and that this is the raw head.",
    )


def _plays(tensor: TensorSpec, role: str) -> bool:
    if tensor.name.partition(":")[0] == _TF_OPERATION:
        place = tensor.name.partition(":")[2] or "0"
        return place == str(_TF_ORDER.index(role))
    if role == "boxes":
        return len(tensor.shape) >= 2 and tensor.shape[-1] == 4
    if role == "count":
        return all(size == 1 for size in tensor.shape)
    if len(tensor.shape) >= 3 and tensor.shape[-1] == 4:
        return False
    return any(word in tensor.name.lower() for word in _WORDS[role]) or (role == "classes" and tensor.dtype in {"int32", "int64"})
