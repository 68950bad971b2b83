"""Doctor's run of the Metal kernels, on the emulated engine in place of a GPU's."""

from dataclasses import replace

import pytest

from mlxhog.arena.child import Lane
from mlxhog.doctor import kernels
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.kernels import check_engine, difference, write_imported
from mlxhog.metal.engine import ReferenceEngine
from mlxhog.metal.kernels.adds import DENSE_AXPY


@pytest.fixture
def lane():
    return Lane(None, 0)


def one_kernel():
    yield DENSE_AXPY, ""


def test_an_engine_that_works_has_a_row_per_kernel(monkeypatch):
    monkeypatch.setattr(kernels, "instances", one_kernel)
    told = []
    check, rows = check_engine("emulated:mlx", told.append)
    assert check.result == CheckResult.PASS
    row = {"name": "dense_axpy", "instance": "", "engine": "emulated:mlx", "ok": True}
    allowed = DENSE_AXPY.allowed(emulated=False)
    assert rows == [{**row, "max_error": 0.0, "tolerance": allowed}]
    assert told == ["dense_axpy on emulated:mlx"]


def test_an_engine_that_cannot_start_is_told_and_runs_nothing():
    check, rows = check_engine("nothing", lambda step: None)
    assert (check.result, rows) == (CheckResult.WARN, [])
    assert "no Metal engine 'nothing'" in check.found
    assert "no --gpu-write metal" in check.consequence


def test_a_kernel_that_differs_from_its_reference_is_caught(lane, monkeypatch):
    assert difference(lane, "emulated:mps", "dense_axpy", "") == 0.0

    def half_as_much(**arrays):
        DENSE_AXPY.reference(**{**arrays, "scale": arrays["scale"] / 2})

    wrong = replace(DENSE_AXPY, reference=half_as_much)
    sampled = replace(wrong, sample=lambda rng, n: replace(DENSE_AXPY.sample(rng, n), kernel=wrong))
    monkeypatch.setattr(kernels, "KERNELS", {"dense_axpy": sampled})
    assert difference(lane, "emulated:mps", "dense_axpy", "") > 0.0


def test_an_engine_that_copies_instead_of_importing_is_caught(lane, monkeypatch):
    assert write_imported(lane, "reference") == ""
    monkeypatch.setattr(ReferenceEngine, "adopt", lambda self, host: host.copy())
    assert "imported memory has 64 wrong values" in write_imported(lane, "reference")
