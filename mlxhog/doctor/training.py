"""A short run of the workers that `--workers auto` chooses; one of them is killed on the way.

Source of the rule: spec apple.md 12, number 14.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Final

from mlxhog.config import TrainConfig
from mlxhog.doctor.checks import Check, Result, check
from mlxhog.errors import MlxhogError
from mlxhog.metrics import Progress
from mlxhog.metrics import Result as RunResult
from mlxhog.quantities import Interval
from mlxhog.trainer import train

STEPS: Final = 120
FALLS: Final = 0.5  # nats; text that repeats itself is learnt at once
MOST_S: Final = 40.0
_TEXT: Final = "Never wait: read, compute, add without a lock. " * 4000
_KILL_AT: Final = 30  # steps
_NAME: Final = "a run"


def examine(model: str = "tiny") -> Check:
    """Train on a text that repeats itself.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    expected = f"the loss falls by {FALLS} nats in {STEPS} steps; a killed worker is replaced"
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text(_TEXT)
        config = TrainConfig(
            data=str(text), model=model, seq_len=64, steps=STEPS, time=MOST_S, out=folder,
            eval_every=Interval(), sample_every=Interval(), schedule="constant",
        )  # fmt: skip
        try:
            result = train(config, observer=watch)
        except MlxhogError as error:
            return Check(_NAME, Result.FAIL, str(error), expected, "no training here")
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return judge(result, watch.losses, expected)


class Watch:
    """An observer that keeps losses, and kills a worker once the run is under way.

    Attributes:
        losses: in the order of the steps.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._killed = False

    def __call__(self, progress: Progress) -> None:
        """Look at the run."""
        if progress.loss is not None:
            self.losses.append(progress.loss)
        if progress.step >= _KILL_AT and not self._killed:
            self._killed = True
            os.kill(progress.workers[-1].pid, signal.SIGKILL)


def judge(result: RunResult, losses: list[float], expected: str) -> Check:
    """Return what a finished run shows."""
    fell = losses[0] - losses[-1] if losses else 0.0
    workers = ",".join(worker.backend for worker in result.workers)
    found = (
        f"{workers}: {result.steps} steps, {result.tokens_per_s:,.0f} tokens/s, "
        f"loss fell by {fell:.2f}, {result.restarts} replaced"
    )
    good = result.status == "done" and fell >= FALLS and result.restarts >= 1
    return check(_NAME, good, found, expected, "look at it with: mlxhog train --time 1m")
