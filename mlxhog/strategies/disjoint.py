"""Block-disjoint workers: `--blocks disjoint`.

Every worker holds one group of the model's blocks, computes the gradient of the whole model and
writes only its own group. After `rotate_every` of its steps it gives the group back and takes the
one that has been free for longest. There is one group more than there are workers, so that this
never waits; and since a group has one holder at a time, no two updates that overlap in time write
a common element: p_conf between concurrent updates is 0, whatever the model.

Optimizer state belongs to the block, not to the worker: the holder of a group continues with the
moments, residuals and step counts of the last holder. One worker holds everything and is `serial`,
bit for bit.
Related: asynchronous block coordinate descent, Liu and Wright 2015, arXiv:1403.3862.

    segment         dtype  meaning
    blocks.words    uint8  128 bytes per line: [0] clock, [1 + g] of group g the holder's slot (low
                           16 bits; 0 is free) and the clock when it was last given back
    blocks.steps    uint8  uint64 per parameter, in the layout's order: updates it has had; only
                           its holder writes it

A worker killed with a group leaves it to the worker that replaces it, which has the same slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.backends.backend import Grads
from mlxhog.errors import ConfigError
from mlxhog.models.families import ModelConfig, ParameterBlock, parameter_blocks
from mlxhog.strategies.context import Context, Idle, Lease
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker

_LINE = 128


class Disjoint(Hogwild):
    """Lock-free workers of which each writes only the blocks it holds."""

    probes: ClassVar[bool] = False  # no two updates meet, so none is lost
    no_tables: ClassVar[str] = (
        "blocks=disjoint divides parameters, not tables, among the workers; leave it out"
    )

    @property
    def fixed(self) -> str | None:
        """The number of groups is that of the workers, and one more."""
        return "blocks=disjoint divides the model's blocks among the workers that it began with"

    def check(self, model: ModelConfig) -> None:
        """Refuse a model with too few blocks for the workers."""
        block_groups(model, self.workers)

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {
            **super().segments(n_params),
            "blocks.words": ("uint8", _LINE * (2 + self.workers)),
            "blocks.steps": ("uint8", 8 * n_params),
        }

    def worker(self, context: Context) -> DisjointWorker:
        """Prepare one worker."""
        return DisjointWorker(context)

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """Slot 1: optimizer state belongs to the blocks, whichever worker holds them."""
        return (1,)

    def state(self, arena: Arena) -> dict[str, Any]:
        """Add the updates that each parameter has had."""
        return {**super().state(arena), "block_steps": steps_taken(arena)}

    def restore_state(self, arena: Arena, state: Mapping[str, Any]) -> None:
        """Set the updates of each parameter; those of the run if the checkpoint had no blocks.

        0 if the optimizer begins anew.
        """
        of_run = dict.fromkeys(arena.layout.slots, arena.workers.entry(1).opt_step)
        known = not self.config.reset_optimizer and "block_steps" in state
        steps = state["block_steps"] if known else of_run
        words = arena.segment("blocks.steps")
        for k, name in enumerate(arena.layout.slots):
            _native.store_u64(words, 8 * k, steps[name])


def steps_taken(arena: Arena) -> dict[str, int]:
    """Updates that each parameter has had, for a checkpoint."""
    words = arena.segment("blocks.steps")
    return {name: _native.load_u64(words, 8 * k) for k, name in enumerate(arena.layout.slots)}


class Groups:
    """The holder of each group. One object per worker; any number of processes at once."""

    def __init__(self, words: NDArray[np.uint8], n: int, slot: int) -> None:
        """Take over the group of a predecessor in this slot, or a free one.

        Args:
            words: the segment `blocks.words`.
            n: number of groups, at least one more than workers, or 1 for one worker.
            slot: this worker's.
        """
        self._words, self._n, self._slot = words, n, slot
        own_groups = [g for g in range(n) if self._word(g) & 0xFFFF == slot]
        self.held = own_groups[0] if own_groups else self._take()

    def change(self) -> None:
        """Give the group back and take the one that has been free for longest."""
        if self._n > 1:
            # Clock before word: a group is never younger than one that was given back after it.
            now = _native.add_u64(self._words, 0, 1) + 1
            _native.store_u64(self._words, self._at(self.held), now << 16)
            self.held = self._take()

    def _take(self) -> int:
        """Take the group that has been free for longest; others may be taking at the same time."""
        while True:
            free = [(word, g) for g in range(self._n) if not (word := self._word(g)) & 0xFFFF]
            if free:
                word, group = min(free)
                if _native.cas_u64(self._words, self._at(group), word, word | self._slot):
                    return group

    def _word(self, group: int) -> int:
        return _native.load_u64(self._words, self._at(group))

    @staticmethod
    def _at(group: int) -> int:
        return _LINE * (1 + group)


class DisjointWorker(HogwildWorker):
    """Hogwild whose worker writes only the blocks it holds."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        super().__init__(context)
        self._target = context.target(state_slot=1)  # the state of all: each part has one holder
        members = block_groups(context.model, context.workers)
        self._params = [
            frozenset(name for block in group for name in block.params) for group in members
        ]
        self._groups = Groups(context.arena.segment("blocks.words"), len(members), context.slot)
        self._steps = context.arena.segment("blocks.steps")
        self._at = {name: 8 * k for k, name in enumerate(context.arena.layout.slots)}
        self._rotate_every = context.choice.rotate_every
        self._steps_here = 0

    def claim(self) -> Lease | Idle:
        """Change the group when it is time, between two steps."""
        if self._steps_here >= self._rotate_every:
            self._groups.change()
            self._steps_here = 0
        return super().claim()

    def corrected(self, grads: Grads) -> Grads:
        """The gradient of the blocks this worker holds; it is clipped by their norm."""
        own_params = self._params[self._groups.held]
        return {name: grad for name, grad in grads.items() if name in own_params}

    def _step(self, grads: Grads, norm: float, staleness: int) -> None:
        """One optimizer step, of each parameter by its own count."""
        by_count: dict[int, Grads] = {}
        for name, grad in grads.items():
            step = _native.load_u64(self._steps, self._at[name]) + 1
            by_count.setdefault(step, {})[name] = grad
        for step, part in by_count.items():
            self._add(part, norm, staleness, step)
            for name in part:
                _native.store_u64(self._steps, self._at[name], step)
        self._steps_here += 1


