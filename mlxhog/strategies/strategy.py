"""The base of training strategies: when a worker reads, how it writes, and when workers wait.

A strategy is a frozen dataclass of its hyperparameters, with traits that options and reports ask
for. `build` sets its run; then it answers for that run: the arena segments it needs, the steps that
are done, the content of a checkpoint. Its workers (`worker.py`) serve one process each, on a
`Context`. All strategies run in the same processes on the same arena, so they can be compared.

NumPy and the arena are imported where they are used, so `--help` stays fast.
"""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from mlxhog.config.components import STRATEGIES, Component, ComponentRegistry, Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option
from mlxhog.optim import updates
from mlxhog.optim.component import optimizer_of

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter
    from mlxhog.arena.ledger import Ledger, Position
    from mlxhog.arena.words import Table, Words
    from mlxhog.models.families import ModelConfig
    from mlxhog.optim.gradients import Float32

Segments = dict[str, tuple[str, int]]
"""Segments of the arena, as `arena.plan` takes them: name -> (dtype, number of elements)."""
WORDS: Final = "strategy.words"


@dataclass(frozen=True)
class RunFacts:
    """Values of a run that its strategy needs beside its hyperparameters; see `TrainConfig`."""

    sequences_per_ticket: int
    micro_batch: int
    seq_len: int
    seed: int
    clip: float
    overlap: bool
    determinism: str
    prediction: str
    budget: tuple[int | None, int | None]  # steps and tokens; None also where the run is resumed
    reset_optimizer: bool
    workers_factor: Callable[[str, int], float]  # that of the optimizer


_of_run: Final = partial(field, compare=False, repr=False)
"""A field that a run sets: not a hyperparameter, and ignored by == and repr."""


