"""What this machine answers, by the production code; run on the host and, the same file, in the arm64 tree.

`python -m arm64.answering record|test FOLDER` prints one JSON object by the names of the slot folders in FOLDER. `record` runs the golden
vectors of each in this one process (imports take seconds under emulation), writes its own answers beside them as golden vectors and says
where they are outside of their tolerance; `test` says the verdict of the self-test, in a child of its own each.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtime.agreement import compare_answers
from runtime.base import BackendOptions
from runtime.golden import Goldens, encode, key_of, read_goldens
from runtime.loader import load_first, read_slot
from runtime.probe import self_test

RECORDED = "recorded.cbor"
#: Of one child: emulation takes fifty times as long, on a machine that may be busy.
TIMEOUT_S = 3600.0


def recorded(folder: Path) -> dict[str, list[str]]:
    """By slot, where the answers of this machine are outside of the tolerance of the golden vectors; writes its own beside them."""
    return {slot.name: _recorded(slot) for slot in sorted(folder.iterdir())}


def tested(folder: Path) -> dict[str, dict[str, Any]]:
    """The self-test's verdict over each slot."""
    return {slot.name: asdict(self_test(slot, timeout_s=TIMEOUT_S)) for slot in sorted(folder.iterdir())}


def _recorded(slot: Path) -> list[str]:
    manifest, goldens = read_slot(slot), read_goldens(slot)
    backend = load_first(slot, manifest, BackendOptions(), warm_rounds=0).backend
    results = tuple({name: np.array(value) for name, value in backend.infer(dict(vector)).items()} for vector in goldens.inputs)
    key = key_of(backend.name, backend.version, backend.effective_provider.effective)
    backend.close()
    (slot / RECORDED).write_bytes(encode(Goldens(goldens.inputs, {key: results}, goldens.tolerances)))
    return [str(difference) for difference in compare_answers(manifest, goldens, results, key=key)]


if __name__ == "__main__":
    commands = {"record": recorded, "test": tested}
    print(json.dumps(commands[sys.argv[1]](Path(sys.argv[2]))))  # noqa: T201 - the answer
