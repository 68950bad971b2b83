"""Steps through Metal kernels are the native steps: same rule, same rounding, same groups."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.errors import ShapeError
from mlxhog.metal.engine import ReferenceEngine, shares_memory
from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.metal.engine_torch import MPSEngine
from mlxhog.metal.registry import KERNELS
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import SGD, AdamW, Apollo, Momentum, Muon, Target, metal_steps
from mlxhog.optim.gradients import Rows
from mlxhog.optim.metal_steps import MetalSteps, decay_flags
from mlxhog.optim.rule import StepTrace, new_state
from mlxhog.optim.rule import parameter as view
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.fake_gpu import FakeMLX, FakeMPS
from tests.optim.small import SLOTS
from tests.pairs import each_of
from tests.tolerances import STEP_F32, assert_close

ENGINES = ["reference", "emulated:mlx", "emulated:mps"]
HIDDEN = frozenset({"a.matrix", "z.matrix"})
RULES = {
    "sgd": SGD(weight_decay=0.1),
    "momentum": Momentum(weight_decay=0.1),
    "nesterov": Momentum(weight_decay=0.1, nesterov=True),
    "adamw": AdamW(weight_decay=0.1),
    "adamw-shared": AdamW(weight_decay=0.1, shared=True),
    "muon": Muon(hidden=HIDDEN),
    "muon-shared": Muon(hidden=HIDDEN, shared=True),
    "apollo": Apollo(hidden=HIDDEN, rank=2, weight_decay=0.3),
    "apollo-mini": Apollo(hidden=HIDDEN, rank=2, tensor=True, weight_decay=0.3),
}
STATE = ("m.1", "v.1", "m", "v", "last", "prev")
SHAPES = {
    "a.bias": (7,), "a.matrix": (5, 9), "b.scale": (32,), "embedding": (11, 5),
    "z.matrix": (40, 33),
}  # fmt: skip
PARAMETERS = {
    name: ParamSpec(name, shape, "zeros", "rows" if name == "embedding" else "dense")
    for name, shape in SHAPES.items()
}
DECAY = frozenset({"a.matrix", "embedding", "z.matrix"})


@pytest.fixture(scope="module")
def create(host_engine):
    """Makes engines by name."""

    def make(name):
        consumer = name.partition(":")[2]
        return host_engine(consumer) if consumer else ReferenceEngine()

    return make


@pytest.fixture
def arena():
    shared = ("m", "v", "last", "prev")
    layout = plan(PARAMETERS, max_workers=2, private=("m", "v"), shared=shared, n_tickets=4)
    with Arena.create(layout, write="cas") as arena:
        rng = np.random.default_rng(0)
        for name in PARAMETERS:
            arena.param(name)[...] = rng.standard_normal(SHAPES[name])
        yield arena


def gradients(step):
    rng = np.random.default_rng(step)
    results = {n: rng.standard_normal(shape, dtype=np.float32) for n, shape in SHAPES.items()}
    index = np.array([7, 2, 7, 0], np.int32)  # a duplicate, as tokens repeat
    results["embedding"] = Rows(index, rng.standard_normal((4, 5), dtype=np.float32))
    return results


def target(arena, rule, slot, engine, *, recorded=False):
    slots = arena.layout.slots
    shared = {name: arena.segment(name) for name in rule.shared_segments}
    return Target(
        flat=arena.params,
        slots=slots,
        locks=None,
        mode=WRITE_MODES["cas"],
        private={name: arena.segment(f"{name}.{slot}") for name in rule.state_segments},
        shared=shared,
        decay=DECAY,
        metal=None if engine is None else MetalSteps(engine, arena.params, slots, DECAY),
        record=StepTrace(arena.segment("last"), arena.segment("prev")) if recorded else None,
    )


def train(arena, rule, engine, steps=5, *, recorded=False):
    """The parameters and state after some steps from the arena's; the arena is put back."""
    before = {name: arena.segment(name).copy() for name in ("params", *STATE)}
    goal = target(arena, rule, 1, engine, recorded=recorded)
    for step in range(1, steps + 1):
        rule.step(goal, gradients(step), lr=0.05, step=step, grad_scale=0.75, shared_step=step)
    after = {name: arena.segment(name).copy() for name in before}
    for name, value in before.items():
        arena.segment(name)[...] = value
    return after


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.startswith("apollo")])
def test_one_worker_gets_the_same_bits_from_metal_kernels_as_from_native_code(
    arena, create, engine, rule
):
    native = train(arena, RULES[rule], None)
    metal = train(arena, RULES[rule], create(engine))
    for name, value in native.items():
        np.testing.assert_array_equal(metal[name], value, err_msg=name)
    assert np.abs(metal["params"] - arena.params).max() > 0.05


