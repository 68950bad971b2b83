"""The interface of every optimizer (`Optimizer`), and the numbers of one update (`Step`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxhog.optim import metal_steps
from mlxhog.optim.target import Target
from mlxhog.optim.updates import Float32, Grads, Rows, Slot

Pairs = Sequence[tuple[Slot, Float32 | Rows]]
"""Parameters with their gradients, checked; rows ascending, each once."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The numbers of one update.

    Attributes:
        lr: step size, > 0.
        count: updates that have gone into the private state, this one included, from 1.
        shared_count: the same count for the shared state.
        seed: where to start walking; differs between workers and steps.
        grad_scale: factor of every gradient, from clipping.
        feedback: share of a late step that is added in advance, see `mlxhog.optim.delay_feedback`.
    """

    lr: float
    count: int
    shared_count: int
    seed: int
    grad_scale: float
    feedback: float = 0.0


class Optimizer(ABC):
    """One update rule; its state lives in the arena, not in the object."""

    @property
    @abstractmethod
    def state_segments(self) -> tuple[str, ...]:
        """Private state: one segment per worker and name.

        It is laid out as the parameters, unless `state_shapes` gives it shapes of its own.
        """

    @property
    @abstractmethod
    def shared_segments(self) -> tuple[str, ...]:
        """Shared state: one segment of the parameters' layout per name."""

    @property
    @abstractmethod
    def metal_rule(self) -> metal_steps.Rule:
        """The kernels of the same rule, for targets with `metal`."""

    @abstractmethod
    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update of some parameters; the rule itself, as `step` promises it."""

    def state_shapes(self, shapes: Shapes) -> Mapping[str, Shapes]:
        """Shapes of private state that is not laid out like the parameters.

        Args:
            shapes: of the parameters, by name.

        Returns:
            Segment -> parameter -> shape; segments laid out like the parameters are missing.
        """
        return {}

    def step(
        self,
        target: Target,
        grads: Grads,
        *,
        lr: float,
        step: int,
        seed: int = 0,
        grad_scale: float = 1.0,
        shared_step: int | None = None,
        feedback: float = 0.0,
    ) -> None:
        """Apply one update, in place.

        Args:
            target: the parameters, their locks, and the state.
            grads: per parameter a float32 gradient of its shape, or `Rows`; names may be missing.
            lr: step size, > 0.
            step: updates that have gone into the private state, this one included, from 1.
            seed: where to start walking; differs between workers and steps.
            grad_scale: factor of every gradient, from clipping.
            shared_step: the same count for the shared state; `step` where it is None.
            feedback: of `Step`.

        Raises:
            ShapeError: a gradient does not belong to its parameter; nothing has been written.

        Concurrency: the parameters (and shared state) are written as the arena's mode promises;
        the step is computed from the values found under the same lock that guards the write.
        """
        numbers = Step(
            lr=lr,
            count=step,
            shared_count=step if shared_step is None else shared_step,
            seed=seed,
            grad_scale=grad_scale,
            feedback=feedback,
        )
        self.update(target, target.pairs(grads), numbers)
