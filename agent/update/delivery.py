"""Which bytes are fetched for an offer: deltas from what is here, or whole files; pure (UPDATES 3.4).

"Whole" and "full" speak of the model file: what lies beside it is small, has limits of its own and is needed either way (ADR 0013).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from agent.slots import MODEL_FILES
from agent.update.assignment import LineOffer, OfferedDelta, OfferedFile
from protocol.ids import Digest

#: Read before anything is written, so it comes as it is.
NEVER_A_DELTA = frozenset({"manifest.json"})


class Transfer(StrEnum):
    """How the model comes; stored and sent, never renamed."""

    #: It is on this device already.
    NONE = "none"
    #: As a delta.
    DELTA = "delta"
    #: Whole.
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The decision for one offer."""

    transfer: Transfer = Transfer.NONE
    #: (name of the file, digest of what is fetched for it) of every file that is not on this device.
    blobs: tuple[tuple[str, Digest], ...] = ()
    #: All that comes over the network, and the part of it that is a whole model.
    planned_bytes: int = 0
    full_bytes: int = 0
    #: Why the model comes whole although it is not the first one, in words; empty: it does not.
    note: str = ""

    def ways(self, offer: LineOffer) -> Iterator[tuple[OfferedFile, OfferedDelta | None]]:
        """Each file that is not on this device, and the delta that makes it (None: it is fetched as it is)."""
        wanted = dict(self.blobs)
        for file in offer.files:
            if file.name in wanted:
                yield file, next((delta for delta in file.deltas if delta.sha256 == wanted[file.name]), None)


@dataclass(frozen=True, slots=True)
class Bases:
    """Files in the line's slots that deltas may start from."""

    #: Hashed: they are what the slot says.
    whole: frozenset[Digest] = frozenset()
    damaged: frozenset[Digest] = frozenset()


@dataclass(frozen=True, slots=True)
class Setbacks:
    """What did not work in this update so far."""

    #: Deltas that did not make the file, and those that the server does not have any more.
    failed: tuple[Digest, ...] = ()
    missing: tuple[Digest, ...] = ()
    #: A delta failed before: from now on no base is used.
    full_only: bool = False


def decide(
    offer: LineOffer,
    *,
    present: Collection[str],
    bases: Bases,
    setbacks: Setbacks,
    in_place: Mapping[Digest, int],
    prefers_deltas: bool,
) -> Delivery:
    """What to fetch. `present`: names of the files that are here; `in_place`: bytes of each digest that an earlier try left.

    The way with the fewest bytes left is taken; `prefers_deltas` takes a delta, where there is one, before any whole model.
    """
    chosen: list[tuple[OfferedFile, OfferedFile | OfferedDelta]] = []
    for file in offer.files:
        if file.name not in present:
            ways = list(_ways(file, bases, setbacks))
            cheap = [way for way in ways if not _is_whole(way) or not _bytes_to_fetch(way, in_place)] if prefers_deltas else []
            chosen.append((file, min(cheap or ways, key=lambda way: way.length - in_place.get(way.sha256, 0))))
    models = [(file, way) for file, way in chosen if file.name in MODEL_FILES]
    whole = [(file, way) for file, way in models if _is_whole(way)]
    return Delivery(
        Transfer.FULL if whole else Transfer.DELTA if models else Transfer.NONE,
        tuple((file.name, way.sha256) for file, way in chosen),
        sum(_bytes_to_fetch(way, in_place) for _, way in chosen),
        sum(_bytes_to_fetch(way, in_place) for _, way in whole),
        _why_whole(whole[0][0], bases, setbacks) if whole else "",
    )


def _is_whole(way: OfferedFile | OfferedDelta) -> bool:
    return isinstance(way, OfferedFile) or way.is_full


def _bytes_to_fetch(way: OfferedFile | OfferedDelta, in_place: Mapping[Digest, int]) -> int:
    """None for what is here already, e.g. from a stick; else all of it: a rest may turn out to be damaged."""
    return 0 if in_place.get(way.sha256, 0) == way.length else way.length


def _ways(file: OfferedFile, bases: Bases, setbacks: Setbacks) -> Iterator[OfferedFile | OfferedDelta]:
    yield file
    for delta in () if file.name in NEVER_A_DELTA else file.deltas:
        is_usable = delta.is_full or (delta.base_sha256 in bases.whole and not setbacks.full_only)
        if is_usable and delta.sha256 not in (*setbacks.failed, *setbacks.missing):
            yield delta


def _why_whole(file: OfferedFile, bases: Bases, setbacks: Setbacks) -> str:
    deltas = [delta for delta in file.deltas if not delta.is_full]
    if setbacks.full_only:
        return "a delta failed on this device"
    if any(delta.sha256 in setbacks.missing for delta in deltas):
        return "the server does not have the delta any more"
    if any(delta.base_sha256 in bases.damaged for delta in deltas):
        return "the file that the delta starts from is damaged in its slot"
    if any(delta.base_sha256 in bases.whole for delta in deltas):
        return "the rest of it is smaller than the delta"
    return "no delta starts from what this device has" if deltas else "the server offers no delta of it"
