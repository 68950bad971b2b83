"""Doctor's run of the Metal kernels, on the emulated engine in place of a GPU's."""

from dataclasses import replace

import pytest

from mlxhog.arena.child import Lane
from mlxhog.doctor import kernels
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.kernels import check_engine, difference, operator_fault, write_imported
from mlxhog.metal import engine as engines
from mlxhog.metal.engine import ReferenceEngine
from mlxhog.metal.kernels.adds import DENSE_AXPY
from mlxhog.metal.kernels.conv import FORWARD
from mlxhog.models.ops import kernels as choose_kernels
from tests.metal.faulty import FaultyEngine


@pytest.fixture
def lane():
    return Lane(None, 0)


def test_an_engine_that_works_has_a_row_per_kernel_of_parameters_and_per_operator(monkeypatch):
    monkeypatch.setattr(kernels, "KERNELS", {"dense_axpy": DENSE_AXPY, "conv_forward": FORWARD})
    only = {"causal_conv": kernels.self_check.CHECKS["causal_conv"]}
    monkeypatch.setattr(kernels.self_check, "CHECKS", only)
    told = []
    check, rows = check_engine("emulated:mlx", told.append)
    assert check.result == CheckResult.PASS
    row = {"instance": "", "engine": "emulated:mlx", "ok": True}
    allowed = DENSE_AXPY.allowed(emulated=False)
    assert rows == [
        {**row, "name": "dense_axpy", "max_error": 0.0, "tolerance": allowed},
        {**row, "name": "causal_conv", "max_error": None, "tolerance": 0.0},
    ]
    assert told == ["dense_axpy on emulated:mlx", "causal_conv on emulated:mlx"]


def test_an_operator_whose_kernel_is_off_is_caught(lane, monkeypatch):
    monkeypatch.setattr(engines, "create", lambda name: FaultyEngine("conv_forward"))
    choose_kernels._metal.cache_clear()
    assert "is off by" in operator_fault(lane, "emulated:mps", "causal_conv")
    choose_kernels._metal.cache_clear()


def test_an_engine_that_cannot_start_is_told_and_runs_nothing():
    check, rows = check_engine("nothing", lambda step: None)
    assert (check.result, rows) == (CheckResult.WARN, [])
    assert "no Metal engine 'nothing'" in check.found
    assert "no --gpu-write metal" in check.consequence


def test_a_kernel_that_differs_from_its_reference_is_caught(lane, monkeypatch):
    assert difference(lane, "emulated:mps", "dense_axpy") == 0.0

    def half_as_much(**arrays):
        DENSE_AXPY.reference(**{**arrays, "scale": arrays["scale"] / 2})

    wrong = replace(DENSE_AXPY, reference=half_as_much)
    sampled = replace(wrong, sample=lambda rng, n: replace(DENSE_AXPY.sample(rng, n), kernel=wrong))
    monkeypatch.setattr(kernels, "KERNELS", {"dense_axpy": sampled})
    assert difference(lane, "emulated:mps", "dense_axpy") > 0.0


def test_an_engine_that_copies_instead_of_importing_is_caught(lane, monkeypatch):
    assert write_imported(lane, "reference") == ""
    monkeypatch.setattr(ReferenceEngine, "adopt", lambda self, host: host.copy())
    assert "imported memory has 64 wrong values" in write_imported(lane, "reference")