def block_groups(cfg: ModelConfig, workers: int) -> list[list[ParameterBlock]]:
    """A model's blocks in groups of about the same size, one more than there are workers.

    So a worker can always change. Where a model mixes mLSTM and sLSTM layers, no group holds both.

    Raises:
        ConfigError: the model has too few blocks.
    """
    if workers == 1:
        return [parameter_blocks(cfg)]
    n_groups, all_blocks = workers + 1, parameter_blocks(cfg)
    if len(all_blocks) < n_groups:
        raise ConfigError(
            f"blocks=disjoint hands out the model's {len(all_blocks)} blocks (embedding, layers, "
            f"head) in {n_groups} groups, one more than the {workers} workers; take at most "
            f"{len(all_blocks) - 1} workers, or a model with more layers"
        )
    layers: dict[str, list[ParameterBlock]] = {}
    for block in all_blocks:
        if block.is_layer:
            layers.setdefault(block.cell or "", []).append(block)
    rest = sorted(
        (block for block in all_blocks if not block.is_layer), key=lambda block: -block.size
    )
    ways = (_grouped(layers, rest, n_groups, alone) for alone in range(len(rest) + 1))
    even = (way for way in ways if len(way) == n_groups)
    return min(even, key=lambda way: max(map(_size, way)))


def _grouped(
    layers: Mapping[str, Sequence[ParameterBlock]],
    rest: Sequence[ParameterBlock],
    n_groups: int,
    alone: int,
) -> list[list[ParameterBlock]]:
    """Groups of layers, where the first `alone` of the rest are groups of their own."""
    groups = [[block] for block in rest[:alone]]
    for cell, n in _quotas(layers, n_groups - alone).items():
        groups += _balanced(layers[cell], n)
    for block in rest[alone:]:
        min(groups, key=_size).append(block)
    return groups


def _quotas(layers: Mapping[str, Sequence[ParameterBlock]], n_groups: int) -> dict[str, int]:
    """Number of groups of each cell's layers: by size, at least one, at most one a layer."""
    quotas = dict.fromkeys(layers, 1)
    while sum(quotas.values()) < n_groups:
        divisible = [cell for cell, n in quotas.items() if n < len(layers[cell])]
        if not divisible:
            break
        quotas[max(divisible, key=lambda cell: _size(layers[cell]) / quotas[cell])] += 1
    return quotas


def _balanced(members: Sequence[ParameterBlock], n: int) -> list[list[ParameterBlock]]:
    """`n` groups: the largest block first, each into the smallest group."""
    groups: list[list[ParameterBlock]] = [[] for _ in range(n)]
    for block in sorted(members, key=lambda block: -block.size):
        min(groups, key=_size).append(block)
    return groups


def _size(group: Sequence[ParameterBlock]) -> int:
    return sum(block.size for block in group)
