"""Takes each check of the attack table (UPDATES 1.3) out, one by one, in a copy of the tree: the tests named with it must fail.

`python tests/protocol/trust/mutations.py [WORD]` (`make test-mutations`), WORD picks the rows that contain it. Ends with status 1 when a
test passes without its check, or a check is not found in the source any more.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tuf

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("agent", "fleet", "protocol", "runtime", "tests", "pyproject.toml")
ATTACKS, CHECK, SERVICE = "protocol/trust/test_attacks.py", "agent/update/test_check.py", "agent/test_service.py"
UPDATER, FETCH = "protocol/trust/updater.py", "agent/update/fetch.py"
SET, PAYLOAD, FETCHER = "tuf/ngclient/_internal/trusted_metadata_set.py", "tuf/api/_payload.py", "tuf/ngclient/fetcher.py"
#: Seconds and bytes of one file that a run without a check may take: some checks stop what has no end.
LIMIT_S, LIMIT_BYTES = 120, 64 << 20


@dataclass(frozen=True, slots=True)
class Mutation:
    """A check, how it is taken out, and the tests that miss it."""

    #: Of the attack table.
    row: str
    check: str
    #: File, text, text without the check.
    edits: tuple[tuple[str, str, str], ...]
    #: Test functions; those of another file than test_attacks.py as "file::name".
    tests: tuple[str, ...]


def one(row: str, check: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    """A check in one place."""
    return Mutation(row, check, ((file, old, new),), tests)


SIGNATURES = one(
    "all keys: fast-forward, director key stolen, snapshot or timestamp key stolen, line key stolen, root keys below the threshold",
    "signatures reach the threshold of the delegator's keys",
    PAYLOAD,
    "        if not result:\n            raise UnsignedMetadataError(",
    "        if False:\n            raise UnsignedMetadataError(",
    "test_metadata_signed_by_a_foreign_key_is_refused",
    "test_a_line_role_signed_by_a_foreign_key_is_refused",
    "test_arbitrary_software_that_a_broken_in_server_signs_with_all_its_online_keys_is_refused",
    "test_a_fast_forwarded_version_is_forgotten_when_root_replaces_the_keys",
    "test_a_stolen_director_key_is_worthless_after_the_offline_root_replaced_it",
    "test_stolen_snapshot_and_timestamp_keys_cannot_add_a_file",
    "test_a_stolen_snapshot_or_timestamp_key_is_worthless_after_root_replaced_it",
    "test_a_revoked_line_key_is_refused",
    "test_a_root_that_the_old_holders_did_not_sign_is_refused",
    "test_a_root_below_the_threshold_is_refused",
    "test_a_second_parents_signer_cannot_replace_a_role_in_the_same_session",
    "test_a_time_signed_by_another_role_is_refused",
)

MUTATIONS = (
    SIGNATURES,
    one(
        "arbitrary software",
        "the image repository's line role names the path",
        UPDATER,
        "    if listed is None or found is None or found != listed:\n",
        "    if listed is None:\n        return ordered\n    if False:\n",
        "test_arbitrary_software_named_by_the_director_alone_is_refused",
        "test_what_a_stolen_line_key_released_is_forgotten_when_targets_revoke_it_and_the_floor_rises",
    ),
    one(
        "arbitrary software",
        "the line's own role must name it, not whoever the walk finds",
        UPDATER,
        "_check_both_name(path, files[path], role.targets.get(path), existing[path])",
        "_check_both_name(path, files[path], existing[path], existing[path])",
        "test_arbitrary_software_in_the_top_level_targets_beside_a_released_file_is_refused",
    ),
    one(
        "arbitrary software, director key stolen",
        "length and sha256 are the same in both repositories",
        UPDATER,
        '    if sha256 is None or (ordered.length, ordered.hashes.get("sha256")) != (listed.length, sha256):\n',
        "    if False:\n",
        "test_arbitrary_software_under_a_released_name_is_refused",
        "test_a_stolen_director_key_can_only_choose_among_released_files",
    ),
    one(
        "arbitrary software by a mirror",
        "the downloaded file has the signed digest",
        FETCH,
        "if self._have(part) != file.length or digest_on(self._disk, part) != file.sha256:",
        "if self._have(part) != file.length:",
        "test_arbitrary_software_from_a_mirror_is_refused_and_not_kept",
    ),
    Mutation(
        "arbitrary software, line key stolen",
        "a role signs only for its delegated paths: python-tuf's walk, and our line of the path",
        (
            (UPDATER, "role.targets.get(path), existing[path])", "existing[path], existing[path])"),
            (PAYLOAD, "                if role.is_delegated_path(target_filepath):", "                if True:"),
            (PAYLOAD, "yield role.name, role.terminating\n", "yield role.name, False\n"),
        ),
        ("test_arbitrary_software_signed_by_another_lines_key_is_refused", "test_a_stolen_line_key_signs_nothing_outside_its_paths"),
    ),
    one(
        "metadata rollback",
        "the timestamp's version never falls",
        SET,
        "if new_timestamp.version < self.timestamp.version:",
        "if False:",
        "test_a_rolled_back_timestamp_is_refused",
    ),
    one(
        "metadata rollback",
        "the snapshot's version in the timestamp never falls",
        SET,
        "if new_snapshot_meta.version < snapshot_meta.version:",
        "if False:",
        "test_a_rolled_back_snapshot_is_refused",
    ),
    one(
        "metadata rollback",
        "no role's version in the snapshot falls",
        SET,
        "if new_fileinfo.version < fileinfo.version:",
        "if False:",
        "test_a_rolled_back_role_is_refused",
    ),
    one(
        "metadata rollback",
        "a role has the version that the snapshot says",
        SET,
        "        if version != meta.version:",
        "        if False:",
        "test_a_role_of_another_version_than_the_snapshot_says_is_refused",
    ),
    Mutation(
        "metadata rollback",
        "a whole older view: timestamp and snapshot versions together",
        (
            (SET, "if new_timestamp.version < self.timestamp.version:", "if False:"),
            (SET, "if new_snapshot_meta.version < snapshot_meta.version:", "if False:"),
            (SET, "if new_fileinfo.version < fileinfo.version:", "if False:"),
        ),
        ("test_a_whole_older_view_is_refused_by_a_device_that_saw_a_newer_one",),
    ),
    one(
        "mix-and-match",
        "a new snapshot names every role that the old one named",
        SET,
        "if new_fileinfo is None:\n                    raise exceptions.RepositoryError(",
        "if new_fileinfo is None:\n                    continue\n                    raise exceptions.RepositoryError(",
        "test_a_snapshot_without_a_role_that_it_once_named_is_refused",
    ),
    Mutation(
        "mix-and-match",
        "length and digest in the snapshot bind each role, its version beside them",
        (
            (SET, "        meta.verify_length_and_hashes(data)", "        pass"),
            (SET, "        if version != meta.version:", "        if False:"),
        ),
        ("test_a_mix_of_a_new_snapshot_and_old_targets_is_refused",),
    ),
    one(
        "mix-and-match",
        "the files of a line are of one release and variant",
        UPDATER,
        "        if (other.release, other.variant) != (first.release, first.variant):\n",
        "        if False:\n",
        "test_files_of_two_releases_in_one_line_are_refused",
    ),
    one(
        "mix-and-match",
        "the director names all files of the release",
        UPDATER,
        "    if missing := complete - files.keys():",
        "    if missing := set():",
        "test_a_release_without_one_of_its_files_is_refused",
    ),
    one(
        "mix-and-match",
        "all files carry the same fields",
        UPDATER,
        "    if any(other != about for other in fields):",
        "    if False:",
        "test_files_that_carry_different_fields_are_refused",
    ),
    one(
        "mix-and-match",
        "the fields say line, release and variant of the path",
        UPDATER,
        "    if (about.line, about.release, about.variant) != (line, release, variant):",
        "    if False:",
        "test_files_under_a_path_that_is_not_theirs_are_refused",
    ),
    one(
        "old release (R1)",
        "no counter below the floor",
        UPDATER,
        "    if agreed.counter < floor:",
        "    if False:",
        "test_an_old_release_below_the_signed_floor_is_refused",
        "test_an_old_release_below_the_floor_that_the_device_keeps_is_refused",
        "test_a_line_floor_of_the_director_is_kept",
        "test_what_a_stolen_line_key_released_is_forgotten_when_targets_revoke_it_and_the_floor_rises",
    ),
    one(
        "old release, director key stolen",
        "a line floor of the director is cut to the committed counter",
        UPDATER,
        "min(floor, committed.get(line, 0))",
        "floor",
        "test_a_line_floor_above_the_committed_release_is_cut_so_that_what_runs_is_not_forbidden",
    ),
    one(
        "freeze",
        "an expired root is the end",
        SET,
        "if self.root.is_expired(self.reference_time):",
        "if False:",
        "test_each_role_that_has_expired_is_refused_alone",
    ),
    one(
        "freeze",
        "an expired timestamp is refused",
        SET,
        "if self.timestamp.is_expired(self.reference_time):",
        "if False:",
        "test_each_role_that_has_expired_is_refused_alone",
    ),
    one(
        "freeze",
        "an expired snapshot is refused",
        SET,
        "if self.snapshot.is_expired(self.reference_time):",
        "if False:",
        "test_each_role_that_has_expired_is_refused_alone",
    ),
    one(
        "freeze",
        "an expired targets role is refused",
        SET,
        "if new_delegate.is_expired(self.reference_time):",
        "if False:",
        "test_each_role_that_has_expired_is_refused_alone",
        "test_a_line_role_that_has_expired_is_refused",
    ),
    one(
        "freeze",
        "an unsigned answer `unchanged` is not believed once the kept timestamp has expired",
        "agent/update/check.py",
        "if etag is None and _is_fresh(",
        "if etag is None or not _is_fresh(",
        f"{CHECK}::test_nothing_new_is_not_believed_once_what_is_kept_has_expired",
        f"{CHECK}::test_nothing_new_is_not_believed_by_a_device_that_lost_what_it_kept",
    ),
    one(
        "freeze",
        "condition metadata_stale",
        "agent/wiring.py",
        'code = "metadata_stale" if error.code == "freeze" else "trust_refused"',
        'code = "trust_refused"',
        f"{SERVICE}::test_a_check_that_fails_is_a_condition_of_its_kind_until_one_goes_well",
    ),
    one(
        "endless data",
        "metadata is cut off at its limit, a delegated role at its length in the snapshot",
        FETCHER,
        "if number_of_bytes_received > max_length:",
        "if False:",
        "test_endless_data_is_cut_off_at_its_limit",
        "test_an_endless_line_role_is_cut_off_at_the_length_in_the_snapshot",
    ),
    one(
        "endless data",
        "a file is cut off at its signed length",
        FETCH,
        "                if have + len(chunk) > file.length:",
        "                if False:",
        "test_an_endless_file_from_a_mirror_is_cut_off_at_the_signed_length",
    ),
    one(
        "endless data",
        "no file is longer than its kind may be, whoever signs",
        UPDATER,
        "    if listed.length > most:",
        "    if False:",
        "test_a_file_longer_than_its_kind_may_be_is_refused",
    ),
    one(
        "slow retrieval",
        "below 1,000 bytes/s over 60 s a transfer is given up",
        FETCH,
        "        if self._count < self._min_bytes * elapsed / SLOW_WINDOW_S:",
        "        if False:",
        "test_slow_retrieval_of_a_file_below_a_thousand_bytes_a_second_for_a_minute_is_given_up",
        "test_slow_retrieval_of_metadata_is_given_up",
    ),
    one(
        "root keys below the threshold",
        "the threshold is counted, not whether one key signed",
        PAYLOAD,
        "        return len(self.signed) >= self.threshold",
        "        return len(self.signed) >= 1",
        "test_a_root_below_the_threshold_is_refused",
        "test_a_root_signed_below_the_threshold_by_a_thief_of_one_key_is_refused",
    ),
    one(
        "root keys below the threshold",
        "the holders of the old root sign the new one",
        SET,
        "self._load_data(\n            Root, data, self.root\n        )",
        "self._load_data(\n            Root, data\n        )",
        "test_a_root_that_the_old_holders_did_not_sign_is_refused",
    ),
    one(
        "wrong device",
        "the director's targets name this device",
        UPDATER,
        "    if (fields.tenant, fields.device) != (facts.tenant, facts.device):",
        "    if False:",
        "test_another_devices_assignment_is_refused",
        "test_a_replay_of_another_devices_empty_list_is_refused",
        f"{CHECK}::test_another_devices_assignment_is_refused",
    ),
    one(
        "wrong device (R4)",
        "also when nothing is listed",
        UPDATER,
        "    _check_addressee(fields, facts)\n",
        "    if orders.targets:\n        _check_addressee(fields, facts)\n",
        "test_a_replay_of_another_devices_empty_list_is_refused",
    ),
    one(
        "wrong hardware",
        "device_types",
        UPDATER,
        "    if facts.device_type not in about.device_types:",
        "    if False:",
        "test_a_release_for_other_hardware_is_refused",
    ),
    one(
        "wrong hardware",
        "runtime",
        UPDATER,
        "    if about.runtime not in facts.runtimes:",
        "    if False:",
        "test_a_release_for_a_missing_runtime_is_refused",
    ),
    one(
        "wrong hardware",
        "requires",
        UPDATER,
        "        if not is_version_at_least(have, wanted):",
        "        if False:",
        "test_a_release_that_requires_more_than_the_device_has_is_refused",
    ),
    one(
        "wrong hardware, wrong device",
        "the refusal is reported as attack_indicator",
        "agent/update/poller.py",
        "            state = replace(state, attack_indicator=answer.error.code) if is_attack else state\n",
        "",
        f"{CHECK}::test_an_error_is_kept_for_the_operator_until_a_check_goes_well",
    ),
    one(
        "clock back",
        "expiry is judged by the later of clock and time floor",
        UPDATER,
        "    reference_time = max(now, time_floor)\n",
        "    reference_time = now\n",
        "test_a_clock_set_back_does_not_stretch_expiry_below_the_time_floor",
    ),
    one(
        "clock back",
        "python-tuf uses that time, not its own look at the clock",
        UPDATER,
        "        self._trusted_set.reference_time = reference_time\n",
        "",
        "test_a_clock_set_back_does_not_stretch_expiry_below_the_time_floor",
    ),
    one(
        "clock forward",
        "the time that is kept is the signed one",
        UPDATER,
        "        issued_at=_moment(fields.issued_at),",
        "        issued_at=now,",
        "test_a_clock_set_forward_refuses_but_never_becomes_the_time_that_is_kept",
    ),
    one(
        "clock forward",
        "the time floor follows what was signed",
        "agent/update/poller.py",
        "floor = max(state.time_floor_ms, assignment.issued_at_ms)",
        "floor = max(state.time_floor_ms, int(self._clock.now().timestamp() * 1000))",
        f"{CHECK}::test_the_floor_of_time_follows_what_was_signed_never_the_systems_clock",
    ),
    one(
        "clock back",
        "the time floor never falls",
        "agent/update/poller.py",
        "floor = max(state.time_floor_ms, assignment.issued_at_ms)",
        "floor = assignment.issued_at_ms",
        f"{CHECK}::test_the_floor_of_time_never_falls",
    ),
    one(
        "clock (signed time)",
        "the signed time answers this device and this nonce",
        UPDATER,
        '(body.get("device"), body.get("nonce")) != (device, nonce)',
        "False",
        "test_a_replayed_signed_time_is_refused",
    ),
    one(
        "two parents (1.5)",
        "second door: a delegated role without length and sha256 in the snapshot is refused",
        UPDATER,
        "            if self._demand_snapshot_hashes:",
        "            if False:",
        "test_a_role_whose_digest_the_snapshot_does_not_carry_is_refused",
    ),
    one(
        "two parents (1.5)",
        "third door: trusted bytes must satisfy each further parent as they are",
        UPDATER,
        "            if role in self._trusted_set and not self._trusted_set.contains(role, parent_role):",
        "            if False:",
        "test_each_further_parent_must_vouch_for_the_bytes_that_are_trusted_already",
        "agent/update/test_tuf_cli.py::test_a_second_parents_signer_cannot_replace_what_the_first_parents_signer_signed_at_the_same_version",
    ),
)


def main(words: list[str]) -> int:
    """Run those whose row or check contains the word; returns the exit status."""
    wanted = [mutation for mutation in MUTATIONS if not words or words[0] in f"{mutation.row} {mutation.check}"]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = _copy(Path(folder))
        for mutation in wanted:
            missed = list(_missed(tree, mutation))
            survivors += bool(missed)
            verdict = f"NOT missed by {', '.join(missed)}" if missed else f"missed by {len(mutation.tests)}"
            sys.stdout.write(f"{mutation.row}: {mutation.check}: {verdict}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(wanted)} checks taken out, {survivors} not noticed\n")
    return 1 if survivors or not wanted else 0


def _copy(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    shutil.copytree(Path(tuf.__file__).parent, folder / "tuf", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _missed(tree: Path, mutation: Mutation) -> Iterator[str]:
    """The tests that still pass without the check; all of them when the check is not there to be taken out."""
    before = {file: (tree / file).read_text() for file, _, _ in mutation.edits}
    texts = dict(before)
    for file, old, new in mutation.edits:
        if texts[file].count(old) != 1:
            yield f"nothing: {old!r} stands {texts[file].count(old)} times in {file}"
            return
        texts[file] = texts[file].replace(old, new)
    try:
        for file, text in texts.items():
            (tree / file).write_text(text)
        failed = _failing(tree, mutation.tests)
    finally:
        for file, text in before.items():
            (tree / file).write_text(text)
    yield from (test for test in mutation.tests if test.rpartition("::")[2] not in failed)


def _failing(tree: Path, tests: tuple[str, ...]) -> set[str]:
    names = [f"tests/{test if '::' in test else f'{ATTACKS}::{test}'}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", *names]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False, preexec_fn=_limit
        )
    except subprocess.TimeoutExpired:
        return {test.rpartition("::")[2] for test in tests}
    return set(re.findall(r"^FAILED \S+?::(\w+)", done.stdout, re.MULTILINE))


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
