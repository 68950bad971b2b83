"""The bytes that a kernel says it moves are those that its source touches."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import HostArrays, Launch
from mlxhog.metal.registry import KERNELS
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import AdamW, Momentum, Optimizer, Target
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.kernels import traffic
from tests.pairs import each_of

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
    """Where MLX's texts of all kernels are."""
    return shim_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """Where the kernels are compiled."""
    folder = tmp_path_factory.mktemp("traffic")
    counted = [(KERNELS[name], instance) for name, instance in MEMORY_BOUND]
    traffic.compile_all(counted, folder, texts)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "instance"), MEMORY_BOUND)
def test_a_kernel_moves_as_many_bytes_as_it_says(
    name: str, instance: str, folder: Path, texts: Path
) -> None:
    """And besides only what does not grow with its elements: rates, row numbers, factors."""
    launch = dense(KERNELS[name].sample(np.random.default_rng(1), N))
    launch = replace(launch, instance=instance)
    result = traffic.of(launch, folder, texts)
    moved = sum(argument.read + argument.written for argument in result.values())
    declared = launch.kernel.bytes_per_element * elements(launch)
    besides = {"hp", "s", "rows", "failures", "found", "added", "done"}
    besides |= {"decays"} if "rows" in launch.inputs else set()
    besides |= {"w", "bias", "back", "part"} if name.startswith("conv") else set()
    aside = sum(t.read + t.written for argument, t in result.items() if argument in besides)
    assert moved - aside == pytest.approx(declared, rel=2 / N), result


def test_the_count_sees_reads_writes_and_atomic_adds(folder: Path, texts: Path) -> None:
    launch = dense(KERNELS["dense_axpy"].sample(np.random.default_rng(1), N))
    result = traffic.of(launch, folder, texts)
    assert result["g"] == traffic.Traffic(4 * N, 0, 4 * N, 0)
    # An add of floats loads, then compares and exchanges.
    assert result["arena"] == traffic.Traffic(4 * N, 4 * N, 8 * N, 4 * N)
    done = result["done"]
    assert (done.read, done.written) == (0, 4)


class Counted(HostArrays):
    """Counts the bytes of launches, and of what an optimizer takes from them on the host."""

    name, emulated = "counted", True

    def __init__(self, folder: Path, texts: Path) -> None:
        self.folder, self.texts = folder, texts
        self.moved: Counter[str] = Counter()
        self.launched: list[str] = []

    def host(self, array: Any) -> Any:
        self.moved["copies"] += 2 * array.nbytes  # read there, written here
        return array

    def run(self, launch: Launch) -> dict[str, Any]:
        self.launched.append(launch.kernel.name)
        for name, counted in traffic.of(launch, self.folder, self.texts).items():
            self.moved[name] += counted.read + counted.written
        return {}


MOST_BYTES = 28.1


@each_of(
    ("optimizer", "kernel", "each"),
    [
        (AdamW(weight_decay=0.1), "adam_apply", {"arena": 8, "m": 8, "v": 8, "g": 4}),
        (AdamW(shared=True), "adam_shared_apply", {"arena": 8, "m": 8, "v": 8, "g": 4}),
        (Momentum(), "momentum_apply", {"arena": 8, "m": 8, "g": 4}),
    ],
)
def test_a_step_moves_each_moment_once_in_and_once_out(
    optimizer: Optimizer, kernel: str, each: dict[str, int], folder: Path, texts: Path
) -> None:
    layout = plan(
        {"w": ParamSpec("w", (N,), "zeros")},
        max_workers=1,
        private=optimizer.state_segments,
        shared=optimizer.shared_segments,
        n_tickets=1,
    )
    with Arena.create(layout, write="cas") as arena:
        engine = Counted(folder, texts)
        target = Target(
            flat=arena.params,
            slots=layout.slots,
            locks=None,
            mode=WRITE_MODES["cas"],
            private={name: arena.segment(f"{name}.1") for name in optimizer.state_segments},
            shared={name: arena.segment(name) for name in optimizer.shared_segments},
            decay=frozenset({"w"}),
            metal=MetalSteps(engine, arena.params, layout.slots, frozenset({"w"})),
        )
        optimizer.step(target, {"w": np.ones(N, np.float32)}, lr=0.1, step=1)
    assert engine.launched == [kernel]
    assert {name: engine.moved[name] / N for name in each} == each
    assert sum(engine.moved.values()) / N <= MOST_BYTES, engine.moved


@pytest.mark.slow
def test_the_kernels_of_the_cells_move_what_is_recorded(folder: Path, texts: Path) -> None:
    """A kernel that moves fewer bytes is recorded again: python -m tests.metal.kernels.traffic."""
    record = json.loads(traffic.RECORD.read_text())
    counted = traffic.model_counts(folder, texts)
    assert counted.keys() == record.keys()
    for name, numbers in counted.items():
        # Loads are those of an optimised text: another compiler may keep some more in registers.
        assert numbers == pytest.approx(record[name], rel=0.05), name
    out = counted["mlstm_out"]
    keys = traffic.DK * 4  # every position's own keys and queries pass through threadgroup memory
    assert out["group_stored"] >= 2 * keys
    assert out["group_loaded"] > out["group_stored"]
    assert counted["mlstm_states"]["group_loaded"] == 0
