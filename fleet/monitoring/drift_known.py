"""What judging a series starts from: its grid, the profile of its model version, its references, decoded."""

from collections.abc import Mapping
from dataclasses import dataclass

from fleet.db import Connection
from fleet.monitoring import reference_store
from fleet.monitoring.drift_model import Reference
from fleet.monitoring.drift_profiles import find_profile
from fleet.monitoring.drift_tables import SeriesRow
from protocol.errors import InvalidError
from protocol.sketches.grid import Grid
from protocol.sketches.profile import ModelProfile
from protocol.sketches.reference import DeviceReference, decode_reference


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What judging a series starts from."""

    row: SeriesRow
    grid: Grid
    profile: ModelProfile | None
    references: Mapping[str, DeviceReference]
    sources: Mapping[str, Reference]


def known_of(tx: Connection, row: SeriesRow, grid: Grid) -> Known:
    """What judging the series starts from; references of another version of this program are left out."""
    stored = reference_store.list_references(tx, row)
    decoded: dict[str, DeviceReference] = {}
    for one in stored:
        try:
            decoded[one.reference_id] = decode_reference(one.body, grid)
        except InvalidError:  # checked when it was stored; of another version of this program
            continue
    return Known(row, grid, find_profile(tx, row.tenant, row.model, row.grid_id), decoded, {one.reference_id: one for one in stored})
