"""The present strategy of a run that may change it, and its terms, in the arena.

`--strategy auto` has several candidate strategies. Each worker's job has all of them; the counter
`strategy` says which one is used, and a table the numbers that a change gives it:

    terms   float64   1   steps that the strategy may take; infinity without a limit
                      1   budget of this call in steps; infinity without one
                      1   steps before this call, in steps of its length
                      P   counter of the choice that each of the first P workers has built

The supervisor writes terms before the counter. A worker compares the counter with the choice that
it has built before every step. A change waits, while all workers hold still, until each has built
it; so no worker takes a step with another strategy than the others. A worker that starts meanwhile
builds the present strategy, which it finds in the arena.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from mlxhog.arena import Arena
from mlxhog.config.budget import Budget

SEGMENT: Final = "terms"
PLACES: Final = 256
"""Candidates at most."""
_LIMIT, _STEPS, _BEFORE, _BUILT = range(4)


def segment(workers: int) -> dict[str, tuple[str, int]]:
    """The arena's segment of the table above."""
    return {SEGMENT: ("float64", _BUILT + workers)}


class Terms:
    """The table above, for any process."""

    def __init__(self, arena: Arena) -> None:
        """Open it."""
        self._counters, self._table = arena.counters, arena.segment(SEGMENT)
        self.workers = len(self._table) - _BUILT

    @property
    def counter(self) -> int:
        """The counter `strategy`: another number after each choice, 0 before the first."""
        return self._counters.load("strategy")

    def choose(self, place: int, budget: Budget, step_limit: int | None) -> None:
        """Let workers build a strategy.

        Args:
            place: of the strategy among the candidates.
            budget: of this call.
            step_limit: steps that the strategy may take; None for no limit.
        """
        self._table[_LIMIT] = math.inf if step_limit is None else step_limit
        self._table[_STEPS] = math.inf if budget.steps is None else budget.steps
        self._table[_BEFORE] = budget.progress_before
        self._counters.store("strategy", (self.counter // PLACES + 1) * PLACES + place)

    def of(self, budget: Budget) -> tuple[Budget, int | None]:
        """A candidate's budget, and the steps that it may take, with the numbers of the choice."""
        limit, steps, before = self._table[:_BUILT].tolist()
        if steps != math.inf:
            budget = replace(budget, steps=int(steps), equal_steps_before=before)
        return budget, None if limit == math.inf else int(limit)

    def note_built(self, slot: int, counter: int) -> None:
        """Note that a worker has built the choice of a value of the counter."""
        if slot <= self.workers:
            self._table[_BUILT + slot - 1] = counter

    def is_built(self, slot: int) -> bool:
        """Whether one of the first workers has built the present choice."""
        return bool(self._table[_BUILT + slot - 1] == self.counter)
