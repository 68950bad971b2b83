"""Kernels against their references: every instance is run, and a wrong one is caught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxhog.arena.child import Lane
from mlxhog.doctor import kernels
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.kernels import Engines, difference, write_imported
from mlxhog.metal.host import mlx_text
from mlxhog.metal.kernels.adds import DENSE_AXPY
from mlxhog.metal.registry import KERNELS, instances

ENGINES = ["emulated:mlx", "emulated:mps"]


@pytest.fixture
def lane() -> Lane:
    return Lane(None, 0)


def test_every_kernel_is_run_in_every_instance_it_is_dispatched_in() -> None:
    pairs = [(kernel.name, instance) for kernel, instance in instances()]
    assert {name for name, _ in pairs} == set(KERNELS)
    assert len(pairs) == len(set(pairs))


def test_emulated_engines_start_write_imported_memory_and_agree() -> None:
    engines = Engines(ENGINES)
    try:
        checks, usable = engines.start()
        assert [check.result for check in checks] == [CheckResult.PASS] * 2
        assert usable == ENGINES
        for name in usable:
            row = engines.compare(name, DENSE_AXPY, "")
            assert row == {
                "name": "dense_axpy",
                "instance": "",
                "engine": name,
                "ran": True,
                "max_error": 0.0,
                "tolerance": 0.0,
                "ok": True,
                "emulated": True,
            }
    finally:
        engines.close()


def test_an_engine_that_cannot_start_is_told_and_left_out() -> None:
    engines = Engines(["mlx" if not _apple() else "nothing"])
    try:
        (check,), usable = engines.start()
        assert check.result == CheckResult.WARN
        assert "Lacks" in check.found or "ConfigError" in check.found
        assert "no --gpu-write metal" in check.consequence
        assert usable == []
        row = engines.compare("nothing", DENSE_AXPY, "")
        assert not row["ok"]
        assert not row["ran"]
        assert "no Metal engine 'nothing'" in row["error"]
    finally:
        engines.close()


class _Said:
    """A child that has found this error."""

    def __init__(self, error: float) -> None:
        self.error = error

    def call(self, *_: Any) -> float:
        return self.error

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("engine", "ok"), [("mlx", True), ("mps", True), ("emulated:mlx", False)])
def test_a_gpu_may_fuse_where_emulation_has_to_give_the_same_bits(engine: str, ok: bool) -> None:
    engines = Engines([engine])
    engines._children[engine] = _Said(3e-7)  # type: ignore[assignment]
    row = engines.compare(engine, KERNELS["adam_apply"], "")
    assert row["ok"] is ok
    assert (row["tolerance"] > 0) is ok


def _apple() -> bool:
    from mlxhog.machine import machine

    return machine.here().apple_gpu


def test_a_kernel_that_differs_from_its_reference_is_caught(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert difference(lane, "reference", "dense_axpy", "") == 0.0

    def half_as_much(**arrays: Any) -> None:
        DENSE_AXPY.reference(**{**arrays, "scale": arrays["scale"] / 2})

    wrong = _sampled_as(replace(DENSE_AXPY, reference=half_as_much), DENSE_AXPY)
    monkeypatch.setattr(kernels, "KERNELS", {"dense_axpy": wrong})
    assert difference(lane, "emulated:mps", "dense_axpy", "") > 0.0


def _sampled_as(wrong: Any, right: Any) -> Any:
    """A kernel whose samples are launches of itself."""
    return replace(wrong, sample=lambda rng, n: replace(right.sample(rng, n), kernel=wrong))


def test_a_nan_on_one_side_only_is_an_infinite_error() -> None:
    one, nan = np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32)
    assert kernels._error(nan, one) == np.inf
    assert kernels._error(nan, nan) == 0.0
    assert kernels._error(one, 2 * one) == 0.5


def test_an_engine_that_copies_instead_of_importing_is_caught(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxhog.metal.engine import ReferenceEngine

    assert write_imported(lane, "reference") == ""
    monkeypatch.setattr(ReferenceEngine, "adopt", lambda self, host: host.copy())
    assert "imported memory has 64 wrong values" in write_imported(lane, "reference")


def test_mlx_says_the_text_that_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.check_mlx_text().result == CheckResult.PASS
    stated = mlx_text.stated
    monkeypatch.setattr(
        mlx_text, "stated", lambda request: stated(request).replace("device", "constant")
    )
    check = kernels.check_mlx_text()
    assert check.result == CheckResult.WARN
    assert "not dense_axpy" in check.found


def test_a_cache_that_cannot_be_written_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    check = kernels.check_mlx_text()
    assert check.result == CheckResult.WARN
    assert "set XDG_CACHE_HOME to a folder that can be written" in check.found
