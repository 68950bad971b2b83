"""How long a run may take on this machine, measured on its first steps."""

from __future__ import annotations

from dataclasses import dataclass

from mlxhog.arena.process import monotonic_ns
from mlxhog.mad.training import alone
from mlxhog.mad.training.course import interval
from mlxhog.mad.training.run_plan import RunPlan
from mlxhog.mad.training.scoring import score

STEPS = 5
MOST_S = 10.0


@dataclass(frozen=True)
class Estimate:
    """Seconds of one step, of one evaluation, and of a run that takes every step it may."""

    step_s: float
    evaluation_s: float
    total_s: float


def estimate(plan: RunPlan) -> Estimate | None:
    """Train a few steps for the clock; None where several workers would have to be started."""
    if len(plan.workers) > 1:
        return None
    with alone.seat(plan) as (_, steps):
        steps.step()  # sets up what is set up once
        began, taken = monotonic_ns(), 0
        while taken < min(STEPS, plan.limit) and monotonic_ns() - began < MOST_S * 1e9:
            steps.step()
            taken += 1
        step_s = (monotonic_ns() - began) / 1e9 / taken
        began = monotonic_ns()
        steps.context.copy_to_inbox()
        score(steps.context.backend, plan.drawn.dataset(), plan.model, beat=lambda: None)
        evaluation_s = (monotonic_ns() - began) / 1e9
    every = interval(plan.config.protocol, plan.per_epoch)
    total_s = plan.limit * step_s + -(-plan.limit // every) * evaluation_s
    return Estimate(step_s, evaluation_s, total_s)
