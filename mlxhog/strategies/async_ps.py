"""A parameter server: workers pull the parameters with their version, and push gradients.

The server applies gradients one by one, as they arrive, with one optimizer state: that is exact for
every optimizer, and still asynchronous. The staleness of a gradient is the version when it is
applied minus the version that was pulled; it counts updates by others only. While every worker
is computing a gradient its mean is P - 1 at any speeds; those of slow workers are older.

The server is a role: a worker that pulls or pushes takes it, by one lock, and does the server's
work itself. So there is no process whose death stops all, and no gradient is copied to one. A pull
is a copy of exactly one version. If a worker dies in the role, the next that needs it takes it
over: a gradient that was being applied counts as torn, and before that the ticket comes back.

    segment    dtype   meaning
    step.lock  uint32  the role (`locked.py`)

Version and step count are stored before the ledger marks the ticket done, and under the lock:
each update that is done is counted exactly once. The optimizer's state is that of worker slot 1.
"""

from __future__ import annotations

from typing import ClassVar

from mlxhog.arena import Arena
from mlxhog.backends.backend import Grads
from mlxhog.strategies.context import Context, Lease, WriteResult
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from mlxhog.strategies.locked import SEGMENT, step_lock
from mlxhog.strategies.strategy import Strategy

STATE_SLOT = 1


class AsyncPS(Hogwild):
    """Workers that pull from a server and push to it."""

    no_tables: ClassVar[str] = Strategy.no_tables
    fixed_because: ClassVar[str] = "strategy {} keeps the server's state in a worker's slot"

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The server's lock."""
        return SEGMENT

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """The server's."""
        return (STATE_SLOT,)

    def worker(self, context: Context) -> AsyncPSWorker:
        """Prepare one worker."""
        return AsyncPSWorker(context)


class AsyncPSWorker(HogwildWorker):
    """Pull, compute, push."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        super().__init__(context)
        self._server = step_lock(context)
        self._state = context.arena.workers.entry(STATE_SLOT)

    def _follow(self, workers: int) -> None:
        """Step with the server's state, whatever the number of workers."""
        super()._follow(workers)
        self._target = self.context.target(STATE_SLOT)

    def read(self) -> None:
        """Pull: the parameters of one version."""
        context = self.context
        self._server.acquire(0)
        context.entry.version_read = self._version_read = context.arena.counters.load("version")
        self._reader.read(context.backend.inbox, context.threads)
        self._server.release(0)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Push: the server applies the gradient, unless it is not finite or too late."""
        self._server.acquire(0)
        outcome = super().write(grads, lease, samples)
        self._landed()
        self._server.release(0)
        return outcome

    def _landed(self) -> None:
        """End an iteration of this worker, which still holds the server's lock."""
