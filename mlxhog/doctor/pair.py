"""Whether a worker of torch:mps beside those of mlx:gpu makes runs on this Mac faster.

Two engines share one GPU: the second one fills gaps of the first, or takes its time. So runs with
the GPU workers that `--workers auto` has here and runs with one of torch:mps beside them are
compared in pairs, each with all that a step of training does, and with the kernels that the record
before this one allows. Which of the two runs comes first alternates, since a warm chip is slower.
`paired_test` judges the logarithm of their speeds, and ends the comparison when its interval
excludes equal speeds.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, Final

from mlxhog.config.config import TrainConfig
from mlxhog.doctor.checks import AGAIN, Check, CheckResult, absent
from mlxhog.doctor.frameworks import TEXT
from mlxhog.errors import MlxhogError, WorkerFailed
from mlxhog.machine.load import LoadWatch
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import GPU_BACKENDS, missing, resolve_workers
from mlxhog.report.views import TellStep
from mlxhog.theory import paired_test
from mlxhog.theory.paired_test import PairedResult
from mlxhog.training import trainer

MODEL: Final = "10m"
PAIRS: Final = 6
RUN_S: Final = 3.0
PART: Final = "both GPU engines"
_NAME: Final = "torch:mps beside mlx:gpu"
_EXPECTED: Final = "both train, so that --workers auto can take the faster team"


def check_pair(
    machine: Machine, watch: LoadWatch, tell: TellStep
) -> tuple[Check, dict[str, Any] | None]:
    """Compare runs with both engines of the GPU with runs of mlx:gpu alone.

    Args:
        machine: this one.
        watch: begun before doctor's own load, which a Mac's load average counts for a minute.
        tell: shows each run.

    Returns:
        The check, and the row `pair` of the record; None if nothing was measured.

    Raises:
        KeyboardInterrupt: a run was interrupted.
    """
    for name in GPU_BACKENDS:
        if (lack := missing(name, machine)) is not None:
            return absent(_NAME, lack, _EXPECTED), None
    usual = [worker.backend for worker in resolve_workers("auto", machine=machine).workers]
    alone = ",".join(name for name in usual if name in GPU_BACKENDS)
    together = f"{alone},torch:mps"
    try:
        result = _compared(alone, together, tell)
    except MlxhogError as error:
        consequence = f"--workers {together} cannot train here"
        return Check(_NAME, CheckResult.FAIL, str(error), _EXPECTED, consequence), None
    gain, low, high = map(math.exp, (result.mean, result.low, result.high))
    observed = (
        f"{gain:.2f} times the tokens/s ({low:.2f} to {high:.2f}) in {result.pairs} pairs of runs "
        f"of {MODEL}"
    )
    load = watch.look()
    if load.busy:
        return Check(_NAME, CheckResult.UNCLEAR, f"{load}: {observed}", _EXPECTED, AGAIN), None
    row = {"model": MODEL, "pairs": result.pairs, "gain": gain, "low": low, "high": high}
    return Check(_NAME, CheckResult.PASS, observed, _EXPECTED), row


def _compared(alone: str, together: str, tell: TellStep) -> PairedResult:
    """Run pairs until they decide; returns the result for log(speed together / alone)."""
    differences: list[float] = []
    result = paired_test.judge(differences, PAIRS)
    while not result.ended:
        order = (alone, together) if len(differences) % 2 == 0 else (together, alone)
        speeds = {}
        for workers in order:
            tell(PART, f"pair {len(differences) + 1} of at most {PAIRS}: {workers}")
            speeds[workers] = tokens_per_s(workers)
        differences.append(math.log(speeds[together] / speeds[alone]))
        result = paired_test.judge(differences, PAIRS)
    return result


def tokens_per_s(workers: str) -> float:
    """Train for `RUN_S`; returns the speed of the run, from the start of its last worker on.

    Raises:
        KeyboardInterrupt: the run was interrupted.
        WorkerFailed: it took no step.
        MlxhogError: as `mlxhog.training.trainer.train`.
    """
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text(TEXT)
        options: dict[str, Any] = {
            "data": str(text), "model": MODEL, "tokenizer": "bytes", "time": RUN_S, "out": folder,
            "workers": workers, "strategy": "hogwild", "schedule": "constant",
            "eval_every": "off", "sample_every": "off", "save_every": "off", "live": "off",
        }  # fmt: skip
        result = trainer.train(TrainConfig(**options), whole_time=True)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if not result.tokens:
        raise WorkerFailed(f"a run with --workers {workers} took no step in {RUN_S:g} s")
    return result.tokens_per_s
