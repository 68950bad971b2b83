"""The evaluation at the end of a run: workers share out the held-out text, while there is time.

What is done lies in the arena (`evaluation.Scores`). A worker that dies leaves batches undone; a
new round shares them out again. Nothing is waited for once the time is over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mlxhog.arena import Arena
from mlxhog.arena.control import EVAL_ROUND, Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.training.evaluation import SEGMENT, Score, Scores
from mlxhog.training.supervisor import Supervisor

BATCH_S = 3.0  # how long a batch in hand is waited for when the time is over

Until = Callable[[Callable[[], bool], Callable[[], str], float], bool]
"""Watches workers until a condition holds, told what to show, for some seconds; whether it did."""


class LastEvaluation:
    """Evaluations of resting parameters, one after the other."""

    def __init__(self, arena: Arena, supervisor: Supervisor, until: Until) -> None:
        """Prepare; no worker is told anything yet."""
        self.arena, self.supervisor, self._until = arena, supervisor, until
        self._scores = Scores(arena.segment(SEGMENT))
        self._round = self._first = self._end_ns = 0

    def begin(self, end_ns: int) -> None:
        """Tell all workers to score the held-out text, at the parameters as they are now.

        Args:
            end_ns: monotonic time after which no batch is begun.
        """
        self._round += 1
        self._first, self._end_ns = self._round, end_ns
        counters = self.arena.counters
        counters.store("side_until_ns", end_ns)
        counters.store("eval_first", self._first)
        counters.store("eval_next", self._round * EVAL_ROUND)
        self.supervisor.command(Command.EVALUATE)

    def wait(self) -> Score:
        """Wait until every batch is scored, the time is over, or the user interrupts."""
        while self.supervisor.has_workers() and not self._ended():
            deaths = self.supervisor.restarts
            changed = partial(self._ended_or_died, deaths)
            limit_s = (self._end_ns - monotonic_ns()) / 1e9 + BATCH_S
            if not self._until(changed, self._shown, limit_s):
                break
            if not self._ended():
                self._round += 1
                self.arena.counters.store("eval_next", self._round * EVAL_ROUND)
        return self._score()

    def _score(self) -> Score:
        return self._scores.total(self._first)

    def _ended(self) -> bool:
        late = monotonic_ns() >= self._end_ns
        return self._score().share == 1.0 or (late and self.supervisor.resting())

    def _ended_or_died(self, deaths: int) -> bool:
        return self._ended() or self.supervisor.restarts > deaths

    def _shown(self) -> str:
        return f"evaluating {100 * self._score().share:.0f} %"
