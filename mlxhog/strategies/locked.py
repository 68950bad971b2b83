"""Updates under locks: of whole steps, of blocks, or of a parameter server with its gate.

    locked    read, compute and write under one lock: serial training by workers in no fixed order,
              a baseline without staleness that shows what it costs
    aig       a worker acquires the lock of every block that its gradient touches, in ascending
              order, so no two deadlock; applies its update; and releases them (Niu et al. 2011,
              section 6). A block is 1024 floats of a parameter, or a row where gradients have rows
    async_ps  a parameter server: workers pull the parameters of one version, and push gradients,
              which are applied one by one with one optimizer state (that of worker slot 1). The
              mean staleness is P - 1 at any speeds
    ssp       the same, with a gate where a worker pulls (stale synchronous, Ho et al. 2013)

The server is a role: a worker that pulls or pushes acquires it by the one lock, so no death of a
server stops all, and no gradient is copied to one.

Every worker has a clock, its number of pushed gradients, and passes the gate only when it is at
most s steps ahead of the slowest, s being `--slack`. So clocks differ by at most s + 1, and
staleness is at most (P - 1)(2 s + 1). (A gate at the push would deadlock: staleness never shrinks
while a worker waits.) It absorbs workers that are sometimes slow; for a persistent straggler use
`sync --sync-shares speed` or `hogwild`. No worker waits for one that is dead, has ended, evaluates,
samples or has nothing to do: it enters again at its next pull, from the clock of the slowest.
Clocks and members change only under the server's lock, so all clocks are exact there.

Everything else is `hogwild`. If a holder dies, the next worker that needs a lock takes it over, and
the ticket counts as partially applied or comes back. Version and step count are stored under the
lock, before the ledger marks the ticket done: each update is counted exactly once.

The segment step.lock, uint32, is the one lock (`metal/native/updates/locks.h`), alone on its line.
The words of ssp are the clock of each rank, and its owner: its incarnation while it takes part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mlxhog import _native
from mlxhog.config.components import Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option
from mlxhog.optim import updates
from mlxhog.optim.component import optimizer_of
from mlxhog.optim.gradients import Float32, Grads, Int32, Rows
from mlxhog.optim.updates import STRIPE
from mlxhog.strategies.delays import SpeedRescaled
from mlxhog.strategies.hogwild import HogwildWorker, LockFree
from mlxhog.strategies.strategy import Segments
from mlxhog.strategies.worker import BatchSize, Idle, Lease, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter, Slot
    from mlxhog.strategies.context import Context

LOCK = "step.lock"


@dataclass(frozen=True, kw_only=True)
class OneLock(SpeedRescaled, LockFree):
    """Strategies with one lock."""

    writes_alone: ClassVar[bool] = True

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        return {**super().segments(spec), LOCK: ("uint32", 32)}  # a cache line


class LockedWorker(HogwildWorker):
    """A worker that holds one lock from its read to the end of its write.

    An exception does not release it, but ends the process, which then is a dead holder.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        arena, generation = context.arena, context.entry.generation & 0xFFFF
        words, workers = arena.segment(LOCK), arena.segment("workers")
        self._lock = _native.Locks(words, workers, context.slot, generation)

    def _pull(self) -> None:
        self._lock.acquire(0)
        super()._pull()

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        outcome = super().write(grads, lease, size)
        self._lock.release(0)
        return outcome


@dataclass(frozen=True, kw_only=True)
class Locked(OneLock):
    """Workers that hold one lock for a step."""

    Worker: ClassVar[type[Any]] = LockedWorker
    name: ClassVar[str] = "locked"
    about: ClassVar[str] = "one lock around each step, to measure what locking costs"


# -- the locks of blocks ---------------------------------------------------------------------------


