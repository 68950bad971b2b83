"""Lock-free training: read, compute and write without waiting (Niu et al. 2011, Hogwild!).

One worker is serial SGD, bit for bit. With several, a gradient is taken at the parameters that are
expected when it lands (`prediction.py`); `--staleness-lr` and related options change the updates of
stale gradients (`delays.py`). Neither applies to rows of tables, where updates rarely overlap.

With `--overlap` a worker copies the parameters for gradient k + 1, then applies update k while it
computes that gradient (`mlxhog.training.worker.steps`). It holds two tickets then: if it dies, the
ledger hands out both again, or counts the one being applied as partially applied.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mlxhog.config.components import Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option
from mlxhog.optim.component import optimizer_of
from mlxhog.optim.gradients import Grads
from mlxhog.optim.muon import Muon
from mlxhog.optim.schedules import Falling
from mlxhog.optim.sparsified import Selection
from mlxhog.strategies import prediction
from mlxhog.strategies.delays import DelayFeedbackOptions, Delays, SpeedRescaled
from mlxhog.strategies.division import SynchronousShares
from mlxhog.strategies.prediction import PredictingReader, PredictionOptions
from mlxhog.strategies.strategy import Segments, Strategy
from mlxhog.strategies.sync import Sync
from mlxhog.strategies.worker import BatchSize, Idle, Lease, StrategyWorker, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena.layout import Parameter
    from mlxhog.strategies.context import Context


class HogwildWorker(StrategyWorker):
    """A lock-free worker; with `overlap` its own pending update adds one to the staleness.

    Concurrency: then `write` may run in another thread than the others, but beside none of them.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        arena = context.arena
        self._live = context.backend.param_buffer.ctypes.data == arena.params.ctypes.data
        self._state_slot = 1 if self.strategy.one_state else context.slot
        self._state = arena.workers.entry(self._state_slot)  # counts the optimizer's updates
        self._reads = deque[int]()  # versions of reads with pending updates, the oldest first
        self._delays = Delays(context)
        self._prepare_for(context.live_workers)

    def _prepare_for(self, workers: int) -> None:
        context, self._workers = self.context, workers
        if workers == 1:  # updates traced now would be old when others join
            for name in prediction.SEGMENTS:
                if name in context.arena.layout.segments:
                    context.arena.segment(name).fill(0.0)
        self._reader = PredictingReader(context.arena, context.run, workers)
        self._target = context.target(self._state_slot)

    def claim(self) -> Lease | Idle:
        context = self.context
        if context.is_over():
            return Idle.DONE
        if context.paused():
            return Idle.WAIT
        end = context.end_ticket
        if stream := context.arena.counters.load("stream_end"):
            end = min(end, stream - 1)
        claim = context.ledger.claim(context.owner, end)
        if claim is None:
            is_over = not end or context.is_handed_out(end - 1)
            return Idle.DONE if is_over else Idle.WAIT
        context.entry.ticket = claim[1]
        return Lease(*claim)

    def read(self) -> None:
        self._pull()
        if not self._live:
            self.context.backend.read_tables(self.context.arena.params)
            self.context.backend.refresh()

    def _pull(self) -> None:
        context = self.context
        if (workers := context.live_workers) != self._workers:
            self._prepare_for(workers)
        context.entry.version_read = context.arena.counters.load("version")
        self._reads.append(context.entry.version_read)
        if not self._live:
            self._reader.read(context.backend.param_buffer, context.threads)

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        """Apply this worker's update; those of other workers may land in between."""
        context, counters, entry = self.context, self.context.arena.counters, self.context.entry
        self._version_read = self._reads.popleft()
        grads = self._delays.compensated(self.corrected(grads))
        norm = context.norm(grads)
        self.begin_apply(lease)
        # Read once: the reported staleness is that of the learning rate.
        staleness = counters.load("version") - self._version_read
        is_stale = self._delays.factor(staleness) == 0.0
        applied = math.isfinite(norm) and not is_stale
        context.seqlock.begin_update()
        if applied:
            self._step(grads, norm, staleness)
            self._state.opt_step += 1
        version = counters.add("version", int(applied)) + applied
        context.seqlock.end_update()
        self.finish(lease)
        if entry.ticket == lease.ticket:  # else it is that of the next gradient
            entry.ticket = -1
        self._reader.landed(staleness)
        return WriteResult(applied, staleness, version, is_stale)

    def corrected(self, grads: Grads) -> Grads:
        """Return the gradient of the update, or the part of it that the worker applies."""
        return grads

    def _step(self, grads: Grads, norm: float, staleness: int) -> None:
        self._add(grads, norm, staleness, self._state.opt_step + 1)

    def _add(self, grads: Grads, norm: float, staleness: int, step: int) -> None:
        context = self.context
        context.optimizer.step(
            self._target,
            grads,
            lr=self._delays.rate(context.lr(), staleness),
            step=step,
            seed=self._version_read * 65_537 + context.slot,
            grad_scale=context.grad_scale(norm),
            shared_step=context.shared_step(),
            feedback=self._delays.feedback(staleness, since=staleness + 1),
        )


@dataclass(frozen=True, kw_only=True)
class LockFree(Strategy):
    """Lock-free workers, without options: the base of `hogwild`, of others, and of your own.

    Workers may join and leave: a batch belongs to the worker that claims its ticket.
    """

    Worker: ClassVar[type[Any]] = HogwildWorker

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        # Also those of prediction that only workers who join will need.
        return {**super().segments(spec), **prediction.segments(self.run, self.slots)}

    def kept_segments(self) -> tuple[str, ...]:
        return tuple(prediction.segments(self.run, self.workers))


