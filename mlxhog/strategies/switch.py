"""Start synchronous, go asynchronous: `--async-after F` (`SyncThenHogwild`).

Early in training staleness is expensive; later it is cheap. The first share F of the run is `Sync`,
the rest `Hogwild`. `Sync` hands its shared moments on as each worker's private ones. A run that has
gone asynchronous stays so when it is resumed.
"""

from __future__ import annotations

from mlxhog.backends.backend import Grads
from mlxhog.strategies import Context, Idle, Lease, Outcome, Strategy, sync
from mlxhog.strategies.hogwild import Hogwild


class SyncThenHogwild:
    """`Sync` until a share of the run is over, then `Hogwild`."""

    def __init__(self, context: Context) -> None:
        """Start in the phase the run is in; a replaced worker finds its own moments in place."""
        self.context = context
        self._words = context.arena.segment("sync.words")
        self._sync = sync.Sync(context, switch=self._is_over)
        self._now: Strategy = self._sync

    def _is_over(self) -> bool:
        return self.context.progress() >= self.context.config.async_after

    def claim(self) -> Lease | Idle:
        """See `Strategy.claim`."""
        lease = self._now.claim()
        if self._now is self._sync and self._sync.switched:
            rounds = sync.rounds_done(self._words, self.context.workers)
            more = rounds * (self.context.workers - 1)  # a round is one step and a ticket of each
            self._now = Hogwild(self.context, more_tickets=more)
        return lease

    def counts_step(self) -> bool:
        """See `Strategy.counts_step`."""
        return self._now.counts_step()

    def read(self) -> None:
        """See `Strategy.read`."""
        self._now.read()

    def write(self, grads: Grads, lease: Lease, samples: int) -> Outcome:
        """See `Strategy.write`."""
        return self._now.write(grads, lease, samples)
