"""What is wrong with settings, in words that name the key and the value seen and repeat no password."""

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
        else:
            seen = mask(str(detail["input"]))[:200]
            found.append((key, f"{seen!r}: {detail['msg']}"))
    return found
