"""Backends are started for real, measured, and a bad gradient is refused."""

from __future__ import annotations

import numpy as np
import pytest

from mlxhog import machine
from mlxhog.doctor import backends
from mlxhog.doctor.checks import Result
from mlxhog.machine import Machine
from mlxhog.mix import BACKENDS, missing


def test_backends_here_compute_a_gradient_and_are_measured() -> None:
    checks, speeds = backends.examine(machine.here(), seconds=0.05)
    assert [check.name for check in checks] == [f"backend {name}" for name in BACKENDS]
    for check, name in zip(checks, BACKENDS, strict=True):
        lack = missing(name, machine.here())
        assert check.result == (Result.PASS if lack is None else Result.ABSENT), check
        assert (name in speeds) == (lack is None)
    assert all(speed > 0 for speed in speeds.values())


def test_a_backend_that_does_not_start_fails_and_is_not_measured() -> None:
    if machine.here().apple_gpu:
        pytest.skip("this machine has what the case lacks: an Apple GPU")
    mac = Machine("macos", "arm64", 10, 8 << 30, "Apple M4", frozenset({"mlx"}))
    checks, speeds = backends.examine(mac, seconds=0.01)
    gpu = next(check for check in checks if check.name == "backend mlx:gpu")
    assert gpu.result == Result.FAIL
    assert "Metal" in gpu.found
    assert "--workers mlx:gpu cannot train here" in gpu.consequence
    assert set(speeds) == {"mlx:cpu"}


@pytest.mark.parametrize("bad", [np.zeros(3, np.float32), np.array([np.nan], np.float32)])
def test_a_gradient_that_is_zero_or_not_finite_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="gradient of w is not finite, or all zero"):
        backends._check_gradients(1.0, {"v": np.ones(2, np.float32), "w": bad})
    with pytest.raises(ValueError, match="the loss is nan"):
        backends._check_gradients(float("nan"), {})