@pytest.mark.slow
@each_of("engine", ENGINES[:2])
@each_of("rule", ["apollo", "apollo-mini"])
def test_of_apollo_the_steps_are_those_of_native_code(arena, create, engine, rule):
    """Its state has shapes of its own."""
    rule, results, before = RULES[rule], [], arena.params.copy()
    shapes = rule.state_shapes(SHAPES)
    for make in (None, create(engine)):
        private, places = new_state(rule.state_segments, shapes, arena.params.size)
        where = target(arena, SGD(), 1, make)
        where = replace(where, private=private, places=places)
        for step in range(1, 5):
            rule.step(where, gradients(step), lr=0.05, step=step, grad_scale=0.5)
        results.append(arena.params.copy())
        arena.params[...] = before
    assert_close(results[1], results[0], STEP_F32)
    assert np.abs(results[0] - before).max() > 0.01


@pytest.mark.slow
@each_of(
    ("rule", "engine"),
    [("sgd", "emulated:mlx"), ("adamw-shared", "emulated:mps"), ("muon-shared", "emulated:mlx")],
)
def test_metal_kernels_record_the_steps_that_native_code_records(arena, create, rule, engine):
    native = train(arena, RULES[rule], None, recorded=True)
    metal = train(arena, RULES[rule], create(engine), recorded=True)
    for name, value in native.items():
        np.testing.assert_array_equal(metal[name], value, err_msg=name)
    slots = arena.layout.slots
    moved = {name for name in slots if view(metal["last"], slots[name]).any()}
    assert moved == (HIDDEN if rule == "muon-shared" else set(slots) - {"embedding"})


@pytest.mark.parametrize("which", ["mlx", "mps"])
@pytest.mark.parametrize("rule", ["momentum", "adamw", "adamw-shared", "muon", "muon-shared"])
def test_the_engines_of_both_frameworks_take_the_native_steps(
    arena, create, monkeypatch, which, rule
):
    """Over stand-ins of their Metal parts, which run the Metal source in MLX's own memory."""
    lender = FakeMLX(dict(KERNELS), engine=create("emulated:mlx")).install(monkeypatch)
    engine = MLXEngine()
    if which == "mps":
        FakeMPS(dict(KERNELS), engine=create("emulated:mps")).install(monkeypatch)
        engine = MPSEngine("cpu")
    monkeypatch.setattr(metal_steps, "adoptable", lambda host: host)  # not on pages, here
    names = ("params", "m.1", "v.1", "m", "v")
    lent = {name: lender.memory(arena.params.size) for name in names}
    for name in names:
        lent[name][...] = arena.segment(name)
    goal = replace(
        target(arena, RULES[rule], 1, None),
        flat=lent["params"],
        private={name: lent[f"{name}.1"] for name in RULES[rule].state_segments},
        shared={name: lent[name] for name in RULES[rule].shared_segments},
        metal=MetalSteps(engine, lent["params"], arena.layout.slots, DECAY),
    )
    for step in range(1, 4):
        RULES[rule].step(goal, gradients(step), lr=0.05, step=step, grad_scale=0.75)
    native = train(arena, RULES[rule], None, steps=3)
    for name in names:
        np.testing.assert_array_equal(lent[name], native[name], err_msg=name)
    if which == "mlx":
        assert_in_place(lender, [goal.flat, *goal.private.values(), *goal.shared.values()])


