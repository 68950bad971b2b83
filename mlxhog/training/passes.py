"""How often a budget reads the text, and a warning where that is too often.

Text that is read again teaches nearly as much as new text up to about four times, and less and less
after that (Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264).
"""

from __future__ import annotations

from mlxhog.config.budget import Budget
from mlxhog.config.quantities import format_count

MANY = 4.0


def in_budget(
    budget: Budget, *, epoch_tokens: int, tokens_per_step: int, tokens_per_s: float | None = None
) -> float | None:
    """Return how many times a budget reads the text; None where only an unknown speed would tell.

    Args:
        budget: of a run or a part of it.
        epoch_tokens: in one pass.
        tokens_per_step: of the run.
        tokens_per_s: of the run, where it is known.
    """
    tokens: list[float] = []
    if budget.steps is not None:
        tokens.append(budget.steps * tokens_per_step)
    if budget.tokens is not None:
        tokens.append(budget.tokens)
    if budget.seconds is not None and tokens_per_s is not None:
        tokens.append(budget.seconds * tokens_per_s)
    return min(tokens) / epoch_tokens if tokens else None


def warning(passes: float | None, epoch_tokens: int) -> str | None:
    """Warn of a text that is read more than `MANY` times; None where it is not."""
    if passes is None or passes <= MANY:
        return None
    return (
        f"the text of {format_count(epoch_tokens)} tokens is read {passes:.3g} times in this "
        f"budget; beyond {MANY:g} a model mostly learns it by heart: use more text, a smaller "
        "budget, or a smaller model"
    )
