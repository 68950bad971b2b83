"""What a child does: compute one side's results from one file, and write them to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mlxhog.arena.child import Lane
from mlxhog.files import tensors
from mlxhog.parity import (
    components,
    conditioning,
    mlstm_results,
    model_results,
    operators,
    optimizers,
    slstm_results,
)
from mlxhog.parity.engine_numpy import NumPyEngine
from mlxhog.parity.engines import Engine
from mlxhog.parity.faults import Fault, planted
from mlxhog.parity.peers import PEERS
from mlxhog.parity.sides import NUMPY, Side
from mlxhog.parity.subject import Array, ComponentsPlan, MlstmPlan, ModelPlan, Plan, SlstmPlan

INPUT, FIXED = "input/", "fixed/"
THREADS = 1


def compute(
    lane: Lane,
    side: Side,
    plan: Plan,
    given: Path,
    spoilt: Path | None,
    found: Path,
    fault: Fault | None = None,
) -> list[str]:
    """Compute a side's results; returns their names in the order in which they came about.

    Args:
        lane: the child's own.
        side: who computes.
        plan: what.
        given: file with the subject's arrays.
        spoilt: file with inputs that replace some of them; None for none.
        found: file to write.
        fault: what to compute with, for tests of the comparison.
    """
    arrays = dict(tensors.read(given))
    if spoilt is not None:
        arrays |= tensors.read(spoilt)
    inputs = {k.removeprefix(INPUT): v for k, v in arrays.items() if k.startswith(INPUT)}
    fixed = {k.removeprefix(FIXED): v for k, v in arrays.items() if k.startswith(FIXED)}
    made = {
        name: np.ascontiguousarray(x).reshape(np.shape(x))
        for name, x in results(side, plan, inputs, fixed, fault)
    }
    save_file(made, found)
    return list(made)


def results(
    side: Side,
    plan: Plan,
    inputs: Mapping[str, Array],
    fixed: Mapping[str, Array],
    fault: Fault | None = None,
) -> Iterator[tuple[str, Array]]:
    """Compute a side's results in this process; arguments as `compute`."""
    if side.backend == NUMPY:
        yield from _reference(plan, inputs, fixed)
        return
    if side.backend in PEERS:
        from mlxhog.parity import peers_torch

        assert isinstance(plan, ModelPlan), "peers are asked for models only"
        yield from peers_torch.results(side.backend, plan, inputs, fixed)
        return
    engine = engine_of(side)
    with planted(engine, fault):
        if isinstance(plan, ModelPlan):
            yield from operators.results(engine, plan)
            yield from model_results.results(engine, plan, inputs, fixed, optimizers.ours)
        elif isinstance(plan, MlstmPlan):
            yield from mlstm_results.results(engine, plan, inputs, fixed["h_weight"])
        elif isinstance(plan, SlstmPlan):
            yield from slstm_results.results(engine, inputs, fixed["h_weight"])
        else:
            yield from components.results(engine, plan, inputs)


def _reference(
    plan: Plan, inputs: Mapping[str, Array], fixed: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    """NumPy's results, and how well conditioned they are."""
    if isinstance(plan, ModelPlan):
        yield from model_results.fixed_init(plan)
        yield from operators.reference(plan)
        yield from _reference_model(plan, inputs, fixed)
        return
    exact = dict(_alone(plan, inputs, fixed))
    yield from exact.items()
    yield from conditioning.measure(exact, inputs, lambda given: _alone(plan, given, fixed))


def _reference_model(
    plan: ModelPlan, inputs: Mapping[str, Array], fixed: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    engine = NumPyEngine()
    if model_results.forward_alone(plan):

        def forward(params: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
            return model_results.forward(engine, plan, params, fixed)

        exact = dict(forward(inputs))
        yield from exact.items()
        yield from conditioning.measure(exact, inputs, forward)
        return

    def everything(
        params: Mapping[str, Array], *, tokenwise: bool = False
    ) -> Iterator[tuple[str, Array]]:
        steps = optimizers.reference
        return model_results.results(engine, plan, params, fixed, steps, tokenwise=tokenwise)

    exact = dict(everything(inputs, tokenwise=True))
    yield from exact.items()
    yield from conditioning.measure(exact, inputs, everything)


def _alone(
    plan: Plan, inputs: Mapping[str, Array], fixed: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    """A cell, or operators, in float64."""
    if isinstance(plan, MlstmPlan):
        return mlstm_results.reference(plan, inputs, fixed["h_weight"])
    if isinstance(plan, SlstmPlan):
        return slstm_results.reference(inputs, fixed["h_weight"])
    assert isinstance(plan, ComponentsPlan), "a model is no operator"
    return components.reference(plan, inputs)


def engine_of(side: Side) -> Engine:
    """Import the side's framework and start it."""
    framework, _, device = side.backend.partition(":")
    if framework == "torch":
        from mlxhog.parity.engine_torch import TorchEngine

        return TorchEngine(device, side.kernels, THREADS)
    from mlxhog.parity.engine_mlx import MLXEngine

    return MLXEngine(device, side.kernels, THREADS)
