"""Drift alarms on simulated cameras: false alarms per device-year, delays, and what both cost, beside the peers: `make bench-drift`.

Simulated throughout: streams are made from real pictures (docs/drift-figures.md). Needs OpenCV and scikit-learn. The pictures of
scikit-image and the peers come from `benchmarks/drift/install-peers`, without which fewer scenes are used and the rows of peers are left
out. A first run makes the banks (half an hour). Devices that were judged are kept in .cache/drift: a run that is cut short goes on.
"""

import sys

from benchmarks.drift.report import Plan, measure_all
from benchmarks.record import write

#: 12 devices before each of 10 pictures, a year each; the blocks of DRIFT 5.4 and single features on fewer.
FULL = Plan(
    cameras=10, repeats=12, block_repeats=2, single_repeats=1, sites=6, validated=(0, 1, 2, 3), validated_windows=24, device_rounds=3
)


def main() -> int:
    """Measure and write benchmarks/results/drift.json."""
    rows, details = measure_all(FULL)
    write("drift", rows, details=details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
