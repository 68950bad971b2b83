"""Backends are started for real, measured, and a bad gradient is refused."""

from __future__ import annotations

import numpy as np
import pytest

from mlxhog.arena.child import Failed
from mlxhog.doctor import frameworks
from mlxhog.doctor.checks import Result
from mlxhog.machine import machine
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import BACKENDS, missing

pytestmark = pytest.mark.slow


def test_backends_here_compute_a_gradient_and_are_measured() -> None:
    checks, found = frameworks.check_backends(machine.here(), seconds=0.05)
    speeds = found.usual
    assert [check.name for check in checks] == [f"backend {name}" for name in BACKENDS]
    for check, name in zip(checks, BACKENDS, strict=True):
        lack = missing(name, machine.here())
        assert check.result == (Result.PASS if lack is None else Result.ABSENT), check
        assert (name in speeds) == (lack is None)
    assert all(speed > 0 for speed in speeds.values())


@pytest.mark.usefixtures("no_apple_gpu")
def test_a_backend_that_does_not_start_fails_and_is_not_measured() -> None:
    mac = Machine("macos", "arm64", 10, 8 << 30, "Apple M4", frozenset({"mlx"}))
    checks, speeds = frameworks.check_backends(mac, seconds=0.01)
    gpu = next(check for check in checks if check.name == "backend mlx:gpu")
    assert gpu.result == Result.FAIL
    assert "Metal" in gpu.found
    assert "--workers mlx:gpu cannot train here" in gpu.consequence
    assert set(speeds.usual) == {"mlx:cpu"}
    assert speeds.metal == {}


class FakeChild:
    """Measures nothing: tells a speed for each form, and fails where one is asked to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.failing: set[tuple[str, str]] = set()

    def __enter__(self) -> FakeChild:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, limit_s: float, function: object, name: str, kernels: str, seconds: float):
        self.asked.append((name, kernels))
        if (name, kernels) in self.failing:
            raise Failed("the GPU is gone")
        return (300.0 if kernels == "metal" else 200.0), 5.5


MAC = Machine("macos", "arm64", 10, 8 << 30, "Apple M4", frozenset({"mlx", "torch"}))


def test_a_gpu_is_measured_with_both_forms_where_the_kernels_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = FakeChild()
    monkeypatch.setattr(frameworks, "Child", lambda: child)
    checks, speeds = frameworks.check_backends(MAC, 0.1, agreed={"mlx"})
    assert child.asked == [
        ("mlx:gpu", "reference"),
        ("mlx:gpu", "metal"),
        ("mlx:cpu", "auto"),
        ("torch:mps", "reference"),
        ("torch:cpu", "auto"),
    ]
    assert speeds.usual == dict.fromkeys(BACKENDS, 200.0)
    assert speeds.metal == {"mlx:gpu": 300.0}
    assert {check.result for check in checks} == {Result.PASS}


@pytest.mark.parametrize(
    ("kernels", "wanted", "asked"),
    [("metal", Result.WARN, 2), ("reference", Result.FAIL, 1)],
)
def test_a_form_that_fails_on_a_gpu_is_told_with_what_follows(
    monkeypatch: pytest.MonkeyPatch, kernels: str, wanted: Result, asked: int
) -> None:
    child = FakeChild()
    child.failing = {("mlx:gpu", kernels)}
    monkeypatch.setattr(frameworks, "Child", lambda: child)
    checks, speeds = frameworks.check_backends(MAC, 0.1, agreed={"mlx", "mps"})
    (bad,) = [check for check in checks if check.result != Result.PASS]
    assert (bad.result, bad.found) == (wanted, "the GPU is gone")
    assert "mlx:gpu" in bad.consequence
    assert len([name for name, _ in child.asked if name == "mlx:gpu"]) == asked
    assert ("mlx:gpu" in speeds.usual) == (kernels == "metal")
    assert speeds.metal == {"torch:mps": 300.0}


@pytest.mark.parametrize("bad", [np.zeros(3, np.float32), np.array([np.nan], np.float32)])
def test_a_gradient_that_is_zero_or_not_finite_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="gradient of w is not finite, or all zero"):
        frameworks._check_gradients(1.0, {"v": np.ones(2, np.float32), "w": bad})
    with pytest.raises(ValueError, match="the loss is nan"):
        frameworks._check_gradients(float("nan"), {})
