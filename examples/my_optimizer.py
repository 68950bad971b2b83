"""An optimizer of your own in one file: momentum whose elements saturate.

    m <- beta m + (1 - beta) g;    w <- w - lr (m / (|m| + half) + weight_decay w)

    mlxhog train --plugin examples/my_optimizer.py --optimizer "my_optimizer(half=0.01)"

One class has the numbers and takes the steps. State lies in the arena, each worker's own; `write`
adds directions under the run's locks, so several workers, resume and replay need nothing more.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.optim import Decayed, Float32, Pairs, UpdateStep, UpdateTarget, directions, write


@dataclass(frozen=True, kw_only=True)
class MyOptimizer(Decayed):
    """Numbers, and the steps that they make."""

    name: ClassVar[str] = "my_optimizer"
    about: ClassVar[str] = "momentum whose elements saturate"
    beta: float = option(0.9, "decay of the mean", low=0, below=1)
    half: float = option(1e-3, "mean at which an element moves by half of lr", above=0)
    state_segments = ("m",)

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Apply one update."""

        def saturated(g: Float32, m: Float32) -> tuple[Float32, Float32]:
            m = np.float32(self.beta) * m + np.float32((1.0 - self.beta) * step.grad_scale) * g
            return np.divide(m, np.abs(m) + np.float32(self.half)), m

        us = directions(target, pairs, ("m",), saturated)
        write(target, us, step, lr=step.lr, weight_decay=self.weight_decay)
