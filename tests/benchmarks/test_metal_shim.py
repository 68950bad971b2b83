"""What the benchmark of the host shim counts, on a fraction of its adds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxhog.metal.kernels.adds import racy_axpy
from mlxhog.metal.registry import KERNELS

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"), pytest.mark.slow]


@pytest.fixture(scope="module")
def benchmark(load: Any) -> Any:
    return load("metal_shim")


def test_every_registered_instance_is_counted(benchmark: Any) -> None:
    counted = [(kernel.name, instance) for kernel, instance in benchmark.instances()]
    assert len(counted) == len(set(counted))
    assert {name for name, _ in counted} == set(KERNELS)
    assert {("packed16_add", "half"), ("packed16_add", "bfloat")} <= set(counted)


def test_an_atomic_kernel_loses_nothing_and_makes_as_many_adds_as_it_says(
    benchmark: Any, tmp_path: Path
) -> None:
    lost, added = benchmark.count_lost("dense_axpy", tmp_path, 1000)
    assert (lost, added) == (0, benchmark.counting.ADDS // 1000 // 64 * 64)


def test_lost_adds_are_counted_as_lost(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def racy() -> Any:
        arena, ones = np.zeros(64, np.float32), np.ones(64, np.float32)
        launch = racy_axpy(arena, ones, scale=1.0, offset=0)
        return benchmark.counting.Count(launch, (arena,))

    monkeypatch.setitem(benchmark.counting.CASES, "planted", racy)
    monkeypatch.setattr(benchmark, "THREADS", 1)  # chaos alone: the same schedule every time
    lost, added = benchmark.count_lost("planted", tmp_path, 100)
    assert 0 < lost < added
    assert 0 < benchmark.count_lost_by_racy(tmp_path, 100)[0] < added
