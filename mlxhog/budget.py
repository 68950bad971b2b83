"""How long a run may go on: steps, tokens or seconds, whichever is used up first."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one `train` call, and what the run had used before it (after a resume).

    Limits count from the start of this call. The schedule sees `progress`, which spans the whole
    run: what was used before plus what this call may add.
    """

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    steps_before: int = 0
    tokens_before: int = 0
    seconds_before: float = 0.0

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
            (steps, self.steps, self.steps_before),
            (tokens, self.tokens, self.tokens_before),
            (seconds, self.seconds, self.seconds_before),
        ):
            if limit is not None:
                offset = earlier if before else 0
                shares.append((used + offset) / max(limit + offset, 1e-9))
        return min(1.0, max(shares))
