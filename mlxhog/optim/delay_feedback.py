"""Error feedback on delay: with a late step, a worker adds a guess of the next ones.

While a worker computes, others add tau steps, so each of its steps u comes tau updates late. The
guess is that pending steps are like the last ones. The worker adds it in advance, and takes it back
with its next step:

    w <- w + u + e - e'        e = F u,  e' the last addition,  F = tau / n

n is the number of updates of all workers between two steps of this worker, the later one included.
So the parameters are always where plain steps would have led, and F times the last step of each
worker further: about tau steps. Without staleness nothing changes.

With one stream of steps and tau = 1 it is w <- w + 2 u(t - 1) - u(t - 2): the update-level error
feedback of Zmushko et al. 2026, arXiv:2606.30634, who have no other tau. e - e' is the error of the
step that took the place of u.

    segment          meaning
    feedback.<slot>  float32, laid out as the parameters: e of this worker, which they contain

Like moments it is private to a worker slot: inherited by the worker that replaces a dead one, saved
and resumed. A worker that is killed amid a step leaves at most that step's e in the parameters. It
applies to the steps that optimizers record, see `mlxhog.optim.rule.StepTrace`: those of dense
parameters, with Muon of hidden matrices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Rows
from mlxhog.optim.rule import (
    Around,
    Optimizer,
    Pairs,
    StepTrace,
    UpdateStep,
    UpdateTarget,
    parameter,
)

FEEDBACK: Final = "feedback"


class DelayFeedback(Around):
    """An optimizer that adds a guess of the next steps to late ones. Belongs to one worker."""

    own = (FEEDBACK,)

    def __init__(self, rule: Optimizer) -> None:
        super().__init__(rule)
        self.scratch_arrays = 1
        self._before: Float32 | None = None  # the last addition

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Take one step, add `step.feedback` times as much, and take back the last addition.

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
            ahead, before = (parameter(flat, slot) for flat in own)
            ahead *= step.feedback
            change = ahead - before
            if change.any():
                with target.writing():
                    updates.add(target.flat, slot, change, **how)
