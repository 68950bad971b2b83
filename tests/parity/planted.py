"""Faults that a side of a comparison computes with, to show that the comparison finds them.

A fault is computed with, never written into a result afterwards: an operator is off wherever it is
called, in the model as well as alone, and an optimizer steps along the wrong gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from mlxhog.parity import compute
from mlxhog.parity.compute import compute_side, engine_of
from mlxhog.parity.subject import Array

ENTRIES = ("all", "random", "one")


@dataclass(frozen=True)
class OperatorFault:
    """The first result of an operator is off by some units in the last place.

    Attributes:
        operator: name in `Ops`.
        entries: "all" are further from 0; "random" are, each, further from it or nearer to it;
            "one" is further from it, the entry in the middle of the flat array.
        ulps: how many units of each entry's own.
    """

    operator: str
    entries: str = "all"
    ulps: int = 4

    def offset(self, y):
        """What is added to a result, float32."""
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
def planted(engine, fault):
    """Let an engine compute with a fault, if any, until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(fault, OperatorFault):
            ops = engine._ops()
            patch.setattr(ops, fault.operator, _off(engine, getattr(ops, fault.operator), fault))
        elif isinstance(fault, SignFault):
            patch.setattr(engine, "differentiate", _flipped(engine.differentiate, fault))
        yield


def _off(engine, right, fault):
    """An operator whose first result y is y + offset(y); gradients are those of y."""

    xp = engine._ops().xp

    def shifted(y):
        return y + xp.stop_gradient(engine._array(fault.offset(engine._host(y))))

    def wrong(*args, **kwargs):
        y = right(*args, **kwargs)
        return (shifted(y[0]), *y[1:]) if isinstance(y, tuple) else shifted(y)

    return wrong


Differentiate = Callable[[Array, Array], tuple[float, dict[str, Array]]]


def _flipped(differentiate, fault):
    def wrong(tokens, targets):
        loss, grads = differentiate(tokens, targets)
        grad = grads[fault.parameter].copy()
        grad.reshape(-1)[fault.place] *= -1.0
        return loss, grads | {fault.parameter: grad}

    return wrong


@contextmanager
def every_engine(fault):
    """Let sides compute with a fault, if any, in this process until the block ends."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:

        def faulty_engine(side):
            engine = engine_of(side)
            stack.enter_context(planted(engine, fault))
            return engine

        patch.setattr(compute, "engine_of", faulty_engine)
        yield


@dataclass(frozen=True)
class FaultySide:
    """Stands in for `compute.compute_side`, in the child too: one side computes with a fault.

    Attributes:
        name: of the side.
        fault: what it computes with.
    """

    name: str
    fault: Fault

    def __call__(self, lane, side, *arguments):
        """Compute a side's results; returns their names."""
        if side.name != self.name:
            return compute_side(lane, side, *arguments)
        with every_engine(self.fault):
            return compute_side(lane, side, *arguments)
