"""Block-disjoint workers: `--blocks disjoint`.

Every worker holds one group of the model's blocks, computes the gradient of the whole model and
writes only its own group, so concurrent updates never overlap. After `ROTATE_EVERY` updates it
releases the group and acquires the one that has been free for longest; there is one group more than
there are workers, so this never waits.

Optimizer state belongs to the block: the holder of a group continues with the moments, residuals
and step counts of the last holder. One worker holds everything and is `serial`, bit for bit.
Related: asynchronous block coordinate descent, Liu and Wright 2015, arXiv:1403.3862.

The words are a clock; of each group the holder's slot (low 16 bits; 0 is free) and the clock of its
last release; and the updates of each parameter, in the layout's order, which only its holder
writes. The worker that replaces a dead one has its slot, and so its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mlxhog.errors import ConfigError
from mlxhog.optim.gradients import Float32, Grads, Rows
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from mlxhog.strategies.worker import Idle, Lease

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.models.families import ModelConfig, ParameterBlock
    from mlxhog.strategies.context import Context

ROTATE_EVERY: Final = 100


class DisjointWorker(HogwildWorker):
    """Hogwild whose worker writes only the blocks of the group `held`."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._state = context.entry  # each part of the state of all has one holder
        members = block_groups(context.model, context.workers)
        self._params = [{name for block in group for name in block.params} for group in members]
        self._words = words = self.strategy.words(context.arena)
        self._places = {name: k for k, name in enumerate(context.arena.layout.slots)}
        self._steps_here = 0
        groups = range(len(members))
        of_predecessor = [g for g in groups if words["holder", g] & 0xFFFF == context.slot]
        self.held = of_predecessor[0] if of_predecessor else self._acquire()

    def _acquire(self) -> int:
        """Acquire the group that has been free for longest; others may be doing so, too."""
        words, groups = self._words, range(len(self._params))
        while True:
            free = [(w, g) for g in groups if not (w := words["holder", g]) & 0xFFFF]
            if free:
                word, group = min(free)
                if words.compare_exchange(("holder", group), word, word | self.context.slot):
                    return group

    def claim(self) -> Lease | Idle:
        """Change the group when it is time."""
        if self._steps_here >= ROTATE_EVERY and len(self._params) > 1:
            # Clock before word: a group is never younger than one that was released after it.
            now = self._words.add("clock") + 1
            self._words["holder", self.held] = now << 16
            self.held, self._steps_here = self._acquire(), 0
        return super().claim()

    def corrected(self, grads: Grads) -> Grads:
        """Return the gradient of the blocks this worker holds; it is clipped by their norm."""
        own_params = self._params[self.held]
        return {name: grad for name, grad in grads.items() if name in own_params}

    def _step(self, grads: Grads, norm: float, staleness: int) -> None:
        by_count: dict[int, dict[str, Float32 | Rows]] = {}
        for name, grad in grads.items():
            step = self._words["steps", self._places[name]] + 1
            by_count.setdefault(step, {})[name] = grad
        for step, part in by_count.items():
            self._add(part, norm, staleness, step)
            for name in part:
                self._words["steps", self._places[name]] = step
        self._steps_here += 1


@dataclass(frozen=True, kw_only=True)
class Disjoint(Hogwild):
    """Lock-free workers of which each writes only the blocks it holds."""

    Worker = DisjointWorker
    probes: ClassVar[bool] = False  # no two updates overlap, so none is lost
    one_state: ClassVar[bool] = True  # of the blocks, whichever worker holds them

    def check(self, model: ModelConfig) -> None:
        block_groups(model, self.workers)

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {
            "run": (1, "clock"),
            "group": (self.workers + 1, "holder"),
            "parameter": (n_params, "steps"),
        }

    def steps_taken(self, arena: Arena) -> dict[str, int]:
        words = self.words(arena)
        return {name: words["steps", k] for k, name in enumerate(arena.layout.slots)}

    def state(self, arena: Arena) -> dict[str, Any]:
        return {**super().state(arena), "block_steps": self.steps_taken(arena)}

    def restore_state(self, arena: Arena, state: Mapping[str, Any]) -> None:
        """Set the updates of each parameter; by default those of the run."""
        of_run = dict.fromkeys(arena.layout.slots, arena.workers.entry(1).opt_step)
        known = not self.run.reset_optimizer and "block_steps" in state
        steps, words = state["block_steps"] if known else of_run, self.words(arena)
        for k, name in enumerate(arena.layout.slots):
            words["steps", k] = steps[name]


def block_groups(cfg: ModelConfig, workers: int) -> list[list[ParameterBlock]]:
    """Return a model's blocks in groups of about the same size, one more than workers.

    Each block goes into the smallest group, the largest first.

    Raises:
        ConfigError: the model has too few blocks.
    """
    from mlxhog.models.families import parameter_blocks

    blocks, n_groups = parameter_blocks(cfg), workers + 1
    if workers == 1:
        return [blocks]
    if len(blocks) < n_groups:
        raise ConfigError(
            f"blocks=disjoint hands out the model's {len(blocks)} blocks (embedding, layers, "
            f"head) in {n_groups} groups, one more than the {workers} workers; take at most "
            f"{len(blocks) - 1} workers, or a model with more layers"
        )
    groups: list[list[ParameterBlock]] = [[] for _ in range(n_groups)]
    for block in sorted(blocks, key=lambda one: -one.size):
        min(groups, key=lambda group: sum(one.size for one in group)).append(block)
    return groups
