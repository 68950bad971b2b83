"""Measure whether a torch:mps worker beside mlx:gpu workers makes runs on this Mac faster.

Two engines share one GPU: the second fills gaps of the first, or competes with it. So pairs of runs
are compared as by `mlxhog compare`: the GPU workers of `--workers auto` against these and a
torch:mps worker, until the interval of the ratio of their speeds excludes 1.
"""

import math
import tempfile
from pathlib import Path
from typing import Any, Final

from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.workers import GPU_BACKENDS, missing, resolve_workers
from mlxhog.config.config import TrainConfig
from mlxhog.display.views import TellStep
from mlxhog.doctor.checks import AGAIN, Check, CheckResult
from mlxhog.errors import MlxhogError
from mlxhog.experiments import CompareConfig, paired_test
from mlxhog.experiments.paired_test import PairedResult
from mlxhog.experiments.pairs import Comparison, Side

MODEL: Final = "10m"
PAIRS: Final = 6
RUN_S: Final = 3.0
PART: Final = "both GPU engines"
_TEXT: Final = "Never wait: read, compute, add without a lock. " * 4000
_NAME: Final = "torch:mps beside mlx:gpu"
_EXPECTED: Final = "both train, so that --workers auto can take the faster team"


def check_pair(
    machine: Machine, watch: LoadWatch, tell: TellStep
) -> tuple[Check, dict[str, Any] | None]:
    """Compare runs with both engines of the GPU and runs with mlx:gpu alone.

    The watch began before doctor's own work.

    Returns:
        The check, and the row `pair` of the record; None if nothing was measured.

    Raises:
        KeyboardInterrupt: a run was interrupted.
    """
    for name in GPU_BACKENDS:
        if (lack := missing(name, machine)) is not None:
            return Check(_NAME, CheckResult.ABSENT, lack, _EXPECTED), None
    usual = [worker.backend for worker in resolve_workers("auto", machine=machine).workers]
    alone = ",".join(name for name in usual if name in GPU_BACKENDS)
    together = f"{alone},torch:mps"
    try:
        result = compared(together, alone, tell)
    except MlxhogError as error:
        if (load := watch.look()).busy:  # a worker may have been killed for a missing heartbeat
            found = f"{load}: {error}"
            return Check(_NAME, CheckResult.INCONCLUSIVE, found, _EXPECTED, AGAIN), None
        consequence = f"--workers {together} cannot train here"
        return Check(_NAME, CheckResult.FAIL, str(error), _EXPECTED, consequence), None
    gain, low, high = map(math.exp, (result.mean, result.low, result.high))
    row = {"model": MODEL, "pairs": result.pairs, "gain": gain, "low": low, "high": high}
    times = f"{gain:.2f} times the tokens/s ({low:.2f} to {high:.2f})"
    observed = f"{times} in {result.pairs} pairs of runs of {MODEL}"
    if (load := watch.look()).busy:
        return Check(_NAME, CheckResult.INCONCLUSIVE, f"{load}: {observed}", _EXPECTED, AGAIN), None
    return Check(_NAME, CheckResult.PASS, observed, _EXPECTED), row


def compared(a: str, b: str, tell: TellStep) -> PairedResult:
    """Run pairs until the test ends; return its result for log(speed(a) / speed(b))."""
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as name:
        folder, speeds = Path(name), list[float]()
        (text := folder / "text.txt").write_text(_TEXT)
        options: dict[str, Any] = {
            "data": str(text), "model": MODEL, "tokenizer": "bytes", "strategy": "hogwild",
            "schedule": "constant", "live": "off",
        }  # fmt: skip
        one, other = (Side(mix, TrainConfig(workers=mix, **options)) for mix in (a, b))
        terms = CompareConfig(pairs=PAIRS, time=RUN_S, tokens=None, seed=0, val_subset_tokens=1024)
        comparison = Comparison(one, other, terms, folder / "pairs")
        while not (result := paired_test.decide(speeds, PAIRS)).ended:
            pair = comparison.run_pair(
                len(speeds) + 1, lambda part, step: tell(PART, f"{part}: {step}")
            )
            speeds.append(pair.log_speed)
        return result
