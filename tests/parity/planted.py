"""A wrong sign in one gradient, which a side computes with: a comparison has to find it."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from mlxhog.parity import compute
from mlxhog.parity.compute import engine_of


@dataclass(frozen=True)
class SignFault:
    """One entry of a parameter's gradient has the wrong sign; `place` is its flat index."""

    parameter: str
    place: int

    def differentiate(self, right):
        """Return a method like an engine's, with the fault."""

        def wrong(tokens, targets):
            loss, grads = right(tokens, targets)
            grad = grads[self.parameter].copy()
            grad.reshape(-1)[self.place] *= -1.0
            return loss, grads | {self.parameter: grad}

        return wrong


@contextmanager
def every_engine(fault):
    """Let sides compute with a fault, if any, in this process until the block ends."""

    def faulty_engine(side):
        engine = engine_of(side)
        if fault is not None:
            engine.differentiate = fault.differentiate(engine.differentiate)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "engine_of", faulty_engine)
        yield
