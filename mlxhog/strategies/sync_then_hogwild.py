"""Start synchronous, go asynchronous: `--async-after F`.

Early in training staleness is expensive; later it is cheap. The first share F of the run is `Sync`,
the rest `Hogwild`. At the switch each worker takes the shared moments as its private ones. A
run that has gone asynchronous stays so when it is resumed. One worker runs no rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.backends.backend import Grads
from mlxhog.config.strategies import Hogwild
from mlxhog.strategies import look_ahead
from mlxhog.strategies.context import Context, Idle, Lease, StrategyWorker, WriteResult
from mlxhog.strategies.hogwild import HogwildWorker
from mlxhog.strategies.strategy import Strategy, all_reduce_bytes
from mlxhog.strategies.sync import (
    SyncWorker,
    between_rounds,
    is_over,
    pass_over,
    round_s,
    rounds_done,
    sync_segments,
)


class SyncThenHogwild(Strategy):
    """`Sync` until a share of the run is over, then `Hogwild`."""

    choice: Hogwild
    carries_tables: ClassVar[bool] = True

    @property
    def fixed(self) -> str | None:
        """The rounds need every worker."""
        return "async_after begins with rounds that need all of its workers"

    def mean_batches_per_step(self, *, went_async: bool = False) -> float:
        """One per worker in the share of the steps that are rounds, and one in the rest."""
        rounds = 0.0 if went_async else self.choice.async_after
        return 1.0 + rounds * (self.workers - 1)

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """Those of both."""
        ahead = look_ahead.segments(self.facts, self.workers)
        return {**sync_segments(self.workers, n_params), **self.table_segments(), **ahead}

    def kept_segments(self) -> tuple[str, ...]:
        """Segments for looking ahead."""
        return tuple(look_ahead.segments(self.facts, self.workers))

    def position(self, arena: Arena) -> dict[str, Any] | None:
        """Empty: it only ties the kept segments to the strategy and the number of workers."""
        return {} if self.kept_segments() else None

    def worker(self, context: Context) -> StrategyWorker:
        """Prepare one worker."""
        return HogwildWorker(context) if self.workers == 1 else SyncThenHogwildWorker(context)

    def is_over(self, arena: Arena) -> bool:
        """Whether the workers have gone asynchronous."""
        return is_over(arena.segment("sync.words"), self.workers)

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Rounds, and the tickets beyond those that the rounds took."""
        tickets = super().steps_done(arena, ledger)
        if self.workers == 1:
            return tickets
        rounds = rounds_done(arena.segment("sync.words"), self.workers)
        return rounds + tickets - rounds * self.workers if self.is_over(arena) else rounds

    def step_s(self, arena: Arena) -> float:
        """That of the slowest worker, while rounds wait for it."""
        if self.is_over(arena):
            return super().step_s(arena)
        return round_s(arena, self.workers, self.workers)

    def between_steps(self, arena: Arena) -> bool:
        """Whether no round is under way."""
        return self.workers == 1 or between_rounds(arena.segment("sync.words"), self.workers)

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """Slot 1 while workers apply one averaged gradient together."""
        return super().state_slots(arena) if self.is_over(arena) else (1,)

    def network_bytes(self, arena: Arena, steps: int) -> int:
        """All-reduces of the rounds, and the pulls and pushes of the steps after them."""
        if self.workers == 1:
            return 0
        rounds = min(steps, rounds_done(arena.segment("sync.words"), self.workers))
        together = rounds * all_reduce_bytes(arena, self.workers)
        return together + super().network_bytes(arena, steps - rounds)

    def state(self, arena: Arena) -> dict[str, Any]:
        """Add whether each worker has moments of its own."""
        return {**super().state(arena), "went_async": len(self.state_slots(arena)) > 1}

    def resume(
        self, arena: Arena, ledger: Ledger, state: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Resume in the phase that the run was in."""
        position = super().resume(arena, ledger, state)
        if state.get("went_async"):
            pass_over(arena.segment("sync.words"), self.workers)
        else:  # rounds take batches by number
            self._restore_ledger(arena, ledger, state, exact=False)
        return position


class SyncThenHogwildWorker:
    """One worker of either phase."""

    def __init__(self, context: Context) -> None:
        """Start in the phase the run is in; a replacement finds its own moments in place."""
        self.context, self._async_after = context, context.chosen(Hogwild).async_after
        self._words = context.arena.segment("sync.words")
        self._sync = SyncWorker(context, switch=self._is_over)
        self._now: StrategyWorker = self._sync

    def _is_over(self) -> bool:
        return self.context.progress() >= self._async_after

    def claim(self) -> Lease | Idle:
        """Take the next batch; the synchronous phase may end here."""
        lease = self._now.claim()
        if self._now is self._sync and self._sync.switched:
            rounds = rounds_done(self._words, self.context.workers)
            more = rounds * (self.context.workers - 1)  # a round is one step and a ticket of each
            self._now = HogwildWorker(self.context, more_tickets=more)
        return lease

    def counts_step(self) -> bool:
        """As the phase counts."""
        return self._now.counts_step()

    def read(self) -> None:
        """As the phase reads."""
        self._now.read()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """As the phase writes."""
        return self._now.write(grads, lease, samples)
