"""Block-disjoint workers: `--blocks disjoint`.

Every worker holds one group of the model's blocks, computes the gradient of the whole model and
writes its own group alone. After `rotate_every` of its steps it gives the group back and takes the
one that has lain free for longest. There is one group more than there are workers, so that this
never waits; and since a group has one holder at a time, no two updates that overlap in time write
a common element: p_conf between concurrent updates is 0, whatever the model.

Optimizer state goes with the block, not with the worker: whoever holds a group goes on with the
moments, residuals and step counts that its last holder left. One worker holds everything and is
`serial`, bit for bit.
Related: asynchronous block coordinate descent, Liu and Wright 2015, arXiv:1403.3862.

    segment         dtype  meaning
    blocks.words    uint8  128 bytes per line: [0] clock, [1 + g] of group g the holder's slot (low
                           16 bits; 0 is free) and the clock when it was last given back
    blocks.steps    uint8  uint64 per parameter, in the layout's order: updates it has had; only
                           its holder writes it

A worker killed with a group leaves it to the worker that replaces it, which has the same slot.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.backends.backend import Grads
from mlxhog.strategies import Context, Idle, Lease, sharing_out
from mlxhog.strategies.hogwild import Hogwild

_LINE = 128


def disjoint_segments(workers: int, n_params: int) -> dict[str, tuple[str, int]]:
    """Arena segments of the table above."""
    return {
        "blocks.words": ("uint8", _LINE * (2 + workers)),
        "blocks.steps": ("uint8", 8 * n_params),
    }


def steps_taken(arena: Arena) -> dict[str, int]:
    """Updates that each parameter has had, for a checkpoint."""
    words = arena.segment("blocks.steps")
    return {name: _native.load_u64(words, 8 * k) for k, name in enumerate(arena.layout.slots)}


def restore_steps(arena: Arena, steps: Mapping[str, int]) -> None:
    """Set what `steps_taken` gave."""
    words = arena.segment("blocks.steps")
    for k, name in enumerate(arena.layout.slots):
        _native.store_u64(words, 8 * k, steps[name])


class Groups:
    """Who holds which group. One object per worker; any number of processes at once."""

    def __init__(self, words: NDArray[np.uint8], n: int, slot: int) -> None:
        """Take over the group of a predecessor in this slot, or a free one.

        Args:
            words: the segment `blocks.words`.
            n: number of groups, at least one more than workers, or 1 for one worker.
            slot: this worker's.
        """
        self._words, self._n, self._slot = words, n, slot
        held = [g for g in range(n) if self._word(g) & 0xFFFF == slot]
        self.held = held[0] if held else self._take()

    def change(self) -> None:
        """Give the group back and take the one that has lain free for longest."""
        if self._n > 1:
            # Clock before word: a group is never younger than one that was given back after it.
            now = _native.add_u64(self._words, 0, 1) + 1
            _native.store_u64(self._words, self._at(self.held), now << 16)
            self.held = self._take()

    def _take(self) -> int:
        """Take the group that has lain free for longest; others may be taking at the same time."""
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


class Disjoint(Hogwild):
    """Hogwild whose worker writes only the blocks it holds."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        super().__init__(context)
        self._target = context.target(state_slot=1)  # the state of all: each part has one holder
        made = sharing_out.groups(context.model, context.workers)
        self._params = [
            frozenset(name for block in group for name in block.params) for group in made
        ]
        self._groups = Groups(context.arena.segment("blocks.words"), len(made), context.slot)
        self._steps = context.arena.segment("blocks.steps")
        self._at = {name: 8 * k for k, name in enumerate(context.arena.layout.slots)}
        self._steps_here = 0

    def claim(self) -> Lease | Idle:
        """Change the group when it is time, between two steps; see `Strategy.claim`."""
        if self._steps_here >= self.context.config.rotate_every:
            self._groups.change()
            self._steps_here = 0
        return super().claim()

    def _own(self, grads: Grads) -> Grads:
        """The gradient of the blocks this worker holds; it is clipped by their norm."""
        held = self._params[self._groups.held]
        return {name: grad for name, grad in grads.items() if name in held}

    def _step(self, grads: Grads, norm: float) -> None:
        """One optimizer step, of each parameter by its own count."""
        by_count: dict[int, Grads] = {}
        for name, grad in grads.items():
            step = _native.load_u64(self._steps, self._at[name]) + 1
            by_count.setdefault(step, {})[name] = grad
        for step, part in by_count.items():
            self._add(part, norm, step)
            for name in part:
                _native.store_u64(self._steps, self._at[name], step)
        self._steps_here += 1
