"""A training strategy: when a worker reads, how it writes, and when workers meet.

Every strategy is a file with two classes. The `Strategy` answers the run: the arena segments it
needs, the steps that are done, the content of a checkpoint. Its `StrategyWorker` serves one worker
process: it takes a lease (of a batch), fills the backend's inbox, and writes the gradient's step.
All strategies run in the same processes on the same arena, so they can be compared.
"""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger, Position
from mlxhog.arena.workers import State
from mlxhog.backends.backend import Float32
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.models.families import ModelConfig
from mlxhog.models.ngrams import NgramTables
from mlxhog.optim import updates
from mlxhog.strategies.context import Context, StrategyWorker


@dataclass(frozen=True)
class Strategy(ABC):
    """A strategy for one run; the methods here are those of lock-free workers.

    It holds only its options, so every process may have its own; the state of the run is in the
    arena.

    Attributes:
        config: of the run, with a chosen strategy.
        workers: number of workers at the start of the run.
        max_workers: worker slots of the arena, if more than that; see `slots`.
        tables: of n-grams in the model, set by `with_tables`; None if it has none.
    """

    config: TrainConfig
    workers: int
    max_workers: int = 0
    tables: NgramTables | None = None

    def __post_init__(self) -> None:
        """Refuse numbers of workers that cannot be."""

    numbered: ClassVar[bool] = False
    """Whether batches are assigned by number; a resumed run then cannot skip single ones."""

    probes: ClassVar[bool] = True
    """Whether workers add to the lost-update probe with every step."""

    carries_tables: ClassVar[bool] = False
    """Whether workers read and write tables of n-grams, row by row and nothing else of them."""

    Worker: ClassVar[type[Any]]
    """Prepares one worker's part, in its process."""

    @property
    def choice(self) -> Any:
        """The chosen strategy with its numbers."""
        return self.config.strategy

    @property
    def fixed(self) -> str | None:
        """Why no worker can join or leave while it runs; None where they can."""
        if self.choice.elastic and self.choice.is_lock_free:
            return None
        return f"strategy {self.choice} divides its work among the workers that it begins with"

    @property
    def name(self) -> str:
        """Its name in options and messages."""
        return str(self.choice.name)

    @property
    def slots(self) -> int:
        """Largest number of workers at a time."""
        return max(self.workers, self.max_workers)

    # -- before anything is started --------------------------------------------------------------

    def check(self, model: ModelConfig) -> None:
        """Refuse a model or a run that these workers cannot train, by a `ConfigError`."""

    def with_tables(self, tables: NgramTables | None) -> Self:
        """This for a model with these tables; a `ConfigError` if it handles whole arrays only."""
        if tables is not None and not self.carries_tables:
            raise ConfigError(
                f"the model has tables of n-grams (ngram_orders), and strategy {self.choice} as "
                "this run uses it reads or writes whole parameters, not rows of tables; take "
                "--strategy hogwild, locked, serial or sync without determinism=record, or train "
                "it without tables: --set ngram_orders=[]"
            )
        return replace(self, tables=tables)

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """Extra segments of the arena, as `arena.plan` takes them, for `n_params` parameters."""
        return {}

    def batches_per_step(self) -> int:
        """Batches whose gradients one step averages."""
        return 1

    @property
    def tokens_per_step(self) -> int:
        """Tokens whose mean gradient one step applies."""
        return self.batches_per_step() * self.config.sequences_per_ticket * self.config.seq_len

    def worker(self, context: Context) -> StrategyWorker:
        """Prepare one worker's part, in its process."""
        worker: StrategyWorker = self.Worker(context)
        return worker

    # -- while no worker runs --------------------------------------------------------------------

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Fill the segments when the parameters are in place and no worker has started.

        Args:
            arena: to fill.
            position: of a checkpoint whose `kept_segments` are in place, see `resume`.
        """

    def limit_steps(self, arena: Arena, ledger: Ledger, steps: int | None, done: int = 0) -> None:
        """Store the steps that this strategy may take (None: no limit), after `begin`.

        A step of lock-free workers is a ticket, so the budget is a limit of ticket numbers: the
        ledger is the only count, exact after a death at any instruction. Strategies that assign
        batches by number have their own count (`Context.step_limit`). `done` steps were taken by
        this call with other strategies.
        """
        end = 0 if steps is None else ledger.end_after(steps)
        arena.counters.store("end_ticket", end)
        arena.counters.store("tickets_before", ledger.count_done() - done)

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the steps of dead workers, and bring parameters and counters up to date.

        All workers are paused or dead.
        """
        arena.counters.store("steps", self.steps_done(arena, ledger))

    # -- content of a checkpoint -----------------------------------------------------------------

    def kept_segments(self) -> tuple[str, ...]:
        """Segments with copies of the parameters that a resumed run needs to continue unchanged."""
        return ()

    def position(self, arena: Arena) -> dict[str, Any] | None:
        """The strategy's position for a checkpoint; None if it has none, not even segments."""
        return {} if self.kept_segments() else None

    def same(self) -> dict[str, Any]:
        """Facts that have to be the same in a checkpoint whose position is of use."""
        return {"strategy": self.name, "workers": self.workers}

    def state(self, arena: Arena) -> dict[str, Any]:
        """The strategy's entries in the state file of a checkpoint."""
        position = self.position(arena)
        return {"course": None if position is None else {**self.same(), **position}}

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """Worker slots whose private optimizer state is in use.

        Slots that have had a worker; before any has started, the slots of all workers.
        """
        slots = tuple(entry.slot for entry in arena.workers if entry.state != State.FREE)
        return slots or tuple(range(1, self.workers + 1))

    def resume(
        self, arena: Arena, ledger: Ledger, state: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Set the ledger to a checkpoint's state, before `begin`; returns its position for that.

        It is None unless `same` is as now. Numbered batches then begin at the oldest that is not
        done, and those that are done ahead of it come again.
        """
        position = state.get("course") or {}
        is_same = all(position.get(name) == value for name, value in self.same().items())
        at: Position = state["ledger"]
        ledger.restore(at if is_same or not self.numbered else {**at, "done": []})
        arena.counters.store("first_ticket", at["epoch"] * ledger.n + at["watermark"])
        return position if is_same else None

    def restore_state(self, arena: Arena, state: Mapping[str, Any]) -> None:
        """Restore the rest of a checkpoint's state, once the moments are in place."""

    # -- while workers run -----------------------------------------------------------------------

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Steps of this call that are done, exact after any death.

        A torn step (its worker died while adding it) is done, unless the ledger hands it out again.
        So the count reaches the budget and never exceeds it.
        """
        return ledger.count_done() - arena.counters.load("tickets_before")

    def step_s(self, arena: Arena) -> float:
        """Expected seconds of the next step: those of the fastest worker."""
        entries = (entry for entry in arena.workers if entry.state != State.FREE)
        return min((entry.step_s for entry in entries), default=0.0)

    def between_steps(self, arena: Arena) -> bool:
        """Whether the arena shows no unfinished step that several workers take together."""
        return True

    def network_bytes(self, arena: Arena, steps: int) -> int:
        """Bytes that a network would carry for these steps if each worker were its own machine.

        Here as with a parameter server, if there are several workers: each step pulls the
        parameters and pushes a gradient, both whole and in float32.
        """
        return 2 * steps * model_bytes(arena) if self.workers > 1 else 0

    # -- evaluation ------------------------------------------------------------------------------

    def load(self, arena: Arena, out: Float32, *, training: bool, threads: int = 1) -> None:
        """Write the current model into `out`, laid out as the parameters."""
        updates.snapshot(out, arena.params, threads=threads)

    def copies(self) -> tuple[str, ...]:
        """Segments of each worker's own parameters, where the model is their average."""
        return ()

    def warning(self, average: float, copies: Sequence[float]) -> str | None:
        """Warning about a run by the bits per byte of its model, and of each worker's copy."""
        return None

    @contextlib.contextmanager
    def each_copy(self, arena: Arena) -> Iterator[Sequence[Callable[[], None]]]:
        """Functions that put each worker's own parameters in the place of their average.

        Empty if workers have none. No worker runs; the end of the block restores the average.
        """
        names = self.copies()
        if not names:
            yield ()
            return
        n = arena.layout.probe.offset
        average, shared = arena.params[:n].copy(), arena.params[:n]
        copies = [arena.segment(name)[:n] for name in names]
        try:
            yield [partial(updates.snapshot, shared, copy) for copy in copies]
        finally:
            updates.snapshot(shared, average)


def model_bytes(arena: Arena) -> int:
    """Size of the model's parameters."""
    return 4 * sum(slot.size for slot in arena.layout.slots.values())


def all_reduce_bytes(arena: Arena, members: int) -> int:
    """Bytes that all members send to average one array of the model's size, in a ring.

    Source: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms: 2 (M - 1) / M of the
    array by each of M.
    """
    return 2 * (members - 1) * model_bytes(arena)
