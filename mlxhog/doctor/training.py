"""A short run of the workers that `--workers auto` chooses; one of them is killed on the way.

Source of the rule: spec apple.md 12, number 14.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
from pathlib import Path
from typing import Final

from mlxhog.config.config import TrainConfig
from mlxhog.config.quantities import Interval
from mlxhog.doctor import pace
from mlxhog.doctor.backends import MODEL
from mlxhog.doctor.checks import Check, Result, check
from mlxhog.errors import MlxhogError
from mlxhog.models.registry import load_architecture
from mlxhog.report.metrics import Progress
from mlxhog.report.metrics import Result as RunResult
from mlxhog.training.trainer import train

SECONDS: Final = 10.0  # a few to replace the worker, the rest to see whether steps keep their pace
LEARNT: Final = 1.0  # nats below guessing; text that repeats itself is learnt at once
_TEXT: Final = "Never wait: read, compute, add without a lock. " * 4000
_KILL_AT: Final = 10  # steps
_NAME: Final = "a run"


def examine(seconds: float = SECONDS) -> list[Check]:
    """Train the default model on a text that repeats itself.

    Returns:
        What became of the run, and whether its steps kept their pace.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    guessing = math.log(load_architecture(MODEL).vocab_size)
    expected = f"a loss below {guessing - LEARNT:.1f} after {seconds:g} s; a killed worker replaced"
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text(_TEXT)
        config = TrainConfig(
            data=str(text), model=MODEL, seq_len=64, time=seconds, out=folder,
            eval_every=Interval(), sample_every=Interval(), schedule="constant",
        )  # fmt: skip
        try:
            result = train(config, observer=watch)
        except MlxhogError as error:
            return [Check(_NAME, Result.FAIL, str(error), expected, "no training here")]
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return [judge(result, watch.loss, guessing - LEARNT, expected), pace.judge(watch.samples)]


class Watch:
    """An observer that kills a worker once the run is under way.

    Attributes:
        loss: the last one, infinite before the first.
        samples: where the run was, from the time when the killed worker was replaced.
    """

    def __init__(self) -> None:
        self.loss = math.inf
        self.samples: list[pace.Sample] = []
        self._killed: int | None = None

    def __call__(self, progress: Progress) -> None:
        """Look at the run."""
        self.loss = self.loss if progress.loss is None else progress.loss
        if self._killed is not None:
            self._sample(progress)
        elif progress.step >= _KILL_AT:
            self._killed = progress.workers[-1].pid
            os.kill(self._killed, signal.SIGKILL)

    def _sample(self, progress: Progress) -> None:
        """Note where the run is, unless a worker is missing or training is over."""
        whole = all(w.state == "running" and w.pid != self._killed for w in progress.workers)
        if whole and (not self.samples or progress.elapsed_s > self.samples[-1].elapsed_s):
            self.samples.append(pace.Sample(progress.elapsed_s, progress.step))


def judge(result: RunResult, loss: float, highest: float, expected: str) -> Check:
    """Return what a finished run shows."""
    workers = ",".join(worker.backend for worker in result.workers)
    found = (
        f"{workers}: {result.steps} steps, {result.tokens_per_s:,.0f} tokens/s, loss {loss:.2f}, "
        f"{result.restarts} replaced"
    )
    good = result.status == "done" and loss < highest and result.restarts >= 1
    return check(_NAME, good, found, expected, "look at it with: mlxhog train --time 1m")
