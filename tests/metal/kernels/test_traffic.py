"""The bytes that a kernel says it moves are those that its source touches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import Launch
from mlxhog.metal.registry import KERNELS
from tests.metal.kernels import traffic

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

N = 4096
MEMORY_BOUND = [
    (kernel.name, instance)
    for kernel in KERNELS.values()
    if kernel.bytes_per_element
    for instance in kernel.instances or ("",)
]


def dense(launch: Launch) -> Launch:
    """The launch without the zeros and repeated rows that samples have, which would move less."""
    inputs = dict(launch.inputs)
    if "rows" in inputs:
        inputs["rows"] = np.arange(inputs["rows"].size, dtype=np.int32)
    if "blocks" in inputs:
        inputs["blocks"] = np.arange(inputs["blocks"].size, dtype=np.int32)
    if "added" in inputs:
        inputs["g"] = np.ones_like(inputs["g"])
    return replace(launch, inputs=inputs)


def elements(launch: Launch) -> int:
    """What `bytes_per_element` counts: the floats, halves or blocks that come in."""
    names = ("g", "x", "dpre", "part", "blocks")
    counted = next(name for name in names if name in launch.inputs)
    halves = 2 if launch.kernel.name == "packed16_add" else 1
    return int(launch.inputs[counted].size) * halves


@pytest.fixture(scope="module")
def texts(host_engine: Callable[..., HostEngine], shim_cache: Path) -> Path:
    """Where MLX's texts of all kernels are, which are compiled."""
    counted = [(KERNELS[name], instance) for name, instance in MEMORY_BOUND]
    traffic.compile_all(counted, shim_cache)
    return shim_cache


@pytest.mark.slow
@pytest.mark.parametrize(("name", "instance"), MEMORY_BOUND)
def test_a_kernel_moves_as_many_bytes_as_it_says(name: str, instance: str, texts: Path) -> None:
    """And besides only what does not grow with its elements: rates, row numbers, factors."""
    launch = dense(KERNELS[name].sample(np.random.default_rng(1), N))
    launch = replace(launch, instance=instance)
    result = traffic.of(launch, texts)
    moved = sum(argument.read + argument.written for argument in result.values())
    declared = launch.kernel.bytes_per_element * elements(launch)
    besides = {"hp", "s", "rows", "failures", "found", "added", "done"}
    besides |= {"decays"} if "rows" in launch.inputs else set()
    besides |= {"w", "bias", "back", "part"} if name.startswith("conv") else set()
    aside = sum(t.read + t.written for argument, t in result.items() if argument in besides)
    assert moved - aside == pytest.approx(declared, rel=2 / N), result


def test_the_count_sees_reads_writes_and_atomic_adds(texts: Path) -> None:
    launch = dense(KERNELS["dense_axpy"].sample(np.random.default_rng(1), N))
    result = traffic.of(launch, texts)
    assert result["g"] == traffic.Traffic(4 * N, 0, 4 * N, 0)
    # An add of floats loads, then compares and exchanges.
    assert result["arena"] == traffic.Traffic(4 * N, 4 * N, 8 * N, 4 * N)
    done = result["done"]
    assert (done.read, done.written) == (0, 4)


@pytest.mark.slow
def test_the_kernels_of_the_cells_move_what_is_recorded(texts: Path) -> None:
    """A kernel that moves fewer bytes is recorded again: python -m tests.metal.kernels.traffic."""
    record = json.loads(traffic.RECORD.read_text())
    counted = traffic.model_counts(texts)
    assert counted.keys() == record.keys()
    for name, numbers in counted.items():
        # Loads are those of an optimised text: another compiler may keep some more in registers.
        assert numbers == pytest.approx(record[name], rel=0.05), name
    out = counted["mlstm_out"]
    keys = traffic.DK * 4  # every position's own keys and queries pass through threadgroup memory
    assert out["group_stored"] >= 2 * keys
    assert out["group_loaded"] > out["group_stored"]
    assert counted["mlstm_states"]["group_loaded"] == 0
