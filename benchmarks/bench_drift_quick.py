"""The rows of bench_drift on few simulated devices: at most ten minutes, enough to see that something broke, too little to prove a rate."""

import sys

from benchmarks.drift.report import Plan, measure_all
from benchmarks.record import write

QUICK = Plan(cameras=2, repeats=2, block_repeats=1, single_repeats=1, sites=1, validated=(0,), validated_windows=6, device_rounds=1)


def main() -> int:
    """Measure and write benchmarks/results/drift_quick.json."""
    rows, details = measure_all(QUICK)
    write("drift_quick", rows, headline=("false alarms per device-year",), details=details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
