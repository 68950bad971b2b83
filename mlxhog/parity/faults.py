"""Faults that can be planted in one side, to show that a comparison finds them.

A fault is computed with, never written into a result afterwards: an operator is off wherever it is
called, in the model as well as alone, and an optimizer steps along the wrong gradient. The process
that computes the side is the only one that has it, and only inside `planted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mlxhog.parity.engines import Engine
from mlxhog.parity.subject import Array

ENTRIES = ("all", "random", "one")


@dataclass(frozen=True)
class OperatorFault:
    """The first result of an operator is off by some units in the last place.

    Attributes:
        operator: name in `kernels.Ops`.
        entries: "all" are further from 0; "random" are, each, further from it or nearer to it;
            "one" is further from it, the entry in the middle of the flat array.
        ulps: how many units of each entry's own.
    """

    operator: str
    entries: str = "all"
    ulps: int = 4

    def offset(self, y: Array) -> Array:
        """Return what is added to a result, float32."""
        off = self.ulps * np.spacing(y)  # has the sign of y: away from 0
        if self.entries == "random":
            off *= np.random.default_rng(y.size).choice((-1.0, 1.0), y.shape)
        elif self.entries == "one":
            middle = np.arange(y.size).reshape(y.shape) == y.size // 2
            off = np.where(middle, off, 0.0)
        return np.asarray(off, np.float32)


@dataclass(frozen=True)
class SignFault:
    """One entry of a parameter's gradient has the wrong sign.

    Attributes:
        parameter: its name.
        place: index into the flat gradient.
    """

    parameter: str
    place: int


Fault = OperatorFault | SignFault


@contextmanager
def planted(engine: Engine, fault: Fault | None) -> Iterator[None]:
    """Let an engine compute with a fault until the block ends; None is none."""
    if fault is None:
        yield
    elif isinstance(fault, OperatorFault):
        with engine.off(fault.operator, fault.offset):
            yield
    else:
        right = engine.differentiate
        setattr(engine, "differentiate", _flipped(right, fault))  # noqa: B010  # mypy: a method
        try:
            yield
        finally:
            delattr(engine, "differentiate")


Differentiate = Callable[[Array, Array], tuple[float, dict[str, Array]]]


def _flipped(differentiate: Differentiate, fault: SignFault) -> Differentiate:
    def wrong(tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        loss, grads = differentiate(tokens, targets)
        grad = grads[fault.parameter].copy()
        grad.reshape(-1)[fault.place] *= -1.0
        return loss, grads | {fault.parameter: grad}

    return wrong
