"""One byte form per value, so that equal values have equal digests: canonical JSON after RFC 8785, restricted to what we send."""

import hashlib
import json
import math
from typing import Any

from protocol.errors import InvalidError
from protocol.ids import Digest

#: Integers beyond this lose digits in readers that use doubles (RFC 8785, 3.2.2.3).
MAX_SAFE_INTEGER = 2**53 - 1


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, no NaN. Raises: InvalidError on a value that has no single JSON form."""
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(data: bytes) -> Digest:
    """The digest "sha256:<hex>" of the bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def _check(value: Any, path: str) -> None:
    match value:
        case None | bool() | str():
            return
        case int():
            if abs(value) > MAX_SAFE_INTEGER:
                raise InvalidError(f"{path} = {value} does not survive JSON readers; wanted at most 2^53-1.")
        case float():
            if not math.isfinite(value):
                raise InvalidError(f"{path} = {value} has no JSON form; wanted a finite number.")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise InvalidError(f"{path} has the key {key!r}; wanted strings only.")
                _check(item, f"{path}.{key}")
        case list() | tuple():
            for index, item in enumerate(value):
                _check(item, f"{path}[{index}]")
        case _:
            raise InvalidError(f"{path} is a {type(value).__name__}, which has no JSON form.")
