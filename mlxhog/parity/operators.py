"""Every single operator of a family, compared with float64 in units in the last place.

A whole model cannot show an error of a few units in one operator: rounding adds up to more than
that from block to block. A single operator can. Its inputs here are well conditioned: no sum
cancels, and linear maps sum products of small integers, which float32 computes exactly in any
order. So each entry of a right result is within `Operator.ulps` units of float64, and their root
mean square is within `RMS`; both are 0 if the result is exact.

This finds (`tests/parity/test_faults.py`) an operator whose results are all off by 4 units, or each
up or down by 4 at random: the root mean square of right ones is at most half of that. A single
entry that is off by 4 units is found if results are exact. In other operators rounding of the other
sign may hide it; one that is off by more than `2 * ulps` is always found. Gradients of operators
are compared in the cases of cells and in the gradients of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mlxhog.backends import precision
from mlxhog.models.ops.reference.ops_numpy import FLOAT64
from mlxhog.parity.engines import FrameworkEngine
from mlxhog.parity.subject import Array, ModelPlan

Inputs = Mapping[str, Any]
Draw = Callable[[np.random.Generator], dict[str, Array]]
B, S, NH, DH = 2, 16, 2, 8
D = NH * DH
EPS, CHUNK, CAP = 1e-6, 8, 15.0
ROWS, VOCAB = 6, 33

EXACT = 0.0
ROUNDED = 10.0
"""Units in the last place. Seen: up to 5.7, in MLX's gelu and in the sLSTM's normaliser."""
RMS = 3.0
"""Of their root mean square. Seen: up to 1.8, in the sLSTM cell; an operator off by 4 has more."""
GPU = 2.0
"""Factor on a GPU, whose exp and tanh promise 4 and 5 units; those of a CPU stay within 2. There an
operator off by 4 units is found only if results are exact."""


@dataclass(frozen=True)
class Operator:
    """One operator, its inputs and its tolerance.

    Attributes:
        draw: draws its inputs, float32, or int32 labels.
        call: from operators and inputs to a result and further ones.
        ulps: units in the last place that an entry may be off by; 0 if all sums are exact.
    """

    draw: Draw
    call: Callable[[Any, Inputs], tuple[Any, Sequence[Any]]]
    ulps: float = ROUNDED

    def allowed(self, *, gpu: bool) -> tuple[float, float]:
        """Return the largest error of an entry and the largest root mean square error."""
        factor = GPU if gpu else 1.0
        return factor * self.ulps, factor * RMS if self.ulps else 0.0


def results(engine: FrameworkEngine, plan: ModelPlan) -> Iterator[tuple[str, Array]]:
    """Compute the operators of the plan's family by an engine."""
    for name in names(plan):
        operator = OPERATORS[name]
        y, others, _ = engine.apply(operator.call, inputs(name))
        yield f"operator/{name}", _flat([y, *others])


def precision_results(engine: FrameworkEngine) -> Iterator[tuple[str, Array]]:
    """Compute the probes of `mlxhog.backends.precision` by an engine."""
    for name, probe in precision.PROBES.items():
        yield name, engine.apply(partial(_alone, probe.call), probe.inputs())[0]


def _alone(call: Callable[[Any, Inputs], Any], ops: Any, t: Inputs) -> tuple[Any, Sequence[Any]]:
    return call(ops, t), ()


def reference(plan: ModelPlan) -> Iterator[tuple[str, Array]]:
    """Compute the operators of the plan's family in float64."""
    for name in names(plan):
        exact = {
            key: x.astype(np.float64) if x.dtype == np.float32 else x
            for key, x in inputs(name).items()
        }
        y, others = OPERATORS[name].call(FLOAT64, exact)
        yield f"operator/{name}", _flat([y, *others])


def names(plan: ModelPlan) -> tuple[str, ...]:
    """Return the operators that the plan's family calls and that have a NumPy reference."""
    return FAMILIES.get(plan.cfg.model_type, ())


