"""The budget of a run: steps, tokens or seconds, whichever is used up first."""

from __future__ import annotations

import math
from dataclasses import dataclass

END_S = 10.0
"""A command with a budget of time ends so long after it at the latest, whatever the model."""
STOP_S = 3.0  # of these, to end workers and write the result
SAMPLING_S = 2.0  # of these, for the last sample
EVALUATION_PART, EVALUATION_MOST_S = 0.05, 20.0  # of the budget, kept for the last evaluation
START_PART = 0.2  # of the budget; a start that takes more is worth a line


def training_s(
    seconds: float,
    *,
    start_s: float,
    save_s: float,
    evaluates: bool,
    samples: bool,
    evaluation_s: float = 0.0,
) -> float:
    """Return how much of a budget of time is for training, so that the command ends in time.

    All of it, less a part for the last evaluation; less, too, what the start has taken and the end
    will take beyond `END_S`, as with a large model; but a fifth of it at least.

    Args:
        seconds: the budget.
        start_s: taken until all workers were up.
        save_s: the last checkpoint will take.
        evaluates: whether there is a last evaluation.
        samples: whether there is a last sample.
        evaluation_s: what it takes at least; at most two fifths of the budget are kept for it.
    """
    kept_s = min(EVALUATION_PART * seconds, EVALUATION_MOST_S) if evaluates else 0.0
    evaluation_s = min(evaluation_s, seconds * 2 / 5) * evaluates
    beyond_s = start_s + save_s + evaluation_s + SAMPLING_S * samples + STOP_S - END_S
    return max(seconds - max(kept_s, beyond_s), seconds / 5)


def late_start(seconds: float, *, start_s: float, training_s: float, measured: bool) -> str | None:
    """Say that much of a budget of time was over when training began; None where it was not.

    Args:
        seconds: the budget.
        start_s: taken until training began.
        training_s: that are left for it.
        measured: whether workers were measured in that time.
    """
    if start_s <= START_PART * seconds:
        return None
    minutes = math.ceil(start_s / START_PART / 60)
    return (
        f"start-up{' and measuring' * measured} took {start_s:.0f} s of {seconds:.0f} s, which "
        f"leaves {training_s:.0f} s for training; give more time, such as --time {minutes}m"
    )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one `train` call, and what the run had used before it (after a resume).

    Limits count from the start of this call. The schedule sees `progress`, which spans the whole
    run: what was used before plus what this call may add.

    Attributes:
        equal_steps_before: as many steps as long as this call's as `steps_before` were, where those
            may have taken other numbers of batches; None where steps are what the user has counted.
    """

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    steps_before: int = 0
    tokens_before: int = 0
    seconds_before: float = 0.0
    equal_steps_before: float | None = None

    @property
    def progress_before(self) -> float:
        """Steps before, in those of this call."""
        equal = self.equal_steps_before
        return self.steps_before if equal is None else equal

    @property
    def is_used_up(self) -> bool:
        """Whether nothing was left when this call began."""
        return 0 in (self.steps, self.tokens, self.seconds)

    def step_limit(self, tokens_per_step: int) -> int | None:
        """Steps this call may take, or None where only time limits it."""
        limits = [self.steps] if self.steps is not None else []
        if self.tokens is not None:
            limits.append(math.ceil(self.tokens / tokens_per_step))
        return min(limits) if limits else None

    def fraction(self, *, steps: int, tokens: int, seconds: float) -> float:
        """Share of this call's budget that is used, in [0, 1]."""
        return self._largest(steps, tokens, seconds, before=False)

    def progress(self, *, steps: int, tokens: int, seconds: float) -> float:
        """Share of the whole run that is over, in [0, 1]: what schedules are a function of."""
        return self._largest(steps, tokens, seconds, before=True)

    def _largest(self, steps: int, tokens: int, seconds: float, *, before: bool) -> float:
        shares = [0.0]
        for used, limit, earlier in (
            (steps, self.steps, self.progress_before),
            (tokens, self.tokens, self.tokens_before),
            (seconds, self.seconds, self.seconds_before),
        ):
            if limit is not None:
                offset = earlier if before else 0
                shares.append((used + offset) / max(limit + offset, 1e-9))
        return min(1.0, max(shares))
