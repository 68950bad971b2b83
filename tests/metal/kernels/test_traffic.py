"""The bytes that a kernel says it moves are those that its source touches."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.metal.kernel import HostArrays
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import AdamW, Momentum, Target
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.host import probes
from tests.metal.kernels import traffic
from tests.pairs import each_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

N = traffic.ELEMENTS
MEMORY_BOUND = traffic.memory_bound()


@pytest.fixture(scope="module", autouse=True)
def _compiled(shim_cache):
    traffic.compile_all([(one.kernel, one.instance) for one in MEMORY_BOUND.values()])


@pytest.mark.slow
@each_of("name", MEMORY_BOUND)
def test_a_kernel_moves_as_many_bytes_as_it_says(name):
    """And besides only what does not grow with its elements: rates, row numbers, factors."""
    launch = MEMORY_BOUND[name]
    result = traffic.of(launch)
    moved = sum(argument.read + argument.written for argument in result.values())
    declared = launch.kernel.bytes_per_element * traffic.elements(launch)
    besides = {traffic.THREADGROUP, "hp", "s", "rows", "failures", "found", "added", "done"}
    besides |= {"decays"} if "rows" in launch.inputs else set()
    besides |= {"w", "bias", "back", "part"} if name.startswith("conv") else set()
    aside = sum(t.read + t.written for argument, t in result.items() if argument in besides)
    assert moved - aside == pytest.approx(declared, rel=2 / N), result


@pytest.mark.slow
def test_the_count_sees_reads_writes_and_atomic_adds():
    result = traffic.of(MEMORY_BOUND["dense_axpy"])
    assert result["g"] == traffic.Traffic(4 * N, 0, 4 * N, 0, N // 32, N // 32)
    # An add of floats loads, then compares and exchanges.
    arena = result["arena"]
    assert (arena.read, arena.written) == (4 * N, 4 * N)
    assert (arena.loaded, arena.stored) == (8 * N, 4 * N)
    assert arena.accesses == 2 * N // 32
    done = result["done"]
    assert (done.read, done.written) == (0, 4)


class Counted(HostArrays):
    """Counts the bytes of launches, and of what an optimizer takes from them on the host."""

    name, emulated = "counted", True

    def __init__(self):
        self.moved = Counter()
        self.launched = []

    def host(self, array):
        self.moved["copies"] += 2 * array.nbytes  # read there, written here
        return array

    def run(self, launch):
        self.launched.append(launch.kernel.name)
        for name, counted in traffic.of(launch).items():
            self.moved[name] += counted.read + counted.written
        return {}


MOST_BYTES = 28.1


@pytest.mark.slow
@each_of(
    ("optimizer", "kernel", "each"),
    [
        (AdamW(weight_decay=0.1), "adam_apply", {"arena": 8, "m": 8, "v": 8, "g": 4}),
        (AdamW(shared=True), "adam_shared_apply", {"arena": 8, "m": 8, "v": 8, "g": 4}),
        (Momentum(), "momentum_apply", {"arena": 8, "m": 8, "g": 4}),
    ],
)
def test_a_step_moves_each_moment_once_in_and_once_out(optimizer, kernel, each):
    layout = plan(
        {"w": ParamSpec("w", (N,), "zeros")},
        max_workers=1,
        private=optimizer.state_segments,
        shared=optimizer.shared_segments,
        n_tickets=1,
    )
    with Arena.create(layout, write="cas") as arena:
        engine = Counted()
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
@each_of(("stride", "lines"), [(0, 1), (1, 1), (2, 2), (3, 3), (32, 32), (33, 32)])
def test_an_access_of_a_simdgroup_touches_the_lines_of_its_threads(stride, lines):
    x = np.zeros(64 * max(1, stride), np.float32)
    result = traffic.of(probes.on(probes.STRIDED, x, n=64, stride=stride))
    # Two simdgroups read twice, before and after they meet, and write once.
    assert result["x"] == traffic.Traffic(
        4 * (64 if stride else 1), 0, 2 * 64 * 4, 0, accesses=4, lines=4 * lines
    )
    assert (result["y"].accesses, result["y"].lines) == (2, 2)
    assert result[traffic.THREADGROUP].written == 4 * 32


@pytest.mark.slow
def test_no_count_of_a_kernel_is_above_its_record():
    """A kernel that touches less is recorded again: python -m tests.metal.kernels.traffic."""
    record = json.loads(traffic.RECORD.read_text())
    counted = traffic.counts()
    assert counted.keys() == record.keys()
    for name, numbers in counted.items():
        recorded = dict(flat(record[name]))
        for what, count in flat(numbers):
            # Loads are those of an optimised text: another compiler may keep fewer in registers.
            assert count <= 1.05 * recorded.get(what, 0.0), f"{name} {what}"


def flat(numbers):
    """Counts, those of each argument among them, by name."""
    for name, count in numbers.items():
        if isinstance(count, dict):
            yield from ((f"{name} {argument}", n) for argument, n in count.items())
        else:
            yield name, count
