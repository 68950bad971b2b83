"""What holds of native operators over sequences alone; test_operators.py: what they compute."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from mlxhog._native import ops
from mlxhog.models.ops.native.pairs import MLSTM, RECURRENCE, REGRESSION
from tests.models.test_native_ops import draw

Run = Callable[[int], list[Any]]


def attention_run(threads):
    """Outputs and gradients; heads that share a cache line, and more queries than one block."""
    B, S, L, NH, DH = 2, 45, 70, 5, 6
    q, k, v, d_out = draw(B, S, NH, DH), draw(B, L, NH, DH), draw(B, L, NH, DH, seed=1), draw(S)
    d_out = np.broadcast_to(d_out[None, :, None, None], q.shape).copy()
    lengths = np.array([45, 70], np.int32)
    out, lse = np.empty_like(q), np.empty((B, NH, S), np.float32)
    grads = [np.empty_like(x) for x in (q, k, v)]
    ops.attention(q, k, v, lengths, out, lse, window=40, threads=threads)
    ops.attention_grad(q, k, v, lengths, lse, d_out, *grads, window=40, threads=threads)
    turned = np.empty_like(q)
    ops.rope(q, np.array([3, 9], np.int32), turned, base=1e4, back=False, threads=threads)
    return [out, lse, *grads, turned]


def empty_like(*arrays):
    return [np.full_like(x, np.nan) for x in arrays]


def recurrence_run(threads, DK=18, DV=5, by_value=False, scalar=False, **removal):
    """More positions than a chunk; heads wider and narrower than a vector; odd rows."""
    B, S, NH = 2, 45, 3
    q, v = draw(B, S, NH, DV if by_value else DK), draw(B, S, NH, DV)
    k, state = draw(B, S, NH, DK, seed=1) / 5, draw(B, NH, DK, DV)
    log_decay = -np.abs(draw(B, S, NH, 1 if scalar else DK))
    own = (removal.get("beta"), removal.get("read"), removal.get("removal"))
    inputs = (q, k, v, log_decay, *own, state)
    how = {"scale": 0.5, "by_value": by_value, "threads": threads}
    results, saved = RECURRENCE.forward(*inputs, keep=True, **how)
    grads = RECURRENCE.backward(saved, results, [True] * 8, **how)
    return [*results, *(grad for grad in grads if grad is not None)]


def keys(*last):
    return np.abs(draw(2, 45, 3, *last, seed=2)) / 5


RECURRENCES = [
    partial(recurrence_run, scalar=True),
    partial(recurrence_run, by_value=True),
    partial(recurrence_run, DK=17, scalar=True, beta=keys()),
    partial(recurrence_run, DK=17, beta=keys()),
    partial(recurrence_run, DK=17, DV=21, read=keys(17), removal=keys(17)),
]


def regression_run(threads):
    """Heads wider than a vector, a state, and all gradients."""
    B, S, NH, D = 2, 45, 3, 18
    q, k, root = draw(B, S, NH, D), draw(B, S, NH, D, seed=1), draw(B, NH, D, D)
    inputs = (q, k / 4, -np.abs(draw(B, S, NH, 1)), 1 + np.abs(draw(NH, D)), root @ root.mT)
    how = {"steps": 20, "threads": threads}
    (x, last), saved = REGRESSION.forward(*inputs, keep=True, **how)
    return [x, last, *REGRESSION.backward((*saved, x), (q, last), [True] * 5, **how)]


def scan_run(threads):
    """More positions than a chunk, and channels and states that fill no vector."""
    B, S, C, N = 5, 37, 21, 6
    u, dt, A = draw(B, S, C), np.abs(draw(B, S, C, seed=1)), -np.abs(draw(C, N))
    Bt, Ct, state = draw(B, S, N), draw(B, S, N, seed=1), draw(B, C, N)
    states = np.empty(ops.scan_kept(B=B, S=S, C=C, N=N), np.float32)
    y, last = empty_like(u, state)
    ops.scan(u, dt, A, Bt, Ct, state, y, last, states, threads=threads)
    grads = empty_like(u, dt, A, Bt, Ct, state)
    ops.scan_grad(u, dt, A, Bt, Ct, states, dt, state, *grads, threads=threads)
    return [y, last, *grads]


def long_conv_run(threads):
    """Channels that fill no vector, positions that fill no tile, more taps than positions."""
    x, f, dy = draw(3, 37, 21), draw(21, 50), draw(3, 37, 21, seed=1)
    y, dx, df = empty_like(x, x, f)
    ops.long_conv(x, f, y, threads=threads)
    ops.long_conv_grad(x, f, dy, dx, df, threads=threads)
    return [y, dx, df]


@pytest.mark.parametrize(
    "run",
    [attention_run, *RECURRENCES, regression_run, scan_run, long_conv_run],
)
def test_the_bits_do_not_depend_on_the_number_of_threads(run):
    alone, three = run(1), run(3)
    for one, other in zip(alone, three, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_a_regression_of_a_tiny_query_is_finite_and_of_an_infinite_one_is_not():
    q, k = draw(1, 4, 1, 3), draw(1, 4, 1, 3, seed=1)
    q[0, :3] *= np.array([1e-25, np.nan, 1e30], np.float32)[:, None, None]
    inputs = (q, k, -np.abs(draw(1, 4, 1, 1)), np.ones((1, 3), np.float32), None)
    (x, _), _ = REGRESSION.forward(*inputs, steps=20, keep=False, threads=1)
    assert np.isfinite(x).all(-1).ravel().tolist() == [True, False, False, True]


@pytest.mark.parametrize("keep", [False, True])
def test_a_sequence_without_positions_leaves_the_state_as_it_is(keep):
    q, gate = draw(2, 0, 3, 4), draw(2, 0, 3)
    state = draw(2, 3, 4, 4), draw(2, 3, 4), draw(2, 3)
    how = {"chunk_size": 8, "eps": 1e-6, "keep": keep, "threads": 1}
    (h, *last), _ = MLSTM.forward(q, q, q, gate, gate, *state, **how)
    assert h.shape == (2, 0, 3, 4)
    for before, after in zip(state, last, strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("lengths", "window", "L", "expected"),
    [
        ([2], None, 9, "lengths has 2 at 0, expected 3 to 9"),
        ([10], None, 9, "lengths has 10 at 0, expected 3 to 9"),
        (None, -1, 9, "window must be 0 or more"),
        (None, None, 2, "k has 2 positions, q 3"),
    ],
)
def test_attention_refuses_what_it_would_read_past(lengths, window, L, expected):
    q, k = draw(1, 3, 2, 4), draw(1, L, 2, 4)
    counts = None if lengths is None else np.array(lengths, np.int32)
    out, lse = np.zeros_like(q), np.zeros((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match=expected):
        ops.attention(q, k, k, counts, out, lse, window=window, threads=1)
    assert not out.any()


def test_attention_over_scores_too_large_to_exponentiate_is_finite():
    q = 1e3 * np.ones((1, 40, 1, 4), np.float32)
    q[0, ::2] *= -1
    out, lse = np.empty_like(q), np.empty((1, 1, 40), np.float32)
    ops.attention(q, q, q, None, out, lse, window=None, threads=1)
    np.testing.assert_allclose(out, q, rtol=1e-6)  # each sees only keys of its own sign
