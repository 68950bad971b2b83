"""The changes of a run's strategy (`--strategy auto`), in the arena.

Each worker's job has both strategies; the counter `strategy` is the number of changes, and a table
has the numbers that a change gives to the strategy:

    terms    limit    steps that the strategy may take; infinity without a limit
             steps    budget of this call in steps; infinity without one
             before   steps before this call, in steps of its length
    built    changes  after which each of the first P workers has built its strategy

The supervisor writes the table before the counter. A worker compares the counter with that of the
strategy that it has built before every step. A change waits, while all workers hold still, until
each has built it; so no worker takes a step with another strategy than the others. A worker that
starts meanwhile builds the present strategy, which it finds in the arena.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from mlxhog.arena import Arena
from mlxhog.arena.words import LINE, Table
from mlxhog.config.budget import Budget

SEGMENT: Final = "terms"


def _table(workers: int) -> Table:
    return Table(terms=(1, "limit steps before"), built=(workers, "changes"))


def segment(workers: int) -> dict[str, tuple[str, int]]:
    """The arena's segment of the table above."""
    return {SEGMENT: ("uint8", _table(workers).n_bytes)}


class Terms:
    """The table above, for any process."""

    def __init__(self, arena: Arena) -> None:
        """Open it."""
        data = arena.segment(SEGMENT)
        self._counters, self.workers = arena.counters, len(data) // LINE - 1
        self._words = _table(self.workers).open(data)

    @property
    def changes(self) -> int:
        """Number of changes of the strategy."""
        return self._counters.load("strategy")

    def change(self, budget: Budget, step_limit: int | None) -> None:
        """Let workers build the other strategy.

        Args:
            budget: of this call.
            step_limit: steps that the strategy may take; None for no limit.
        """
        self._words.set_real("limit", math.inf if step_limit is None else step_limit)
        self._words.set_real("steps", math.inf if budget.steps is None else budget.steps)
        self._words.set_real("before", budget.progress_before)
        self._counters.add("strategy", 1)

    def of(self, budget: Budget) -> tuple[Budget, int | None]:
        """A budget, and the steps that the strategy may take, with the numbers of the change."""
        limit, steps, before = map(self._words.real, ("limit", "steps", "before"))
        if steps != math.inf:
            budget = replace(budget, steps=int(steps), equal_steps_before=before)
        return budget, None if limit == math.inf else int(limit)

    def note_built(self, slot: int, changes: int) -> None:
        """Note that a worker has built the strategy after a number of changes."""
        if slot <= self.workers:
            self._words["changes", slot - 1] = changes

    def is_built(self, slot: int) -> bool:
        """Whether one of the first workers has built the present strategy."""
        return self._words["changes", slot - 1] == self.changes