def lock_words(slot: Slot, grad: Float32 | Rows) -> Int32:
    """Return the locks that a gradient of a parameter touches, ascending, each once."""
    import numpy as np

    if slot.row_word0 is not None:
        touched = grad.index if isinstance(grad, Rows) else np.arange(slot.shape[0])
        return (slot.row_word0 + np.unique(touched)).astype(np.int32)
    first, last = np.array([slot.offset]), np.array([slot.offset + slot.size - 1])
    if isinstance(grad, Rows):
        width = updates.row_width(slot)
        first = slot.offset + np.unique(grad.index).astype(np.int64) * width
        last = first + width - 1
    ranges = zip(first // STRIPE, last // STRIPE, strict=True)
    return np.unique([word for low, high in ranges for word in range(low, high + 1)]).astype("<i4")


class AigWorker(HogwildWorker):
    """A lock-free worker but for its writes, which hold the locks of all that they touch."""

    def _prepare_for(self, workers: int) -> None:
        super()._prepare_for(workers)
        # Plain stores: the holder of the locks is the only writer.
        self._target = replace(self._target, mode=updates.WRITE_MODES["racy"])

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        import numpy as np

        slots, locks = self.context.arena.layout.slots, self._target.locks
        assert locks is not None
        every = [lock_words(slots[name], grad) for name, grad in grads.items()]
        words = np.unique(np.concatenate(every)).tolist()  # neighbours may have one in common
        for word in words:
            locks.acquire(word)
        outcome = super().write(grads, lease, size)
        for word in words:
            locks.release(word)
        return outcome


@dataclass(frozen=True, kw_only=True)
class Aig(SpeedRescaled, LockFree):
    """Workers that lock the blocks they touch."""

    Worker: ClassVar[type[Any]] = AigWorker
    name: ClassVar[str] = "aig"
    about: ClassVar[str] = "locks on just the blocks that an update touches"
    writes_alone: ClassVar[bool] = True

    def run_constraints(self, config: TrainConfig) -> Constraints:
        why = "but aig writes under the locks of what it touches; leave it out"
        return (
            (config.write == "cas", "write", f"cas, {why}"),
            (config.gpu_write != "cpu", "gpu_write", f"{config.gpu_write}, {why}"),
        )


# -- the parameter server --------------------------------------------------------------------------


class AsyncPSWorker(LockedWorker):
    """Pull, compute, push."""

    def _pull(self) -> None:
        """Read the parameters of one version; rows of tables are read as they are later."""
        super()._pull()
        self._lock.release(0)

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        """Push: the server applies the gradient, unless it is not finite or too stale."""
        self._lock.acquire(0)
        return super().write(grads, lease, size)


@dataclass(frozen=True, kw_only=True)
class AsyncPS(OneLock):
    """Workers that pull from a parameter server and push to it."""

    Worker: ClassVar[type[Any]] = AsyncPSWorker
    name: ClassVar[str] = "async_ps"
    about: ClassVar[str] = "a parameter server: gradients are applied one by one, as they arrive"
    reads_copies: ClassVar[bool] = True
    one_state: ClassVar[bool] = True

    def run_constraints(self, config: TrainConfig) -> Constraints:
        return (
            (optimizer_of(config).moments == "shared", "moments",
             f"shared, but {self.name} has one optimizer state anyway; leave it out"),
        )  # fmt: skip


class SSPWorker(AsyncPSWorker):
    """Pull at the gate, compute, push."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._words = self.strategy.words(context.arena)
        context.settle = self._leave

    def claim(self) -> Lease | Idle:
        """Claim any free ticket, at most `slack` steps ahead of the slowest."""
        context, words, rank = self.context, self._words, self.context.rank
        if words["owner", rank] != context.owner:
            self._enter()
        context.wait_until(lambda: self._may_begin() or context.is_over() or context.paused())
        lease: Lease | Idle = Idle.DONE if context.is_over() else Idle.WAIT
        if self._may_begin():
            lease = super().claim()
        if lease is Idle.DONE:
            self._leave()
        return lease

    def _leave(self) -> None:
        """Let no worker wait for this one until its next claim."""
        self._words["owner", self.context.rank] = 0

    def _enter(self) -> None:
        """Enter, not behind the slowest nor over `slack` behind any, so that none waits."""
        words, rank, strategy = self._words, self.context.rank, self.strategy
        self._lock.acquire(0)
        slowest = min(strategy.clocks(self.context.arena).values(), default=0)
        fastest = max(words["clock", k] for k in range(strategy.slots))
        words["clock", rank] = max(words["clock", rank], slowest, fastest - strategy.slack)
        words["owner", rank] = self.context.owner
        self._lock.release(0)

    def _may_begin(self) -> bool:
        slowest: int = min(self.strategy.clocks(self.context.arena).values())
        ahead = self._words["clock", self.context.rank] - slowest
        return bool(ahead <= self.strategy.slack)

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        self._lock.acquire(0)
        outcome = HogwildWorker.write(self, grads, lease, size)
        self._words["clock", self.context.rank] += 1
        self._lock.release(0)
        return outcome


@dataclass(frozen=True, kw_only=True)
class SSP(AsyncPS):
    """A parameter server with a gate (Ho et al. 2013)."""

    Worker: ClassVar[type[Any]] = SSPWorker
    name: ClassVar[str] = "ssp"
    about: ClassVar[str] = "a parameter server whose workers stay within some steps of each other"

    slack: int = option(
        3, "steps that a worker may be ahead of the slowest when it begins a step",
        unit="steps", low=0,
    )  # fmt: skip

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {"rank": (self.slots, "clock owner")}

    def clocks(self, arena: Arena) -> dict[int, int]:
        """Return the clocks of the workers that take part, by slot."""
        from mlxhog.arena.workers import WorkerState

        words, gone = self.words(arena), (WorkerState.FREE, WorkerState.DEAD, WorkerState.FINISHED)
        return {
            entry.slot: words["clock", entry.slot - 1]
            for entry in arena.workers
            if entry.state not in gone and words["owner", entry.slot - 1] == entry.incarnation
        }
