"""Whether a worker of torch:mps beside one of mlx:gpu makes runs on this Mac faster.

Two engines share one GPU: the second one fills gaps of the first, or takes its time. So runs with
one worker and with both are compared in pairs, each with all that a step of training does. Which
of the two runs comes first alternates, since a warm chip is slower. `paired_test` judges the
logarithm of their speeds, and ends the comparison when its interval excludes equal speeds.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mlxhog.config.config import TrainConfig
from mlxhog.doctor.checks import AGAIN, Check, CheckResult, absent
from mlxhog.doctor.frameworks import TEXT
from mlxhog.errors import MlxhogError, WorkerFailed
from mlxhog.machine.load import LoadWatch
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import GPU_BACKENDS, missing
from mlxhog.report.views import TellStep
from mlxhog.theory import paired_test
from mlxhog.training import trainer

ALONE: Final = "mlx:gpu"
TOGETHER: Final = ",".join(GPU_BACKENDS)
MODEL: Final = "10m"
PAIRS: Final = 6
RUN_S: Final = 3.0
PART: Final = "both GPU engines"
_NAME: Final = "torch:mps beside mlx:gpu"
_EXPECTED: Final = "both train, so that --workers auto can take the faster team"


def check_pair(
    machine: Machine, tell: TellStep, **options: Any
) -> tuple[Check, dict[str, Any] | None]:
    """Compare runs with both engines of the GPU with runs of mlx:gpu alone.

    Args:
        machine: this one.
        tell: shows each run.
        options: of `TrainConfig`, in place of those here.

    Returns:
        The check, and the row `pair` of the record; None if nothing was measured.

    Raises:
        KeyboardInterrupt: a run was interrupted.
    """
    for name in GPU_BACKENDS:
        if (lack := missing(name, machine)) is not None:
            return absent(_NAME, lack, _EXPECTED), None
    watch = LoadWatch()
    try:
        gain, model = _compared(tell, options)
    except MlxhogError as error:
        consequence = f"--workers {TOGETHER} cannot train here"
        return Check(_NAME, CheckResult.FAIL, str(error), _EXPECTED, consequence), None
    mean, low, high = map(math.exp, (gain.mean, gain.low, gain.high))
    found = (
        f"{mean:.2f} times the tokens/s ({low:.2f} to {high:.2f}) in {gain.pairs} pairs of runs "
        f"of {model}"
    )
    load = watch.look()
    if load.busy:
        return Check(_NAME, CheckResult.UNCLEAR, f"{load}: {found}", _EXPECTED, AGAIN), None
    row = {"model": model, "pairs": gain.pairs, "gain": mean, "low": low, "high": high}
    return Check(_NAME, CheckResult.PASS, found, _EXPECTED), row


def _compared(tell: TellStep, options: dict[str, Any]) -> tuple[paired_test.PairedResult, str]:
    """Run pairs until they decide; returns the result for log(speed of both / of one)."""
    differences: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text(TEXT)
        plain = {
            "data": str(text), "model": MODEL, "tokenizer": "bytes", "time": RUN_S, "out": folder,
            "strategy": "hogwild", "schedule": "constant", "eval_every": "off",
            "sample_every": "off", "save_every": "off", "live": "off",
        }  # fmt: skip
        config = TrainConfig(**{**plain, **options})
        result = paired_test.judge(differences, PAIRS)
        while not result.ended:
            order = (ALONE, TOGETHER) if len(differences) % 2 == 0 else (TOGETHER, ALONE)
            speeds = {}
            for workers in order:
                tell(PART, f"pair {len(differences) + 1} of at most {PAIRS}: {workers}")
                speeds[workers] = _tokens_per_s(replace(config, workers=workers))
            differences.append(math.log(speeds[TOGETHER] / speeds[ALONE]))
            result = paired_test.judge(differences, PAIRS)
    return result, config.model


def _tokens_per_s(config: TrainConfig) -> float:
    """Train; returns the speed of the run without its start.

    Raises:
        KeyboardInterrupt: the run was interrupted.
        WorkerFailed: it took no step.
        MlxhogError: as `mlxhog.training.trainer.train`.
    """
    result = trainer.train(config, whole_time=True)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if not result.tokens:
        raise WorkerFailed(f"a run with --workers {config.workers} took no step in {RUN_S:g} s")
    return result.tokens_per_s
