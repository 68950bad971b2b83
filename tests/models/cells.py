"""Cells and single operators of the recorded cases: every form of them, on any engine.

The recorded case "components" has these operators:

    conv          causal_conv(x; conv.weight, conv.bias), without an activation
    headwise      block_diagonal(x; headwise.weight, headwise.bias)
    v1_ln         layer_norm(x; 1 + v1_ln.weight), eps 1e-5
    v1_mhln       head_norm(x4; 1 + v1_ln.weight), eps 1e-5
    rms           rms_norm(x; rms.weight), eps 1e-6
    mhln          head_norm(x4; rms.weight), eps 1e-6
    mhrms         rms_norm of every head of x4, times rms.weight, eps 1e-6
    soft_cap_C    soft_cap(20 x, C)

x is (B, S, D); x4 (B, S, NH, DH) is recorded with heads before positions. Results are named
FORM/h, FORM/state/PART, FORM/grad/NAME of a cell (FORM is parallel, chunkwise or recurrent, and
sequence or stepwise of an sLSTM cell), OP/y of an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxhog.backends import precision
from mlxhog.models.ops.reference import mlstm_numpy, recurrences_numpy
from mlxhog.models.ops.reference.ops_numpy import FLOAT64

Inputs = Mapping[str, Any]
Call = Callable[[Any, Inputs], Any]
OperatorCall = Callable[[Any, Inputs], tuple[Any, Any]]
"""From operators and arrays by name to a result, and further ones."""
MLSTM_SEQUENCE = "qkvif"
MLSTM_STATE = ("C0", "n0", "m0")
SLSTM_SEQUENCE = "ifzo"
SLSTM_WEIGHTS = ("R", "b")
SLSTM_START = ("h0", "c0", "n0", "m0")
SLSTM_STATE = "hcnm"


@dataclass(frozen=True)
class MlstmPlan:
    """The mLSTM cell alone, in every form; the gradient is that of sum(h * h_weight)."""

    chunk_size: int
    eps: float

    def computed(self, engine, inputs, fixed):
        """Compute every form by an engine."""
        return mlstm(engine, self, inputs, fixed["h_weight"])

    def reference(self, inputs, fixed):
        """Compute the forms in float64."""
        return mlstm_reference(self, inputs, fixed["h_weight"])


@dataclass(frozen=True)
class SlstmPlan:
    """The sLSTM cell alone, over the sequence and step by step; gradient as of `MlstmPlan`."""

    def computed(self, engine, inputs, fixed):
        """Compute the cell by an engine."""
        return slstm(engine, inputs, fixed["h_weight"])

    def reference(self, inputs, fixed):
        """Compute the cell in float64."""
        return slstm_reference(inputs, fixed["h_weight"])


@dataclass(frozen=True)
class ComponentsPlan:
    """Operators alone, by the names above."""

    names: tuple[str, ...]

    def computed(self, engine, inputs, fixed):
        """Compute every operator by an engine."""
        return components(engine, self, inputs)

    def reference(self, inputs, fixed):
        """Compute every operator in float64."""
        return components_reference(self, inputs)


def apply(engine, call, inputs, weight=None):
    """Call operators by an engine of parity; with a weight, differentiate sum(result * weight).

    Returns:
        The result, the other results, and the gradient of the scalar by input.
    """
    framework, ops = engine._framework, engine._ops()
    arrays = precision.uploaded(framework, inputs)
    y, others = call(ops, framework.leaves(arrays))
    grads = {}
    if weight is not None:
        w = framework.array(weight)
        _, grads = framework.value_and_grad(lambda xs: (call(ops, xs)[0] * w).sum(), arrays)
    gradient = {name: framework.host(g) for name, g in grads.items()}
    return framework.host(y), [framework.host(x) for x in others], gradient


def mlstm(engine, plan, inputs, weight):
    """Compute all forms of `mlstm_cell` over the sequence, and the cell step by step.

    One operator has the three forms: chunks of the recorded size, one chunk for the whole sequence
    (the parallel form), and chunks of one position (the recurrent form).
    """
    S = inputs["q"].shape[1]
    sizes = {"parallel": S, "chunkwise": plan.chunk_size, "recurrent": 1}
    for form, chunk_size in sizes.items():
        h, state, grads = apply(engine, _mlstm_call(chunk_size, plan.eps), inputs, weight)
        yield f"{form}/h", h
        yield from _last_state(form, state)
        for name, grad in grads.items():
            yield f"{form}/grad/{name}", grad
    steps = list(_steps(engine, _mlstm_call(1, plan.eps), inputs, MLSTM_SEQUENCE, MLSTM_STATE))
    yield "stepwise/h", np.concatenate([h for h, _ in steps], 1)
    yield from _last_state("stepwise", steps[-1][1])


def _mlstm_call(chunk_size, eps):
    def call(ops, xs):
        state = tuple(xs[name] for name in MLSTM_STATE) if "C0" in xs else None
        sequence = [xs[letter] for letter in MLSTM_SEQUENCE]
        result = ops.mlstm_cell(*sequence, chunk_size=chunk_size, eps=eps, state=state)
        return result

    return call


def _steps(engine, call, inputs, sequence, start):
    """Yield the output and the state of a cell after each position."""
    now = dict(inputs)
    S = next(inputs[name].shape[1] for name in sequence)
    for t in range(S):
        now |= {name: inputs[name][:, t : t + 1] for name in sequence}
        h, state, _ = apply(engine, call, now)
        now |= dict(zip(start, state, strict=True))
        yield h, state


def mlstm_reference(plan, inputs, weight):
    """Compute the forms in float64; the chunkwise one equals the recurrent: without gradient."""
    exact = {name: value.astype(np.float64) for name, value in inputs.items()}
    sequence = [exact[letter] for letter in MLSTM_SEQUENCE]
    state = tuple(exact[name] for name in MLSTM_STATE) if "C0" in exact else None
    h, last, back = mlstm_numpy.recurrent(*sequence, eps=plan.eps, state=state)
    yield "recurrent/h", h
    yield from _last_state("recurrent", last)
    grads = back(weight.astype(np.float64))
    names = [*MLSTM_SEQUENCE, *(MLSTM_STATE if state is not None else ())]
    for name, grad in zip(names, grads[: len(names)], strict=True):
        yield f"recurrent/grad/{name}", grad
    h, last = mlstm_numpy.chunkwise(
        *sequence, chunk_size=plan.chunk_size, eps=plan.eps, state=state
    )
    yield "chunkwise/h", h
    yield from _last_state("chunkwise", last)
    if state is None:
        h, back = mlstm_numpy.parallel(*sequence, eps=plan.eps)
        yield "parallel/h", h
        for name, grad in zip(MLSTM_SEQUENCE, back(weight.astype(np.float64)), strict=True):
            yield f"parallel/grad/{name}", grad


def _last_state(form, state):
    for letter, part in zip("Cnm", state, strict=True):
        yield f"{form}/state/{letter}", part


def slstm(engine, inputs, weight):
    """Compute the cell with the operators of an engine."""

    def call(ops, xs):
        arguments = [xs[name] for name in (*SLSTM_SEQUENCE, *SLSTM_WEIGHTS)]
        result = ops.slstm_cell(*arguments, state=tuple(xs[name] for name in SLSTM_START))
        return result

    h, last, grads = apply(engine, call, inputs, weight)
    yield "sequence/h", h
    for letter, part in zip(SLSTM_STATE, last, strict=True):
        yield f"sequence/state/{letter}", part
    for name, grad in grads.items():
        yield f"sequence/grad/{name}", grad
    steps = _steps(engine, call, inputs, SLSTM_SEQUENCE, SLSTM_START)
    states = zip(*(state for _, state in steps), strict=True)
    yield from _trace([np.stack(parts, 1) for parts in states])


def slstm_reference(inputs, weight):
    """Compute the cell in float64, step by step."""
    exact = {name: value.astype(np.float64) for name, value in inputs.items()}
    names = (*SLSTM_SEQUENCE, *SLSTM_WEIGHTS)
    states, back = recurrences_numpy.slstm_cell(
        *(exact[name] for name in names), state=[exact[name] for name in SLSTM_START]
    )
    yield "sequence/h", states[0]
    for letter, part in zip(SLSTM_STATE, states, strict=True):
        yield f"sequence/state/{letter}", part[:, -1]
    grads = back(weight.astype(np.float64))
    for name, grad in zip((*names, *SLSTM_START), grads, strict=True):
        yield f"sequence/grad/{name}", grad
    yield from _trace(list(states))


def _trace(states):
    """Yield h, c, n and m after every position, each (B, S, NH, DH)."""
    yield "stepwise/h", states[0]
    for letter, part in zip(SLSTM_STATE[1:], states[1:], strict=True):
        yield f"stepwise/states/{letter}", part


V1_EPS, LARGE_EPS = 1e-5, 1e-6
CAPPED = 20.0

CALLS = {
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


def call_of(name):
    """Return the operator of a name in the table above, or None."""
    if name.startswith("soft_cap_"):
        cap = float(name.removeprefix("soft_cap_"))
        return lambda ops, t: ops.soft_cap(CAPPED * t["x"], cap)
    return CALLS.get(name)


def components(engine, plan, inputs):
    """Compute every operator."""
    for name in plan.names:
        call = call_of(name)
        assert call is not None, "the reader of the case lets known names through only"
        y, _, _ = apply(engine, _alone(call), inputs)
        yield f"{name}/y", y


def components_reference(plan, inputs):
    """Compute every operator in float64."""
    exact = {name: value.astype(np.float64) for name, value in inputs.items()}
    for name in plan.names:
        call = call_of(name)
        assert call is not None, "the reader of the case lets known names through only"
        yield f"{name}/y", call(FLOAT64, exact)


def _alone(call):
    """Return a call without further results."""
    return lambda ops, t: (call(ops, t), ())


def _heads(t):
    return t["x4_bnsh"].swapaxes(1, 2)


def _head_rms(ops, x4, w):
    B, S, NH, DH = x4.shape
    ones = w[:DH] * 0.0 + 1.0
    return ops.rms_norm(x4, ones, LARGE_EPS).reshape(B, S, NH * DH) * w
