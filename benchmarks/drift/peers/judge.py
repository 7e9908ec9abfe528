"""How often a peer alarms by its defaults: `judge.py PEER WINDOWS.npz` prints {stream: share of windows with an alarm} as JSON.

The file holds, for each stream, `<stream>.reference` float32[n, F] and `<stream>.windows` float32[windows, rows, F].
"""

import json
import sys
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore")


def evidently(reference: np.ndarray, window: np.ndarray) -> bool:
    """DataDriftPreset: dataset drift, at least half of the columns drifted."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [f"f{index}" for index in range(reference.shape[1])]
    define = DataDefinition(numerical_columns=names)
    old, new = (Dataset.from_pandas(pd.DataFrame(rows, columns=names), data_definition=define) for rows in (reference, window))
    result = Report([DataDriftPreset()]).run(new, old).dict()
    value = next(metric["value"] for metric in result["metrics"] if "DriftedColumnsCount" in str(metric))
    return value["share"] >= 0.5


def whylogs(reference: np.ndarray, window: np.ndarray) -> bool:
    """Drift scores with their default algorithm: at least one column "DRIFT"."""
    import pandas as pd
    import whylogs as why
    from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores

    names = [f"f{index}" for index in range(reference.shape[1])]
    old, new = (why.log(pd.DataFrame(rows, columns=names)).view() for rows in (reference, window))
    scores = calculate_drift_scores(target_view=new, reference_view=old, with_thresholds=True)
    return any(score and score.get("drift_category") == "DRIFT" for score in scores.values())


def alibi(reference: np.ndarray, window: np.ndarray) -> bool:
    """KSDrift with Bonferroni's correction, p below 0.05."""
    from alibi_detect.cd import KSDrift

    return bool(KSDrift(reference, p_val=0.05).predict(window)["data"]["is_drift"])


def river(reference: np.ndarray, window: np.ndarray) -> bool:
    """ADWIN on each feature, row by row over reference and window: an alarm inside the window."""
    from river.drift import ADWIN

    for column in range(reference.shape[1]):
        detector = ADWIN()
        for value in reference[:, column]:
            detector.update(float(value))
        for value in window[:, column]:
            detector.update(float(value))
            if detector.drift_detected:
                return True
    return False


def main() -> None:
    judge = {"evidently": evidently, "whylogs": whylogs, "alibi": alibi, "river": river}[sys.argv[1]]
    result, begun = {}, time.perf_counter()
    with np.load(sys.argv[2]) as data:
        for stream in sorted({name.rsplit(".", 1)[0] for name in data.files}):
            reference, windows = data[f"{stream}.reference"], data[f"{stream}.windows"]
            result[stream] = float(np.mean([judge(reference, window) for window in windows]))
    print(json.dumps({"share": result, "seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
