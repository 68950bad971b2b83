"""Doctor measures the precision of every backend's float32, and says what a fault means."""

from __future__ import annotations

from typing import Any

import pytest

from mlxhog.backends import precision as probes
from mlxhog.backends.autodiff import MLXArrays
from mlxhog.doctor import precision
from mlxhog.doctor.checks import CheckResult
from mlxhog.machine import float32, machine
from mlxhog.models.ops.kernels import choose
from tests.backends.imprecise import FAULTS
from tests.doctor.test_frameworks import MAC


class Here:
    """Calls a child's function in this process."""

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, limit_s: float, function: Any, *arguments: Any) -> Any:
        return function(None, *arguments)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "Child", Here)


@pytest.mark.usefixtures("no_apple_gpu")
def test_every_backend_and_form_of_this_machine_is_measured() -> None:
    checks = precision.check_precision(machine.here(), ())
    names = [f"float32 of {name}, kernels {form}" for name in ("mlx:cpu", "torch:cpu")
             for form in ("reference", "native")]  # fmt: skip
    assert [check.name for check in checks] == names
    for check in checks:
        assert check.result == CheckResult.PASS, check
        assert "products " in check.found
        assert "gates " in check.found
        assert "chain " in check.found
        assert "below 1.2e-38 are kept" in check.found


@pytest.mark.usefixtures("no_apple_gpu")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_fails(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    ops = choose("mlx", "reference", "cpu")
    operator, kind = FAULTS[fault]
    monkeypatch.setattr(ops, operator, fault(getattr(ops, operator), MLXArrays("cpu", 1)))
    check = precision.check_precision(machine.here(), ())[0]
    assert (check.name, check.result) == ("float32 of mlx:cpu, kernels reference", CheckResult.FAIL)
    assert check.found.startswith(kind)
    assert "mlxhog parity tiny" in check.consequence
    monkeypatch.setenv(float32.VARIABLE, "1")
    assert "unset MLX_ENABLE_TF32" in precision.check_precision(machine.here(), ())[0].consequence


def test_a_gpu_is_measured_with_metal_kernels_where_they_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = probes.Precision(dict.fromkeys(probes.ALLOWED, 0.0), keeps_tiny=False, tiny_error=0.0)
    monkeypatch.setattr(probes, "measure", lambda *_: exact)
    names = [
        check.name for check in precision.check_precision(MAC, {"mlx"}) if "cpu" not in check.name
    ]
    assert names == [
        "float32 of mlx:gpu, kernels reference",
        "float32 of mlx:gpu, kernels metal",
        "float32 of torch:mps, kernels reference",
    ]
