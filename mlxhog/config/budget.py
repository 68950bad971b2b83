"""The budget of a run: steps, tokens or seconds; the first that is used up ends it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one `train` call, and the steps, tokens and seconds of the run before it.

    Limits count from the start of this call; `progress`, for schedules, spans the whole run.
    """

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    steps_before: int = 0
    tokens_before: int = 0
    seconds_before: float = 0.0
    # `steps_before` in steps of as many batches as this call's; None if the budget is in steps
    equal_steps_before: float | None = None

    @property
    def progress_before(self) -> float:
        """Steps before this call, rescaled to its steps."""
        equal = self.equal_steps_before
        return self.steps_before if equal is None else equal

    @property
    def is_open(self) -> bool:
        """Whether this call has no limit."""
        return (self.steps, self.tokens, self.seconds) == (None,) * 3

    @property
    def is_used_up(self) -> bool:
        """Whether nothing was left when this call began."""
        return 0 in (self.steps, self.tokens, self.seconds)

    def step_limit(
        self, steps_of: Callable[[int], int], *, steps: int = 0, tokens: int = 0
    ) -> int | None:
        """Return the steps this call may take, `steps` with `tokens` so far included; None: any.

        `steps_of` returns the steps that train a number of tokens from now on.
        """
        limits = [self.steps] if self.steps is not None else []
        if self.tokens is not None:
            limits.append(steps + steps_of(max(0, self.tokens - tokens)))
        return min(limits) if limits else None

    def continuing(self, earlier: "Budget", steps: int) -> "Budget":
        """Continue an earlier budget, after `steps` of this call, with another number of batches.

        The finished share of the run stays the same; the rest is in steps of this budget.
        """
        if self.steps is None or earlier.steps is None:
            return self
        whole = self.steps + self.progress_before
        done = (steps + earlier.progress_before) / (earlier.steps + earlier.progress_before) * whole
        rest = math.ceil(round(whole - done, 6))
        return replace(self, steps=steps + rest, equal_steps_before=done - steps)

    def step_share(self, steps_of: Callable[[int], int]) -> float:
        """Share of the whole run that is one step; 0 if only time limits it."""
        if (limit := self.step_limit(steps_of)) is None:
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
