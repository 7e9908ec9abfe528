"""The self-test of a slot, and autotune when something may be gained, in a child that ends: `python -m agent.inference.trial`.

Both need numpy and model manifests, 13 MiB that the control process would carry for years after its first release. The child tries each
back end in a child of its own, as `runtime.probe` does; it reads what is wished as JSON from its standard input and writes the verdict.
"""

import json
import logging
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from agent.children import run_bounded
from agent.config import RuntimeConfig
from agent.inference.tuner import USUAL_FPS, Tuner
from protocol.errors import InvalidError
from runtime.selftest import SelfTest

#: Back ends times providers that settings can name for one model: each has its own time, the child has the sum.
_MOST_CANDIDATES = 32
#: Of what autotune may take: its children end their turn after the budget is used up.
_TUNING_FACTOR, _TUNING_MARGIN_S = 2.0, 120.0
_MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be tried."""

    folder: Path
    runtime: RuntimeConfig
    #: Where results are kept; None: nowhere.
    records_dir: Path | None
    #: No other candidate than this "backend:provider", and no autotune; empty: any.
    provider: str = ""
    #: Seconds for one candidate.
    timeout_s: float = 180.0
    #: Frames per second of the fastest pipeline of each line.
    rates: dict[str, float] | None = None
    pressure_root: Path = Path("/")


def run_trial(trial: Trial) -> SelfTest:
    """Whether the model runs here, after autotune if that had something to measure. Never raises for what the folder holds.

    Code "crashed" or "timeout" when the child itself died or was killed. Raises: OSError when it cannot be started.
    """
    timeout_s = _MOST_CANDIDATES * trial.timeout_s + _TUNING_FACTOR * trial.runtime.autotune_s + _TUNING_MARGIN_S
    command = [sys.executable, "-m", "agent.inference.trial", str(logging.getLogger().level)]
    end = run_bounded(command, timeout_s=timeout_s, limit=_MAX_ANSWER_BYTES, given=json.dumps(_document(trial)).encode())
    if end.is_overdue:
        return SelfTest(ok=False, code="timeout", text=f"The self-test was not over within {timeout_s:.0f} s.")
    try:
        return _verdict_of(json.loads(end.output))
    except (ValueError, TypeError, RecursionError):
        return SelfTest(ok=False, code="crashed", text=f"The self-test ended with status {end.status} and no answer.")


def _document(trial: Trial) -> dict[str, Any]:
    return {
        "folder": str(trial.folder.absolute()),
        "runtime": trial.runtime.model_dump(mode="json"),
        "records_dir": None if trial.records_dir is None else str(trial.records_dir.absolute()),
        "provider": trial.provider,
        "timeout_s": trial.timeout_s,
        "rates": trial.rates or {},
        "pressure_root": str(trial.pressure_root),
    }


def _trial_of(document: dict[str, Any]) -> Trial:
    paths = {key: Path(document[key]) for key in ("folder", "pressure_root")}
    records_dir = None if document["records_dir"] is None else Path(document["records_dir"])
    runtime = RuntimeConfig.model_validate_json(json.dumps(document["runtime"]))
    return Trial(**{**document, **paths, "runtime": runtime, "records_dir": records_dir})


def _verdict_of(document: dict[str, Any]) -> SelfTest:
    return SelfTest(**{field.name: document[field.name] for field in fields(SelfTest) if field.name in document})


# --- the child ---


def _try(trial: Trial) -> SelfTest:
    from agent.inference.options import backend_options
    from runtime.probe import self_test

    options = backend_options(trial.runtime)
    verdict = self_test(trial.folder, options, only=trial.provider, timeout_s=trial.timeout_s, records_dir=trial.records_dir)
    if verdict.ok and not trial.provider:
        tuner = Tuner(trial.runtime, trial.records_dir, pressure_root=trial.pressure_root)
        rates = trial.rates or {}
        tuner.tune_when_worth_it(trial.folder, verdict.infer_ms_p99, lambda line: 1000.0 / rates.get(line, USUAL_FPS))
    return verdict


def main(arguments: list[str]) -> int:
    """Be the child; the argument is the level of the log as a number; the log goes to standard error."""
    logging.basicConfig(stream=sys.stderr, level=int(arguments[0]), format="%(levelname)s %(name)s %(message)s")
    try:
        trial = _trial_of(json.load(sys.stdin))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidError(f"This is nothing to be tried: {error}.") from None
    json.dump(asdict(_try(trial)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
