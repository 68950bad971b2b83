"""The budget of a run: steps, tokens or seconds; the first that is used up ends it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

END_S = 10.0
"""Latest end of a command after its budget of time, with any model."""
STOP_S = 3.0  # of these, to end workers and write the result
SAMPLING_S = 2.0  # of these, for the last sample
EVALUATION_PART, EVALUATION_MOST_S = 0.05, 20.0  # of the budget, kept for the last evaluation
START_PART = 0.2  # of the budget; a longer start is reported


def training_s(
    seconds: float,
    *,
    start_s: float,
    save_s: float,
    evaluates: bool,
    samples: bool,
    evaluation_s: float = 0.0,
) -> float:
    """Return the part of a budget of time for training, so that the command ends in time.

    It is the budget without a part for the last evaluation, or without the time of start and end
    beyond `END_S` if that is more, as with a large model; at least a fifth of the budget.

    Args:
        seconds: the budget.
        start_s: time until all workers were up.
        save_s: expected time of the last checkpoint.
        evaluates: whether there is a last evaluation.
        samples: whether there is a last sample.
        evaluation_s: least time of the evaluation; at most two fifths of the budget are for it.
    """
    kept_s = min(EVALUATION_PART * seconds, EVALUATION_MOST_S) if evaluates else 0.0
    evaluation_s = min(evaluation_s, seconds * 2 / 5) * evaluates
    beyond_s = start_s + save_s + evaluation_s + SAMPLING_S * samples + STOP_S - END_S
    return max(seconds - max(kept_s, beyond_s), seconds / 5)


def late_start(seconds: float, *, start_s: float, training_s: float, measured: bool) -> str | None:
    """Return a message if the start took much of a budget of time, else None.

    Args:
        seconds: the budget.
        start_s: time until training began.
        training_s: time left for training.
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
    """Limits of one `train` call, and the steps, tokens and seconds of the run before it.

    Limits count from the start of this call. The schedule sees `progress`, which spans the whole
    run: the part before this call and its limits.

    Attributes:
        equal_steps_before: `steps_before` in steps of this call's number of batches, if theirs may
            differ; None if the user's budget is in steps.
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
        """Steps before this call, in steps of its length."""
        equal = self.equal_steps_before
        return self.steps_before if equal is None else equal

    @property
    def is_used_up(self) -> bool:
        """Whether nothing was left when this call began."""
        return 0 in (self.steps, self.tokens, self.seconds)

    def step_limit(self, tokens_per_step: int, *, steps: int = 0, tokens: int = 0) -> int | None:
        """Steps this call may take, or None where only time limits it.

        Args:
            tokens_per_step: of the steps from now on.
            steps: of this call so far.
            tokens: in them.
        """
        limits = [self.steps] if self.steps is not None else []
        if self.tokens is not None:
            limits.append(steps + math.ceil(max(0, self.tokens - tokens) / tokens_per_step))
        return min(limits) if limits else None

    def continuing(self, earlier: Budget, steps: int) -> Budget:
        """This budget, whose steps have other numbers of batches, where an earlier one stands.

        The finished share of the run stays the same, and the rest is in steps of this budget.

        Args:
            earlier: the budget of this call so far.
            steps: of this call so far.
        """
        if self.steps is None or earlier.steps is None:
            return self
        whole = self.steps + self.progress_before
        done = (steps + earlier.progress_before) / (earlier.steps + earlier.progress_before) * whole
        rest = math.ceil(round(whole - done, 6))
        return replace(self, steps=steps + rest, equal_steps_before=done - steps)

    def step_share(self, tokens_per_step: int) -> float:
        """Share of the whole run that is one step; 0 if only time limits it."""
        if (limit := self.step_limit(tokens_per_step)) is None:
            return 0.0
        return 1 / max(1.0, limit + self.progress_before)

    def fraction(self, *, steps: int, tokens: int, seconds: float) -> float:
        """Share of this call's budget that is used, in [0, 1]."""
        return self._largest(steps, tokens, seconds, before=False)

    def progress(self, *, steps: int, tokens: int, seconds: float) -> float:
        """Finished share of the whole run, in [0, 1]: the argument of schedules."""
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
