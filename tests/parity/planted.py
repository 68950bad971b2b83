"""A wrong sign in one entry of a gradient: tests and a benchmark look whether it is found."""

from contextlib import contextmanager

import pytest

from mlxhog.conformance.engines import FrameworkEngine


@contextmanager
def wrong_sign(parameter, place):
    """Let backends of this process compute a gradient with a wrong sign at a flat index."""
    right = FrameworkEngine.differentiate

    def wrong(engine, tokens, targets):
        loss, grads = right(engine, tokens, targets)
        grad = grads[parameter].copy()
        grad.reshape(-1)[place] *= -1.0
        return loss, grads | {parameter: grad}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameworkEngine, "differentiate", wrong)
        yield
