"""Steps through Metal kernels are the native steps: same rule, same rounding, same groups."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.arena import Arena, plan
from mlxhog.metal.emulator.engine import EmulatorEngine
from mlxhog.metal.engine_mlx import MLXEngine
from mlxhog.metal.engine_torch import MPSEngine
from mlxhog.metal.engines import shares_memory
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import (
    SGD,
    AdamW,
    Adan,
    Apollo,
    Momentum,
    Muon,
    RunContext,
    UpdateTarget,
    metal_steps,
)
from mlxhog.optim.gradients import Rows
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.rule import StepTrace
from mlxhog.optim.rule import parameter as view
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.fake_gpu import FakeMLX, FakeMPS
from tests.pairs import each_of

HIDDEN = frozenset({"a.matrix", "z.matrix"})
RULES = {
    "sgd": SGD(weight_decay=0.1),
    "momentum": Momentum(weight_decay=0.1),
    "adamw-shared": AdamW(weight_decay=0.1, run=RunContext(shared=True)),
    "adan": Adan(weight_decay=0.1),
    "muon": Muon(run=RunContext(hidden=HIDDEN)),
    "apollo": Apollo(run=RunContext(hidden=HIDDEN), rank=2, weight_decay=0.3),
}
STATE = ("m", "v", "last", "prev")
SHAPES = {
    "a.bias": (7,), "a.matrix": (5, 9), "b.scale": (32,), "embedding": (11, 5),
    "z.matrix": (40, 33),
}  # fmt: skip
PARAMETERS = {
    name: ParamSpec(name, shape, "zeros", "rows" if name == "embedding" else "dense")
    for name, shape in SHAPES.items()
}
DECAY = frozenset({"a.matrix", "embedding", "z.matrix"})


@pytest.fixture
def arena():
    layout = plan(PARAMETERS, max_workers=2, shared=STATE, n_tickets=4)
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


def target(arena, rule, engine, *, recorded=False):
    slots = arena.layout.slots
    return replace(
        UpdateTarget.alone(rule, arena.params, slots, DECAY),
        mode=WRITE_MODES["cas"],
        shared={name: arena.segment(name) for name in rule.shared_segments},
        metal=None if engine is None else MetalSteps(engine, arena.params, slots, DECAY),
        record=StepTrace(arena.segment("last"), arena.segment("prev")) if recorded else None,
    )


def train(arena, rule, engine, steps=4, *, recorded=False):
    """The parameters and state after some steps from the arena's; the arena is put back."""
    before = {name: arena.segment(name).copy() for name in ("params", *STATE)}
    goal = target(arena, rule, engine, recorded=recorded)
    for step in range(1, steps + 1):
        rule.step(goal, gradients(step), lr=0.05, step=step, grad_scale=0.75)
    after = {name: arena.segment(name).copy() for name in before} | dict(goal.private)
    for name, value in before.items():
        arena.segment(name)[...] = value
    return after


@each_of("recorded", [False, True], ids=["", "recorded"])
@each_of("rule", RULES)
def test_one_worker_gets_the_same_bits_from_metal_kernels_as_from_native_code(
    arena, emulator, rule, recorded
):
    native = train(arena, RULES[rule], None, recorded=recorded)
    metal = train(arena, RULES[rule], emulator, recorded=recorded)
    for name, value in native.items():
        np.testing.assert_array_equal(metal[name], value, err_msg=name)
    assert np.abs(metal["params"] - arena.params).max() > 0.01
    slots = arena.layout.slots
    moved = {name for name in slots if view(metal["last"], slots[name]).any()}
    which = HIDDEN if rule == "muon" else set(slots) - {"embedding"}
    assert moved == (which if recorded else set())