def assert_in_place(lender, segments):
    """Kernels were given the segments themselves, and returned none of the state."""
    own = {segment.ctypes.data for segment in segments}
    written = set()
    for kernel, call in zip(lender.launched, lender.calls, strict=True):
        assert {output.name for output in kernel.outputs} <= {"done", "x_out"}
        for argument, value in zip(kernel.inputs, call["inputs"], strict=True):
            if argument.writes and argument.name != "failures":
                written.add(np.array(value, copy=False).ctypes.data)
    assert written == own


def test_neighbouring_dense_parameters_are_one_launch_and_rows_another(arena):
    launched = []

    class Counting(ReferenceEngine):
        def run(self, launch):
            launched.append((launch.kernel.name, launch.inputs["offset"]))
            return super().run(launch)

    rule = AdamW()
    goal = target(arena, rule, 1, Counting())
    slots = arena.layout.slots
    rule.step(goal, gradients(0), lr=0.1, step=1)
    assert launched == [
        ("adam_apply", slots["a.bias"].offset),
        ("adam_apply_rows", slots["embedding"].offset),
        ("adam_apply", slots["z.matrix"].offset),
    ]
    launched.clear()
    some = {name: gradients(0)[name] for name in ("b.scale", "a.bias")}
    rule.step(goal, some, lr=0.1, step=2)
    assert [offset for _, offset in launched] == [slots["a.bias"].offset, slots["b.scale"].offset]


def test_a_step_writes_neither_padding_nor_the_probe(arena, create):
    after = train(arena, AdamW(weight_decay=0.5), create("emulated:mlx"))
    inside = np.zeros(arena.params.size, bool)
    for slot in arena.layout.slots.values():
        inside[slot.offset : slot.offset + slot.size] = True
    for name in ("params", "m.1", "v.1"):
        assert not after[name][~inside].any()


def test_ones_are_added_to_the_probe_by_the_kernel_that_adds(arena, create):
    metal = MetalSteps(create("emulated:mps"), arena.params, arena.layout.slots, DECAY)
    metal.add(arena.layout.probe.offset, np.ones(64, np.float32))
    assert arena.probe.tolist() == [1.0] * 64


@pytest.mark.slow
@each_of("rule", ["sgd", "adamw-shared", "muon"])
def test_warming_up_builds_the_kernels_and_changes_nothing(arena, create, rule):
    engine = create("emulated:mlx")
    metal = MetalSteps(engine, arena.params, arena.layout.slots, DECAY)
    before = arena.params.copy()
    metal.warm_up(RULES[rule].metal_rule)
    assert len(engine.ran) == (5 if rule.startswith("muon") else 2)
    metal.warm_up(metal_steps.RECORDED["sgd"])
    assert len(engine.ran) == (6 if rule.startswith("muon") else 3)
    np.testing.assert_array_equal(arena.params, before)


def test_decay_flags_are_one_per_32_floats_of_the_parameters_that_decay(arena):
    flags = decay_flags(arena.layout.slots, DECAY, arena.params.size)
    assert len(flags) == arena.params.size // 32
    for name, slot in arena.layout.slots.items():
        for at in (slot.offset, slot.offset + slot.size - 1):
            assert flags[at // 32] == (name in DECAY)


def test_parameters_off_the_32_float_boundaries_are_refused():
    with pytest.raises(ShapeError, match="'matrix' starts at float 3.*multiples of 32"):
        decay_flags(SLOTS, frozenset(), 160)


@each_of("engine", ENGINES)
def test_only_an_engine_over_the_arena_itself_passes_the_self_check(arena, create, engine):
    engine, before, at = create(engine), arena.params.copy(), arena.layout.self_check(1)
    assert shares_memory(engine, engine.adopt(arena.params), arena.params, at)
    assert not shares_memory(ReferenceEngine(), arena.params.copy(), arena.params, at)

    class ReadsOnce(ReferenceEngine):
        """Writes through, but computes with what it read first."""

        def run(self, launch):
            arena.params[at] = 1.5
            return {}

    assert not shares_memory(ReadsOnce(), arena.params, arena.params, at)
    np.testing.assert_array_equal(arena.params, before)
