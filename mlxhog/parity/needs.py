"""What a comparison takes, known before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from mlxhog.config.quantities import format_bytes
from mlxhog.errors import EnvironmentLacks
from mlxhog.machine import machine
from mlxhog.models import families
from mlxhog.parity.sides import Side
from mlxhog.parity.sources import Source
from mlxhog.parity.subject import ModelPlan

SHARE = 0.8  # of the machine's memory
COPIES, COPIES_OF_STEPS = 4, 16
"""Copies of the parameters in one process: values, leaves, gradients and results; then what
optimizers keep, their formulas in float64, and three results."""


def check(source: Source, sides: Sequence[Side]) -> None:
    """Refuse a model that this machine's memory does not hold once for every backend.

    Raises:
        EnvironmentLacks: says how much is wanted, and what takes less.
    """
    if not isinstance(source.plan, ModelPlan):
        return
    wanted = bytes_needed(source.plan, source.shape, sides)
    had = machine.here().memory_bytes
    if wanted > SHARE * had:
        backends = sorted({side.backend for side in sides})
        raise EnvironmentLacks(
            f"parity of {source.title} needs about {format_bytes(wanted)} in {len(backends)} "
            f"processes, and {SHARE:.0%} of this machine's memory are "
            f"{format_bytes(int(SHARE * had))}; fewer --backends, --steps 0, a smaller "
            "--batch-size or --seq-len take less"
        )


def bytes_needed(plan: ModelPlan, shape: tuple[int, ...], sides: Sequence[Side]) -> int:
    """Estimate the memory of all processes together, for tokens of `shape` (B, S)."""
    copies = COPIES + (COPIES_OF_STEPS if plan.steps else 0)
    B, S = shape
    params = families.param_count(plan.cfg)
    width = 16 * plan.cfg.hidden_size * plan.cfg.num_hidden_layers + 4 * plan.cfg.vocab_size
    total = 4 * params  # of this process
    for backend in {side.backend for side in sides}:
        size = 8 if backend == "numpy" else 4
        total += size * (copies * params + B * S * width)
    return total
