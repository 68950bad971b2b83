"""Operators with inputs of every kind, and what computes and compares them, for tests."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from tests import tolerances as near
from tests.models.golden import MLSTM, MLSTM_STATE, SLSTM, SLSTM_STATE
from tests.models.sample import cell_inputs, slstm_inputs, slstm_state
from tests.models.twins import EXACT, Twin
from tests.tolerances import Tolerance, assert_close

METAL = {f"{name}-metal-emulated": Twin(name, "metal-emulated") for name in ("torch", "mlx")}
SLSTM_GATES = SLSTM[:4]


def draw(*shape, seed=0, scale=1.0):
    """Normal numbers; different for every shape and seed."""
    r = np.random.default_rng((seed, *shape))
    return (scale * r.standard_normal(shape)).astype(np.float32)


def unwritten(*shape):
    """For outputs: an entry that is left unwritten shows."""
    return np.full(shape, np.nan, np.float32)


@dataclass(frozen=True)
class Case:
    """An operator, its inputs by name, other arrays and numbers, and the tolerances."""

    op: str
    inputs: dict[str, Any]
    fixed: dict[str, Any] = field(default_factory=dict)
    result: Tolerance = near.OP_F32
    gradient: Tolerance = near.OP_GRADIENT_F32
    call: Callable[..., Any] | None = None

    def __call__(self, ops, x):
        return self.call(ops, x) if self.call else getattr(ops, self.op)(**x)

    def check(self, twin):
        results, grads = twin.run(self, self.inputs, self.fixed)
        expected, wanted = EXACT.run(self, self.inputs, self.fixed)
        for number, (y, exact) in enumerate(zip(results, expected, strict=True)):
            assert_close(y, exact, self.result, label=f"result {number}")
        for name, grad in wanted.items():
            assert_close(grads[name], grad, self.gradient, label=name)


sequence = partial(Case, result=near.SEQUENCE_F32, gradient=near.SEQUENCE_GRADIENT_F32)


def recurrence(
    B, S, NH, DK, DV, *, removal=None, scalar=False, speed=0.3, chunk=8, alike=False, state=True,
    transpose_state=False,
):  # fmt: skip
    """A linear recurrence whose removal is None, "own" or "free"; `speed` is that of forgetting.

    Keys that are read have length 1, and are nearly equal in a head with `alike`.
    """
    unit = unit_keys(B, S, NH, DK, alike=alike)
    rate = 1 / (1 + np.exp(-2 * draw(B, S, NH, DK, seed=5)))
    inputs = {
        "q": draw(B, S, NH, DV if transpose_state else DK),
        "k": unit if removal == "own" else draw(B, S, NH, DK, seed=6),
        "v": draw(B, S, NH, DV, seed=2),
        "log_decay": -speed * np.abs(draw(B, S, NH, 1 if scalar else DK, seed=3)),
    }
    if removal == "own":
        inputs["beta"] = rate[..., 0]
    if removal == "free":
        inputs |= {"read": unit, "removal": rate * unit}
    if state:
        inputs["state"] = draw(B, NH, DK, DV, seed=4)
    return sequence(
        "recurrence",
        inputs,
        {"scale": 0.5, "transpose_state": transpose_state, "chunk_size": chunk},
    )


value_queries = partial(recurrence, transpose_state=True)
delta = partial(recurrence, removal="own", scalar=True)
channels = partial(recurrence, removal="own")
dplr = partial(recurrence, removal="free")


def regression(B, S, NH, D, *, speed=0.3, chunk=8, state=True):
    """q, unit keys and a ridge; the state is symmetric and positive, as every one reached."""
    inputs = {
        "q": draw(B, S, NH, D),
        "k": unit_keys(B, S, NH, D),
        "log_decay": -speed * np.abs(draw(B, S, NH, 1, seed=3)),
        "ridge": 0.25 + np.abs(draw(NH, D, seed=5)),
    }
    if state:
        root = draw(B, NH, D, D, seed=4) / np.sqrt(np.float32(D))
        inputs["root"] = root @ root.swapaxes(-1, -2)

    def call(ops, x):
        S = x.get("root")
        x = {name: value for name, value in x.items() if name != "root"}
        return ops.regression_cell(**x, state=None if S is None else (S + S.swapaxes(-1, -2)) / 2)

    return sequence("regression_cell", inputs, {"chunk_size": chunk, "steps": 40}, call=call)


def unit_keys(*shape, alike=False):
    """Keys of length 1, (B, S, NH, DK); nearly equal ones of a head with `alike`."""
    k = draw(*shape, seed=1)
    if alike:
        k = np.broadcast_to(k[:, :1], k.shape) + 0.01 * k
    return k / np.sqrt((k * k).sum(-1, keepdims=True))


def scan(B, S, C, N, *, speed=0.3, state=True):
    """u, dt and the matrices of a selective scan; `speed` is the largest dt."""
    inputs = {
        "u": draw(B, S, C),
        "dt": speed * np.abs(draw(B, S, C, seed=1)),
        "A": -np.abs(draw(C, N, seed=2)) - 0.1,
        "Bt": draw(B, S, N, seed=3),
        "Ct": draw(B, S, N, seed=4),
    }
    if state:
        inputs["state"] = draw(B, C, N, seed=5)
    return sequence("selective_scan", inputs)


def attention(B, S, L, NH, DH, *, window=None, lengths=None):
    inputs = {name: draw(B, S if name == "q" else L, NH, DH, seed=ord(name)) for name in "qkv"}
    fixed = {} if lengths is None else {"lengths": np.array(lengths, np.int32)}
    return sequence("attention", inputs, {"window": window, **fixed})


def rope(B, S, NH, DH, offset=None):
    fixed = {} if offset is None else {"offset": np.array(offset, np.int32)}
    return sequence("rope", {"x": draw(B, S, NH, DH)}, {"base": 100.0, **fixed})


def long_conv(B, S, C, J):
    return sequence("long_conv", {"x": draw(B, S, C), "f": draw(C, J, seed=1)})


def norms(*shape):
    flat = (*shape[:2], shape[2] * shape[3])
    h, w, c, z = draw(*shape), draw(flat[2]), draw(*flat), 3 * draw(*flat, seed=1)
    inputs = {
        "layer_norm": {"x": c, "w": w},
        "rms_norm": {"x": c, "w": w},
        "head_norm": {"h": h, "w": w},
        "head_norm_gate": {"h": h, "o": z, "w": w},
        "head_norm_skip_gate": {"h": h, "c": c, "z": z, "w": w, "skip": w[::-1].copy()},
    }
    return {op: Case(op, x, {"eps": 1e-5}) for op, x in inputs.items()}


def linear_layers(op, x, weights, biased):
    """Linear layers of one x, dense or block-diagonal, all but the first with a bias if biased."""
    inputs = {"x": x} | {f"w{k}": draw(*w, seed=k) for k, w in enumerate(weights)}
    if biased:
        inputs |= {f"b{k}": draw(w[0] * w[1] if len(w) == 3 else w[0], seed=k)
                   for k, w in enumerate(weights) if k}  # fmt: skip

    def call(ops, p):
        ws = [p[f"w{k}"] for k in range(len(weights))]
        return getattr(ops, op)(p["x"], ws, [p.get(f"b{k}") for k in range(len(weights))])

    return Case(op, inputs, call=call)


# B, S, and G, out / G, in / G of every weight: small blocks, one block, heads, blocks not square.
DIAGONALS = [
    (2, 9, [(6, 4, 4), (6, 4, 4)]),
    (2, 300, [(32, 4, 4)]),
    (1, 1, [(1, 1, 1)]),
    (2, 5, [(1, 7, 12)]),
    (2, 5, [(4, 8, 8), (8, 4, 4)]),
    (3, 4, [(3, 2, 5), (3, 5, 5), (5, 1, 3)]),
    (1, 3, [(4, 32, 32)]),
]


def cross_entropy(V, cap, *, factors=False, sampled=False, rows=70, biased=False):
    labels = np.random.default_rng(V).integers(0, V, rows, np.int32)
    labels[::7] = -100
    fixed = {"labels": labels, "cap": cap, "log_inclusion": -np.abs(draw(V)) if sampled else None}
    if factors:
        inputs = {"x": draw(rows, 6), "w": 5 * draw(V, 6)} | ({"bias": draw(V)} if biased else {})
        return Case("linear_cross_entropy", inputs, fixed)
    return Case("capped_cross_entropy", {"raw_logits": 20 * draw(70, V)}, fixed)


def conv(B, S, C, K, *, packed=False, silu=True):
    inputs = {"x": draw(B, S, C), "w": draw(C, 1, K), "b": draw(C), "state": draw(B, K - 1, C)}
    reset_mask = np.random.default_rng(S).random((B, S)) < 0.3
    return Case(
        "causal_conv", inputs, {"silu": silu, **({"reset_mask": reset_mask} if packed else {})}
    )


def mlstm(S, *, state=True, eps=1e-6, chunk=4, packed=False):
    x = cell_inputs(2, S, 2, 3, 5, seed=S)
    if state:
        x |= {"C0": draw(2, 2, 3, 5), "n0": draw(2, 2, 3), "m0": draw(2, 2)}
    how = {"chunk_size": chunk, "eps": eps}
    if packed:
        how["reset_mask"] = np.random.default_rng(S).random((2, S)) < 0.3
    return Case("mlstm_cell", x, how, near.CELL_F32, near.CELL_GRADIENT_F32, run_mlstm)


def mlstm_of(B, S, NH, DK, DV, chunk, **gates):
    """The cell of any sizes, from a state; gates replace those drawn."""
    x = cell_inputs(B, S, NH, DK, DV, seed=0)
    x |= {name: np.full_like(x[name], value) for name, value in gates.items()}
    x |= {"C0": draw(B, NH, DK, DV), "n0": draw(B, NH, DK), "m0": draw(B, NH)}
    how = {"chunk_size": chunk, "eps": 1e-6}
    return Case("mlstm_cell", x, how, near.CELL_EXTREME_F32, near.GRADIENT_ANY_F32, run_mlstm)


def run_mlstm(ops, x):
    state = tuple(x[name] for name in MLSTM_STATE) if "C0" in x else None
    how = {name: x.get(name) for name in ("chunk_size", "eps", "reset_mask")}
    return ops.mlstm_cell(*(x[name] for name in MLSTM), **how, state=state)


def slstm(B, S, NH, DH, *, state=True, packed=False):
    inputs, before = slstm_inputs(B, S, NH, DH), slstm_state(B, NH, DH)
    if not state:
        before = tuple(np.zeros_like(x) for x in before)
    inputs |= dict(zip(SLSTM_STATE, before, strict=True))
    reset_mask = (np.random.default_rng(2).random((B, S)) < 0.3).astype(np.uint8)
    fixed = {"reset_mask": reset_mask if packed else None}
    return Case("slstm_cell", inputs, fixed, near.SLSTM_F32, near.SLSTM_GRADIENT_F32, run_slstm)


def run_slstm(ops, x):
    state = tuple(x[name] for name in SLSTM_STATE) if "h0" in x else None
    return ops.slstm_cell(*(x[name] for name in SLSTM), state=state, reset_mask=x.get("reset_mask"))


def far(**gates):
    """The cell with gates far out; of equal ones, the gradient of m is not unique."""
    case, rng = mlstm(33, state=False), np.random.default_rng(0)
    for name, largest in gates.items():
        levels = np.array([-1.0, -0.2, 0.0, 0.2, 1.0], np.float32) * np.float32(largest)
        case.inputs[name] = rng.choice(levels, case.inputs[name].shape)
    bound = near.CELL_EXTREME_F32
    return replace(case, result=bound, gradient=bound, call=lambda ops, x: run_mlstm(ops, x)[0])
