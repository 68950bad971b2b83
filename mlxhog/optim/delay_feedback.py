"""Error feedback on delay: with a stale update, a worker adds a prediction of its next ones.

An update u with staleness tau is applied tau updates after its gradient was read. The worker
assumes that pending updates equal the last one, adds them in advance, and subtracts that with its
next update:

    w <- w + u + e - e'        e = F u,  e' the last addition,  F = tau / n

n is the number of updates of all workers between two of this worker, the later one included. So
the parameters are F times the last update of each worker ahead, about tau updates. Without
staleness nothing changes. With one worker and tau = 1 it is w <- w + 2 u(t - 1) - u(t - 2): the
update-level error feedback of Zmushko et al. 2026, arXiv:2606.30634, who have no other tau.

    segment          meaning
    feedback.<slot>  float32, laid out as the parameters: e of this worker, which they contain

Like moments it is private to a worker slot: inherited, saved and resumed. A worker that is killed
amid an update leaves at most that update's e in the parameters. It applies to the updates that
optimizers trace, see `mlxhog.optim.rule.StepTrace`: those of dense parameters, with Muon of hidden
matrices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Rows
from mlxhog.optim.rule import (
    Optimizer,
    OptimizerWrapper,
    Pairs,
    StepTrace,
    UpdateStep,
    UpdateTarget,
    parameter,
)

FEEDBACK: Final = "feedback"


class DelayFeedback(OptimizerWrapper):
    """An optimizer with error feedback on stale updates. Belongs to one worker."""

    own = (FEEDBACK,)

    def __init__(self, rule: Optimizer) -> None:
        super().__init__(rule)
        self.scratch_arrays = 1
        self._before: Float32 | None = None  # the last addition

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Apply an update, add `step.feedback` times as much, and subtract the last addition.

        Concurrency: both are added as the arena's mode promises; other workers may write between
        the two.
        """
        import numpy as np

        assert target.metal is None
        if self._before is None:
            self._before = np.zeros(target.flat.size, np.float32)
        own = StepTrace(last=target.private[FEEDBACK], prev=self._before)
        self.rule.update(replace(target, record=own), pairs, step)
        how: dict[str, Any] = {"locks": target.locks, "mode": target.mode, "seed": step.seed}
        for slot, grad in pairs:
            if isinstance(grad, Rows) or slot.kind != "dense":
                continue
            added, before = (parameter(flat, slot) for flat in own)
            added *= step.feedback
            change = added - before
            if change.any():
                with target.writing():
                    updates.add(target.flat, slot, change, **how)
