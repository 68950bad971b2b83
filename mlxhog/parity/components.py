"""Operators alone, as the recorded case "components" has them.

    conv          causal_conv(x; conv.weight, conv.bias), without an activation
    headwise      block_diagonal(x; headwise.weight, headwise.bias)
    v1_ln         layer_norm(x; 1 + v1_ln.weight), eps 1e-5
    v1_mhln       head_norm(x4; 1 + v1_ln.weight), eps 1e-5
    rms           rms_norm(x; rms.weight), eps 1e-6
    mhln          head_norm(x4; rms.weight), eps 1e-6
    mhrms         rms_norm of every head of x4, times rms.weight, eps 1e-6
    soft_cap_C    soft_cap(20 x, C)

x is (B, S, D); x4 (B, S, NH, DH) is recorded with heads before positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mlxhog.models.ops.reference import layers_numpy
from mlxhog.parity.engines import Engine
from mlxhog.parity.subject import Array, ComponentsPlan

Found = Iterator[tuple[str, Array]]
Inputs = Mapping[str, Any]
Call = Callable[[Any, Inputs], Any]
V1_EPS, LARGE_EPS = 1e-5, 1e-6
CAPPED = 20.0

CALLS: dict[str, Call] = {
    "conv": lambda ops, t: ops.causal_conv(t["x"], t["conv.weight"], t["conv.bias"], silu=False)[0],
    "headwise": lambda ops, t: ops.block_diagonal(
        t["x"], [t["headwise.weight"]], [t["headwise.bias"]]
    )[0],
    "v1_ln": lambda ops, t: ops.layer_norm(t["x"], 1.0 + t["v1_ln.weight"], V1_EPS),
    "v1_mhln": lambda ops, t: ops.head_norm(_heads(t), 1.0 + t["v1_ln.weight"], V1_EPS),
    "rms": lambda ops, t: ops.rms_norm(t["x"], t["rms.weight"], LARGE_EPS),
    "mhln": lambda ops, t: ops.head_norm(_heads(t), t["rms.weight"], LARGE_EPS),
    "mhrms": lambda ops, t: _head_rms(ops, _heads(t), t["rms.weight"]),
}


def call_of(name: str) -> Call | None:
    """Return the operator of a name in the table above, or None."""
    if name.startswith("soft_cap_"):
        cap = float(name.removeprefix("soft_cap_"))
        return lambda ops, t: ops.soft_cap(CAPPED * t["x"], cap)
    return CALLS.get(name)


def results(engine: Engine, plan: ComponentsPlan, inputs: Mapping[str, Array]) -> Found:
    """Compute every operator."""
    for name in plan.names:
        call = call_of(name)
        assert call is not None, "the reader of the case lets known names through only"
        y, _, _ = engine.apply(_alone(call), inputs)
        yield f"{name}/y", y


def reference(plan: ComponentsPlan, inputs: Mapping[str, Array]) -> Found:
    """Compute every operator in float64."""
    exact = {name: value.astype(np.float64) for name, value in inputs.items()}
    for name in plan.names:
        call = call_of(name)
        assert call is not None, "the reader of the case lets known names through only"
        yield f"{name}/y", call(_Float64, exact)


def _alone(call: Call) -> Callable[[Any, Inputs], tuple[Any, Any]]:
    """Return a call that has no other results."""
    return lambda ops, t: (call(ops, t), ())


def _heads(t: Inputs) -> Any:
    return t["x4_bnsh"].swapaxes(1, 2)


def _head_rms(ops: Any, x4: Any, w: Any) -> Any:
    B, S, NH, DH = x4.shape
    ones = w[:DH] * 0.0 + 1.0
    return ops.rms_norm(x4, ones, LARGE_EPS).reshape(B, S, NH * DH) * w


class _Float64:
    """The same operators of `layers_numpy`, without their gradients."""

    @staticmethod
    def causal_conv(x: Array, w: Array, b: Array, *, silu: bool) -> tuple[Array, Array]:
        y, state, _ = layers_numpy.causal_conv(x, w, b, silu=silu)
        return y, state

    @staticmethod
    def block_diagonal(x: Array, ws: list[Array], bs: list[Array]) -> tuple[Array, ...]:
        return tuple(layers_numpy.block_diagonal(x, w, b)[0] for w, b in zip(ws, bs, strict=True))

    @staticmethod
    def layer_norm(x: Array, w: Array, eps: float) -> Array:
        return w * layers_numpy.layer_norm(x, eps)[0]

    @staticmethod
    def head_norm(h: Array, w: Array, eps: float) -> Array:
        normed, _ = layers_numpy.layer_norm(h, eps)
        return w * normed.reshape(*h.shape[:2], -1)

    @staticmethod
    def rms_norm(x: Array, w: Array, eps: float) -> Array:
        y: Array = w * x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)
        return y

    @staticmethod
    def soft_cap(x: Array, c: float) -> Array:
        return layers_numpy.soft_cap(x, c)[0]
