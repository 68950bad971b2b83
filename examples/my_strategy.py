"""`mlxhog train --plugin examples/my_strategy.py --strategy "my_strategy(share=0.3)"`."""

from dataclasses import dataclass

import numpy as np

from mlxhog.config.options import option
from mlxhog.optim.gradients import Grads
from mlxhog.strategies.delays import SpeedRescaled
from mlxhog.strategies.hogwild import HogwildWorker, LockFree
from mlxhog.strategies.prediction import PredictionOptions


class Worker(HogwildWorker):
    """Holds back what of a step goes against the movement since this worker has read."""

    def corrected(self, grads: Grads) -> Grads:
        """Scale those elements of a gradient."""
        context, held, share = self.context, dict(grads), self.strategy.share
        for name, slot in context.arena.layout.slots.items():
            at = slice(slot.offset, slot.offset + slot.size)
            moved = context.arena.params[at] - context.backend.param_buffer[at]
            if isinstance(grad := grads[name], np.ndarray):  # others are rows of it
                held[name] = np.where(grad * moved.reshape(slot.shape) > 0, share * grad, grad)
        return held


@dataclass(frozen=True, kw_only=True)
class MyStrategy(
    PredictionOptions, SpeedRescaled, LockFree
):  # so it has --predict, --staleness-lr and others
    """A strategy of your own: lock-free workers that hardly undo what others have just done."""

    name, about = "my_strategy", "lock-free workers that hardly undo what others have just done"
    elastic, Worker = True, Worker  # workers may join and leave
    share: float = option(0.5, "of an element that points back", low=0, high=1, flat="my_share")
