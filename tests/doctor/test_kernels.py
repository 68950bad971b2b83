"""Doctor's run of the Metal kernels, on the emulated engine in place of a GPU's."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.arena.child import Lane
from mlxhog.doctor import kernels
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.kernels import check_engine, operator_fault, step_error, write_imported
from mlxhog.metal import engine as engines
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import FUSED_RTOL
from mlxhog.models.ops import kernels as choose_kernels
from tests.metal.faulty import FaultyEngine
from tests.pairs import each_of


@pytest.fixture
def lane():
    return Lane(None, 0)


def test_an_engine_that_works_has_a_row_of_its_steps_and_one_per_operator(monkeypatch):
    only = {"causal_conv": kernels.self_check.CHECKS["causal_conv"]}
    monkeypatch.setattr(kernels.self_check, "CHECKS", only)
    told = []
    check, rows = check_engine("emulated:mlx", told.append)
    assert check.result == CheckResult.PASS
    row = {"instance": "", "engine": "emulated:mlx", "ok": True}
    assert rows == [
        {**row, "name": "steps", "max_error": 0.0, "tolerance": FUSED_RTOL},
        {**row, "name": "causal_conv", "max_error": None, "tolerance": 0.0},
    ]
    assert told == ["steps on emulated:mlx", "causal_conv on emulated:mlx"]


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


@each_of("kernel", ["step_recorded", "step_rows"])
def test_steps_that_differ_from_native_ones_are_caught(lane, monkeypatch, kernel):
    class Wrong(HostEngine):
        def run(self, launch):
            if launch.kernel.name == kernel:
                g = launch.inputs["g"] * np.float32(1.01)
                launch = replace(launch, inputs={**launch.inputs, "g": g})
            return super().run(launch)

    monkeypatch.setattr(engines, "create", lambda name: Wrong("mps"))
    assert step_error(lane, "emulated:mps") > 1e-3


def test_an_engine_that_copies_instead_of_importing_is_caught(lane, monkeypatch):
    assert write_imported(lane, "emulated:mlx") == ""
    monkeypatch.setattr(HostEngine, "adopt", lambda self, host: host.copy())
    assert "imported memory has 64 wrong values" in write_imported(lane, "emulated:mlx")
