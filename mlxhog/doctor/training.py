"""A short run of the workers that `--workers auto` chooses: one is killed, and steps are timed.

Steps that take longer the longer the run lasts tell of a chip that has grown hot.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mlxhog.config.config import TrainConfig
from mlxhog.config.quantities import Interval
from mlxhog.doctor.checks import Check, Result, absent, check
from mlxhog.doctor.frameworks import MODEL
from mlxhog.errors import MlxhogError
from mlxhog.models.registry import load_architecture
from mlxhog.report.metrics import Progress
from mlxhog.report.metrics import Result as RunResult
from mlxhog.training.trainer import train

SLOWER: Final = 0.2
_FEWEST_STEPS: Final = 20  # steps in the first half whose time means something
_STEP_TIME: Final = "step time"
_SAME_PACE: Final = f"second half of a run less than {SLOWER:.0%} slower than the first"


class PaceSample(NamedTuple):
    """Where a run was at some time, all its workers at work since the first sample."""

    elapsed_s: float
    steps: int


def judge_pace(samples: Sequence[PaceSample]) -> Check:
    """Compare the time from step to step in the first half of a run with that in the second.

    Args:
        samples: in the order of time.
    """
    if len(samples) < 3:
        return absent(_STEP_TIME, f"{len(samples)} samples are too few to tell", _SAME_PACE)
    first, last = samples[0], samples[-1]
    half = (first.elapsed_s + last.elapsed_s) / 2
    middle = min(samples[1:-1], key=lambda sample: abs(sample.elapsed_s - half))
    steps = middle.steps - first.steps
    if steps < _FEWEST_STEPS:
        return absent(_STEP_TIME, f"{steps} steps are too few to tell", _SAME_PACE)
    early = (middle.elapsed_s - first.elapsed_s) / steps
    late = (last.elapsed_s - middle.elapsed_s) / max(last.steps - middle.steps, 1)
    return check(
        _STEP_TIME,
        late < (1 + SLOWER) * early,
        f"{early * 1e3:.1f} ms, then {late * 1e3:.1f} ms ({late / early - 1:+.0%})",
        _SAME_PACE,
        "the chip is hot or busy: see `pmset -g therm` on a Mac; long runs will be slower",
        otherwise=Result.WARN,
    )


# -- the run ---------------------------------------------------------------------------------------

SECONDS: Final = 10.0  # a few to replace the worker, the rest to see whether steps keep their pace
LEARNT: Final = 1.0  # nats below guessing; text that repeats itself is learnt at once
_TEXT: Final = "Never wait: read, compute, add without a lock. " * 4000
_KILL_AT: Final = 10  # steps
_RUN: Final = "a run"


def check_training(seconds: float = SECONDS) -> list[Check]:
    """Train the default model on a text that repeats itself.

    Returns:
        What became of the run, and whether its steps kept their pace.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    guessing = math.log(load_architecture(MODEL).vocab_size)
    expected = f"a loss below {guessing - LEARNT:.1f} after {seconds:g} s; a killed worker replaced"
    watch = WorkerKiller()
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
            return [Check(_RUN, Result.FAIL, str(error), expected, "no training here")]
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return [judge_run(result, watch.loss, guessing - LEARNT, expected), judge_pace(watch.samples)]


class WorkerKiller:
    """An observer that kills a worker once the run is under way.

    Attributes:
        loss: the last one, infinite before the first.
        samples: where the run was, from the time when the killed worker was replaced.
    """

    def __init__(self) -> None:
        self.loss = math.inf
        self.samples: list[PaceSample] = []
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
            self.samples.append(PaceSample(progress.elapsed_s, progress.step))


def judge_run(result: RunResult, loss: float, highest: float, expected: str) -> Check:
    """Return what a finished run shows."""
    workers = ",".join(worker.backend for worker in result.workers)
    found = (
        f"{workers}: {result.steps} steps, {result.tokens_per_s:,.0f} tokens/s, loss {loss:.2f}, "
        f"{result.restarts} replaced"
    )
    good = result.status == "done" and loss < highest and result.restarts >= 1
    return check(_RUN, good, found, expected, "look at it with: mlxhog train --time 1m")
