"""A parameter server: workers pull the parameters with their version, and push gradients.

The server applies gradients one by one, as they arrive, with one optimizer state: that is exact for
every optimizer, and still asynchronous. The staleness of a gradient is the version when it is
applied minus the version that was pulled; it counts updates by others only. While every worker
is computing a gradient its mean is P - 1 at any speeds; those of slow workers are older.

The server is a role: a worker that pulls or pushes takes it, by one lock, and does the server's
work itself. So there is no process whose death stops all, and no gradient is copied to one. A pull
is a copy of exactly one version. If a worker dies in the role, the next that needs it takes it
over: a gradient that was being applied counts as torn, and before that the ticket comes back.

Version and step count are stored before the ledger marks the ticket done, and under the lock:
each update that is done is counted exactly once. The optimizer's state is that of worker slot 1.

`ssp` (stale synchronous parallel, Ho et al. 2013) has a gate where a worker pulls. Every worker has
a clock, its number of pushed gradients, and begins the next one only when it is at most s steps
ahead of the slowest, s being `--slack`. So clocks differ by s + 1 at most at any time, and a
gradient is at most (P - 1)(2 s + 1) updates late. (A gate at the push, on versions, only makes
gradients older: versions never fall, so a worker that is too late waits forever.) s bounds clocks,
not times: in the long run all are as fast as the slowest. It absorbs workers that are sometimes
slow; for one that is always slow, take `sync --sync-shares speed` or `hogwild`.

No worker waits for one that is dead, has ended or has nothing to do: that one takes part again at
its next pull, from the clock of the slowest. Clocks change and workers come back only under the
server's lock, so all clocks are exact there.

    segment    dtype   meaning
    step.lock  uint32  the role (`locked.py`)
    ssp.words  uint8   of each rank: its clock; its incarnation while it takes part, else 0
"""

from __future__ import annotations

from typing import ClassVar

from mlxhog.arena import Arena
from mlxhog.arena.words import Table, Words
from mlxhog.arena.workers import State
from mlxhog.backends.backend import Grads
from mlxhog.strategies.context import Context, Idle, Lease, WriteResult
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from mlxhog.strategies.locked import SEGMENT, step_lock

STATE_SLOT = 1
WORDS = "clock owner"
_GONE = (State.FREE, State.DEAD, State.FINISHED)


class AsyncPSWorker(HogwildWorker):
    """Pull, compute, push."""

    def __init__(self, context: Context) -> None:
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


class AsyncPS(Hogwild):
    """Workers that pull from a server and push to it."""

    Worker = AsyncPSWorker
    carries_tables: ClassVar[bool] = False

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The server's lock."""
        return SEGMENT

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """The server's."""
        return (STATE_SLOT,)


# -- a gate ----------------------------------------------------------------------------------------


def words_of(arena: Arena) -> Words:
    """The words of the table above."""
    return Table(rank=(arena.layout.max_workers, WORDS)).open(arena.segment("ssp.words"))


def clocks_of(arena: Arena) -> dict[int, int]:
    """The clocks of the workers that take part, by slot; exact under the server's lock."""
    words = words_of(arena)
    return {
        entry.slot: words["clock", entry.slot - 1]
        for entry in arena.workers
        if entry.state not in _GONE and words["owner", entry.slot - 1] == entry.incarnation
    }


class SSPWorker(AsyncPSWorker):
    """Pull at the gate, compute, push; the worker takes part from its first claim on."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._words = words_of(context.arena)
        self._slack: int = context.choice.slack

    def claim(self) -> Lease | Idle:
        """Take any free ticket, at most `slack` steps ahead of the slowest."""
        context, words, rank = self.context, self._words, self.context.rank
        if words["owner", rank] != context.owner:
            self._enter()
        if not self._may_begin():
            context.wait_until(lambda: self._may_begin() or self._is_over() or context.paused())
        lease: Lease | Idle = Idle.WAIT
        if self._may_begin():
            lease = super().claim()
        elif self._is_over():
            lease = Idle.DONE
        if lease is Idle.DONE:
            words["owner", rank] = 0
        return lease

    def _is_over(self) -> bool:
        return self.context.stopping() or self.context.used_up()

    def _enter(self) -> None:
        """Take part, not behind the slowest nor over `slack` behind any, so that none waits."""
        words, rank = self._words, self.context.rank
        self._server.acquire(0)
        slowest = min(clocks_of(self.context.arena).values(), default=0)
        fastest = max(words["clock", k] for k in range(self.context.strategy.slots))
        words["clock", rank] = max(words["clock", rank], slowest, fastest - self._slack)
        words["owner", rank] = self.context.owner
        self._server.release(0)

    def _may_begin(self) -> bool:
        clocks = clocks_of(self.context.arena)
        return self._words["clock", self.context.rank] - min(clocks.values()) <= self._slack

    def _landed(self) -> None:
        """Advance its clock, under the server's lock."""
        self._words["clock", self.context.rank] += 1


class SSP(AsyncPS):
    """A parameter server with a gate."""

    Worker = SSPWorker

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        n_bytes = Table(rank=(self.slots, WORDS)).n_bytes
        return {**super().segments(n_params), "ssp.words": ("uint8", n_bytes)}