@dataclass(frozen=True, kw_only=True)
class SparseUpdates(Strategy):
    """Options of strategies whose workers may write a part of their updates."""

    sparsify: str = option(
        "none",
        "part of an update that is written: all, the share F of each parameter's elements with the "
        "largest updates (topk:F), or the elements whose sum has reached F times lr (threshold:F)",
        train_only=True, reads=Selection.parse,
    )  # fmt: skip
    error_feedback: bool = option(
        True, "sparsify: the worker adds the rest of an update to later ones, or drops it",
        train_only=True, requires={"sparsify": ()},
    )  # fmt: skip

    @property
    def writes_whole_steps(self) -> bool:
        return self.sparsify == "none"

    def run_constraints(self, config: TrainConfig) -> Constraints:
        sparse = self.sparsify != "none"
        return (
            (sparse and config.gpu_write != "cpu", "sparsify",
             f"single elements are added by the CPU, and gpu_write is {config.gpu_write}; set "
             "gpu_write=cpu"),
            (sparse and optimizer_of(config).moments == "shared", "sparsify",
             "shared moments would still be written whole at every update; set moments=private"),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Hogwild(
    PredictionOptions,
    SparseUpdates,
    DelayFeedbackOptions,
    SynchronousShares,
    SpeedRescaled,
    LockFree,
):
    """Lock-free workers, perhaps after rounds, or each on its own blocks (`disjoint.py`)."""

    name: ClassVar[str] = "hogwild"
    about: ClassVar[str] = "lock-free: each worker applies its own updates and waits for none"
    elastic: ClassVar[bool] = True
    recorded: ClassVar[bool] = True
    predicts_by_default: ClassVar[bool] = True
    shares_moments: ClassVar[bool] = True

    async_after: float = option(
        0.0, "part of the budget to train in sync first", low=0, high=1, train_only=True
    )
    blocks: str = option(
        "all", "parameters that a worker writes: all, or only blocks that no other worker writes",
        choices=("all", "disjoint"), train_only=True,
    )  # fmt: skip

    @property
    def writes_whole_steps(self) -> bool:
        return super().writes_whole_steps and self.blocks == "all"

    @property
    def is_lock_free(self) -> bool:
        return self.async_after == 0 and self.blocks == "all"

    def lock_free(self) -> Hogwild:
        return replace(self, async_after=0.0, shares="equal")

    def regimes(self) -> tuple[Strategy, Strategy] | None:
        return (Sync(shares=self.shares), self.lock_free()) if self.async_after else None

    def constraints(self) -> Constraints:
        parts = [("sparsify", self.sparsify), ("blocks", self.blocks)]
        partial = [(name, value) for name, value in parts if value not in ("none", "all")]
        corrects = self.delay_feedback
        alone = [("delay_feedback", True)] * corrects
        return (
            (not self.async_after and self.shares != "equal", "sync_shares",
             "hogwild has rounds after async_after only; add that, or take sync"),
            *((self.async_after, name,
               "is for workers that write their own updates, without async_after; leave one of "
               "them out") for name, _ in (*partial, *alone)),
            (self.is_adapted and self.blocks == "disjoint", "blocks",
             "disjoint, so updates of others are of other blocks and make no gradient stale; "
             "leave it out, or the rule for stale gradients"),
            *((corrects, name,
               f"is {value}, and only updates that the CPU writes whole are corrected; leave it "
               "out, or delay_feedback") for name, value in partial),
        )  # fmt: skip

    def run_constraints(self, config: TrainConfig) -> Constraints:
        schedule, optimizer = config.schedule, config.optimizer
        overlap, record = config.overlap, config.determinism in ("record", "replay")
        on_worker = isinstance(optimizer, Muon) and optimizer.device == "worker"
        device = "worker" if on_worker else "cpu"
        return (
            (self.async_after and isinstance(schedule, Falling) and schedule.epochs, "async_after",
             "the schedule counts epochs in steps of one size, and synchronous steps have more "
             "batches; give its steps, or leave async_after out"),
            *((overlap and is_set, "overlap",
               f"{name} needs the parameters of a gradient, which the next read replaces; leave it "
               "out") for name, is_set in (
                ("delay_compensation", self.delay_compensation != "none"),
                ("delay_feedback", self.delay_feedback))),
            *((overlap and value != "cpu", "overlap",
               f"{name} is {value}, whose device computes a gradient meanwhile; set {name}=cpu")
              for name, value in (
                ("gpu_write", config.gpu_write), ("orthogonalization_device", device))),
            (overlap and config.read == "live", "overlap",
             "live reads would see the update in the middle of the next gradient; set "
             "read=snapshot"),
            (self.blocks == "disjoint" and optimizer_of(config).moments == "shared", "moments",
             "the moments of disjoint blocks go from worker to worker with the block; leave it "
             "out"),
            *((record and value != off, "determinism",
               f"{config.determinism}, but {name}={value} has no record; leave {name} out")
              for name, value, off in (
                ("async_after", self.async_after, 0), ("blocks", self.blocks, "all"),
                ("sparsify", self.sparsify, "none"),
                ("delay_compensation", self.delay_compensation, "none"),
                ("delay_feedback", self.delay_feedback, False))),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Serial(PredictionOptions, SparseUpdates, LockFree):
    """One worker: nothing runs beside it."""

    name: ClassVar[str] = "serial"
    about: ClassVar[str] = "one worker alone, the reference"
    one_process: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    is_lock_free = True

    def run_constraints(self, config: TrainConfig) -> Constraints:
        return (
            (self.predict == "last", "predict",
             "last is for workers that apply their own updates, not for serial; leave it out"),
        )  # fmt: skip
