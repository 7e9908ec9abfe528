"""What a part of the benchmark came to, kept with the digest of the code that made it: a run that was cut short does not make it again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drift.bank import CACHE

ROOT = Path(__file__).resolve().parents[2]
#: What the streams and the windows are made by.
STREAMS = tuple(f"benchmarks/drift/{name}.py" for name in ("bank", "camera", "model", "numbers", "scenes", "stream", "trial", "world"))


def kept(name: str, sources: Sequence[str], make: Callable[[], Any]) -> Any:
    """What `make` gives, JSON, made where it is not stored yet. `sources`: files of the tree, besides the streams', that it depends on."""
    digest = hashlib.sha256()
    for source in (*STREAMS, *sources):
        digest.update((ROOT / source).read_bytes())
    path = CACHE / f"{name}-{digest.hexdigest()[:12]}.json"
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())