@dataclass(frozen=True, kw_only=True)
class Strategy(Component, ABC):
    """A strategy and its hyperparameters; methods here are those of lock-free workers.

    Its state is in the arena, so every process has a strategy of its own.
    """

    run: RunFacts = _of_run(default=None)  # see `build` for these three
    workers: int = _of_run(default=0)  # number of workers at the start; 0 without a run
    max_workers: int = _of_run(default=0)  # worker slots of the arena, if more than that
    # Of the text: batches, tokens of each but the last, tokens of all; None: every batch is full.
    epoch: tuple[int, int, int] | None = _of_run(default=None)

    # -- traits that options and reports ask for -------------------------------------------------

    registry: ClassVar[ComponentRegistry] = STRATEGIES
    one_process: ClassVar[bool] = False  # it has one worker
    repeats: ClassVar[bool] = False  # deterministic: reruns of equally many steps end bit for bit
    averages: ClassVar[bool] = False  # an update is along the mean of the workers' gradients
    copies: ClassVar[bool] = False  # each worker, or group of them, trains a replica
    elastic: ClassVar[bool] = False  # any worker takes any batch; workers and text may arrive
    recorded: ClassVar[bool] = False  # workers are those of `hogwild`, which can be recorded
    predicts_by_default: ClassVar[bool] = False  # `predict=auto` extrapolates parameters
    shares_moments: ClassVar[bool] = False  # an optimizer may share one pair of moments by default
    one_state: ClassVar[bool] = False  # all workers have one optimizer state, that of slot 1
    reads_copies: ClassVar[bool] = False  # workers compute on snapshots only
    writes_alone: ClassVar[bool] = False  # no other process writes beside a worker
    numbered: ClassVar[bool] = False  # batches have numbers; a resumed run cannot skip single ones
    probes: ClassVar[bool] = True  # workers add to the lost-update probe with every update
    # Defaults of some strategies' hyperparameters; as fields they would hide those of other bases.
    lr_workers = staleness_lr = delay_compensation = sparsify = "none"
    rescale_by_speed = delay_feedback = False
    error_feedback, async_after = True, 0.0

    Worker: ClassVar[type[Any]]  # a `StrategyWorker`, see `worker_class`

    def steppers(self, workers: int) -> int:
        """Number of the run's workers that apply updates of their own to shared parameters."""
        return 1

    def prediction(self, config: TrainConfig) -> str:
        """Return the weight prediction of a run: one of none, own, last."""
        return "none"

    @property
    def writes_whole_steps(self) -> bool:
        """Whether a worker's update is of every parameter."""
        return True

    @property
    def is_lock_free(self) -> bool:
        """Whether workers take any batch from the first step to the last."""
        return self.elastic

    def regimes(self) -> tuple[Strategy, Strategy] | None:
        """The rounds of `async_after`, and the strategy after them; None for a single phase."""
        return None

    def stored(self) -> dict[str, str]:
        """Its name, and hyperparameters that a resumed run has from a checkpoint."""
        return {"strategy": self.name}

    def run_constraints(self, config: TrainConfig) -> Constraints:
        return (
            (self.reads_copies and config.read == "live", "read",
             f"live, but {self.name} computes with copies; leave read out"),
            (self.writes_alone and config.write == "racy", "write",
             f"racy, but in {self.name} no other process writes beside a worker; leave it out"),
            (config.overlap and not (self.recorded and self.is_lock_free), "overlap",
             f"a worker of {self} reads after its own step, in rounds or in an order; set "
             "strategy=hogwild, or leave overlap out"),
            (config.follow and not self.is_lock_free, "follow",
             "is for lock-free workers, which take any batch; set strategy=hogwild, without "
             "async_after and blocks=disjoint"),
            (config.cluster and (self.one_process or not self.is_lock_free), "cluster",
             "adds to parameters that workers train lock-free; set strategy=hogwild"),
            *self._of_rounds(config),
            *self._of_records(config),
        )  # fmt: skip

    def _of_rounds(self, config: TrainConfig) -> Constraints:
        is_rounds, resume, follow = config.determinism == "rounds", config.resume, config.follow
        return (
            *((is_rounds and value, "determinism",
               "rounds, but with a time budget or a followed folder each run ends differently; "
               "give --steps or --tokens instead") for value in (config.time, follow)),
            (is_rounds and not (config.has_budget or follow or resume), "determinism",
             "rounds needs a budget in steps or tokens; add --steps"),
            *((is_rounds and value is not None, "determinism",
               f"rounds, but {name} ends each run at another step; leave {name} out")
              for name, value in (
                ("patience", config.patience), ("stop_at_loss", config.stop_at_loss))),
            (is_rounds and config.batch_size is None and not resume, "determinism",
             "rounds, but batch_size=auto follows a measurement, which varies; give --batch-size "
             "a number"),
        )  # fmt: skip

    def _of_records(self, config: TrainConfig) -> Constraints:
        way = config.determinism
        is_record = way in ("record", "replay")
        return tuple((is_record and is_wrong, "determinism", f"{way}, but {why}")
                     for is_wrong, why in (
            (not self.recorded,
             f"strategy is {self}; leave it out, or take determinism=rounds, which needs no "
             "record"),
            (config.read == "live",
             "live reads see single elements change, which a record cannot hold; set "
             "read=snapshot"),
            (config.write not in ("auto", "lossless"),
             f"write is {config.write}: without stripe locks the order of writes to an element is "
             "unknown; set write=lossless"),
            (config.gpu_write != "cpu", f"gpu_write is {config.gpu_write}; set gpu_write=cpu"),
            (config.follow, "a record has no streamed data; leave follow out"),
            (config.overlap,
             "a record has the read, the gradient and the update of a worker in sequence; leave "
             "overlap out"),
            (config.resume,
             "a record begins with its run; add --determinism none to resume without one, and the "
             "record stays as it is")))  # fmt: skip

    # -- before anything is started --------------------------------------------------------------

    def __post_init__(self) -> None:
        """Check the hyperparameters, in a run also the workers, or raise a ConfigError."""
        super().__post_init__()
        if self.workers:
            self.check_workers()

    def check_workers(self) -> None:
        """Raise ConfigError for an impossible number of workers."""

    def check(self, model: ModelConfig) -> None:
        """Raise ConfigError for a model that these workers cannot train."""

    @property
    def fixed(self) -> str | None:
        """Why no worker can join or leave while it runs; None where they can."""
        if self.elastic and self.is_lock_free:
            return None
        return f"strategy {self} divides its work among the workers that it begins with"

    @property
    def slots(self) -> int:
        """Largest number of workers at a time."""
        return max(self.workers, self.max_workers)

    def batches_per_step(self) -> int:
        """Batches whose gradients one update averages."""
        return 1

    @property
    def tokens_per_step(self) -> int:
        """Tokens whose mean gradient one update applies."""
        return self.batches_per_step() * self.run.sequences_per_ticket * self.run.seq_len

    def steps_of(self, tokens: int, done: int = 0) -> int:
        """Return the steps that train so many tokens, after `done` batches of the run."""
        full = self.run.sequences_per_ticket * self.run.seq_len
        n, of_batch, of_epoch = self.epoch or (1, full, full)
        epochs, at = divmod(done, n)
        epochs, rest = divmod(at * of_batch + tokens, of_epoch)
        batches = epochs * n - (-rest // of_batch) - at
        return -(-batches // self.batches_per_step())

    # -- segments of the arena -------------------------------------------------------------------

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        """Return its segments of the arena, for a model's parameters."""
        words = self._table(len(spec)).n_bytes
        own: Segments = {WORDS: ("uint8", words)} if words else {}
        return {**parameter_copies(self.kept_segments()), **own}

    def kept_segments(self) -> tuple[str, ...]:
        """Return the segments that a resumed run needs to continue unchanged."""
        return ()

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        """Return groups of 64-bit words that the workers share, as `Table` takes them."""
        return {}

    def words(self, arena: Arena) -> Words:
        return self._table(len(arena.layout.slots)).open(arena.segment(WORDS))

    def _table(self, n_params: int) -> Table:
        from mlxhog.arena.words import Table

        return Table(**self.word_groups(n_params))

    # -- while no worker runs --------------------------------------------------------------------

    def worker_class(self) -> type[Any]:
        """The class of its workers, made of a `Context` in each worker's process."""
        return self.Worker

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Initialize the segments when the parameters are in place and no worker has started.

        With a `position`, see `resume`, the `kept_segments` of its checkpoint are in place.
        """

    def limit_steps(self, arena: Arena, ledger: Ledger, steps: int | None, done: int = 0) -> None:
        """Store the limit of this strategy's steps (None: no limit), after `begin`.

        A step of lock-free workers is a ticket, so the limit is a ticket number; numbered batches
        have their own (`Context.step_limit`). `done` steps of this call had other strategies.
        """
        end = 0 if steps is None else ledger.end_after(steps)
        arena.counters.store("end_ticket", end)
        arena.counters.store("tickets_before", ledger.count_done() - done)

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the steps of dead workers, and update parameters and counters; none runs now."""
        arena.counters.store("steps", self.steps_done(arena, ledger))

    # -- content of a checkpoint -----------------------------------------------------------------

    def position(self, arena: Arena) -> dict[str, Any] | None:
        """Return its position for a checkpoint; None if it has none."""
        return {} if self.kept_segments() else None

    def same(self) -> dict[str, Any]:
        """What has to be the same in a checkpoint for its position to be used."""
        return {"strategy": self.name, "workers": self.workers}

    def state(self, arena: Arena) -> dict[str, Any]:
        """Return the strategy's entries in the state file of a checkpoint."""
        position = self.position(arena)
        return {"position": None if position is None else {**self.same(), **position}}

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """Slots whose private optimizer state is used: all, until a worker has started."""
        slots = tuple(entry.slot for entry in arena.workers.training())
        return (1,) if self.one_state else slots or tuple(range(1, self.workers + 1))

    def resume(
        self, arena: Arena, ledger: Ledger, state: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Set the ledger to a checkpoint's state; returns its position for `begin`.

        It is None unless `same` is as now; numbered batches then begin at the oldest not done.
        """
        position = state.get("position") or {}
        is_same = all(position.get(name) == value for name, value in self.same().items())
        at: Position = state["ledger"]
        ledger.restore(at if is_same or not self.numbered else {**at, "done": []})
        arena.counters.store("first_ticket", at["epoch"] * ledger.n + at["watermark"])
        return position if is_same else None

    def restore_state(self, arena: Arena, state: Mapping[str, Any]) -> None:
        """Restore the rest of a checkpoint's state, after the moments."""

    # -- while workers run -----------------------------------------------------------------------

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Steps of this call that are done, partially applied ones included."""
        return ledger.count_done() - arena.counters.load("tickets_before")

    def step_s(self, arena: Arena) -> float:
        """Expected seconds of the next step: by default of the fastest worker, 0 at first."""
        return min((one.step_s for one in arena.workers.training() if one.steps), default=0.0)

    def between_steps(self, arena: Arena) -> bool:
        """Whether no collective step of several workers is unfinished."""
        return True

    def network_bytes(self, arena: Arena, steps: int) -> int:
        """Bytes that a network would carry for these steps if each worker were a machine."""
        model = 4 * sum(slot.size for slot in arena.layout.dense.values())
        return self.models_sent(arena, steps) * model

    def models_sent(self, arena: Arena, steps: int) -> int:
        """Models that these steps would send: here a pull and a push each.

        An all-reduce among M workers sends 2 (M - 1): Patarasuk and Yuan 2009, Bandwidth optimal
        all-reduce algorithms.
        """
        return 2 * steps if self.workers > 1 else 0

    # -- evaluation ------------------------------------------------------------------------------

    def load(self, arena: Arena, out: Float32, *, training: bool, threads: int = 1) -> None:
        """Copy the current model into `out`, laid out as the parameters."""
        updates.snapshot(out, arena.params, threads=threads)

    def own_copies(self) -> tuple[str, ...]:
        """Return the segments of replicas whose average is the model."""
        return ()

    def warning(self, average: float, copies: Sequence[float]) -> str | None:
        """Return a warning by the bits per byte of the model and of each replica."""
        return None

    @contextlib.contextmanager
    def each_copy(self, arena: Arena) -> Iterator[Sequence[Callable[[], None]]]:
        """Yield functions that put a replica in the place of the average, which is restored.

        No worker runs meanwhile.
        """
        shared = arena.params[: arena.layout.probe.offset]
        copies = [arena.segment(name)[: len(shared)] for name in self.own_copies()]
        average = shared.copy() if copies else shared
        try:
            yield [partial(updates.snapshot, shared, copy) for copy in copies]
        finally:
            updates.snapshot(shared, average)


def strategy_of(config: TrainConfig) -> Strategy | None:
    """Return the strategy of a configuration; None if it is open."""
    return cast("Strategy | None", config.strategy)


def shares_moments(config: TrainConfig) -> bool:
    """Whether all workers have one pair of moments."""
    strategy = strategy_of(config)
    lock_free = strategy is not None and strategy.shares_moments and strategy.writes_whole_steps
    return optimizer_of(config).shares_moments(lock_free=lock_free)


def prediction_of(config: TrainConfig) -> str:
    """Weight prediction: one of none, own, last."""
    strategy = strategy_of(config)
    return "none" if strategy is None else strategy.prediction(config)


def parameter_copies(names: Iterable[str], *, tables: bool = True) -> Segments:
    """Return segments that are laid out as the parameters, perhaps without `tables`."""
    from mlxhog.arena.layout import DENSE_COPY, PARAMETER_COPY

    return {name: ("float32", PARAMETER_COPY if tables else DENSE_COPY) for name in names}


@dataclass(frozen=True, kw_only=True)
class IndependentSteps(Strategy):
    """Options of strategies whose workers apply updates of their own."""

    lr_workers: str = option(
        "auto",
        "factor of lr if P workers apply updates of their own: none, 1/sqrt(P), or 1/P; auto is "
        "sqrt for Lion, none for the others",
        choices=("auto", "none", "sqrt", "linear"), train_only=True,
    )  # fmt: skip

    def steppers(self, workers: int) -> int:
        return workers
