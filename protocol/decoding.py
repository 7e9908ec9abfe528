"""Frozen dataclasses from JSON's plain values, checked by their own annotations, and back: for processes that are to stay small.

pydantic, which checks the other borders, weighs 10 MiB and a tenth of a second in each process (ADR 0054). It reads `Limits` too, so that
settings can hold the same classes. What neither types nor limits say is said by `__post_init__`. Unknown fields are refused, as are numbers
that are not finite.
"""

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, overload

T = TypeVar("T")
#: Problems that are collected before no more are looked for.
MAX_PROBLEMS = 1000
#: Characters of a wrong value that are shown.
_SHOWN = 80

_Decode = Callable[[Any], Any]


class Limits:
    """What a value of an annotation has to keep to beyond its type, in the words of pydantic's `Field`; a pattern goes from ^ to $."""

    def __init__(
        self,
        *,
        ge: float | None = None,
        gt: float | None = None,
        le: float | None = None,
        lt: float | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        pattern: str | None = None,
    ) -> None:
        bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "min_length": min_length, "max_length": max_length}
        self._bounds = {name: bound for name, bound in bounds.items() if bound is not None}
        self._pattern = pattern
        self._matches = None if pattern is None else re.compile(pattern).fullmatch

    def fault(self, value: Any) -> str:
        """What is wrong with a value of the right type; empty when nothing is."""
        for name, bound in self._bounds.items():
            fits, words = _BOUNDS[name]
            if not fits(value, bound):
                return f"wanted {words} {bound}"
        return "" if self._matches is None or self._matches(value) else f"wanted {self._pattern}"

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """How pydantic hears of them, where that checks the class."""
        return {**handler(source), **self._bounds, **({} if self._pattern is None else {"pattern": self._pattern})}


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "more than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
    "min_length": (lambda value, bound: len(value) >= bound, "a length of at least"),
    "max_length": (lambda value, bound: len(value) <= bound, "a length of at most"),
}


class MisfitError(ValueError):
    """A document is not what a class wants: where, and what was seen and wanted."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path or 'document'}: {text}" for path, text in problems))
        #: Path, empty for the document itself, and what is wrong there.
        self.problems = tuple(problems)


@overload
def decode(kind: type[T], document: object) -> T: ...
@overload
def decode(kind: UnionType, document: object) -> Any: ...
def decode(kind: Any, document: object) -> Any:
    """The document as a value of the dataclass, or of one of several. Raises: MisfitError with every problem that was seen."""
    return _decoder_of(kind)(document)


def encode(value: Any) -> Any:
    """The value as JSON's plain ones: dataclasses as objects, enums by value, tuples as lists."""
    if isinstance(value, str | int | float | NoneType) and not isinstance(value, Enum):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return {one.name: encode(getattr(value, one.name)) for one in fields(value)}


def without_none(document: Any) -> Any:
    """The document without fields that say nothing."""
    if isinstance(document, list):
        return [without_none(item) for item in document]
    if isinstance(document, dict):
        return {key: without_none(item) for key, item in document.items() if item is not None}
    return document


def _decoder_of(kind: Any) -> _Decode:
    """What decodes values of an annotation; found out once for each."""
    known = _KNOWN.get(kind)
    if known is None:
        known = _KNOWN[kind] = _new_decoder(kind)
    return known


def _new_decoder(kind: Any) -> _Decode:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _limited(_decoder_of(arguments[0]), arguments[1])
    if origin is Literal:
        return _one_of(arguments)
    if origin is tuple:
        return _tuple(arguments)
    if origin is dict:
        return _mapping(_decoder_of(arguments[0]), _decoder_of(arguments[1]))
    if origin in (Union, UnionType):
        return _union(arguments)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind)
    if is_dataclass(kind):
        return _object(kind)
    raise RuntimeError(f"{kind!r} has no decoder")


