"""Candidates of a study that train one embedding table together, with lock-free additions of rows.

All candidates on one task config, with one recipe and one seed, read and write one table
(V, d) in one arena, in any process; each has its own optimizer state and other parameters. A later
candidate begins with the table as the others left it, also after `mad resume`: the study keeps its
tables after every run.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from mlxhog import arena
from mlxhog.arena import Arena, ArenaHandle, Slot
from mlxhog.arena.published import Float32
from mlxhog.config.plugins import KEY
from mlxhog.errors import ConfigError, StudyError
from mlxhog.mad import tasks
from mlxhog.mad.options import Recipe
from mlxhog.mad.run import Callbacks, CandidateRecord, RunConfig
from mlxhog.mad.training import candidate
from mlxhog.models.mad.config import EMBEDDING
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.optim import Optimizer, UpdateTarget, updates
from mlxhog.optim.rule import Pairs, UpdateStep
from mlxhog.strategies.context import Context


def common(config: RunConfig) -> str:
    """Return the common part of the runs that share a table: all but layers and their files."""
    values = {n: v for n, v in config.to_dict().items() if n not in ("layers", KEY)}
    return json.dumps(values, sort_keys=True)


def check_sharing(recipe: Recipe, workers: str) -> None:
    """Refuse several workers, and an optimizer whose moments have other shapes than a table."""
    if "," in workers or "*" in workers:
        raise ConfigError(
            f"--share-embedding is for candidates of one worker, these have {workers}; leave out "
            "one of the two"
        )
    if (optimizer := recipe.optimizer).has_own_bases:
        raise ConfigError(
            f"--share-embedding needs moments of the table's shape, and {optimizer.name} has "
            "others; use --optimizer muon or adamw, or leave out one of the two"
        )


@contextmanager
def shared_tables(
    configs: Iterable[RunConfig], kept: Mapping[str, Float32] | None = None
) -> "Iterator[SharedRun]":
    """Create a table for each run of a candidate; the end of the block removes them.

    `configs` are the runs of any candidate, after `check_sharing`; `kept` the tables that
    `SharedRun.write` had in an earlier session, None for initial values. It yields the function
    that executes a run, in this process or in one spawned from the block.

    Raises:
        EnvironmentLacks: there is not enough memory.
        StudyError: the kept tables are of other runs.
    """
    tables = {f"table.{number:05}": config for number, config in enumerate(configs)}
    specs: dict[str, ParamSpec] = {}
    for name, config in tables.items():
        vocab = tasks.resolve(config.task, config.settings).vocab
        specs[name] = ParamSpec(name, (vocab, config.dim), "normal:0.02", kind="rows")
    layout = arena.plan(specs, max_workers=1, n_tickets=1)
    with Arena.create(layout, write="racy") as shared:  # lock-free: Hogwild as published
        for name, spec in specs.items():
            # Under the name that it has in a model: what unshared candidates begin with.
            own = initial_value(replace(spec, name=EMBEDDING), tables[name].seed)
            table = own if kept is None else kept.get(name, np.empty(0))
            if (table.shape, table.dtype) != (own.shape, own.dtype):
                raise StudyError(
                    f"the kept {name} is {table.dtype} {table.shape}, expected {own.dtype} "
                    f"{own.shape}; begin another study with --study"
                )
            shared.param(name)[...] = table
        names = {common(config): name for name, config in tables.items()}
        yield SharedRun(shared.handle(), names)


@dataclass
class SharedRun:
    """Executes runs with a shared embedding; picklable while a process is spawned."""

    handle: ArenaHandle  # of the arena with the tables
    names: Mapping[str, str]  # `common` of a run -> name of its table
    _arena: Arena | None = field(default=None, init=False, repr=False)

    def write(self, to: Callable[[Mapping[str, Float32]], None]) -> None:
        """Hand copies of the present tables to a function, in the process that made them."""
        with Arena.from_handle(self.handle) as shared:
            to({name: shared.param(name).copy() for name in self.names.values()})

    def __call__(
        self, config: RunConfig, *, callbacks: Callbacks, rungs: tuple[int, ...]
    ) -> CandidateRecord:
        """Execute a run, as `candidate.train` does.

        Concurrency: other runs add to the same table; simultaneous increments of an element may be
        lost, none is torn.
        """
        if self._arena is None:  # once in a process
            self._arena = Arena.from_handle(self.handle)
        shared, name = self._arena, self.names[common(config)]

        def join(context: Context) -> None:
            context.optimizer = SharedEmbedding(context, shared, name)

        return candidate.train(config, callbacks=callbacks, rungs=rungs, prepare=join)


class SharedEmbedding(Optimizer):
    """A run's optimizer that updates a shared table in place of the run's embedding.

    The run's embedding is a copy of the table, renewed after every step.
    """

    def __init__(self, context: Context, shared: Arena, name: str) -> None:
        """Copy the table into the run's embedding."""
        self._own: Optimizer = context.optimizer
        self._copy, self._table = context.arena.param(EMBEDDING), shared.param(name)
        # The one table: its moments are as long as it, not as all tables.
        self._slot: Slot = replace(shared.layout.slots[name], name=EMBEDDING, offset=0)
        self._mode = updates.WRITE_MODES[shared.write]
        self._copy[...] = self._table

    @property
    def state_segments(self) -> tuple[str, ...]:
        """The state segments of the run's own optimizer."""
        return self._own.state_segments

    @property
    def shared_segments(self) -> tuple[str, ...]:
        """The shared segments of the run's own optimizer."""
        return self._own.shared_segments

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Apply one update; that of the embedding goes to the table, with this run's moments."""
        own = [(slot, grad) for slot, grad in pairs if slot.name != EMBEDDING]
        of_table = [(self._slot, grad) for slot, grad in pairs if slot.name == EMBEDDING]
        self._own.update(target, own, step)
        slot = target.slots[EMBEDDING]
        here = slice(slot.offset, slot.offset + slot.size)
        table = UpdateTarget(
            flat=self._table.reshape(-1),
            slots={EMBEDDING: self._slot},
            locks=None,
            mode=self._mode,
            private={name: segment[here] for name, segment in target.private.items()},
            shared={name: segment[here] for name, segment in target.shared.items()},
            decay=target.decay,
        )
        self._own.update(table, of_table, step)
        self._copy[...] = self._table
