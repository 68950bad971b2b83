"""The two best, trained in turns from the same start, and which has the lower loss."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import Child, Lane
from mlxhog.config.quantities import Interval
from mlxhog.data import heldout
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import WorkerFailed
from mlxhog.report.metrics import Result
from mlxhog.theory.advisor.measuring import PLAIN
from mlxhog.theory.advisor.rules import Arm
from mlxhog.theory.analysis import AnalyzeConfig
from mlxhog.theory.analysis.analyze import plan_of, subject_of
from mlxhog.theory.analysis.conflicts import call_child
from mlxhog.theory.analysis.sampling import Source, Subject
from mlxhog.theory.analysis.target import Target
from mlxhog.training import trainer

SLICES = 4
TIE_BITS = 0.02
"""Bits per byte within which two losses are a tie, however sure: what seeds differ by."""

HELD_OUT_TOKENS = 65_536
ROWS = 16


@dataclass(frozen=True)
class Trial:
    """How two arms did against each other.

    Attributes:
        names: of the arms, the recommended one first.
        seconds: that each has trained.
        steps: that each has taken.
        bits_per_byte: held-out, of each, on the same batches.
        difference: mean of the second's minus the first's, over the batches.
        error: standard error of that.
        winner: name of the arm; of a tie, the first of those that repeat, or the recommended one.
        tie: whether the difference is below two standard errors, or `TIE_BITS`.
    """

    names: tuple[str, str]
    seconds: tuple[float, float]
    steps: tuple[int, int]
    bits_per_byte: tuple[float, float]
    difference: float
    error: float
    winner: str
    tie: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def decide(
    arms: tuple[Arm, Arm], bits: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[str, bool, float, float]:
    """The winner by paired held-out losses.

    Args:
        arms: the two.
        bits: per byte of each batch, (batches,), of the same batches for either.

    Returns:
        Its name, whether it is a tie, the mean difference (second minus first), its error.
    """
    apart = bits[1] - bits[0]
    difference = float(apart.mean())
    error = float(apart.std(ddof=1) / math.sqrt(len(apart))) if len(apart) > 1 else math.inf
    if not math.isfinite(difference):
        return arms[int(np.isfinite(bits[1]).all())].name, False, difference, error
    tie = abs(difference) < max(2 * error, TIE_BITS)
    if tie:
        repeating = [arm for arm in arms if arm.repeats] or list(arms)
        return repeating[0].name, True, difference, error
    return arms[int(difference < 0)].name, False, difference, error


def try_both(
    target: Target, arms: tuple[Arm, Arm], seconds: float, tell: Callable[[str, str], None]
) -> Trial:
    """Train both in turns, slice by slice, and evaluate them on the same held-out batches.

    Both begin with the same parameters and the same order of batches, at the options of the target
    but for a constant step size: a schedule over slices would begin anew with each.

    Args:
        target: what to train.
        arms: the recommended one first.
        seconds: that each trains in all.
        tell: told (part, step).

    Raises:
        MlxhogError: as `mlxhog.training.trainer.train`.
        WorkerFailed: an arm took no step, so there is nothing to compare.
    """
    with tempfile.TemporaryDirectory(prefix="mlxhog-advise-") as folder:
        last: dict[str, Result] = {}
        for number in range(SLICES):
            for arm in arms if number % 2 == 0 else arms[::-1]:  # neither is always the first
                before = last.get(arm.name)
                last[arm.name] = _train_slice(
                    target, arm, seconds / SLICES, number, Path(folder), before, tell
                )
        results = (last[arms[0].name], last[arms[1].name])
        tell("held-out text", "evaluating both")
        with Child() as child:
            bits = [_bits_per_byte(child, target, Path(str(one.checkpoint))) for one in results]
    winner, tie, difference, error = decide(arms, (bits[0], bits[1]))
    return Trial(
        names=(arms[0].name, arms[1].name),
        seconds=(results[0].seconds, results[1].seconds),
        steps=(results[0].steps, results[1].steps),
        bits_per_byte=(float(bits[0].mean()), float(bits[1].mean())),
        difference=difference,
        error=error,
        winner=winner,
        tie=tie,
    )


def _train_slice(
    target: Target,
    arm: Arm,
    seconds: float,
    number: int,
    folder: Path,
    before: Result | None,
    tell: Callable[[str, str], None],
) -> Result:
    """Train an arm for one turn, from where its turn before ended."""
    part = f"{arm.name}, turn {number + 1} of {SLICES}"
    tell(part, "starting")
    never = Interval()
    settings = replace(
        target.config,
        **{
            **PLAIN,
            "strategy": arm.strategy,
            "resume": None if before is None else before.run,
            **arm.options,
        },
        schedule="constant",
        time=seconds,
        eval_every=never,
        sample_every=never,
        save_every=never,
        out=str(folder / arm.name.replace(" ", "-")),
        name="trial",
    )
    result = trainer.train(
        settings, observer=lambda now: tell(part, f"{now.step} steps"), whole_time=True
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if not result.steps or result.checkpoint is None:
        raise WorkerFailed(
            f"{arm.name} took no step in {seconds:g} s; give it longer, as in --try 5m, or leave "
            "the trial out with --no-try"
        )
    return result


def _bits_per_byte(child: Child, target: Target, checkpoint: Path) -> NDArray[np.float64]:
    """Held-out bits per byte of every batch, (batches,)."""
    plan = plan_of(target, AnalyzeConfig())
    subject = replace(subject_of(target, plan), checkpoint=checkpoint)
    bits: NDArray[np.float64] = call_child(child, evaluate, subject, plan.data.val)
    return bits


def evaluate(lane: Lane, subject: Subject, held_out: Path) -> NDArray[np.float64]:
    """Bits per byte of every batch of held-out text at a checkpoint; runs in a child."""
    ours = Source(subject)
    batches = heldout.batches(
        TokenFile.open(held_out),
        seq_len=subject.seq_len,
        batch_size=ROWS,
        eval_tokens=HELD_OUT_TOKENS,
    )
    return np.array(
        [
            heldout.bits_per_byte(ours.backend.evaluate(batch).nats, batch.n_bytes)
            for batch in batches
            if batch.n_bytes
        ]
    )