def _misfit(text: str, value: object) -> MisfitError:
    return MisfitError([("", f"{text}, seen {repr(value)[:_SHOWN]}")])


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _misfit("wanted a text", value)
    return value


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _misfit("wanted a whole number", value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise _misfit("wanted a finite number", value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _misfit("wanted true or false", value)
    return value


def _nothing(value: Any) -> None:
    if value is not None:
        raise _misfit("wanted nothing", value)


#: What decodes values of which annotation.
_KNOWN: dict[Any, _Decode] = {str: _string, int: _integer, float: _number, bool: _boolean, NoneType: _nothing}


def _enum(kind: type[Enum]) -> _Decode:
    known = {one.value: one for one in kind}

    def decode_enum(value: Any) -> Enum:
        if not isinstance(value, str) or value not in known:
            raise _misfit(f"wanted one of {', '.join(map(repr, known))}", value)
        return known[value]

    return decode_enum


def _one_of(allowed: tuple[Any, ...]) -> _Decode:
    known = {one.value if isinstance(one, Enum) else one: one for one in allowed}

    def decode_literal(value: Any) -> Any:
        if not isinstance(value, str | int) or isinstance(value, bool) or value not in known:
            raise _misfit(f"wanted {' or '.join(map(repr, known))}", value)
        return known[value]

    return decode_literal


def _tuple(arguments: tuple[Any, ...]) -> _Decode:
    decoders: Iterable[_Decode]
    if arguments[-1] is ...:
        decoders, size = itertools.repeat(_decoder_of(arguments[0])), None
    else:
        decoders, size = tuple(map(_decoder_of, arguments)), len(arguments)

    def decode_tuple(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _misfit("wanted a list", value)
        if size is not None and len(value) != size:
            raise _misfit(f"wanted a list of {size}", value)
        return tuple(_all((str(index), one, item) for index, (item, one) in enumerate(zip(value, decoders, strict=False))))

    return decode_tuple


def _mapping(decode_key: _Decode, decode_value: _Decode) -> _Decode:
    def decode_mapping(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise _misfit("wanted an object", value)
        keys = _all((str(key), decode_key, key) for key in value)
        return dict(zip(keys, _all((str(key), decode_value, item) for key, item in value.items()), strict=True))

    return decode_mapping


def _all(items: Iterable[tuple[str, _Decode, Any]]) -> list[Any]:
    """What the decoders make of the items. Raises: MisfitError with the problems of all of them."""
    made: list[Any] = []
    problems: list[tuple[str, str]] = []
    for name, decode_item, item in items:
        try:
            made.append(decode_item(item))
        except MisfitError as error:
            problems += [(f"{name}.{path}" if path else name, text) for path, text in error.problems]
            if len(problems) >= MAX_PROBLEMS:
                break
    if problems:
        raise MisfitError(problems)
    return made


def _limited(decode_plain: _Decode, limits: Limits) -> _Decode:
    def decode_limited(value: Any) -> Any:
        decoded = decode_plain(value)
        fault = limits.fault(decoded)
        if fault:
            raise _misfit(fault, value)
        return decoded

    return decode_limited


def _union(kinds: tuple[Any, ...]) -> _Decode:
    rest = tuple(kind for kind in kinds if kind is not NoneType)
    decode_rest = _decoder_of(rest[0]) if len(rest) == 1 else _by_tag({_tag_of(kind): kind for kind in rest})
    if len(rest) == len(kinds):
        return decode_rest
    return lambda value: None if value is None else decode_rest(value)


def _tag_of(kind: Any) -> tuple[str, Any]:
    """The field that tells a class of a union from the others, and its value there: the one that may have one value only."""
    for one in fields(kind):
        if get_origin(one.type) is Literal and len(get_args(one.type)) == 1:
            return one.name, get_args(one.type)[0]
    raise RuntimeError(f"{kind!r} has no field by which it is told from others")


def _by_tag(kinds: Mapping[tuple[str, Any], Any]) -> _Decode:
    (name,) = {name for name, _ in kinds}
    decoders = {tag: _decoder_of(kind) for (_, tag), kind in kinds.items()}

    def decode_tagged(value: Any) -> Any:
        tag = value.get(name) if isinstance(value, dict) else None
        if not isinstance(tag, str) or tag not in decoders:
            raise _misfit(f"wanted an object with {name} = {' or '.join(map(repr, decoders))}", value)
        return decoders[tag](value)

    return decode_tagged


def _object(kind: Any) -> _Decode:
    decoders = {one.name: _decoder_of(one.type) for one in fields(kind) if one.init}
    required = [one.name for one in fields(kind) if one.init and one.default is MISSING and one.default_factory is MISSING]

    def decode_object(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _misfit("wanted an object", value)
        problems = [(name, "Field required") for name in required if name not in value]
        problems += [(str(name)[:_SHOWN], "unknown field") for name in value if name not in decoders]
        known = [name for name in decoders if name in value]
        try:
            made = _all((name, decoders[name], value[name]) for name in known)
        except MisfitError as error:
            problems += error.problems
        if problems:
            raise MisfitError(problems[:MAX_PROBLEMS])
        try:
            return kind(**dict(zip(known, made, strict=True)))
        except MisfitError:
            raise
        except ValueError as error:
            raise MisfitError([("", str(error))]) from None

    return decode_object
