"""What is wrong with settings, in words that name the key and the value seen and repeat no password."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from agent.orders import mask


def complaints(error: ValidationError) -> list[tuple[str, str]]:
    """(dotted key, text with the value seen) per complaint."""
    found = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):  # of a section, of a source
            found.append((key, "unknown key"))
        elif detail["type"] == "missing":
            found.append((key, "missing"))
        elif detail["type"] == "value_error" and _is_composed(detail["input"]):
            found.append((key, mask(_words(detail))))  # the text names those of the values that it is about
        else:
            seen = mask(str(detail["input"]))[:200]
            found.append((key, f"{seen!r}: {_words(detail)}"))
    return found


def _is_composed(value: Any) -> bool:
    """Whether it is a table of settings, or a list of such."""
    return isinstance(value, Mapping) or (isinstance(value, Sequence) and any(isinstance(one, Mapping) for one in value))


def _words(detail: Any) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")  # pydantic's word for a text of ours