@each_of("which", ["mlx", "mps"])
def test_the_engines_of_both_frameworks_take_the_native_steps(arena, emulator, monkeypatch, which):
    """Over stand-ins of their Metal parts, which run the Metal source in MLX's own memory."""
    lender = FakeMLX(engine=emulator).install(monkeypatch)
    engine, rule = MLXEngine(), RULES["adamw-shared"]
    if which == "mps":
        FakeMPS(engine=emulator).install(monkeypatch)
        engine = MPSEngine("cpu")
    monkeypatch.setattr(metal_steps, "wrappable", lambda host: host)  # not on pages, here
    monkeypatch.setattr(metal_steps, "pages", lender.memory)
    wrapped = {name: lender.memory(arena.params.size) for name in ("params", "last", "prev")}
    for name, memory in wrapped.items():
        memory[...] = arena.segment(name)
    goal = replace(
        target(arena, rule, None),
        flat=wrapped["params"],
        record=StepTrace(wrapped["last"], wrapped["prev"]),
        metal=MetalSteps(engine, wrapped["params"], arena.layout.slots, DECAY),
    )
    for step in range(1, 4):
        rule.step(goal, gradients(step), lr=0.05, step=step, grad_scale=0.75)
    for segment in goal.shared.values():
        segment[...] = 0
    native = train(arena, rule, None, steps=3, recorded=True)
    for name, memory in wrapped.items():
        np.testing.assert_array_equal(memory, native[name], err_msg=name)
    if which == "mps":
        return
    written = set()  # kernels were given the segments themselves, and returned none of them
    for kernel, call in zip(lender.launched, lender.calls, strict=True):
        assert {output.name for output in kernel.outputs} == {"done"}
        for argument, value in zip(kernel.inputs, call["inputs"], strict=True):
            if argument.writes:
                written.add(np.array(value, copy=False).ctypes.data)
    assert written == {memory.ctypes.data for memory in wrapped.values()}


@each_of("rule", RULES)
def test_a_step_copies_no_direction_of_an_elementwise_optimizer_to_the_gpu(
    arena, emulator, monkeypatch, rule
):
    """Each gradient and moment is read once, and each direction is where the kernels read it."""
    goal, counts = target(arena, RULES[rule], emulator), {"array": 0, "copied": 0}
    array, memory = emulator.array, goal.metal._directions

    def copies(host):
        counts["array"] += host.size
        return array(host)

    write = goal.metal.write

    def watched(directions, *rates):
        inside = [u for _, u in directions if isinstance(u, np.ndarray)]
        counts["copied"] += sum(not np.shares_memory(u, memory) for u in inside)
        write(directions, *rates)

    monkeypatch.setattr(emulator, "array", copies)
    monkeypatch.setattr(goal.metal, "write", watched)
    passes, step = Counter(), _native.step
    monkeypatch.setattr(
        _native, "step", lambda *of, **how: passes.update([of[6]]) or step(*of, **how)
    )
    RULES[rule].step(goal, gradients(1), lr=0.05, step=1, grad_scale=0.75)
    assert set(passes.values()) <= {1}, "one pass over the moments of a parameter"
    rows = 3 * 5 + 3 + 8  # directions and places of the embedding's rows, and the rates
    assert counts["array"] <= 2 * rows, "no dense direction"
    if rule in ("momentum", "adamw-shared", "adan"):
        assert (counts["copied"], len(passes)) == (0, len(SHAPES))


def test_warming_up_builds_the_kernels_and_changes_nothing(arena, emulator):
    metal = MetalSteps(emulator, arena.params, arena.layout.slots, DECAY)
    before = arena.params.copy()
    metal.warm_up(recorded=True)
    assert emulator.ran >= {"step", "step_rows", "step_recorded"}
    np.testing.assert_array_equal(arena.params, before)


def test_only_an_engine_over_the_arena_itself_passes_the_self_check(arena, emulator):
    before, at = arena.params.copy(), arena.layout.self_check(1)
    assert shares_memory(emulator, emulator.wrap(arena.params), arena.params, at)
    assert not shares_memory(emulator, arena.params.copy(), arena.params, at)

    class ReadsOnce(EmulatorEngine):
        """Writes through, but computes with what it read first."""

        def run(self, launch):
            arena.params[at] = 1.5
            return {}

    assert not shares_memory(ReadsOnce(), arena.params, arena.params, at)
    np.testing.assert_array_equal(arena.params, before)
