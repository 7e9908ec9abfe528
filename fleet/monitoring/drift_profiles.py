"""What releases carry for drift, kept by model version and grid; what was decoded once is remembered, since it never changes."""

import threading
from collections import OrderedDict
from collections.abc import Collection

from fleet.db import Connection
from fleet.monitoring import reference_store
from fleet.monitoring.drift_tables import ProfileRow
from protocol.ids import TenantId
from protocol.sketches.grid import Grid
from protocol.sketches.profile import ModelProfile, decode_profile

#: Profiles remembered by a process: a few hundred KiB each.
_KEPT = 64


class _Remembered:
    """Decoded profiles by (tenant, model, grid), the ones used longest ago forgotten first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._profiles: OrderedDict[tuple[str, str, str], ModelProfile] = OrderedDict()

    def find(self, tenant: TenantId, grid_id: str, model: str | None = None) -> ModelProfile | None:
        with self._lock:
            for key, profile in self._profiles.items():
                if key[0] == tenant and key[2] == grid_id and model in {None, key[1]}:
                    self._profiles.move_to_end(key)
                    return profile
        return None

    def keep(self, tenant: TenantId, row: ProfileRow) -> ModelProfile:
        profile = decode_profile(row.body)
        with self._lock:
            self._profiles[tenant, row.model, row.grid_id] = profile
            while len(self._profiles) > _KEPT:
                self._profiles.popitem(last=False)
        return profile


_REMEMBERED = _Remembered()


def grids_of(tx: Connection, tenant: TenantId, grid_ids: Collection[str]) -> dict[str, Grid]:
    """Those of the grids that a release of the tenant brought."""
    known = reference_store.list_known_grids(tx, tenant, grid_ids)  # asked each time: another tenant, or a database that was put back
    found = {grid_id: profile.grid for grid_id in known if (profile := _REMEMBERED.find(tenant, grid_id)) is not None}
    missing = known - found.keys()
    for row in reference_store.list_profiles(tx, tenant, missing).values() if missing else ():
        found.setdefault(row.grid_id, _REMEMBERED.keep(tenant, row).grid)
    return found


def find_profile(tx: Connection, tenant: TenantId, model: str, grid_id: str) -> ModelProfile | None:
    """What the model version's release carries on that grid; None when no release of the tenant does."""
    if grid_id not in reference_store.list_known_grids(tx, tenant, {grid_id}):
        return None
    known = _REMEMBERED.find(tenant, grid_id, model)
    if known is not None:
        return known
    row = reference_store.list_profiles(tx, tenant, {grid_id}).get((model, grid_id))
    return None if row is None else _REMEMBERED.keep(tenant, row)
