"""What releases bring for drift: profiles are kept, and windows that waited for their grids are let out."""

import logging
from collections.abc import Sequence
from datetime import datetime

from fleet.blobs import BlobStore
from fleet.db import Connection, Database
from fleet.monitoring import quarantine_store, reference_store
from fleet.monitoring.drift_ingest import RELEASED, release_quarantine
from fleet.monitoring.drift_tables import ProfileRow
from fleet.registry import store as registry_store
from fleet.registry.model import FileRef, Release, ReleaseState, Variant
from protocol.canonical import digest_of
from protocol.errors import InvalidError, NotFoundError, TrustError
from protocol.ids import Digest, TenantId
from protocol.sketches.profile import FILE_NAME, MAX_PROFILE_BYTES, decode_profile

log = logging.getLogger("mooring.drift")


def learn_profiles(database: Database, blobs: BlobStore, tenant: TenantId, *, now: datetime) -> int:
    """Keep the profiles of releases that are not known yet, and store what waited for their grids; returns how many."""
    with database.reading() as tx:
        releases = registry_store.list_releases(tx, tenant, limit=1000)
        known = _known_profiles(tx, tenant, releases)
    learned = 0
    for release in releases:
        if release.state not in {ReleaseState.PUBLISHED, ReleaseState.WITHDRAWN}:
            continue
        for variant in release.variants:
            model, file = _profile_of(variant)
            if file is None or (model, file.sha256) in known:
                continue
            known.add((model, file.sha256))
            try:
                body = blobs.read(file.sha256, limit=MAX_PROFILE_BYTES)
                with database.transaction() as tx:
                    learned += int(add_profile(tx, tenant, body, model=model, line=release.line, version=release.version, now=now))
            except (InvalidError, TrustError, NotFoundError) as error:  # this release is not watched; the others are
                log.error("profile_unreadable release=%s error=%s", release.id, error)  # noqa: TRY400 - the cause is in the text
    return learned


def _profile_of(variant: Variant) -> tuple[str, FileRef | None]:
    return variant.model_file.sha256.removeprefix("sha256:")[:32], next((one for one in variant.files if one.name == FILE_NAME), None)


def _known_profiles(tx: Connection, tenant: TenantId, releases: Sequence[Release]) -> set[tuple[str, Digest]]:
    """Model versions with the profile files that are kept for them; kept ones are read only where a model came with several."""
    files: dict[str, set[Digest]] = {}
    for model, file in (_profile_of(variant) for release in releases for variant in release.variants):
        if file is not None:
            files.setdefault(model, set()).add(file.sha256)
    known: set[tuple[str, Digest]] = set()
    for model in reference_store.list_profiled_models(tx, tenant) & files.keys():
        of_model = files[model]
        if len(of_model) > 1:
            of_model &= {digest_of(body) for body in reference_store.list_profile_bodies(tx, tenant, model)}
        known |= {(model, file) for file in of_model}
    return known


def let_out(database: Database, tenant: TenantId, *, now: datetime) -> int:
    """Store what waits for a grid that is known by now, in small transactions; returns how many windows."""
    with database.reading() as tx:
        grids = reference_store.list_known_grids(tx, tenant, quarantine_store.list_waiting_grids(tx, tenant))
    released = 0
    for grid_id in sorted(grids):
        count = RELEASED
        while count == RELEASED:
            with database.transaction() as tx:
                count = release_quarantine(tx, tenant, grid_id, now=now)
            released += count
    return released


def add_profile(tx: Connection, tenant: TenantId, body: bytes, *, model: str, line: str, version: str, now: datetime) -> bool:
    """Keep what a release carries for a model version, and store what waited for its grid; returns whether it was new.

    Raises: InvalidError when it cannot be read.
    """
    grid_id = decode_profile(body).grid.grid_id.hex()
    is_new = reference_store.put_profile(tx, tenant, ProfileRow(model, grid_id, line, version, body), now=now)
    release_quarantine(tx, tenant, grid_id, now=now)
    return is_new
