"""The native operators beyond one task, vector or block: exact, and the same bits for any threads.

What holds for every form of an operator is in tests/models/test_operators.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlxhog._native import ops
from mlxhog.models.ops.native import adapter_mlx
from tests.models.operators import (
    Case,
    conv,
    cross_entropy,
    draw,
    linear_layers,
    mlstm_of,
    norms,
    slstm,
    unwritten,
)
from tests.models.test_operators import SEQUENCES
from tests.models.twins import Twin
from tests.pairs import each_of
from tests.tolerances import PRODUCT_F32

NATIVE = Twin("mlx", "native")


def blocks(rows, *weights):
    x = draw(rows, weights[0][0] * weights[0][2])
    return linear_layers("block_diagonal", x, weights, biased=len(weights) > 1)


def loss(rows, V, cap, *, sampled=False):
    labels = np.random.default_rng(rows).integers(0, V, rows, np.int32)
    labels[::5] = -100
    inputs = {"x": draw(rows, 24), "w": draw(V, 24, seed=1)}
    fixed = {"labels": labels, "cap": cap, "log_inclusion": -np.abs(draw(V)) if sampled else None}
    return Case("linear_cross_entropy", inputs, fixed)


CASES = {
    **{f"{name} of many rows": case for name, case in norms(2, 200, 3, 33).items()},
    **{f"{name} of wide heads": case for name, case in norms(1, 3, 2, 64).items()},
    # each size of a block that has a kernel of its own, rows that do not fill a vector, both kinds
    "blocks of one element": blocks(300, (5, 1, 1)),
    "blocks of two": blocks(7, (11, 2, 2)),
    "blocks of four": blocks(1000, (64, 4, 4), (64, 4, 4)),
    "blocks of eight": blocks(9, (3, 8, 8)),
    "blocks of sixteen": blocks(6, (2, 16, 16)),
    "large blocks": blocks(300, (4, 32, 32), (4, 8, 32)),
    "blocks of many sizes": blocks(300, (6, 4, 4), (3, 5, 8), (1, 2, 24), (3, 8, 8)),
    **{
        f"linear layers of {rows} rows of {width}": linear_layers(
            "linears", draw(rows, width), [(out, width) for out in (1, 4, 15, 33, 64)], True
        )
        for rows, width in ((1, 17), (13, 600), (14, 32), (15, 1), (500, 300))
    },
    # more taps than one pass takes, several tasks, fewer positions than taps, one of each
    **{
        f"a convolution of {shape}{', packed' * packed}": conv(*shape, packed=packed, silu=packed)
        for shape in ((2, 300, 16, 4), (3, 9, 40, 5), (2, 130, 3, 9), (1, 2, 1, 8), (1, 1, 1, 1))
        for packed in (False, True)
    },
    "the mLSTM cell": mlstm_of(2, 70, 3, 16, 32, 32),
    "the mLSTM cell of wide heads": mlstm_of(1, 130, 1, 64, 128, 128),
    "the mLSTM cell of odd widths": mlstm_of(1, 70, 1, 33, 20, 32),
    "the mLSTM cell of one position": mlstm_of(1, 1, 1, 1, 1, 64),
    **{
        f"the mLSTM cell with gates {gates}": mlstm_of(2, 75, 2, 16, 32, 32, **gates)
        for gates in ({"f": -30.0}, {"i": 15.0, "f": -15.0}, {"i": -10.0, "f": -200.0})
    },
    **{
        f"the sLSTM cell of {shape}": slstm(*shape, packed=packed)
        for shape, packed in (((16, 9, 2, 24), True), ((5, 6, 1, 5), False), ((29, 3, 2, 4), True))
    },
    # past the blocks that stay in a cache, and more columns than are packed at once
    **{
        f"a map to {out}": replace(
            linear_layers("linears", draw(rows, width), [(out, width)], False),
            result=PRODUCT_F32, gradient=PRODUCT_F32,
        )
        for rows, width, out in ((463, 300, 530), (2, 33, 31_800))
    },
    **SEQUENCES,
    "the cross entropy": cross_entropy(320, 30.0),
    "the cross entropy of one row": loss(1, 1, None),
    "the cross entropy without whole logits": loss(900, 1500, 30.0),
    "the same of sampled words": loss(900, 1500, 30.0, sampled=True),
    "swiglu": Case("swiglu", {"gate": draw(40_001, scale=8), "up": draw(40_001, seed=1)}),
    "soft_cap": Case("soft_cap", {"x": draw(40_001, scale=30)}, {"cap": 15.0}),
}  # fmt: skip


def run(case, threads):
    adapter_mlx.set_threads(threads)
    try:
        return NATIVE.run(case, case.inputs, case.fixed)
    finally:
        adapter_mlx.set_threads(1)


@each_of("case", CASES.values(), ids=CASES)
def test_an_operator_is_exact_and_its_bits_do_not_depend_on_threads(case):
    case.check(NATIVE)
    results, grads = run(case, 1)
    for threads in (2, 5):
        others, more = run(case, threads)
        for one, other in zip(results, others, strict=True):
            np.testing.assert_array_equal(one, other)
        for name, grad in grads.items():
            np.testing.assert_array_equal(more[name], grad, err_msg=name)


def test_elementary_functions_are_precise():
    # silu(x) is x * sigmoid(x), soft_cap(x, 1) is tanh(x): exp, sigmoid and tanh through their ops.
    x = np.linspace(-30, 30, 100_001).astype(np.float32)
    exact, out = x.astype(np.float64), unwritten(x.size)
    ops.swiglu(x, np.ones_like(x), out, threads=1)
    expected = exact * np.exp(-np.logaddexp(0, -exact))
    assert (np.abs(out - expected) <= 4 * np.spacing(np.abs(expected).astype(np.float32))).all()
    ops.soft_cap(x, out, cap=1.0, threads=1)
    expected = np.tanh(exact)
    assert (np.abs(out - expected) <= 3 * np.spacing(np.abs(expected).astype(np.float32))).all()
    ops.glu("gelu", x, np.ones_like(x), out, threads=1)
    expected = exact * 0.5 * torch.erfc(torch.tensor(-exact / 2**0.5)).numpy()
    assert (np.abs(out - expected) <= 4e-6 * np.abs(expected))[x > -8].all()  # nearly zero there


def test_functions_have_the_right_limits_and_pass_nan_on():
    x = np.array([np.inf, -np.inf, np.nan, 0.0, 1e30, -1e30], np.float32)
    out = unwritten(x.size)
    ops.soft_cap(x, out, cap=2.0, threads=1)
    np.testing.assert_array_equal(out, [2, -2, np.nan, 0, 2, -2])
    ops.swiglu(x[2:], np.ones(4, np.float32), out[2:], threads=1)
    np.testing.assert_array_equal(out[2:], np.array([np.nan, 0, 1e30, -0.0], np.float32))


@each_of(
    ("logits", "cap"),
    [([900.0, -900.0, 0.0], 1000.0), ([1e30, 1e4, -1e30], None)],
    ids=["large cap", "no cap"],
)
def test_the_loss_of_certain_logits_does_not_overflow(logits, cap):
    row = np.array([logits], np.float32)
    assert ops.cross_entropy(row, np.zeros(1, np.int32), None, None, cap=cap, threads=1) == (0.0, 1)


@each_of("cap", [30.0, None])
def test_a_nan_logit_makes_the_sum_nan(cap):
    logits = draw(3, 5)
    logits[1, 2] = np.nan
    nats, _ = ops.cross_entropy(logits, np.zeros(3, np.int32), None, None, cap=cap, threads=1)
    assert np.isnan(nats)


def test_the_sum_without_a_gradient_is_the_same_and_without_rows_both_are_zero():
    x, w, labels = draw(100, 24), draw(50, 24), np.arange(100, dtype=np.int32) % 50
    for n in (0, 100):
        dx, dw = unwritten(n, 24), unwritten(50, 24)
        how = {"cap": 30.0, "threads": 2}
        total = ops.linear_cross_entropy(x[:n], w, labels[:n], None, dx, dw, **how)
        assert ops.linear_cross_entropy(x[:n], w, labels[:n], None, None, None, **how) == total
        assert dw.any() == bool(n)


def mlstm_results(x, chunk, stride=1):
    """h, the last state and every gradient of the cell, from the native kernels."""
    q, k, v, i, f, C0, n0, m0 = x.values()
    (B, _, NH, DK), DV, NC = q.shape, v.shape[-1], -(-q.shape[1] // chunk)
    state = [unwritten(B, NH, -(-NC // stride) + 1, DK, DV), unwritten(B, NH, NC + 1, DK)]
    state.append(unwritten(B, NH, NC + 1))
    for part, first in zip(state, (C0, n0, m0), strict=True):
        part[:, :, 0] = first
    h, den, how = np.full_like(v, np.nan), np.full_like(i, np.nan), {"stride": stride, "eps": 1e-6}
    ops.mlstm(q, k, v, i, f, None, h, den, *state, chunk=chunk, threads=1, **how)
    grads = [unwritten(*part.shape) for part in (q, k, v, i, f)]
    d_last = [draw(*part.shape, seed=2) for part in (C0, n0, m0)]
    ops.mlstm_grad(
        q, k, v, i, f, None, h, den, *state, draw(*v.shape, seed=3), *grads, *d_last,
        chunk=chunk, threads=1, **how,
    )  # fmt: skip
    return [h, *(part[:, :, -1] for part in state), *grads, *d_last]


@each_of("S", [1, 70, 96])
@each_of("stride", [2, 3, 100])
def test_how_many_chunk_states_are_kept_does_not_change_a_bit(S, stride):
    x = mlstm_of(2, S, 2, 16, 32, 16).inputs
    for few, every in zip(mlstm_results(x, 16, stride), mlstm_results(x, 16), strict=True):
        np.testing.assert_array_equal(few, every)


def test_a_first_step_without_a_past_has_no_forget_gradient_but_from_eps():
    x = mlstm_of(1, 20, 2, 16, 32, 16).inputs
    x |= {name: np.zeros_like(x[name]) for name in ("C0", "n0", "m0")}
    x["i"][:, 0] = 1.0  # the stabilizer, by which eps counts, begins there
    assert (mlstm_results(x, 16)[8][:, 0] == 0).all()


X, W, OUT = draw(4, 8), draw(8), np.zeros((4, 8), np.float32)
Q, GATE, CONV = draw(1, 4, 1, 4), draw(1, 4, 1), draw(2, 5, 6)
STATES = [np.zeros((1, 1, 2, *more), np.float32) for more in ((4, 4), (4,), ())]
LABELS = np.array([0, 5], np.int32)


def linears(weight, width=5):
    ops.linears(X, [weight], [None], [unwritten(4, width)], threads=1)


def mlstm_call(q=Q, **how):
    how = {"chunk": 4, "stride": 1, "eps": 1e-6, "threads": 1} | how
    ops.mlstm(q, Q, Q, GATE, GATE, None, np.empty_like(Q), GATE.copy(), *STATES, **how)


def slstm_call(R=None, saved=None):
    gates, state = [draw(2, 3, 1, 4)] * 4, [draw(2, 1, 4) for _ in range(4)]
    R = draw(1, 16, 4) if R is None else R
    ops.slstm(*gates, R, draw(16), None, unwritten(2, 3, 1, 4), saved, *state, threads=1)


def conv_call(state, S=5, starts=None):
    y, last = np.zeros((2, S, 6), np.float32), np.zeros((2, 3, 6), np.float32)
    w = draw(6, 1, 4)
    ops.causal_conv(CONV[:, :S], w, draw(6), state, starts, y, last, silu=True, threads=1)


SHAPES = {
    r"w has shape \(7,\); .*\(D,\) = \(8,\)": lambda: ops.rms_norm(X, W[:7], OUT, eps=1, threads=1),
    r"weights has shape \(5, 5\); .* = \(5, 8\)": lambda: linears(draw(5, 5)),
    r"outs has shape \(4, 4\); .* = \(4..., 5\)": lambda: linears(draw(5, 8), width=4),
    "one entry per map": lambda: ops.linears(X, [draw(5, 8)], [], [unwritten(4, 5)], threads=1),
    "weight has 3 blocks of 4 inputs, x has 8": lambda: ops.block_diagonal(
        X, [draw(3, 6, 4)], [None], [unwritten(4, 18)], threads=1
    ),
    r"state has shape \(2, 2, 6\); .*K-1, C\) = \(2, 3, 6\)": lambda: conv_call(draw(2, 2, 6)),
    "causal_conv: S is 0, expected at least 1": lambda: conv_call(draw(2, 3, 6), S=0),
    "chunk must be at least 1": lambda: mlstm_call(chunk=0),
    "stride must be at least 1": lambda: mlstm_call(stride=0),
    r"C has shape \(1, 1, 2, 4, 4\); .* = \(1, 1, 3, 4, 4\)": lambda: mlstm_call(chunk=1, stride=2),
    r"R has shape \(15, 4\); .*, 4\*DH, .* = \(1, 16, 4\)": lambda: slstm_call(R=draw(15, 4)),
    r"saved has shape \(2, 3, 1, 4\); .* = \(2, 3, 1, 7, 4\)": lambda: slstm_call(
        saved=unwritten(2, 3, 1, 4)
    ),
    r"label 5 at position 1 .* \[0, 5\)": lambda: ops.cross_entropy(
        draw(2, 5), LABELS, None, None, cap=30.0, threads=1
    ),
    r"label -1 at position 0 .* \[0, 5\)": lambda: ops.linear_cross_entropy(
        draw(2, 3), draw(5, 3), LABELS - 1, None, None, None, cap=None, threads=1
    ),
}


@each_of("message", SHAPES)
def test_arrays_of_a_wrong_size_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        SHAPES[message]()
    assert not OUT.any()


@each_of(
    "call",
    [
        lambda: ops.rms_norm(X.astype(np.float64), W, OUT, eps=1, threads=1),
        lambda: ops.rms_norm(X.T.copy().T, W, OUT, eps=1, threads=1),
        lambda: conv_call(draw(2, 3, 6), starts=np.ones((2, 5))),
        lambda: mlstm_call(q=Q.astype(np.float64)),
    ],
    ids=["float64", "strided", "starts", "mlstm"],
)
def test_other_types_and_strides_are_refused(call):
    with pytest.raises(TypeError, match="incompatible function arguments"):
        call()
    assert not OUT.any()
