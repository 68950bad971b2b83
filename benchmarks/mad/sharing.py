"""Candidates that train one embedding table together, with lock-free additions of rows.

All candidates on one setting, with one seed and at one optimiser point, read and write one table
(V, d) in one arena; each has its own optimizer state and other parameters. A later candidate begins
with the table as the others left it.
"""

import json
from contextlib import contextmanager
from dataclasses import replace

from mlxhog import arena
from mlxhog.arena import Arena
from mlxhog.mad import tasks
from mlxhog.mad.training import candidate
from mlxhog.models.mad.config import EMBEDDING
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.optim import Optimizer, Target, updates

INIT = "normal:0.02"
WRITE = "racy"
"""Lock-free: Hogwild as published."""


def common(config):
    """The common part of the runs that share a table: all but layers."""
    values = config.to_dict()
    del values["layers"]
    return json.dumps(values, sort_keys=True)


@contextmanager
def shared_tables(configs):
    """Create a table for each run of a candidate, and yield a function that executes runs.

    Args:
        configs: every run of any candidate, of one worker; those of the others use the same tables.
    """
    names, specs, seeds = {}, {}, {}
    for config in configs:
        name = f"table.{len(names):05}"
        names[common(config)] = name
        vocab = tasks.resolve(config.task, config.settings).vocab
        specs[name] = ParamSpec(name, (vocab, config.dim), INIT, kind="rows")
        seeds[name] = config.seed
    layout = arena.plan(specs, max_workers=1, n_tickets=1)
    with Arena.create(layout, write=WRITE) as shared:
        for name, spec in specs.items():
            # Under the name that it has in a model: what unshared candidates begin with.
            shared.param(name)[...] = initial_value(replace(spec, name=EMBEDDING), seeds[name])

        def run(config):
            def join(context):
                context.optimizer = SharedEmbedding(context, shared, names[common(config)])

            return candidate.train(config, prepare=join)

        yield run


class SharedEmbedding(Optimizer):
    """A run's optimizer that updates a shared table in place of the run's embedding.

    The run's embedding is a copy of the table, renewed after every step.
    """

    def __init__(self, context, shared, name):
        """Copy the table into the run's embedding."""
        self._own = context.optimizer
        self._copy, self._table = context.arena.param(EMBEDDING), shared.param(name)
        # The one table: its moments are as long as it, not as all tables.
        self._slot = replace(shared.layout.slots[name], name=EMBEDDING, offset=0)
        self._mode = updates.WRITE_MODES[shared.write]
        self._copy[...] = self._table

    @property
    def state_segments(self):
        """Those of the run's own optimizer."""
        return self._own.state_segments

    @property
    def shared_segments(self):
        """Those of the run's own optimizer."""
        return self._own.shared_segments

    @property
    def metal_rule(self):
        """That of the run's own optimizer."""
        return self._own.metal_rule

    def update(self, target, pairs, step):
        """Apply one update; that of the embedding goes to the table."""
        own = [(slot, grad) for slot, grad in pairs if slot.name != EMBEDDING]
        of_table = [(self._slot, grad) for slot, grad in pairs if slot.name == EMBEDDING]
        self._own.update(target, own, step)
        self._own.update(self._of_table(target), of_table, step)
        self._copy[...] = self._table

    def _of_table(self, target):
        """The table, with this run's moments of it."""
        slot = target.slots[EMBEDDING]
        here = slice(slot.offset, slot.offset + slot.size)
        return Target(
            flat=self._table.reshape(-1),
            slots={EMBEDDING: self._slot},
            locks=None,
            mode=self._mode,
            private={name: segment[here] for name, segment in target.private.items()},
            shared={name: segment[here] for name, segment in target.shared.items()},
            decay=target.decay,
        )