def inputs(name: str) -> dict[str, Array]:
    """Return the inputs of an operator, the same in every process."""
    return OPERATORS[name].draw(np.random.default_rng(list(name.encode())))


def _flat(parts: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


# -- inputs ---------------------------------------------------------------------------------------


def _positive(r: np.random.Generator, *shape: int, low: float = 0.5, high: float = 2.0) -> Array:
    return r.uniform(low, high, shape).astype(np.float32)


def _signed(r: np.random.Generator, *shape: int, high: float = 2.0) -> Array:
    """Numbers away from 0, as many below as above along the last axis."""
    signs = np.ones(shape, np.float32)
    signs[..., 1::2] = -1.0
    signed: Array = _positive(r, *shape, high=high) * r.permuted(signs, axis=-1)
    return signed


def _integers(r: np.random.Generator, *shape: int) -> Array:
    return r.integers(-8, 9, shape).astype(np.float32)


def _mlstm(r: np.random.Generator) -> dict[str, Array]:
    cell = (B, S, NH, DH)
    return {
        "q": _positive(r, *cell),
        "k": _positive(r, *cell),
        "v": _positive(r, *cell),
        "i": _positive(r, B, S, NH, low=1.0),
        "f": _positive(r, B, S, NH, low=1.0),
    }


def _slstm(r: np.random.Generator) -> dict[str, Array]:
    cell = (B, S, NH, DH)
    return {
        "i": _positive(r, *cell),
        "f": _positive(r, *cell),
        "z": _positive(r, *cell),
        "o": _positive(r, *cell),
        "R": _positive(r, NH, 4 * DH, DH, low=0.01, high=0.02),
        "b": _positive(r, 4 * D, low=0.1, high=0.2),
    }


def _heads(r: np.random.Generator) -> dict[str, Array]:
    h = _signed(r, B, S, NH, DH)
    flat = np.sign(h).reshape(B, S, D)
    return {
        "h": h,
        "o": _signed(r, B, S, D),
        "z": _positive(r, B, S, D),
        "c": flat * _positive(r, B, S, D),  # has the norm's sign, so that no sum cancels
        "w": _positive(r, D),
        "skip": _positive(r, D),
    }


def _head(r: np.random.Generator) -> dict[str, Array]:
    """Factors of logits between -4 and 4, whose sums are exact."""
    return {
        "x": r.integers(-2, 3, (ROWS, DH)).astype(np.float32),
        "w": r.integers(-8, 9, (VOCAB, DH)).astype(np.float32) / 32,
        "labels": r.integers(0, VOCAB, ROWS).astype(np.int32),
    }


def _pair(r: np.random.Generator) -> dict[str, Array]:
    """A gate at which no activation cancels, and its factor."""
    return {"gate": _positive(r, 20, 33, low=0.25, high=4.0), "up": _positive(r, 20, 33)}


# -- results --------------------------------------------------------------------------------------

SLSTM = ("i", "f", "z", "o", "R", "b")


def _nats(ops: Any, t: Inputs, cap: float | None) -> tuple[Any, Sequence[Any]]:
    """Each row separately: the operator returns a sum, and one number would show little."""
    rows = [
        ops.linear_cross_entropy(t["x"][n : n + 1], t["w"], t["labels"][n : n + 1], cap)[0]
        for n in range(ROWS)
    ]
    return rows[0], rows[1:]


def _conv(draw: Draw, ulps: float, *, silu: bool) -> Operator:
    def call(ops: Any, t: Inputs) -> tuple[Any, Sequence[Any]]:
        y, state = ops.causal_conv(t["x"], t["w"], t["b"], silu=silu)
        return y, (state,)

    return Operator(draw, call, ulps)


def _glu(activation: str) -> Operator:
    return Operator(_pair, lambda ops, t: (ops.glu(t["gate"], t["up"], activation), ()))


OPERATORS = {
    "linears": Operator(
        lambda r: {"x": _integers(r, B, S, 96), "w": _integers(r, 40, 96), "b": _integers(r, 40)},
        lambda ops, t: (ops.linears(t["x"], [t["w"]], [t["b"]])[0], ()),
        EXACT,
    ),
    "block_diagonal": Operator(
        lambda r: {"x": _integers(r, B, S, 32), "w": _integers(r, 8, 4, 4), "b": _integers(r, 32)},
        lambda ops, t: (ops.block_diagonal(t["x"], [t["w"]], [t["b"]])[0], ()),
        EXACT,
    ),
    "causal_conv": _conv(
        lambda r: {"x": _integers(r, B, S, D), "w": _integers(r, D, 1, 4), "b": _integers(r, D)},
        EXACT,
        silu=False,
    ),
    "causal_conv silu": _conv(
        lambda r: {"x": _positive(r, B, S, D), "w": _positive(r, D, 1, 4), "b": _positive(r, D)},
        ROUNDED,
        silu=True,
    ),
    "rms_norm": Operator(
        lambda r: {"x": _signed(r, B, S, 64), "w": _positive(r, 64)},
        lambda ops, t: (ops.rms_norm(t["x"], t["w"], EPS), ()),
    ),
    "layer_norm": Operator(
        lambda r: {"x": _signed(r, B, S, 64), "w": _positive(r, 64)},
        lambda ops, t: (ops.layer_norm(t["x"], t["w"], EPS), ()),
    ),
    "head_norm": Operator(
        _heads,
        lambda ops, t: (ops.head_norm(t["h"], t["w"], EPS), ()),
    ),
    "head_norm_gate": Operator(
        _heads,
        lambda ops, t: (ops.head_norm_gate(t["h"], t["o"], t["w"], EPS), ()),
    ),
    "head_norm_skip_gate": Operator(
        _heads,
        lambda ops, t: (
            ops.head_norm_skip_gate(t["h"], t["c"], t["z"], t["w"], t["skip"], EPS),
            (),
        ),
    ),
    "swiglu": Operator(
        _pair,
        lambda ops, t: (ops.swiglu(t["gate"], t["up"]), ()),
    ),
    **{f"glu {name}": _glu(name) for name in ("gelu", "relu", "relu^2", "sigmoid", "silu", "selu")},
    "soft_cap": Operator(
        lambda r: {"x": _signed(r, 400, 2, high=2.5 * CAP)},
        lambda ops, t: (ops.soft_cap(t["x"], CAP), ()),
    ),
    "mlstm_cell": Operator(
        _mlstm,
        lambda ops, t: ops.mlstm_cell(*(t[name] for name in "qkvif"), chunk_size=CHUNK, eps=EPS),
    ),
    "slstm_cell": Operator(_slstm, lambda ops, t: ops.slstm_cell(*(t[name] for name in SLSTM))),
    "linear_cross_entropy": Operator(_head, lambda ops, t: _nats(ops, t, CAP)),
    "linear_cross_entropy uncapped": Operator(_head, lambda ops, t: _nats(ops, t, None)),
}
"""By the name in `Ops`, and a word for a variant of it."""

FAMILIES = {
    "xlstm": (
        "linears", "rms_norm", "soft_cap", "mlstm_cell", "head_norm_gate", "swiglu",
        "linear_cross_entropy",
    ),
    "xlstm_v1": (
        "linears", "block_diagonal", "layer_norm", "causal_conv", "causal_conv silu", "mlstm_cell",
        "head_norm_skip_gate", "slstm_cell", "head_norm", *(n for n in OPERATORS if "glu " in n),
        "linear_cross_entropy uncapped",
    ),
}  # fmt: skip
"""Operators that the models of a family call."""


def apart(y: Array, exact: Array) -> Array:
    """Return how far float32 results are from exact ones, in units of the latter's last place."""
    last_place = np.spacing(np.abs(exact).astype(np.float32))
    units: Array = np.abs(y.astype(np.float64) - exact) / last_place
    return units
