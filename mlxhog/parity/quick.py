"""A quick comparison: every side and every kind of number of a large model, in part.

What takes most time and memory is cut: results token by token, conditions, steps of an optimizer,
and the rows of large gradients. `parity --quick` is for models of which a whole comparison takes
ten minutes or more memory than a machine has; it notices a wrong operator, gradient or optimizer,
but not a single wrong row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from mlxhog.models import families
from mlxhog.parity.subject import Array, ModelPlan, Plan

AT_ONCE = 2
"""Backends that compute at the same time: each holds several copies of the parameters."""
MOST = 1 << 19
"""Numbers of a gradient, of which a larger one is compared in every nth row."""
LARGEST_STEPPED = 1 << 21
"""Numbers of the largest parameter that an optimizer moves."""
AMOUNTS, NOISE_AMOUNTS = (16, -16), (0,)
"""In place of those of `tolerances.py`."""

Reduction = Callable[[str, Array], Array]
"""From the name of a parameter and its gradient to what is compared of it."""


def is_quick(plan: Plan) -> bool:
    """Whether a plan is of a quick comparison."""
    return isinstance(plan, ModelPlan) and plan.quick


def stepped(plan: ModelPlan, params: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the parameters that optimizers move: all, or a small one of each role if quick."""
    if not plan.quick:
        return params
    return {name: params[name] for name in _one_of_each_role(plan)}


def _one_of_each_role(plan: ModelPlan) -> list[str]:
    """Names of small parameters: of the last block of each kind, and outside of blocks."""
    spec = families.param_spec(plan.cfg)
    small = (name for name, one in spec.items() if one.size <= LARGEST_STEPPED)
    return list({re.sub(r"\d+", "N", name): name for name in small}.values())


def reduction(plan: ModelPlan, fixed: Mapping[str, Array]) -> Reduction:
    """Return the function that keeps every nth row of a large gradient; all rows in other plans.

    Gradients of stepped parameters stay whole. Of an embedding, the rows of the tokens are kept,
    too: the others have no gradient.
    """
    if not plan.quick:
        return lambda name, grad: grad
    whole, embedding = set(_one_of_each_role(plan)), families.embedding(plan.cfg)

    def reduced(name: str, grad: Array) -> Array:
        if grad.size <= MOST or name in whole:
            return grad
        rows = np.arange(0, len(grad), -(-grad.size // MOST))
        if name == embedding:
            rows = np.union1d(rows, fixed["tokens"])
        return grad[rows]

    return reduced


def left_out(plan: ModelPlan) -> str:
    """Say what a quick comparison leaves out."""
    moved, all_of_them = len(_one_of_each_role(plan)), len(families.param_spec(plan.cfg))
    return (
        f"quick: optimizers move {moved} of {all_of_them} parameters, one of each role with up to "
        f"{LARGEST_STEPPED:,} numbers; gradients of more than {MOST:,} are compared in every nth "
        "row, and their places count these rows; nothing is computed token by token; tolerances "
        "rest on fewer trials"
    )
