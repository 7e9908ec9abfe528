"""Plain values become frozen dataclasses only when they keep to every type and limit, in this module's eyes and in pydantic's alike."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from protocol.decoding import Limits, MisfitError, decode, encode, without_none

STRICT = {"extra": "forbid", "allow_inf_nan": False}


class Shade(StrEnum):
    LIGHT = "light"
    DARK = "dark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    __pydantic_config__ = STRICT
    kind: Literal["wall"]
    height: Annotated[float, Limits(gt=0, le=10)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    __pydantic_config__ = STRICT
    kind: Literal["door"]
    name: Annotated[str, Limits(pattern="^[a-z]+$")] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    __pydantic_config__ = STRICT
    name: Annotated[str, Limits(min_length=1, max_length=5)]
    parts: Annotated[tuple[Wall | Door, ...], Limits(max_length=2)] = ()
    shade: Shade = Shade.LIGHT
    corner: tuple[float, float] = (0.0, 0.0)
    floor: Annotated[int, Limits(ge=-1, lt=3)] = 0
    is_open: bool = False
    marks: dict[Annotated[str, Limits(max_length=3)], int] = field(default_factory=dict)
    mode: Literal[Shade.DARK, "off"] = "off"

    def __post_init__(self) -> None:
        if self.floor == 2 and not self.is_open:
            raise ValueError("the second floor is open")


WHOLE = {
    "name": "hall",
    "parts": [{"kind": "wall", "height": 2}, {"kind": "door", "name": "front"}],
    "shade": "dark",
    "corner": [1, 2.5],
    "floor": 2,
    "is_open": True,
    "marks": {"a": 1},
    "mode": "dark",
}
PYDANTIC = TypeAdapter(Room)


def test_what_fits_is_decoded_and_encoded_back():
    room = decode(Room, WHOLE)
    assert room.parts == (Wall(kind="wall", height=2.0), Door(kind="door", name="front"))
    assert (room.shade, room.corner, room.mode) == (Shade.DARK, (1.0, 2.5), Shade.DARK)
    assert type(room.parts[0].height) is float
    assert decode(Room, encode(room)) == room
    assert json.loads(json.dumps(encode(room))) == encode(room)


def test_pydantic_reads_the_same_classes_with_the_same_limits():
    assert PYDANTIC.validate_python(WHOLE) == decode(Room, WHOLE)
    assert PYDANTIC.dump_python(decode(Room, WHOLE), mode="json") == encode(decode(Room, WHOLE))


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "too short": ({"name": ""}, "name: wanted a length of at least 1"),
    "too long": ({"name": "stairs"}, "name: wanted a length of at most 5"),
    "no text": ({"name": 1}, "name: wanted a text"),
    "unknown field": ({"size": 1}, "size: unknown field"),
    "not a list": ({"parts": {}}, "parts: wanted a list"),
    "too many": ({"parts": [{"kind": "door"}] * 3}, "parts: wanted a length of at most 2"),
    "unknown part": ({"parts": [{"kind": "window"}]}, "parts.0: wanted an object with kind = 'wall' or 'door'"),
    "no kind": ({"parts": [{"height": 1}]}, "parts.0: wanted an object with kind"),
    "kind of another type": ({"parts": [{"kind": ["wall"]}]}, "parts.0: wanted an object with kind"),
    "zero": ({"parts": [{"kind": "wall", "height": 0}]}, "parts.0.height: wanted more than 0"),
    "too high": ({"parts": [{"kind": "wall", "height": 10.5}]}, "parts.0.height: wanted at most 10"),
    "not finite": ({"parts": [{"kind": "wall", "height": float("nan")}]}, "parts.0.height: wanted a finite number"),
    "beyond floats": ({"parts": [{"kind": "wall", "height": 10**400}]}, "parts.0.height: wanted a finite number"),
    "no match": ({"parts": [{"kind": "door", "name": "Front"}]}, "parts.0.name: wanted ^[a-z]+$"),
    "a line end behind a match": ({"parts": [{"kind": "door", "name": "front\n"}]}, "parts.0.name: wanted ^[a-z]+$"),
    "unknown shade": ({"shade": "red"}, "shade: wanted one of 'light', 'dark'"),
    "a shade of another type": ({"shade": ["dark"]}, "shade: wanted one of"),
    "a list of three": ({"corner": [1, 2, 3]}, "corner: wanted a list of 2"),
    "a half floor": ({"floor": 0.5}, "floor: wanted a whole number"),
    "too low": ({"floor": -2}, "floor: wanted at least -1"),
    "at the upper limit": ({"floor": 3}, "floor: wanted less than 3"),
    "a key too long": ({"marks": {"abcd": 1}}, "marks.abcd: wanted a length of at most 3"),
    "not an object": ({"marks": []}, "marks: wanted an object"),
    "nothing where something must be": ({"floor": None}, "floor: wanted a whole number"),
    "another literal": ({"mode": "light"}, "mode: wanted"),
    "what the class itself refuses": ({"floor": 2}, "document: the second floor is open"),
}


@pytest.mark.parametrize(("change", "text"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named(change: dict[str, Any], text: str):
    with pytest.raises(MisfitError) as seen:
        decode(Room, {"name": "hall", **change})
    assert text in str(seen.value)
    with pytest.raises(ValidationError):
        PYDANTIC.validate_python({"name": "hall", **change})


def test_a_truth_is_no_number_and_no_number_a_truth():
    for change in ({"floor": True}, {"is_open": 1}, {"corner": [True, 0]}):
        with pytest.raises(MisfitError):
            decode(Room, {"name": "hall", **change})


def test_every_problem_is_told_and_a_missing_field_too():
    with pytest.raises(MisfitError) as seen:
        decode(Room, {"shade": "red", "corner": ["x", "y"]})
    assert [path for path, _ in seen.value.problems] == ["name", "shade", "corner.0", "corner.1"]


def test_what_is_no_object_is_refused():
    for document in ([], None, "hall", 1):
        with pytest.raises(MisfitError, match="document: wanted an object"):
            decode(Room, document)


def test_one_of_several_classes_is_told_by_its_kind():
    assert decode(Wall | Door, {"kind": "door"}) == Door(kind="door")
    assert decode(Wall | Door | None, None) is None


def test_a_wrong_value_is_shown_in_part():
    with pytest.raises(MisfitError) as seen:
        decode(Room, {"name": "x" * 10_000})
    assert len(str(seen.value)) < 200


def test_fields_that_say_nothing_are_left_out():
    assert without_none({"a": None, "b": [{"c": None, "d": 0}]}) == {"b": [{"d": 0}]}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 15) | st.floats(-5, 15) | st.sampled_from(["wall", "door", "dark", "off", "hall", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "height", "name", "a"]), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from([*WHOLE]), PLAIN), st.sampled_from([WHOLE, {"name": "hall"}]))
def test_whatever_is_accepted_is_what_pydantic_makes_of_it(changes: dict[str, Any], start: dict[str, Any]):
    document = {**start, **changes}
    try:
        room = decode(Room, document)
    except MisfitError:
        return  # pydantic takes "1" for 1 and 1 for true: it may accept more
    assert room == PYDANTIC.validate_python(document)
