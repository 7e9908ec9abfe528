"""What is watched of a model whose release brings a profile (DRIFT 1).

Imported with the first such model: with numbers of features and sketches it weighs half a MiB, and most models bring none.
"""

from dataclasses import dataclass
from pathlib import Path

from agent.inference.rows import CPU_SHARE
from protocol.errors import MooringError
from protocol.files import read_bounded
from protocol.sketches import PROFILE_NAME
from protocol.sketches.grid import Grid
from protocol.sketches.profile import MAX_PROFILE_BYTES, decode_profile
from runtime.features import MAX_SHARE, Extractor, choose_step
from runtime.manifest import ModelManifest

#: Characters of a digest in hexadecimal that name a grid or a model version: 16 bytes.
KEY_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched of one loaded model, by the profile that came with it."""

    manifest: ModelManifest
    grid: Grid
    folder: Path

    @property
    def model(self) -> str:
        """The model version: the first 16 bytes of its file's digest, hexadecimal."""
        return self.manifest.files[self.manifest.model_file].sha256.removeprefix("sha256:")[:KEY_DIGITS]

    def make_extractor(self) -> Extractor:
        """What makes the rows of the grid's features. Raises: InvalidError when this agent does not know one of them."""
        return Extractor(self.manifest, [feature.name for feature in self.grid.features])

    @staticmethod
    def fitting_step(cost_s: float) -> int:
        """Seconds between rows of that cost, 1, 2, 4 or 8, so that they fit into `CPU_SHARE`: else rows would be skipped."""
        return choose_step(cost_s * MAX_SHARE / CPU_SHARE)


def read_watched(folder: Path, manifest: ModelManifest) -> tuple[Watched | None, str]:
    """What is watched of the slot folder's model by the profile in it; else why nothing is."""
    try:
        watched = Watched(manifest, decode_profile(read_bounded(folder / PROFILE_NAME, MAX_PROFILE_BYTES)).grid, folder)
        watched.make_extractor()
    except (OSError, MooringError) as error:
        return None, str(error)
    return watched, ""
