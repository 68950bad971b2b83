"""The operators of this package as sides, and what sides in a framework share.

An own side makes the call of the float64 equations, with arrays of a framework and its eager,
native or emulated Metal operators, over the whole sequence and one position at a time.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlxhog.backends.probes import Device
from mlxhog.conformance.sides.foreign import CellSide
from mlxhog.conformance.subject import Array, Results
from mlxhog.conformance.vectors.case import STEPS, Case
from mlxhog.conformance.vectors.equations import Equations
from mlxhog.conformance.vectors.export import chosen
from mlxhog.models.ops import kernels
from mlxhog.models.ops.operators import Ops

NAME = "own"
KERNELS = {
    "eager": None,
    "native": None,
    "metal-emulated": ("mlstm", "slstm", "causal-conv", "causal-conv-silu"),
}
"""Implementations, and the equations that have kernels of their own there; None: all."""

Arrays = Mapping[str, Any]
"""Arrays of a framework by name."""


def sides() -> list[CellSide]:
    """Return the implementations that run on any CPU; those of a framework share a process."""
    target = f"{__name__}:own"
    return [
        CellSide(f"{framework}:cpu+{one}", target, f"{framework} {one}", framework, equations)
        for framework in ("torch", "mlx")
        for one, equations in KERNELS.items()
    ]


def own(case: Case, setting: str) -> Results:
    """Compute a case by the operators "FRAMEWORK KERNELS"."""
    framework, _, implementation = setting.partition(" ")
    ops = kernels.choose(framework, implementation, "cpu")
    (equations,) = chosen(case.equations)
    how = case.options
    results = differentiated(framework, case, lambda x: equations.compute(ops, x, how))
    device = Device(framework, "cpu", 1)
    inputs = {name: device.array(x) for name, x in case.inputs.items()}
    steps = _by_position(equations, ops, inputs, how)
    return {**results, **{STEPS + name: device.host(x) for name, x in steps.items()}}


def differentiated(
    framework: str,
    case: Case,
    call: Callable[[Arrays], Mapping[str, Any]],
    *,
    has_gradients: bool = True,
) -> dict[str, Array]:
    """Return the results of a call over arrays of a framework on the CPU, and their gradients.

    If a result is missing that the loss has, there are no gradients.
    """
    device = Device(framework, "cpu", 1)
    x = {name: device.array(one) for name, one in case.inputs.items()}
    results = call(x)
    arrays = {name: device.host(one) for name, one in results.items()}
    if not has_gradients or not case.cotangents.keys() <= results.keys():
        return arrays
    dy = {name: device.array(one) for name, one in case.cotangents.items()}
    floats = {name: x[name] for name, one in case.inputs.items() if one.dtype == np.float32}

    def loss(leaves: Arrays) -> Any:
        ends = call({**x, **leaves})
        return sum((ends[name] * one).sum() for name, one in dy.items())

    _, grads = device.xp.value_and_grad(loss, floats)
    return arrays | {f"grad.{name}": device.host(grad) for name, grad in grads.items()}


def _by_position(
    equations: Equations, ops: Ops, x: dict[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the results from one position at a time."""
    axes = {one.name: one.axes.split() for one in equations.tensors} | {"reset_mask": ["B", "S"]}
    serial = {name for name in x if axes[name][1:2] == ["S"]}
    parts = list[Mapping[str, Any]]()
    for t in range(next(x[name].shape[1] for name in serial)):
        now = {name: one[:, t : t + 1] if name in serial else one for name, one in x.items()}
        parts.append(equations.compute(ops, now, options))
        x = {**x, **{name: one for name, one in parts[-1].items() if name.startswith("state.")}}
    return {
        name: one if name in x else ops.xp.concatenate([part[name] for part in parts], 1)
        for name, one in parts[-1].items()
    }
