"""The precision of float32 is measured on every backend, and planted faults are noticed."""

import numpy as np
import pytest

from mlxhog.backends import precision
from mlxhog.backends.autodiff import MLXArrays, TorchArrays
from mlxhog.models.ops.kernels import choose
from tests.backends.imprecise import FAULTS, cut

ARRAYS = {"torch": TorchArrays, "mlx": MLXArrays}


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_a_backend_of_this_machine_computes_float32(framework, kernels):
    measured = precision.measure(framework, "cpu", kernels)
    assert measured.bad == [], str(measured)
    assert measured.keeps_tiny


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_a_planted_fault_is_noticed(monkeypatch, framework, fault):
    arrays, ops = ARRAYS[framework]("cpu", 1), choose(framework, "reference", "cpu")
    operator, kind = FAULTS[fault]
    monkeypatch.setattr(ops, operator, fault(getattr(ops, operator), arrays))
    measured = precision.compared(arrays, ops)
    assert kind in measured.bad
    assert f"{kind} {measured.errors[kind]:.1e}" in str(measured)


def test_cut_operands_have_the_error_of_tf32(monkeypatch):
    x = np.float32([1.0 + 2.0**-10, 1.0 + 2.0**-11, -np.pi])
    assert (cut(x)[:2] == [1.0 + 2.0**-10, 1.0]).all()
    assert 0 < (x[2] - cut(x)[2]) / x[2] < 2.0**-10


@pytest.mark.parametrize(("below", "bad"), [(1.1e-38, []), (1e-36, [precision.TINY])])
def test_a_flush_to_zero_is_measured_and_no_fault_below_the_normal_numbers(monkeypatch, below, bad):
    arrays, ops = TorchArrays("cpu", 1), choose("torch", "reference", "cpu")
    host = arrays.host
    monkeypatch.setattr(arrays, "host", lambda x: np.where(abs(host(x)) < below, 0.0, host(x)))
    measured = precision.compared(arrays, ops)
    assert (measured.bad, measured.keeps_tiny) == (bad, False)
    assert "numbers below 1.2e-38 are flushed to zero" in str(measured)
